"""Numbers, pictures and text to whatever loggers a Trainer has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from ntk_monitor.views import own_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def batches_that_stepped(trainer: Trainer, *, in_batch_end: bool) -> int:
    """The x-axis of the loggers: how many batches have led to an optimizer step.

    This is the count that Lightning itself logs against; with several optimizers it differs from
    ``global_step``.

    Args:
        trainer: The Trainer.
        in_batch_end: Whether the present batch stepped and is not yet counted.

    Returns:
        The count.
    """
    counted = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", None)
    return trainer.global_step if counted is None else counted + in_batch_end


def log_scalars(trainer: Trainer, scalars: Mapping[str, float], step: int) -> None:
    """Send numbers to every logger, and to ``callback_metrics`` for other callbacks.

    ``LightningModule.log`` would drop numbers that arrive between two multiples of
    ``log_every_n_steps``, so the loggers are called directly.

    Args:
        trainer: The Trainer.
        scalars: Numbers by tag.
        step: Where on the x-axis.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=step)
    trainer.callback_metrics.update({tag: torch.tensor(v) for tag, v in scalars.items()})


def writers(trainer: Trainer, method: str) -> Iterator[Any]:
    """The summary writers among the loggers that can do something.

    Args:
        trainer: The Trainer.
        method: Name of the ``SummaryWriter`` method that is needed.

    Yields:
        Each logger's writer that has it.
    """
    for logger in trainer.loggers:
        experiment = getattr(logger, "experiment", None)
        if callable(getattr(experiment, method, None)):
            yield experiment


def log_figures(trainer: Trainer, figures: Mapping[str, Figure], step: int) -> None:
    """Send pictures to the loggers that take them.

    Args:
        trainer: The Trainer.
        figures: Matplotlib figures by tag.
        step: Where on the x-axis.
    """
    for writer in writers(trainer, "add_figure"):
        with own_style():
            for tag, figure in figures.items():
                writer.add_figure(tag, figure, global_step=step, close=False)


def log_text(trainer: Trainer, tag: str, text: str, step: int) -> None:
    """Send Markdown to the loggers that take it.

    Args:
        trainer: The Trainer.
        tag: Under which tag.
        text: Markdown.
        step: Where on the x-axis.
    """
    for writer in writers(trainer, "add_text"):
        writer.add_text(tag, text, global_step=step)
