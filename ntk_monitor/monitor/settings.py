"""The settings of a monitor that are not those of its probes, and all of them as keywords."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

from ntk_monitor.monitor.failures import OnError
from ntk_monitor.monitor.schedule import Plan
from ntk_monitor.monitor.tracked_state import NamedStates
from ntk_monitor.probing.settings import StatelessKeywords


@dataclass(kw_only=True, eq=False)
class PlanSettings:
    """When a monitor probes, for how long, and with which tangents.

    Attributes:
        max_overhead_seconds: Seconds that may be spent where ``max_overhead`` allows less; 0 for
            that share alone.
        plan: When to probe: ``"steps"``, every ``every_n_steps``; ``"log"``, twice per doubling of
            the step; ``"epochs"``, at the start of each; or a list of steps.
        redraw_every_n_epochs: Draw new random tangents every so many epochs. With fixed ones (None)
            successive probes share their sampling error, which hides nothing of a trend; the jump
            at a redraw shows how uncertain the level is.
    """

    max_overhead_seconds: float = 10.0
    plan: Plan = "steps"
    redraw_every_n_epochs: int | None = None


class MonitorKeywords(StatelessKeywords, total=False):
    """The settings of a plan and of its probes as keywords."""

    max_overhead_seconds: float
    plan: Plan
    redraw_every_n_epochs: int | None


class LoopKeywords(MonitorKeywords, total=False):
    """All settings of a monitor as keywords, but for when it probes."""

    max_overhead: float | None
    probe_batch: Any
    on_error: OnError
    figures: bool
    state: NamedStates


def separated(settings: MonitorKeywords) -> tuple[PlanSettings, StatelessKeywords]:
    """Settings of a plan, and those of its probes.

    Args:
        settings: Both as keywords.

    Returns:
        Each by itself.
    """
    of_plan = {field.name for field in fields(PlanSettings)}
    plan: dict[str, Any] = {k: v for k, v in settings.items() if k in of_plan}
    rest = {name: value for name, value in settings.items() if name not in of_plan}
    return PlanSettings(**plan), cast("StatelessKeywords", rest)
