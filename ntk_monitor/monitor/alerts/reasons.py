"""Why a target mode is stalled, as far as its numbers tell, and what helps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import NamedTuple

from ntk_monitor.descent.prediction import LEARNED
from ntk_monitor.reason import Reason
from ntk_monitor.snapshot import Snapshot, TargetMode

LOW_OVERLAP = 0.01
"""Core overlap below which the activity is said to lack a mode."""
LOST = 0.1
"""Share of what a mode's core overlap promises, against the best mode, below which the propagator
is said to suppress it; and share of its steps to learn that a change must leave at most."""
MOST_IDLE = 0.9
"""Share of the state's units that are dead or saturated from which they are the reason."""
FAR = 10.0
"""How many times the remaining steps a rate may promise and still count as within reach."""
ROOM = 10.0
"""Headroom of the learning rate from which it may be what holds a mode back."""
CHANGES: tuple[tuple[Reason, str], ...] = (
    ("clipping", "without clipping"),
    ("decay", "without weight decay"),
    ("learning rate", "at ten times the learning rate"),
)
"""Reasons that are found by asking again with one thing changed."""


CURES: dict[str, list[tuple[str, int, int]]] = json.loads(
    files("ntk_monitor.monitor.alerts").joinpath("cures.json").read_text()
)
"""By reason, the remedies that cured most of the trainings that stalled for it, and how many of how
many; written by ``benchmarks/remedies.py --report``."""


class Finding(NamedTuple):
    """What holds a mode back.

    Attributes:
        reason: In a word.
        number: The number that shows it, in words.
        advice: What helps.
    """

    reason: Reason
    number: str
    advice: str


def find_reason(mode: TargetMode, snapshot: Snapshot, remaining: float) -> Finding:
    """What holds a stalled mode back, as far as its numbers tell; the same in every tier.

    Args:
        mode: The mode.
        snapshot: The measurement that it is of.
        remaining: Steps that remain.

    Returns:
        The first that fits: clipping or decay, where the mode would be in reach without; units that
        are dead or saturated; a readout that does not see the state; a learning rate that could be
        so much larger that the mode were in reach; activity that hardly has the mode's time course;
        a propagator that does not let the state follow; a learning rate that is too small by the
        forecast; a gradient that does not move what it sees. Where nothing is being learned, what
        would open the fastest mode holds back all.
    """
    found = (look(each, snapshot, remaining) for look, each in _looks(mode, snapshot, remaining))
    reason, number = next(each for each in found if each is not None)
    return Finding(reason, number, _ADVICE[reason] + measured(reason))


def measured(reason: Reason) -> str:
    """What was found to cure trainings that stall for a reason, and how to try it on one's own.

    Args:
        reason: The reason.

    Returns:
        Clauses to put behind an advice.
    """
    cures = ", ".join(f"{name} ({cured} of {of})" for name, cured, of in CURES.get(reason, ()))
    found = f". What cured trainings that stalled for this: {cures}" if cures else ""
    return (
        f"{found}. What cures this one is found out by `ntk-monitor try --config FILE --reason "
        f"'{reason}'`, or ntk_monitor.try_remedies"
    )


def is_explained(mode: TargetMode, snapshot: Snapshot, remaining: float) -> bool:
    """Whether the numbers of a mode tell what holds it back, whatever a step teaches other batches.

    A core that hardly has the mode does not: of what is noise, no activity has the time course.

    Args:
        mode: The mode.
        snapshot: The measurement that it is of.
        remaining: Steps that remain.

    Returns:
        True if it would be in reach without clipping or decay, or if units are idle or the readout
        is blind.
    """
    looks = (_by_change, _in_the_units)
    return any(look(mode, snapshot, remaining) is not None for look in looks)


Found = tuple[Reason, str] | None


def _by_change(mode: TargetMode, snapshot: Snapshot, remaining: float) -> Found:
    """Clipping or decay, without which it would be within reach.

    Of clipping that holds back steps which would be too large otherwise, it counts where the
    forecast without it learns the mode in time.

    Returns:
        The reason, and what would be without it; None where neither is one.
    """
    room = _room(snapshot)
    for reason, name in CHANGES[:2]:
        text = _opened(mode, name, remaining)
        if text and reason == "clipping" and room < 1:
            in_time = dict(mode.steps_if).get(name, math.inf) <= remaining
            smaller = f", at a learning rate {1 / room:.2g} times smaller" if room else ""
            text = text + smaller if in_time else ""
        if text:
            return reason, text
    return None


