"""What a monitor asks of a Trainer, and of the processes that train together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

T = TypeVar("T")
SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
"""Strategies under which no process has all parameters."""


def require_whole_model(trainer: Trainer) -> None:
    """Refuse a strategy under which the first process does not have the whole model.

    Args:
        trainer: The Trainer.

    Raises:
        MisconfigurationException: If its strategy shards the model, or is an unknown one for
            several processes.
    """
    strategy = trainer.strategy
    names = [kind.__name__ for kind in type(strategy).__mro__]
    sharded = next((name for name in SHARDING if name in names), None)
    if sharded is None and (trainer.world_size == 1 or "DDPStrategy" in names):
        return
    reason = "shards the model" if sharded else f"runs {trainer.world_size} processes"
    raise MisconfigurationException(
        f"NTKMonitor needs the whole model in the first process, and {type(strategy).__name__} "
        f"{reason}: supported are one device and strategy='ddp' (all its variants); or leave the "
        "monitor out and use `ntk_monitor.probe` on checkpoints"
    )


def shared(trainer: Trainer, value: T) -> T:
    """What the first process has, in every process.

    Args:
        trainer: The Trainer.
        value: Of the first process; that of others is not looked at.

    Returns:
        The first process's value.
    """
    return value if trainer.world_size == 1 else trainer.strategy.broadcast(value)


def planned_steps(trainer: Trainer) -> float:
    """Optimizer steps of the whole training.

    Args:
        trainer: The Trainer.

    Returns:
        Their number; infinite where the Trainer cannot tell, as for data without a length.
    """
    planned = float(trainer.estimated_stepping_batches)
    return planned if planned >= 0 else math.inf


def planned_batches(trainer: Trainer, step: int) -> float:
    """Batches that will have led to an optimizer step at the end of the training.

    Args:
        trainer: The Trainer.
        step: How many have so far; see `batches_that_stepped`.

    Returns:
        Their number. With several optimizers ``max_steps`` counts the steps of each, as many to a
        batch as there have been so far.
    """
    planned = planned_steps(trainer)
    several = 0 < step < trainer.global_step and planned == trainer.max_steps
    return planned * step / trainer.global_step if several else planned


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


@contextmanager
def muted(trainer: Trainer, module: nn.Module) -> Iterator[None]:
    """Have ``self.log`` in a ``forward`` do nothing: a probe is no training step.

    Args:
        trainer: The Trainer; what a bound ``log`` that a submodule was given still sends it is
            lost.
        module: The module.

    Yields:
        Nothing.
    """
    loop = trainer.fit_loop.epoch_loop
    results = getattr(loop, "_results", None)
    if results is not None:
        loop._results = type(results)(training=True)
    names = [name for name in ("log", "log_dict") if callable(getattr(module, name, None))]
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(dict.fromkeys(names, _ignore))
    try:
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(before)
        if results is not None:
            loop._results = results


def _ignore(*_: Any, **__: Any) -> None:  # noqa: ANN401
    """In place of a logging method."""
