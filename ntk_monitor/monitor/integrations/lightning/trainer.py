"""A Lightning Trainer as a host."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, MutableMapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from ntk_monitor.descent import Clipping, Scheduled
from ntk_monitor.model.parameters.sharding import of_batches
from ntk_monitor.model.step.standins import Training
from ntk_monitor.monitor.host import Host, world
from ntk_monitor.processes import ALONE, Processes
from ntk_monitor.snapshot import Snapshot

logger = logging.getLogger(__name__)


def _callback_class() -> type[Callback]:
    """Lightning's ``Callback``; where an older pytorch_lightning is installed, both in one.

    The Trainer of a pytorch_lightning before 2.6 takes callbacks of its own class alone.

    Returns:
        The class.
    """
    try:
        major, minor = version("pytorch_lightning").split(".")[:2]
    except PackageNotFoundError:
        return Callback
    if (int(major), int(minor)) >= (2, 6):
        return Callback
    other = importlib.import_module("pytorch_lightning").Callback
    return type("Callback", (Callback, other), {})


if TYPE_CHECKING:
    CallbackOfEither = Callback
else:
    CallbackOfEither = _callback_class()

PLAIN = ("LightningModule", "LightningDataModule", "DataHooks", "ModelHooks")
"""Classes of Lightning whose hooks do nothing of a user's."""
KNOWN = ("DDPStrategy", "ModelParallelStrategy")
"""Strategies for several processes."""
ACCUMULATION = "GradientAccumulationScheduler"
"""The callback, of either name of the package, that accumulates more or fewer batches by epoch."""
UNKNOWN = {
    "FSDPStrategy": "shards parameters into flat ones (ModelParallelStrategy with fully_shard is "
    "what torch has in its place)",
    "DeepSpeedStrategy": "keeps parameters where only its own engine knows them",
}
"""Strategies under which there are no probes, and why."""


@runtime_checkable
class ProbeListener(Protocol):
    """A callback that wants to see every snapshot."""

    def on_probe(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot, step: int
    ) -> None:
        """Called after each probe; ``step`` is its place on the loggers' x-axis."""


