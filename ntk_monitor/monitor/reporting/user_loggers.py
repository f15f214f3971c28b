"""Whatever a user calls a logger, as one that a monitor can write to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ntk_monitor.checks import require
from ntk_monitor.notices import say

OWN = ".ntk"
"""How the names of event files end that a monitor opens itself."""


class SummaryWriterLogger:
    """A ``SummaryWriter`` as a logger of Lightning's kind.

    Attributes:
        experiment: The writer.
    """

    def __init__(self, writer: Any) -> None:  # noqa: ANN401
        """Take a writer of torch or tensorboardX."""
        self.experiment = writer

    @property
    def log_dir(self) -> str | None:
        """The folder of its files."""
        writer = self.experiment
        return getattr(writer, "log_dir", None) or getattr(writer, "logdir", None)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write numbers.

        Args:
            metrics: Numbers by tag.
            step: Where on the x-axis.
        """
        for tag, value in metrics.items():
            self.experiment.add_scalar(tag, value, global_step=step)

    def save(self) -> None:
        """Have all of it in the file."""
        self.experiment.flush()


def loggers_of(logger: Any) -> list[Any]:  # noqa: ANN401
    """The loggers of an argument.

    Args:
        logger: A logger of Lightning or Fabric, a ``SummaryWriter``, the ``TensorBoardCallback`` of
            the transformers library, a list of these, or None.

    Returns:
        The loggers, each with ``log_metrics(metrics, step=step)``; those that are none raise a
        ValueError.
    """
    if logger is None:
        return []
    if isinstance(logger, (list, tuple)):
        return [each for item in logger for each in loggers_of(item)]
    if callable(getattr(logger, "log_metrics", None)):
        return [logger]
    writer = getattr(logger, "tb_writer", logger)
    require(
        callable(getattr(writer, "add_scalar", None)),
        "logger",
        "a logger with log_metrics(metrics, step=step), a SummaryWriter, or a list of these",
        logger,
    )
    return [SummaryWriterLogger(writer)]


def writer_in(folder: str, steps: int) -> SummaryWriterLogger:
    """Event files of our own in a folder.

    TensorBoard draws all event files of a folder as one run. If an earlier training has written
    there, and this one does not go on with it, that is told of.

    Args:
        folder: The folder.
        steps: Optimizer steps that the training has taken.

    Returns:
        The logger.
    """
    if not steps and any(Path(folder).glob(f"*{OWN}")):
        say(
            f"{folder} holds the event files of an earlier training, and TensorBoard draws both as "
            "one run: give log_dir= another folder, or empty that one"
        )
    return SummaryWriterLogger(SummaryWriter(folder, filename_suffix=OWN))
