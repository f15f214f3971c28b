"""Which trial comes next, and what is known so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ntk_monitor.remedies.course import STAGES
from ntk_monitor.remedies.remedy import Remedy
from ntk_monitor.remedies.results import Trials
from ntk_monitor.remedies.trial import Job, Trial

FEWEST = 3
"""Trials that must have come as far before one ends early, with a loss above their median."""
LONGER = 0.25
"""Share of the steps that longer trials take, which tell whether a lead lasts."""
TIMES = 1.5
"""How many times as long as others they must be to tell it."""


class Race:
    """Trials of remedies, one after the other or several at a time.

    First comes the baseline, then each remedy, of which those that are behind end early. Where one
    is ahead, and the baseline fell so fast that it may make up for that, both are tried for longer.
    """

    def __init__(self, base: Job, tried: Sequence[Remedy], max_cost: float) -> None:
        """Begin.

        Args:
            base: The baseline.
            tried: The remedies, in order.
            max_cost: Most that all trials may cost, in whole trainings. Trials for longer get what
                others leave, up to a half of it.
        """
        self._base, self._left, self._max_cost = base, list(tried), max_cost
        self._baseline: Trial | None = None
        self._found: list[Trial] = []
        self._not_tried: list[Trial] = []
        self._running: dict[int, Job] = {}
        self._longer: list[Job] | None = None
        self._later: dict[bool, Trial] = {}

    def next(self) -> Job | None:
        """The next trial.

        Returns:
            What to do; None where there is nothing more to do, or not yet.
        """
        job = self._next()
        if job is not None:
            self._running[id(job)] = job
        return job

    def _next(self) -> Job | None:
        if self._baseline is None:
            return None if self._running else self._base
        if not self._baseline.losses:
            return None
        while self._left:
            remedy = self._left.pop(0)
            cost = remedy.cost * self._baseline.steps / self._baseline.planned
            if self._base.ckpt is not None and remedy.fresh:
                self._skip(remedy, "it needs a training from its beginning")
            elif self._spent + cost > self._max_cost * (1 - LONGER):
                self._skip(remedy, "the trials before it took what they may cost")
            else:
                return replace(self._base, remedy=remedy, bars=self._bars())
        if self._longer is None and not self._running:
            self._longer = list(self._for_longer())
        return self._longer.pop(0) if self._longer else None

    def _for_longer(self) -> Iterator[Job]:
        """Longer trials of the baseline and of what is ahead, where they are needed."""
        found, baseline = self.result, self._baseline
        ahead = found.ahead
        if ahead is None or baseline is None or not found.may_be_made_up(ahead):
            return
        whole = baseline.left / baseline.planned
        affordable = (self._max_cost - self._spent) / (1 + ahead.remedy.cost) / whole
        share = min(LONGER, affordable)
        if share * baseline.left < TIMES * baseline.steps:
            return
        for remedy in (self._base.remedy, ahead.remedy):
            yield replace(self._base, remedy=remedy, share=share)

    @property
    def _spent(self) -> float:
        """What trials cost that are over, and those at work at most, in whole trainings."""
        baseline = self._baseline
        if baseline is None:
            return 0.0
        every = (baseline, *self._found, *self._later.values())
        over = sum(trial.cost for trial in every if trial.steps)
        each = baseline.steps / baseline.planned
        return over + sum(job.remedy.cost * each for job in self._running.values())

    def learn(self, job: Job, trial: Trial) -> None:
        """Keep what came of a trial.

        Args:
            job: What was to be done.
            trial: What came of it.
        """
        self._running.pop(id(job), None)
        if job.share != self._base.share:
            self._later[job.remedy is self._base.remedy] = trial
        elif self._baseline is None:
            self._baseline = trial
        else:
            self._found.append(trial)

    def stop(self, why: str) -> None:
        """Begin no trial any more.

        Args:
            why: In words.
        """
        others = [job.remedy for job in self._running.values() if job.share == self._base.share]
        for remedy in (*others, *self._left):
            if remedy is not self._base.remedy:
                self._skip(remedy, why)
        self._left.clear()
        self._running.clear()
        self._longer = []

    def _skip(self, remedy: Remedy, why: str) -> None:
        self._not_tried.append(Trial(remedy, {}, ended=f"not tried: {why}"))

    def _bars(self) -> dict[int, float]:
        """By stage, the loss above which a trial ends early."""
        bars = {}
        every = [t for t in (self._baseline, *self._found) if t is not None]
        for stage in range(1, STAGES):
            known = [float(np.mean(t.losses[stage])) for t in every if stage in t.losses]
            if len(known) >= FEWEST:
                bars[stage] = float(np.median(known))
        return bars

    @property
    def result(self) -> Trials:
        """All trials so far."""
        baseline = self._baseline or Trial(Remedy(), {}, ended="was not tried to its end")
        both = (self._later[True], self._later[False]) if len(self._later) == 2 else None
        return Trials(baseline, tuple(sorted([*self._found, *self._not_tried], key=_rank)), both)


def _rank(trial: Trial) -> tuple[int, float]:
    """Best first: whole ones by their loss, then by how far they came, then those without any."""
    loss = trial.loss
    if loss is None or not math.isfinite(loss.value):
        return (0, 0.0)
    return (-max(trial.losses) - STAGES * trial.is_whole, loss.value)
