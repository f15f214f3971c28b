"""What a monitor asks of whatever trains: a Trainer of some library, or a loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Protocol, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ntk_monitor.descent import NO_CLIPPING, Clipping, Scheduled
from ntk_monitor.notices import say
from ntk_monitor.processes import ALONE, Processes
from ntk_monitor.snapshot import Snapshot

T = TypeVar("T")
UNKNOWN = ("FullyShardedDataParallel", "DeepSpeedEngine")
"""Classes, by name, of modules that shard parameters in a way that probes do not know."""

logger = logging.getLogger(__name__)


class Logs(Protocol):
    """Where numbers, pictures and words go; a Lightning Trainer is one, too."""

    @property
    def loggers(self) -> Sequence[Any]:
        """The loggers, each with ``log_metrics(metrics, step=step)``."""

    @property
    def callback_metrics(self) -> MutableMapping[str, Tensor]:
        """The latest numbers by tag."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process."""


class Host(Logs, Protocol):
    """A training, as its monitor and its alert see it; one object may serve one visit only.

    Attributes:
        module: The model, with all of its parameters.
    """

    module: nn.Module

    @property
    def global_step(self) -> int:
        """Optimizer steps so far."""

    @property
    def current_epoch(self) -> int:
        """The epoch, from 0."""

    @property
    def planned_steps(self) -> float:
        """Optimizer steps of the whole training; infinite where that is not known."""

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """The optimizers themselves, without what a library wraps around them."""

    @property
    def schedulers(self) -> Sequence[Scheduled]:
        """What changes the optimizers' learning rates, and when."""
        return ()

    @property
    def clipping(self) -> Clipping:
        """How gradients are clipped before a step."""
        return NO_CLIPPING

    @property
    def processes(self) -> Processes:
        """The processes that train together."""

    @property
    def run_folder(self) -> str | None:
        """Where the files of this run are; all processes ask for it together."""

    def stop(self) -> None:
        """Ask for the end of the training."""

    def tell(self, snapshot: Snapshot, step: int) -> None:
        """Hand a snapshot to all who listen."""

    def make_batch(self, make: Callable[..., Any]) -> Any:  # noqa: ANN401
        """Call a user's function that makes the probe batch."""

    def planned_batches(self, step: int) -> float:
        """Where the x-axis of the loggers will end.

        Args:
            step: Where it is now.

        Returns:
            The last step; infinite where that is not known.
        """
        del step
        return self.planned_steps

    def shared(self, value: T) -> T:
        """What the first process has, in every process.

        Args:
            value: Of the first process; that of others is not looked at.

        Returns:
            The first process's value.
        """
        if self.processes.everyone.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """What every process has, in every process.

        Args:
            value: Of this one.

        Returns:
            The values, by process.
        """
        values = [value] * self.processes.everyone.size
        if len(values) > 1:
            dist.all_gather_object(values, value)
        return values

    def remark(self, message: str) -> None:
        """Say what was not found or not measured, and what to do about it.

        Args:
            message: What to say.
        """
        say(message)

    def inform(self, message: str) -> None:
        """Say something that is no warning, from the first process.

        Args:
            message: What to say.
        """
        if self.is_global_zero:
            logger.info(message)


def world(device: Any) -> Processes:  # noqa: ANN401
    """All processes of a training with `torch.distributed`.

    Args:
        device: Where the backend of the default group wants its tensors.

    Returns:
        The processes; this one alone where there are no others.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Processes(dist.group.WORLD, device)


def require_known(module: nn.Module) -> None:
    """Refuse a model whose parameters are spread over processes in an unknown way.

    Args:
        module: The model.

    Raises:
        ValueError: If they are.
    """
    kinds = {kind.__name__ for part in module.modules() for kind in type(part).__mro__}
    unknown = next((name for name in UNKNOWN if name in kinds), None)
    if unknown is not None:
        raise ValueError(
            f"model must be whole in every process, or sharded by fully_shard or tensor "
            f"parallelism, got one that is sharded by {unknown}: supported beside one device are "
            "DistributedDataParallel, torch.distributed.fsdp.fully_shard and parallelize_module; "
            "or leave the monitor out and use `ntk_monitor.probe` on checkpoints"
        )
