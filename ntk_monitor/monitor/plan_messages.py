"""What a monitor says of its plan, and of a training that was probed too rarely."""

from __future__ import annotations

import math

from ntk_monitor.monitor.schedule import FIGURE_SHARE, RESERVE, VERDICT_PROBES, WARMUP, Schedule

FEWEST = math.ceil(VERDICT_PROBES / (1 - WARMUP))
"""Evenly spread probes of which enough for a verdict come after the first tenth."""

MODERATE = 0.3
"""Largest share of a training that is worth proposing."""


def intentions(schedule: Schedule, step: int, epoch: int, most: int) -> str:
    """How many probes are planned, what they take, and whether an alert can judge by them.

    Args:
        schedule: The schedule, after a probe.
        step: Optimizer steps taken so far.
        epoch: The present epoch.
        most: Most products that a probe may spend.

    Returns:
        A sentence; empty where nothing is to come.
    """
    end, now = schedule.end(step, epoch), schedule.passed(step, epoch)
    if math.isinf(end):
        return (
            "the length of this training is not known, so that there is a probe at each planned "
            f"step as long as {_allowance(schedule)} pays for it"
        )
    if now >= end:
        return ""
    ahead = schedule.ahead(step, epoch, most)
    probes, wholes = schedule.probes + ahead.probes + 1, schedule.wholes + ahead.whole + 1
    interval = max((schedule.total - step) / (ahead.probes + 1), 1)
    seconds = schedule.spent + ahead.seconds
    said = f"{probes:.0f} probes planned, "
    if schedule.plan == "steps":
        said += f"every {interval:.0f} steps, "
    if schedule.two_kinds:
        said += "all whole, " if wholes >= probes else f"{wholes:.0f} of them whole, "
    said += f"about {max(seconds, 1):,.0f} s in all"
    later = (1 - WARMUP) * schedule.total / max(schedule.total - step, 1)
    if schedule.judged + (ahead.probes + 1) * min(later, 1) >= VERDICT_PROBES:
        return said
    return f"{said}; {too_few(schedule, schedule.total)}"


def shortcomings(schedule: Schedule, step: int) -> list[str]:
    """What would have let an alert judge a training that has ended.

    Args:
        schedule: The schedule.
        step: Optimizer steps taken.

    Returns:
        A sentence, or nothing where there was nothing amiss.
    """
    if schedule.judged >= VERDICT_PROBES or math.isinf(schedule.total) or not step:
        return []
    steps = min(schedule.total, step)
    few = too_few(schedule, steps)
    return [f"{schedule.judged} of its probes came after its first tenth, {few}"]


def too_few(schedule: Schedule, steps: float) -> str:
    """What to do where there are too few probes for a verdict.

    Args:
        schedule: The schedule.
        steps: Optimizer steps of the training.

    Returns:
        The rest of a sentence.
    """
    said = f"too few for the verdict of an alert, which takes about {VERDICT_PROBES}"
    if steps < FEWEST:
        return f"{said}: the training is too short"
    remedies = [*_closer(schedule, steps), *_dearer(schedule, steps)]
    return f"{said}: {', or '.join(remedies)} would change that" if remedies else said


def _closer(schedule: Schedule, steps: float) -> list[str]:
    """The setting of the plan, if that is what makes them few."""
    if schedule.planned or schedule.end(int(steps), 0) >= FEWEST:
        return []
    return [f"every_n_steps={max(int(steps / (2 * FEWEST)), 1)}"]


def _dearer(schedule: Schedule, steps: float) -> list[str]:
    """The settings of the allowance, if there is one."""
    if schedule.max_overhead is None:
        return []
    each = schedule.cheap_seconds or schedule.whole_seconds or schedule.last
    needed = FEWEST * each + 2 * (schedule.whole_seconds or each) + 2 * schedule.figure_seconds
    needed /= (1 - RESERVE) * (1 - FIGURE_SHARE)
    seconds = math.ceil(max(needed, schedule.max_overhead_seconds + 1))
    if not schedule.skipped and needed <= schedule.limit(int(steps)) / (1 - RESERVE):
        return []
    share = math.ceil(100 * max(needed / max(schedule.expected(int(steps)), 1e-9), 0.01)) / 100
    found = [f"max_overhead_seconds={seconds}"]
    some = schedule.max_overhead < share <= MODERATE
    return [*found, f"max_overhead={share:g}"] if some else found


def _allowance(schedule: Schedule) -> str:
    """The allowance in words."""
    if schedule.max_overhead is None:
        return "no limit"
    share = f"{schedule.max_overhead:.3g} of its time"
    some = schedule.max_overhead_seconds
    return f"{share}, or {some:g} s," if some else share
