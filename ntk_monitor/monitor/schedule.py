"""When a probe is due, whether it is affordable, and how far it goes."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ntk_monitor.checks import require
from ntk_monitor.monitor.budget import (
    PASSES,
    WHOLE_EVERY,
    Outlook,
    is_turn,
    outlook,
    products_of_whole,
)

Plan = Literal["steps", "log", "epochs"] | Sequence[int]
"""``"steps"``: every N optimizer steps. ``"log"``: at steps 2, 3, 4, 6, 8, 12, 16, ..., twice per
doubling. ``"epochs"``: at the first step of every epoch. A list: at these steps."""
MOST_PROBES = 60
"""Probes that the monitor plans for a training, where nobody says otherwise."""
INTERVAL = 100
"""Steps from probe to probe where nobody says how many, and the end is not known."""
VERDICT_PROBES = 8
"""Probes after the first tenth of a training that the alert takes for a verdict, about."""
WARMUP = 0.1
"""The part of a training, at its beginning, that gives no verdict."""
RESERVE = 0.2
"""Share of the allowance that is left for what no clock of the monitor sees: the caches that a
probe leaves cold, its hooks between probes."""
FIGURE_SHARE = 0.25
"""Share of the allowance that is for figures, where a logger takes them."""
NONE, CHEAP = 0, 1
"""A choice is the number of products that a probe may spend: none at all is no probe, and one
stands for the few of a cheap one."""


def require_plan(
    every_n_steps: int | None, max_overhead: float | None, max_overhead_seconds: float, plan: Plan
) -> None:
    """Refuse settings of a schedule that are out of their range with a ValueError.

    Args:
        every_n_steps: See `Schedule`, as for the others.
        max_overhead: A share in (0, 1], or None.
        max_overhead_seconds: 0 or more.
        plan: The name of a plan, or steps of at least 1.
    """
    whole = isinstance(every_n_steps, int) and not isinstance(every_n_steps, bool)
    some = every_n_steps is None or (whole and every_n_steps >= 1)
    expected = "a whole number of steps, at least 1, or None (plan='epochs' probes once in each)"
    require(some, "every_n_steps", expected, every_n_steps)
    possible = max_overhead is None or 0 < max_overhead <= 1
    require(possible, "max_overhead", "a share of wall time in (0, 1], or None", max_overhead)
    finite = 0 <= max_overhead_seconds < math.inf
    require(finite, "max_overhead_seconds", "0 seconds or more", max_overhead_seconds)
    if isinstance(plan, str):
        known = plan in {"steps", "log", "epochs"}
        require(known, "plan", "'steps', 'log', 'epochs' or a list of steps", plan)
    else:
        require(bool(plan) and min(plan) >= 1, "plan", "a list of steps of at least 1", plan)


@dataclass(kw_only=True)
class Account:
    """What a resumed training needs to know of its probes, beside the time that has passed.

    Attributes:
        seen: How many planned probes were passed.
        spent: Seconds spent in probes, logging and figures included.
        last: Seconds that the latest probe took.
        skipped: Probes skipped so far.
        base: The step at which the clock began.
        probes: Probes taken so far.
        wholes: The whole ones among them.
        judged: Those after the first tenth of the training.
        probed: The step of the latest one.
        taken: Its place among the planned ones.
        whole_at: That of the latest whole one.
        drawn_at: That of the latest one with figures.
        cheap_last: Whether the latest one was a cheap one.
        cheap_seconds: What a cheap one takes; 0 while that is not known.
        whole_seconds: What a whole one takes, likewise.
        per_product: What a product takes, likewise.
        size: Products of a whole one, the same for all; 0 before the first.
        figure_seconds: What figures take; 0 where there are none.
        figures_spent: Seconds spent on figures.
        figures_due: Whether figures are wanted before their turn, and a whole probe with them; an
            alert may set this.
        announced: Whether it was said what is planned.
    """

    seen: int = 0
    spent: float = 0.0
    last: float = 0.0
    skipped: int = 0
    base: int = 0
    probes: int = 0
    wholes: int = 0
    judged: int = 0
    probed: int = 0
    taken: int = 0
    whole_at: int = 0
    drawn_at: int = 0
    cheap_last: bool = False
    cheap_seconds: float = 0.0
    whole_seconds: float = 0.0
    per_product: float = 0.0
    size: int = 0
    figure_seconds: float = 0.0
    figures_spent: float = 0.0
    figures_due: bool = False
    announced: bool = False


@dataclass
class Schedule(Account):
    """The planned probes, within a share of the wall time or some seconds, whichever is more.

    A probe is due when the step count passes a planned step, so that several optimizers or
    accumulated batches cannot jump over it. Whether it is taken is asked then: where the planned
    ones would take more than the training can pay for, they are thinned out evenly up to its end,
    by what a probe and a step have taken so far. The first ones are cheap, to learn what they cost;
    after that some are whole, or all of them where these can be paid for, and the last one is.

    Attributes:
        every_n_steps: The interval of the plan ``"steps"``; None for `MOST_PROBES` over the
            training, or one every `INTERVAL` steps where its end is not known.
        max_overhead: Largest share of wall time, or None for no limit.
        plan: Which steps.
        clock: Seconds from an arbitrary moment.
        max_overhead_seconds: Seconds that may be spent where that share is less.
        two_kinds: Whether a cheap probe is another one than a whole one.
        total: Optimizer steps of the whole training; infinite where that is not known.
    """

    every_n_steps: int | None
    max_overhead: float | None
    plan: Plan = "steps"
    clock: Callable[[], float] = time.perf_counter
    max_overhead_seconds: float = 0.0
    two_kinds: bool = True
    total: float = math.inf
    _drawn: float = field(default=0.0, repr=False)
    _started: float | None = field(default=None, repr=False)
    _before: float = field(default=0.0, repr=False)

    def reset(self) -> None:
        """A training begins anew."""
        vars(self).update(vars(Account()), total=math.inf, _drawn=0.0, _started=None, _before=0.0)

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs to know, in plain types."""
        known = {name: getattr(self, name) for name in vars(Account())}
        return {**known, "elapsed": self.elapsed}

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
        for name, fresh in vars(Account()).items():
            setattr(self, name, type(fresh)(values.get(name, fresh)))
        # A state without it is of a version that kept to the share.
        self._before = values.get("elapsed", self.spent / (self.max_overhead or 1.0))

    def start(self, step: int, epoch: int, total: float = math.inf) -> None:
        """Training begins, or goes on after a resume.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.
            total: Optimizer steps of the whole training; infinite where that is not known.
        """
        if self._started is not None:  # the same Trainer goes on
            self._before = self.elapsed
        if not self._before:
            self.base = step
        self._started = self.clock() - max(self._before, self.spent)
        self.total = total
        passed = self.passed(step, epoch)
        self.seen = passed if self.planned else max(self.seen, passed)
        if self.planned:  # for another number of steps, perhaps
            self.taken, self.whole_at, self.drawn_at = (
                min(place, passed) for place in (self.taken, self.whole_at, self.drawn_at)
            )

    @property
    def planned(self) -> bool:
        """Whether the monitor itself plans the probes."""
        return self.every_n_steps is None and self.plan == "steps"

    @property
    def interval(self) -> float:
        """Steps from one probe that is planned by number to the next."""
        if self.every_n_steps is not None:
            return self.every_n_steps
        return INTERVAL if math.isinf(self.total) else max(self.total / MOST_PROBES, 1)

    def passed(self, step: int, epoch: int) -> int:
        """How many planned probes there are up to a step.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.

        Returns:
            Their number; the probe before the first step is not counted.
        """
        if self.plan == "steps":
            many = self.planned and MOST_PROBES < self.total < math.inf
            return step * MOST_PROBES // int(self.total) if many else step // int(self.interval)
        if self.plan == "epochs":
            return epoch
        if self.plan == "log":
            octave = max(step.bit_length() - 1, 0)
            return 0 if step < 1 else 2 * octave + (2 * step >= 3 * 2**octave and step > 1)
        return bisect_right(sorted(self.plan), step)

    def end(self, step: int, epoch: int = 0) -> float:
        """How many planned probes there are in the whole training.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.

        Returns:
            Their number; infinite where it is not known, or the training goes on past its end.
        """
        if math.isinf(self.total) or step > self.total:
            return math.inf
        if self.plan == "epochs":
            return epoch * self.total / step if step and epoch else math.inf
        return self.passed(int(self.total), epoch)

    def crosses(self, step: int, epoch: int = 0) -> bool:
        """Whether a planned probe was passed since this was last asked.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.

        Returns:
            True once for each planned probe, however dear it is; see `choose`.
        """
        passed = self.passed(step, epoch)
        crossed = passed > self.seen
        self.seen = max(self.seen, passed)
        return crossed

    def choose(self, step: int, epoch: int, most: int, *, final: bool = False) -> int:
        """Whether a planned probe is taken, and how far it goes.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.
            most: Most products that a probe may spend.
            final: Whether there will be no other one.

        Returns:
            The products of a whole one, `CHEAP`, or `NONE`.
        """
        if self.max_overhead is None or self._started is None:
            return most
        left, (cheap, whole) = self._left(step), self._costs(step, most)
        size = self._size(step, most)
        if final or (step and self.passed(step, epoch) >= self.end(step, epoch)):
            left = self.limit(step) - self.spent  # what was kept for figures, too
            return size if whole <= left and self.probes else self._cheap_within(left)
        slots = self.end(step, epoch) - self.taken
        if self.probes < 2 and (not self.probes or slots * whole > left):
            return self._cheap_within(left)  # the first takes longer than others do
        if math.isinf(self.end(step, epoch)):
            return self._choose_by_the_way(step, left, cheap, whole, size)
        return self._choose_by_turns(step, epoch, left, size, (cheap, whole))

    def lacks_end(self, step: int) -> bool:
        """Whether a training that has ended lacks its last probe.

        Args:
            step: Optimizer steps taken.

        Returns:
            True if steps came after the latest one, and it was a cheap one or there was no number
            of steps to keep to.
        """
        return step > self.probed and (self.planned or self.cheap_last)

    def _cheap_within(self, left: float) -> int:
        return CHEAP if self.cheap_seconds <= left else NONE

    def _choose_by_turns(
        self, step: int, epoch: int, left: float, size: int, costs: tuple[float, float]
    ) -> int:
        """The choice where the end is known."""
        now, end = self.passed(step, epoch), self.end(step, epoch)
        ahead = outlook(left, end - self.taken, self.probes, *costs)
        if not ahead.probes or not is_turn(now, self.taken, end, ahead.probes):
            return NONE
        wanted = not self.wholes or self.figures_due
        turn = wanted or is_turn(now, self.whole_at, end, ahead.whole)
        return size if ahead.whole and turn else CHEAP

    def _choose_by_the_way(
        self, step: int, left: float, cheap: float, whole: float, size: int
    ) -> int:
        """The choice where nobody knows what is to come: as long as there is something left."""
        reserved = whole if left >= 2 * whole else 0.0
        if cheap > left - reserved:
            return NONE
        wanted = not self.wholes or self.figures_due or self.seen - self.whole_at >= WHOLE_EVERY
        all_whole = (self.probes + 1) * whole <= self.limit(step)
        return size if reserved and (wanted or all_whole) else CHEAP

    def wants_figures(self, step: int, epoch: int, started: float, *, final: bool) -> bool:
        """Whether the figures of a whole probe may be drawn.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.
            started: When the probe began, by the clock.
            final: Whether there will be no other one.

        Returns:
            True if they are affordable, and it is their turn.
        """
        if self.max_overhead is None or self._started is None:
            return True
        each, limit = self.figure_seconds, self.limit(step)
        if self.spent + self.clock() - started + each > limit:
            return False
        now, end = self.passed(step, epoch), self.end(step, epoch)
        if self.figures_due or not self.figures_spent or final or now >= end:
            return True
        more = (FIGURE_SHARE * limit - self.figures_spent) // each - 1 if each else math.inf
        return more >= 1 and (math.isinf(end) or is_turn(now, self.drawn_at, end, more))

    def drew(self, seconds: float) -> None:
        """Account for figures, as a part of the probe that goes on.

        Args:
            seconds: Wall time that they took.
        """
        self.figures_spent += seconds
        self._drawn += seconds
        self.figure_seconds = self._drawn

    def record(self, seconds: float) -> None:
        """Account for time that has gone to probes.

        Args:
            seconds: Wall time.
        """
        self.last = seconds
        self.spent += seconds

    def record_probe(
        self, seconds: float, step: int, epoch: int, choice: int, products: float
    ) -> None:
        """Account for a probe that was taken.

        Args:
            seconds: Wall time that it took, with logging and figures.
            step: Optimizer steps taken so far.
            epoch: The present epoch.
            choice: What `choose` said.
            products: Products that it spent.
        """
        self.record(seconds)
        alone = seconds - self._drawn
        now = self.passed(step, epoch)
        self.probes += 1
        self.judged += step >= WARMUP * self.total
        self.probed, self.taken = step, now
        self.cheap_last = self.two_kinds and choice == CHEAP
        self.per_product = alone / (products + PASSES)
        if choice == CHEAP:
            self.cheap_seconds = alone if self.probes < 3 else (self.cheap_seconds + alone) / 2
        else:
            self.wholes += 1
            self.whole_seconds = (alone + (self.whole_seconds or alone)) / 2
            self.whole_at, self.size = now, choice
        if self._drawn:
            self.drawn_at, self._drawn = now, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since training began, those before a resume included."""
        return self._before if self._started is None else self.clock() - self._started

    @property
    def overhead(self) -> float:
        """Share of that time that went to probes; 0 before."""
        return self.spent / self.elapsed if self.elapsed > 0 else 0.0

    def expected(self, step: int) -> float:
        """Seconds that the whole training will take.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            The time so far, and what the steps to come take if they go on like those so far.
        """
        made, to_come = step - self.base, self.total - step
        if made < 1 or to_come < 0 or math.isinf(to_come):
            return self.elapsed
        return self.elapsed + to_come * max(self.elapsed - self.spent, 0.0) / made

    def limit(self, step: int) -> float:
        """Seconds that probes, logging and figures may take together.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            The allowance of the whole training, or of the time so far where its end is not known.
        """
        if self.max_overhead is None:
            return math.inf
        share = self.max_overhead * self.expected(step)
        return (1 - RESERVE) * max(share, self.max_overhead_seconds)

    def _left(self, step: int) -> float:
        """Seconds that may still go to probes, without what is for figures."""
        limit = self.limit(step)
        if math.isinf(limit):
            return limit
        kept = FIGURE_SHARE * limit - self.figures_spent if self.figure_seconds else 0.0
        return limit - self.spent - max(kept, 0.0)

    def _costs(self, step: int, most: int) -> tuple[float, float]:
        """Seconds that a cheap probe and a whole one take, as far as that is known."""
        if not self.two_kinds:
            each = self.cheap_seconds or self.whole_seconds
            return each, each
        whole = self.whole_seconds or self.per_product * (self._size(step, most) + PASSES)
        return self.cheap_seconds or whole, whole

    def _size(self, step: int, most: int) -> int:
        """Products of a whole probe, as many as of the first one."""
        return self.size or products_of_whole(self.limit(step), self.per_product, most)

    def ahead(self, step: int, epoch: int, most: int) -> Outlook:
        """What is planned from here on, the last probe not counted.

        Args:
            step: Optimizer steps taken so far.
            epoch: The present epoch.
            most: Most products that a probe may spend.

        Returns:
            How many probes there will be, and what they will take.
        """
        slots = self.end(step, epoch) - self.passed(step, epoch)
        cheap, whole = self._costs(step, most)
        if self.max_overhead is None:
            cheap = whole
        return outlook(self._left(step), slots, self.probes, cheap, whole)