def _by_the_rate(mode: TargetMode, snapshot: Snapshot, remaining: float) -> Found:
    """A learning rate that could be so much larger that the mode were in reach."""
    room = _room(snapshot)
    if math.isinf(room):
        return "learning rate", "it is zero"
    gained = room * mode.rate * remaining
    if room < ROOM or not gained >= LEARNED - mode.learned:
        return None
    needed = (LEARNED - mode.learned) / (mode.rate * remaining)
    return (
        "learning rate",
        f"{max(needed, 1.0):.2g} times as large steps would do in time, up to {room:.2g} times are "
        "stable",
    )


def _room(snapshot: Snapshot) -> float:
    """How many times as large steps may be; 1 where that is not known."""
    found = snapshot.instruments
    return 1.0 if found is None or math.isnan(found.headroom) else found.headroom


def _in_the_units(mode: TargetMode, snapshot: Snapshot, remaining: float) -> Found:
    """Units that are no longer in their range, or a readout that is blind."""
    del remaining
    idle = snapshot.dead_units + snapshot.saturated_units
    if idle >= MOST_IDLE:
        return "saturated", f"{idle:.0%} of the state's units are dead or saturated"
    if mode.readout == 0:
        return "readout", "the outputs do not depend on the state"
    return None


def _in_the_activity(mode: TargetMode, snapshot: Snapshot, remaining: float) -> Found:
    """A core without the mode."""
    del snapshot, remaining
    if mode.core_overlap < LOW_OVERLAP:
        return "core", f"core overlap {mode.core_overlap:.2g}"
    return None


def _in_the_kernel(mode: TargetMode, snapshot: Snapshot, remaining: float) -> Found:
    """A propagator that lets the state follow far less than the activity promises."""
    del remaining
    modes = snapshot.target_modes
    best = max(modes, key=lambda other: other.gain if math.isfinite(other.gain) else -1.0)
    promised = mode.core_overlap / best.core_overlap if best.core_overlap else math.nan
    share = 1.0 if math.isnan(promised) else min(promised, 1.0)
    if mode.gain < LOST * share * best.gain:
        return "propagator", f"gain {mode.gain:.2g}, core overlap {mode.core_overlap:.2g}"
    return None


def _in_the_steps(mode: TargetMode, snapshot: Snapshot, remaining: float) -> Found:
    """A learning rate that is too small; else what the gradient sees, and does not move."""
    del snapshot
    reason, name = CHANGES[2]
    steps, as_it_is = (dict(mode.steps_if).get(n, math.inf) for n in (name, "as it is"))
    if steps < as_it_is:
        return reason, f"{name} {steps:.3g} steps"
    if mode.steps_to_learn is not None and mode.steps_to_learn <= remaining:
        return "gradient noise", f"{mode.steps_to_learn:.3g} steps on the batch that is probed"
    rates = dict(mode.rate_if)
    times = rates.get("with Adam", 0.0) / rates["as it is"] if rates.get("as it is") else 0.0
    if times > 1:
        return "propagator", f"{times:.2g} times the rate with Adam"
    return "propagator", "no change that was tried helps"


Look = Callable[[TargetMode, Snapshot, float], Found]


def _looks(
    mode: TargetMode, snapshot: Snapshot, remaining: float
) -> Iterator[tuple[Look, TargetMode]]:
    """What to look at, and of which mode, in order."""
    fastest = _fastest(snapshot.target_modes, remaining)
    first: tuple[Look, ...] = (_by_change, _in_the_units, _by_the_rate)
    for look in first:
        yield look, mode
        if fastest is not None and look is not _in_the_units:
            yield look, fastest
    for look in (_in_the_activity, _in_the_kernel, _in_the_steps):
        yield look, mode


def _fastest(modes: Sequence[TargetMode], remaining: float) -> TargetMode | None:
    """The mode with the highest rate, where none is learned or within reach."""
    steps = [math.nan if mode.steps_to_learn is None else mode.steps_to_learn for mode in modes]
    moving = [
        m for m, s in zip(modes, steps, strict=True) if m.learned >= LEARNED or s <= remaining
    ]
    known = [mode for mode in modes if math.isfinite(mode.rate)]
    return max(known, key=lambda mode: mode.rate) if known and not moving else None


