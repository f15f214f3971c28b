"""When a probe is due, and whether it is affordable."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ntk_monitor.checks import require

Plan = Literal["steps", "log", "epochs"] | Sequence[int]
"""``"steps"``: every N optimizer steps. ``"log"``: at steps 2, 3, 4, 6, 8, 12, 16, ..., twice per
doubling. ``"epochs"``: at the first step of every epoch. A list: at these steps."""
RESERVE = 0.2
"""Share of the allowance that is left for what no clock of the monitor sees: the caches that a
probe leaves cold, its hooks between probes."""


def require_plan(every_n_steps: int, max_overhead: float | None, plan: Plan) -> None:
    """Refuse settings of a schedule that are out of their range with a ValueError.

    Args:
        every_n_steps: See `Schedule`, as for the others.
        max_overhead: A share in (0, 1], or None.
        plan: The name of a plan, or steps of at least 1.
    """
    require(every_n_steps >= 1, "every_n_steps", "at least 1", every_n_steps)
    possible = max_overhead is None or 0 < max_overhead <= 1
    require(possible, "max_overhead", "a share of wall time in (0, 1], or None", max_overhead)
    if isinstance(plan, str):
        known = plan in {"steps", "log", "epochs"}
        require(known, "plan", "'steps', 'log', 'epochs' or a list of steps", plan)
    else:
        require(bool(plan) and min(plan) >= 1, "plan", "a list of steps of at least 1", plan)


@dataclass
class Schedule:
    """The planned probes, within a share of the wall time.

    A probe is due when the step count passes a planned step, so that several optimizers or
    accumulated batches cannot jump over it. It is skipped when probes, this one included, would
    have taken more than ``max_overhead`` of the time since training began, less `RESERVE`. The
    first probe, before the first step, does not ask.

    Attributes:
        every_n_steps: The interval of the plan ``"steps"``.
        max_overhead: Largest share of wall time, or None for no limit.
        plan: Which steps.
        clock: Seconds from an arbitrary moment.
        seen: How many planned probes were passed.
        spent: Seconds spent in probes, logging and figures included.
        last: Seconds that the latest probe took.
        skipped: Probes skipped so far.
    """

    every_n_steps: int
    max_overhead: float | None
    plan: Plan = "steps"
    clock: Callable[[], float] = time.perf_counter
    seen: int = 0
    spent: float = 0.0
    last: float = 0.0
    skipped: int = 0
    _started: float | None = field(default=None, repr=False)
    _before: float = field(default=0.0, repr=False)

    def reset(self) -> None:
        """A training begins anew."""
        self.seen, self.skipped = 0, 0
        self.spent = self.last = self._before = 0.0
        self._started = None

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs to know, in plain types."""
        return {
            "seen": self.seen,
            "skipped": self.skipped,
            "spent": self.spent,
            "last": self.last,
            "elapsed": self.elapsed,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on where a checkpoint was written.

        Args:
            state: What `state_dict` gave, or some of it.

        Raises:
            ValueError: If it holds what no schedule does.
        """
        values = {name: float(value) for name, value in state.items()}
        if not all(0 <= value < math.inf for value in values.values()):
            raise ValueError(f"a schedule has finite counts and times, got {dict(state)}")
        self.seen, self.skipped = int(values.get("seen", 0)), int(values.get("skipped", 0))
        self.spent, self.last = values.get("spent", 0.0), values.get("last", 0.0)
        # A state without it is of a version that kept to the limit.
        self._before = values.get("elapsed", self.spent / (self.max_overhead or 1.0))

    def start(self, step: int, epoch: int) -> None:
        """Training begins, or goes on after a resume.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.
        """
        if self._started is not None:  # the same Trainer goes on
            self._before = self.elapsed
        self._started = self.clock() - max(self._before, self.spent)
        self.seen = max(self.seen, self.passed(step, epoch))

    def passed(self, step: int, epoch: int) -> int:
        """How many planned probes there are up to a step.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.

        Returns:
            Their number; the probe before the first step is not counted.
        """
        if self.plan == "steps":
            return step // self.every_n_steps
        if self.plan == "epochs":
            return epoch
        if self.plan == "log":
            octave = max(step.bit_length() - 1, 0)
            return 0 if step < 1 else 2 * octave + (2 * step >= 3 * 2**octave and step > 1)
        return bisect_right(sorted(self.plan), step)

    def crosses(self, step: int, epoch: int = 0) -> bool:
        """Whether a planned probe was passed since this was last asked.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.

        Returns:
            True once for each planned probe, however dear it is; see `affords`.
        """
        passed = self.passed(step, epoch)
        crossed = passed > self.seen
        self.seen = max(self.seen, passed)
        return crossed

    def record(self, seconds: float) -> None:
        """Account for a probe.

        Args:
            seconds: Wall time that it took.
        """
        self.last = seconds
        self.spent += seconds

    @property
    def elapsed(self) -> float:
        """Seconds since training began, those before a resume included."""
        return self._before if self._started is None else self.clock() - self._started

    @property
    def overhead(self) -> float:
        """Share of that time that went to probes; 0 before."""
        return self.spent / self.elapsed if self.elapsed > 0 else 0.0

    def affords(self, seconds: float) -> bool:
        """Whether so much more may be spent now.

        Args:
            seconds: Wall time.

        Returns:
            True if the share of probes would stay within what ``max_overhead`` allows.
        """
        if self.max_overhead is None or self._started is None:
            return True
        allowance = (1 - RESERVE) * self.max_overhead
        return self.spent + seconds <= allowance * self.elapsed
