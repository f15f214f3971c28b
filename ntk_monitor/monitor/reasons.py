"""Why a target mode is stalled, as far as its numbers tell, and what helps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ntk_monitor.monitor.delivery import Reason
from ntk_monitor.snapshot import TargetMode

LOW_OVERLAP = 0.01
"""Core overlap below which the activity is said to lack a mode."""
LOW_ALIGNMENT = 0.01
"""Alignment below which the kernel is said not to see a mode."""
LOST = 0.1
"""Share of what a mode's core overlap promises, against the best mode, below which the propagator
is said to suppress it."""


def steps_to_learn(mode: TargetMode) -> float | None:
    """Steps to learn under the optimizer in use.

    Args:
        mode: A target mode.

    Returns:
        Those of the preconditioned kernel, if there is one, else plain gradient descent's.
    """
    return mode.steps_to_learn


def reason_of(mode: TargetMode, modes: Sequence[TargetMode]) -> Reason:
    """What holds a stalled mode back, as far as its numbers tell.

    Args:
        mode: The mode.
        modes: All modes of the target.

    Returns:
        ``"core"`` if the activity hardly has its time course; ``"propagator"`` if the kernel
        hardly sees it, by its alignment or against what its core overlap promises beside the best
        mode; else ``"learning rate"``.
    """
    if mode.core_overlap < LOW_OVERLAP:
        return "core"
    best = max(modes, key=lambda other: other.gain if math.isfinite(other.gain) else -1.0)
    promised = mode.core_overlap / best.core_overlap if best.core_overlap else math.nan
    share = 1.0 if math.isnan(promised) else min(promised, 1.0)
    suppressed = mode.gain < LOST * share * best.gain
    return "propagator" if suppressed or mode.alignment.value < LOW_ALIGNMENT else "learning rate"


def stall_message(
    mode: TargetMode, reason: Reason, remaining: float, step: int, level: float
) -> str:
    """What is known of a stalled mode, and what helps.

    Args:
        mode: The mode.
        reason: What holds it back.
        remaining: Steps that remain.
        step: Now.
        level: Of the test.

    Returns:
        A few sentences.
    """
    steps = steps_to_learn(mode) or math.nan
    plain = True
    why, advice = {
        "core": (
            "the activity that the weights multiply hardly has this mode's time course (core "
            f"overlap {mode.core_overlap:.2g})",
            "start from an initialisation whose activity is alive where this part of the target "
            "lives (the paper's Network 2), or train it in with a curriculum"
            + ", or use a preconditioned optimizer such as Shampoo"
            * plain,
        ),
        "propagator": (
            f"the activity has this mode's time course (core overlap {mode.core_overlap:.2g}), but "
            f"the propagator does not let the state follow (alignment {mode.alignment})",
            "look at spatial_effective_rank and the recurrent gain"
            + "; a preconditioned optimizer such as Shampoo amplifies what the kernel hardly has"
            * plain,
        ),
        "learning rate": (
            "the kernel sees this mode as well as any, and only the steps are too small",
            f"a learning rate {steps / remaining:.2g} times as large, where that is stable, or as "
            "many times more steps",
        ),
    }.get(reason, ("unknown", "look at the other numbers"))
    return (
        f"Target mode {mode.index} is stalled at step {step}: learned {mode.learned:z.3f}, needs "
        f"{steps:.3g} steps where {remaining:.0f} remain, and does not grow fast enough "
        f"({1 - level:.0%} sure). Reason: {reason}; {why}. What helps: {advice}."
    )