def _opened(mode: TargetMode, name: str, remaining: float) -> str:
    """What a change makes of a mode, in words; empty where it would not bring it into reach.

    It does if the forecast with it says so, or says that it takes a tenth of the time and no more
    than `FAR` times the steps that remain; or if without it the mode has at most half the rate, and
    at that rate it would take no more than that: what is out of the forecast's sight may still be
    reached.

    Returns:
        A clause.
    """
    steps, rates = dict(mode.steps_if), dict(mode.rate_if)
    with_it = steps.get(name, math.inf)
    as_it_is = steps.get("as it is", math.inf)
    if with_it <= remaining or with_it <= min(FAR * remaining, LOST * as_it_is):
        return f"{name} {with_it:.3g} steps"
    rate = rates.get(name, 0.0)
    if rate <= 0 or rates.get("as it is", 0.0) > rate / 2:
        return ""
    by_rate = (LEARNED - mode.learned) / rate
    return f"{name} {by_rate:.3g} steps at its rate" if by_rate <= FAR * remaining else ""


_ADVICE: dict[str, str] = {
    "clipping": "clip at a larger norm, or not at all",
    "decay": "a smaller weight decay",
    "saturated": "start from an initialisation whose units are in their range, with smaller "
    "weights or a normalisation before the nonlinearity",
    "readout": "look at what lies between the state and the outputs: frozen or zero weights, a "
    "detach()",
    "core": "start from an initialisation whose activity is alive where this part of the target "
    "lives (the paper's Network 2), or train it in with a curriculum",
    "propagator": "look at spatial_effective_rank and the recurrent gain; orthogonal recurrent "
    "weights, or an optimizer such as Adam or Shampoo, see what the kernel hardly has",
    "learning rate": "a larger learning rate, where that is stable, or more steps",
    "gradient noise": "larger batches, a smaller learning rate or averaged weights",
}


def stall_message(
    mode: TargetMode, found: Finding, remaining: float, step: int, level: float | None
) -> str:
    """What is known of a stalled mode, and what helps.

    Args:
        mode: The mode.
        found: What holds it back.
        remaining: Steps that remain.
        step: Now.
        level: Of the test; None where the mode only stands still, and nothing is certain.

    Returns:
        A few sentences.
    """
    others = ", ".join(
        f"{name} {'never' if math.isinf(steps) else f'{steps:.3g}'}"
        for name, steps in mode.steps_if[1:]
    )
    slow = "and it stands still" if level is None else "and it does not grow fast enough"
    sure = "" if level is None else f" ({1 - level:.0%} sure)"
    return (
        f"Target mode {mode.index} is stalled at step {step}: learned {mode.learned:z.3f}, "
        f"{in_steps(mode.steps_to_learn)} where {remaining:.0f} remain, {slow}{sure}. "
        f"Reason: {found.reason} ({found.number}). What helps: "
        f"{found.advice}."
        + (f" Steps to learn with one thing changed: {others}." if others else "")
    )


def in_steps(steps: float | None) -> str:
    """Steps to learn in words.

    Args:
        steps: How many; None where that is not known.

    Returns:
        A clause.
    """
    if steps is None:
        return "in an unknown number of steps"
    return "not learned in any number of steps" if math.isinf(steps) else f"needs {steps:.3g} steps"


def unpredictable_message(
    mode: TargetMode,
    transfer: tuple[float, float] | None,
    realised: tuple[float, float] | None,
    step: int,
) -> str:
    """What is known of a mode that a step on one batch does not teach another.

    Args:
        mode: The mode.
        transfer: What is known of its transfer.
        realised: What of its steps added up.
        step: Now.

    Returns:
        A few sentences.
    """
    numbers = {"transfer": transfer, "of what steps promise came true": realised}
    known = [f"{name} {each[0]:z.2f} ± {each[1]:.2f}" for name, each in numbers.items() if each]
    return (
        f"Target mode {mode.index} is unpredictable at step {step}: learned {mode.learned:z.3f}, "
        "and though a step on one batch would fit it there, that does little for others"
        + (f" ({'; '.join(known)})" if known else "")
        + ". It is noise, or nothing that this network sees yet in its inputs: look at the labels, "
        "try larger batches, a smaller learning rate or another network."
    )