class TrainerHost(Host):
    """A Trainer, for the time of one hook."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        """Take both as a hook gets them."""
        self.trainer = trainer
        self.module: LightningModule = module

    @property
    def global_step(self) -> int:  # noqa: D102
        return self.trainer.global_step

    @property
    def current_epoch(self) -> int:  # noqa: D102
        return self.trainer.current_epoch

    @property
    def planned_steps(self) -> float:  # noqa: D102
        try:
            return planned_steps(self.trainer)
        except Exception as error:  # of somebody's own loop or data
            logger.info("the length of the training could not be read: %r", error)
            return math.inf

    def planned_batches(self, step: int) -> float:  # noqa: D102
        return planned_batches(self.trainer, step)

    @property
    def optimizers(self) -> Sequence[Optimizer]:  # noqa: D102
        return self.trainer.optimizers

    @property
    def schedulers(self) -> Sequence[Scheduled]:  # noqa: D102
        return [_scheduled(self.trainer, c) for c in self.trainer.lr_scheduler_configs]

    @property
    def clipping(self) -> Clipping:  # noqa: D102
        return _clipping(self.trainer, self.module)

    @property
    def loggers(self) -> Sequence[Any]:  # noqa: D102
        return self.trainer.loggers

    @property
    def callback_metrics(self) -> MutableMapping[str, Tensor]:  # noqa: D102
        return self.trainer.callback_metrics

    @property
    def is_global_zero(self) -> bool:  # noqa: D102
        return self.trainer.is_global_zero

    @cached_property
    def processes(self) -> Processes:  # noqa: D102
        if self.trainer.world_size == 1:
            return ALONE
        return of_batches(self.module, world(self.trainer.strategy.root_device))

    @property
    def run_folder(self) -> str | None:  # noqa: D102
        folder = self.trainer.log_dir
        first = next(iter(self.trainer.loggers), None)
        if first is None or not self.trainer.is_global_zero:
            return None
        return folder_of_run(first, folder)

    def stop(self) -> None:  # noqa: D102
        self.trainer.should_stop = True

    def remark(self, message: str) -> None:  # noqa: D102
        rank_zero_info(message)

    def inform(self, message: str) -> None:  # noqa: D102
        rank_zero_info(message)

    def tell(self, snapshot: Snapshot, step: int) -> None:  # noqa: D102
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ProbeListener):
                callback.on_probe(self.trainer, self.module, snapshot, step)

    def make_batch(self, make: Callable[..., Any]) -> Any:  # noqa: ANN401, D102
        return make(self.trainer, self.module)


def _scheduled(trainer: Trainer, config: Any) -> Scheduled:  # noqa: ANN401
    """When a scheduler of a Trainer steps, in optimizer steps."""
    every = max(int(config.frequency), 1)
    if config.interval == "step":
        return Scheduled(config.scheduler, every)
    batches = float(trainer.num_training_batches)
    epoch = max(int(batches // trainer.accumulate_grad_batches), 1) if batches < math.inf else 1
    to_its_end = epoch - batches_that_stepped(trainer, in_batch_end=False) % epoch
    later = (every - 1 - trainer.current_epoch % every) * epoch
    return Scheduled(config.scheduler, every * epoch, to_its_end + later)


def _clipping(trainer: Trainer, module: LightningModule) -> Clipping:
    """How a Trainer, or its module, clips gradients."""
    if not module.automatic_optimization:
        return Clipping()
    value = trainer.gradient_clip_val
    if overrides(module, "configure_gradient_clipping"):

        def own(optimizer: Optimizer) -> None:
            algorithm = trainer.gradient_clip_algorithm
            with Training(module).standing_in():
                module.configure_gradient_clipping(optimizer, value, algorithm)

        return Clipping(own=own)
    return clipping_of(trainer)


def clipping_of(trainer: Trainer) -> Clipping:
    """How a Trainer clips gradients, where its module leaves that to it.

    Args:
        trainer: The Trainer.

    Returns:
        The norm, or the value.
    """
    value = trainer.gradient_clip_val
    if not value:
        return Clipping()
    by_value = str(trainer.gradient_clip_algorithm or "norm").lower().endswith("value")
    return Clipping(value=float(value)) if by_value else Clipping(norm=float(value))


def overrides(part: Any, name: str) -> bool:  # noqa: ANN401
    """Whether a module, or a data module, has a hook of its own.

    Args:
        part: The module.
        name: Of the hook.

    Returns:
        True if it is not what Lightning has there.
    """
    owner = next(kind for kind in type(part).__mro__ if name in vars(kind))
    return name in vars(part) or owner.__name__ not in PLAIN


def first_batch(loader: Any) -> Any:  # noqa: ANN401
    """The first batch as a Trainer draws it: of several loaders, one of each.

    Args:
        loader: A loader, or several in a list or by name.

    Returns:
        The batch.
    """
    if not isinstance(loader, CombinedLoader):
        loader = CombinedLoader(loader, "max_size_cycle")  # as a Trainer does
    return next(iter(loader))[0]


def require_known_strategy(trainer: Trainer) -> None:
    """Refuse a strategy whose processes cannot measure together.

    Args:
        trainer: The Trainer.

    Raises:
        MisconfigurationException: If it is one that spreads parameters in an unknown way, or an
            unknown one for several processes.
    """
    strategy = trainer.strategy
    names = [kind.__name__ for kind in type(strategy).__mro__]
    unknown = next((name for name in UNKNOWN if name in names), None)
    if unknown is None and (trainer.world_size == 1 or any(name in names for name in KNOWN)):
        return
    reason = UNKNOWN.get(unknown or "", f"runs {trainer.world_size} processes in an unknown way")
    raise MisconfigurationException(
        f"NTKMonitor cannot measure under {type(strategy).__name__}, which {reason}: supported are "
        "one device, strategy='ddp' (all its variants), and ModelParallelStrategy with fully_shard "
        "or tensor parallelism in configure_model(); or leave the monitor out and use "
        "`ntk_monitor.probe` on checkpoints"
    )


def planned_steps(trainer: Trainer) -> float:
    """Optimizer steps of the whole training.

    Args:
        trainer: The Trainer.

    Returns:
        Their number; infinite where the Trainer cannot tell, as for data without a length.
    """
    scheduled = _scheduled_steps(trainer)
    planned = float(trainer.estimated_stepping_batches) if scheduled is None else scheduled
    return planned if planned >= 0 else math.inf


def _scheduled_steps(trainer: Trainer) -> float | None:
    """The same where a GradientAccumulationScheduler has it change from epoch to epoch.

    Args:
        trainer: The Trainer, which counts with what holds now.

    Returns:
        Their number; None where there is no such callback, or no length of data to count with.
    """
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    scheduler = next((c for c in callbacks if _is_scheduler(c)), None)
    if scheduler is None:
        return None
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 0 or math.isinf(batches):
        return None
    scheduling: dict[int, int] = vars(scheduler)["scheduling"]
    starts = sorted(epoch for epoch in scheduling if epoch < max(epochs, 1))
    ends = [*starts[1:], max(epochs, 1)]
    total = sum(
        (end - start) * math.ceil(batches / scheduling[start])
        for start, end in zip(starts, ends, strict=True)
    )
    return float(total if trainer.max_steps == -1 else min(total, trainer.max_steps))


def _is_scheduler(callback: Callback) -> bool:
    return any(kind.__name__ == ACCUMULATION for kind in type(callback).__mro__)


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


def steps_of_all(trainer: Trainer, planned: float) -> float:
    """Optimizer steps of the whole training as ``global_step`` counts them, between two batches.

    Args:
        trainer: The Trainer, after some steps.
        planned: See `planned_steps`, which counts one for each batch that steps.

    Returns:
        Their number. With several optimizers there are as many for each batch as so far, up to
        ``max_steps``, which counts all of them.
    """
    batches = batches_that_stepped(trainer, in_batch_end=False)
    if not 0 < batches < trainer.global_step:
        return planned
    most = math.inf if trainer.max_steps == -1 else trainer.max_steps
    return min(planned * trainer.global_step / batches, most)


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


def folder_of_run(logger: Any, log_dir: str | None) -> str | None:  # noqa: ANN401
    """The folder of a run, as Lightning's checkpoints have it.

    Args:
        logger: The first logger.
        log_dir: The Trainer's log directory.

    Returns:
        The logger's own folder, if it has one, else that of its name and version under where it
        saves; None if it saves nowhere.
    """
    if getattr(logger, "log_dir", None):
        return str(logger.log_dir)
    name, version = logger.name, logger.version
    if log_dir is None or name is None or version is None:
        return log_dir
    version = version if isinstance(version, str) else f"version_{version}"
    return "/".join([str(log_dir).rstrip("/"), str(name), version])
