"""The course of one trial: how far it goes, and what is seen of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ntk_monitor.model.batch.copies import fingerprint
from ntk_monitor.remedies.held_out import HeldOut
from ntk_monitor.snapshot import Snapshot

SEEN = 3
"""Batches whose content tells whether trials see the same data."""
STAGES = 3
"""A trial is looked at after a quarter, a half and all of its steps."""


@dataclass
class Course:
    """What is seen of one trial.

    Attributes:
        share: Share of the planned steps that a trial takes.
        least: Steps that it takes at least.
        bars: By stage, the loss above which a trial ends early.
        moved: Called with the share of the trial that is over.
        first: The step that it began at.
        steps: How many it is to take.
        done: How many it has taken.
        planned: Steps of the whole training.
        held_out: What it is judged on; None before it begins.
        losses: By stage, from 0 for the beginning, the losses on held-out data.
        snapshots: Of the beginning and the end.
        data: Checksums of the first batches that it was trained on.
        remarks: What else is to be said.
        ended: Why it ended before its time; empty if it did not.
        seconds: How long it took.
    """

    share: float
    least: int
    bars: Mapping[int, float] = field(default_factory=dict)
    moved: Callable[[float], None] = lambda _: None
    first: int = 0
    steps: int = 0
    done: int = 0
    planned: float = math.inf
    held_out: HeldOut | None = None
    losses: dict[int, tuple[float, ...]] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    data: list[int | None] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    ended: str = ""
    seconds: float = 0.0

    def begin(
        self, step: int, planned: float, held_out: HeldOut, measure: Callable[[], tuple[float, ...]]
    ) -> None:
        """The training is ready for its first step.

        Args:
            step: Steps that were taken before.
            planned: Steps of the whole training.
            held_out: What is held out.
            measure: Gives the losses on it.

        Raises:
            ValueError: If it is not known how long the training is.
        """
        if not math.isfinite(planned):
            raise ValueError(
                "max_steps must be the number of optimizer steps of the whole training, of which "
                "trials take a share, got None, and the data have no length"
            )
        self.first, self.planned, self.held_out = step, planned, held_out
        left = max(planned - step, 1)
        self.steps = int(min(max(math.ceil(self.share * left), self.least), left))
        self._measure = measure
        self._started = time.perf_counter()
        try:
            self._look(0)
        except Exception as error:
            raise ValueError(
                f"held_out must be batches that a training step takes, got {held_out.source}, of "
                f"which it makes: {error}"
            ) from error

    @property
    def last(self) -> int:
        """The step at which the trial is over."""
        return self.first + self.steps

    @property
    def progress(self) -> float:
        """Share of the planned steps that were taken."""
        return (self.first + self.done) / self.planned

    def see(self, batch: Any) -> None:  # noqa: ANN401
        """A batch comes to be trained on.

        Args:
            batch: The batch.
        """
        if len(self.data) < SEEN:
            self.data.append(fingerprint(batch))

    def without(self, callbacks: Iterable[Any]) -> None:
        """Say which callbacks of the training a trial does without.

        Args:
            callbacks: The callbacks.
        """
        names = sorted({type(each).__name__ for each in callbacks})
        if names:
            self.remarks.append(f"callbacks that trials do without: {', '.join(names)}")

    def step(self, step: int) -> bool:
        """A step was taken.

        Args:
            step: Steps so far, with those from before the trial.

        Returns:
            Whether the trial is over.
        """
        before, self.done = self.done, step - self.first
        self.seconds = time.perf_counter() - self._started
        self.moved(self.done / self.steps)
        for stage in range(1, STAGES + 1):
            at = math.ceil(self.steps / 2 ** (STAGES - stage))
            if before < at <= self.done and not self.ended:
                self._look(stage)
        return bool(self.ended) or self.done >= self.steps

    def _look(self, stage: int) -> None:
        found = self.losses[stage] = self._measure()
        mean = sum(found) / len(found)
        if not math.isfinite(mean):
            self.ended = f"the loss is {mean} after {self.done} steps"
        elif 0 < stage < STAGES and mean > self.bars.get(stage, math.inf):
            self.ended = f"ended after {self.done} of {self.steps} steps: others were ahead"
