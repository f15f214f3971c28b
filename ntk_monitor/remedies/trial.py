"""One trial of one remedy, and what came of it."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ntk_monitor.model.isolation.quiet import draw_anew
from ntk_monitor.remedies.course import STAGES, Course
from ntk_monitor.remedies.plain import PlainTraining
from ntk_monitor.remedies.remedy import NotApplicableError, Remedy
from ntk_monitor.uncertainty import Estimate, mean_estimate

Make = Callable[[], Any]
LIBRARIES = ("ntk_monitor", "lightning.pytorch", "lightning.fabric", "transformers")
"""Loggers that tell of every training that begins."""


class Mode(NamedTuple):
    """What a trial did to a target mode.

    Attributes:
        number: Of the mode, from 1.
        before: Its learned fraction before the trial.
        after: Its learned fraction after it.
        steps_to_learn: By the forecast, from there on; infinite where it is never learned.
    """

    number: int
    before: float
    after: float
    steps_to_learn: float


@dataclass(frozen=True)
class Job:
    """What a process needs to make a trial.

    Attributes:
        make: Makes what trains.
        settings: What is handed to a training beside that.
        remedy: What to change.
        share: Of the planned steps that remain.
        least: Steps at least.
        bars: By stage, the loss above which the trial ends early.
        monitor: Settings of the monitor.
        ckpt: A checkpoint to begin from, or None.
        seed: Of all that is drawn.
    """

    make: Make
    settings: Mapping[str, Any]
    remedy: Remedy
    share: float
    least: int
    monitor: Mapping[str, Any]
    ckpt: Any
    seed: int
    bars: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """What came of a trial.

    Attributes:
        remedy: What was changed.
        losses: By stage, from 0 for the beginning to ``STAGES`` for the end, the losses of batches
            on which no trial trained.
        modes: What it did to the target modes.
        steps: Optimizer steps that it took.
        left: Optimizer steps of the training that were left when it began.
        planned: Steps of the whole training.
        seconds: How long it took.
        ended: Why there is no result of a whole trial; empty if there is one.
        held_out: Where the batches come from.
        apart: Whether none of them was trained on.
        data: Checksums of the first batches that it was trained on.
        remarks: What else is to be said.
    """

    remedy: Remedy
    losses: Mapping[int, tuple[float, ...]]
    modes: tuple[Mode, ...] = ()
    steps: int = 0
    left: float = math.nan
    planned: float = math.nan
    seconds: float = 0.0
    ended: str = ""
    held_out: str = ""
    apart: bool = True
    data: tuple[int | None, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the remedy."""
        return self.remedy.name

    @property
    def is_whole(self) -> bool:
        """Whether it went to its end."""
        return not self.ended and STAGES in self.losses

    def saw_data_of(self, other: Trial) -> bool:
        """Whether the first batches were the same in two trials, as far as both went.

        Args:
            other: The other one.

        Returns:
            True if they were.
        """
        return all(a == b for a, b in zip(self.data, other.data, strict=False))

    @property
    def loss(self) -> Estimate | None:
        """The mean loss on held-out batches where it ended, with its standard error."""
        if not self.losses:
            return None
        return mean_of(self.losses[max(self.losses)])

    @property
    def cost(self) -> float:
        """Batches that it took, over those of the whole training."""
        return self.remedy.cost * self.steps / self.planned if self.planned else math.nan


def mean_of(values: Sequence[float]) -> Estimate:
    """A mean.

    Args:
        values: Some numbers.

    Returns:
        Their mean, with its standard error; nan for that of a single number.
    """
    if len(values) == 1:
        return Estimate(float(values[0]), math.nan)
    return mean_estimate(torch.tensor(values, dtype=torch.float64))


def run_trial(job: Job, moved: Callable[[float], None] = lambda _: None) -> Trial:
    """Make a trial; whatever fails is told in its result.

    Args:
        job: What to do.
        moved: Called with the share of it that is done.

    Returns:
        What came of it.
    """
    course = Course(job.share, job.least, job.bars, moved)
    ended = ""
    with warnings.catch_warnings(), silent(*LIBRARIES):
        warnings.simplefilter("ignore")
        try:
            draw(job.seed)
            training = training_of(job.make(), job.settings)
            training.run(job.remedy, course, dict(job.monitor), job.ckpt)
        except NotApplicableError as error:
            ended = f"does not fit: {error}"
            course.losses.clear()
        except Exception as error:  # of somebody's own model or data
            lines = str(error).strip().splitlines()
            ended = f"failed: {type(error).__name__}: {lines[0] if lines else 'without a word'}"
    if not (ended or course.done):
        ended = course.ended or (
            "took no step: no steps of the training are left; let max_steps be more than the "
            "checkpoint has"
        )
    held = course.held_out
    return Trial(
        job.remedy,
        course.losses,
        _modes(course),
        course.done,
        course.planned - course.first,
        course.planned,
        course.seconds,
        ended or course.ended,
        "" if held is None else held.source,
        held is None or held.apart,
        tuple(course.data),
        tuple(course.remarks),
    )


@contextmanager
def silent(*names: str) -> Iterator[None]:
    """Let loggers tell of errors only, for a while.

    Args:
        names: Of the loggers.

    Yields:
        Nothing.
    """
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def draw(seed: int) -> None:
    """Begin all draws anew, also those on devices that are not in use yet.

    Inside `quiet` it is `draw_anew` alone, which leaves those as they are.

    Args:
        seed: Names them.
    """
    torch.manual_seed(seed)
    draw_anew(seed)


def training_of(made: Any, settings: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The training that trials are made of.

    Args:
        made: A `PlainTraining`, a Lightning module, a transformers Trainer, or a training already.
        settings: What else belongs to it.

    Returns:
        An object with ``run(remedy, course, monitor, ckpt)``.

    Raises:
        TypeError: If it is none of these.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    names = {kind.__name__ for kind in type(made).__mro__}
    if isinstance(made, PlainTraining) or hasattr(made, "run"):
        return made
    if isinstance(made, nn.Module) and "LightningModule" in names:
        from ntk_monitor.remedies.lightning import LightningTraining  # noqa: PLC0415

        return LightningTraining(made, **given)  # type: ignore[arg-type]
    if "Trainer" in names and hasattr(made, "compute_loss"):
        from ntk_monitor.remedies.transformers import TransformersTraining  # noqa: PLC0415

        return TransformersTraining(made, given.get("held_out"))
    raise TypeError(
        "model_factory must return a LightningModule, a PlainTraining, or a Trainer of the "
        f"transformers library, got a {type(made).__name__}"
    )


def _modes(course: Course) -> tuple[Mode, ...]:
    """The modes before and after."""
    if len(course.snapshots) < 2:
        return ()
    first, last = course.snapshots[0], course.snapshots[-1]
    return tuple(
        Mode(
            b.index,
            a.learned,
            b.learned,
            math.nan if b.steps_to_learn is None else b.steps_to_learn,
        )
        for a, b in zip(first.target_modes, last.target_modes, strict=False)
    )
