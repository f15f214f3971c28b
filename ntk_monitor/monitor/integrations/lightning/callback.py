"""The callback that watches the NTK of a training by Lightning."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ntk_monitor.monitor.base import BaseMonitor
from ntk_monitor.monitor.integrations.lightning.trainer import (
    CallbackOfEither,
    ProbeListener,
    TrainerHost,
    batches_that_stepped,
    require_known_strategy,
    steps_of_all,
)
from ntk_monitor.monitor.schedule import INTERVAL

__all__ = ["NTKMonitor", "ProbeListener"]


class NTKMonitor(BaseMonitor, CallbackOfEither):
    """Measure and log what gradient descent can do to a model's state, while the model trains.

    A probe is taken before the first optimizer step, then 60 spread evenly over the training, or
    one every ``every_n_steps`` steps, on one fixed batch and with fixed random tangents, so that
    successive probes differ by what the training did and little else. All of it may take
    ``max_overhead`` of the whole training, or ``max_overhead_seconds`` if that is more: some probes
    are whole then, and the others end at the target modes, or there are fewer. The last one is
    whole, and at the end. Training is bit for bit what it would be without the monitor, and no
    failure of a probe or of a logger ends it. With DDP each process keeps its own batch, and all
    measure these together.

    Numbers go to every logger and to ``trainer.callback_metrics``, under the tags of
    `Snapshot.scalars`; figures go to TensorBoard, W&B, MLflow and, as files, beside the numbers of
    a ``CSVLogger``. TensorBoard also has a layout with error bands.

    Attributes:
        states: The states that are followed, each with its latest ``snapshot`` and its ``metrics``;
            ``metrics.compute()`` pools all snapshots since training began or was resumed.
        failures: How many probes failed, and whether there will be more.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[NTKMonitor(every_n_steps=200)],
        ...     logger=False, enable_checkpointing=False, accelerator="cpu",
        ... )
    """

    _paced: bool = False
    """Whether it is known how many optimizers step."""

    @cached_property
    def state_key(self) -> str:
        """Names this monitor's state in a checkpoint; the Trainer asks for it at every hook."""
        return self._generate_state_key(
            state=self._wanted_state,
            every_n_steps=self.schedule.every_n_steps or INTERVAL,
            seed=self.probe.seed,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the settings against the Trainer.

        Raises:
            MisconfigurationException: If the monitor cannot work in this Trainer.
        """
        del pl_module
        if stage != "fit":
            return
        require_known_strategy(trainer)
        if self.kept.choice == "val" and trainer.limit_val_batches == 0:
            raise MisconfigurationException(
                "NTKMonitor(probe_batch='val') needs validation batches, and the Trainer has "
                "limit_val_batches=0: use probe_batch='train'"
            )
        others = [monitor for monitor in monitors_of(trainer) if monitor is not self]
        names = {state.name for state in self.states}
        if any(state.name in names for other in others for state in other.states):
            raise MisconfigurationException(
                "two NTKMonitors would log under the same tags: name their states, as in "
                "NTKMonitor(state={'encoder': 'path.of.module'})"
            )
        if trainer.global_step == 0:
            self._begin()
        if not trainer.loggers:
            rank_zero_info(
                "NTKMonitor: the Trainer has no logger; the numbers are in "
                "trainer.callback_metrics and in monitor.snapshot"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the settings against the model, which is complete by now.

        Raises:
            MisconfigurationException: If a state is not a module of the model.
        """
        del trainer
        try:
            self._require_states(pl_module)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._paced = False
        host = TrainerHost(trainer, pl_module)
        self.schedule.start(host.global_step, host.current_epoch, host.planned_steps)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first validation batch, if that is the one to probe on."""
        del pl_module
        first = batch_idx == 0 and dataloader_idx == 0
        if first and trainer.state.fn == "fit" and self._wants("val"):
            self.kept.keep(batch)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Keep the first training batches, and probe before the first step."""
        del batch_idx
        if trainer.global_step and not self._paced:
            self._paced = True
            self.schedule.total = steps_of_all(trainer, self.schedule.total)
        self._see(batch)
        if not self._begun and (trainer.global_step == 0 or self._skipped):
            step = batches_that_stepped(trainer, in_batch_end=False)
            self._visit(TrainerHost(trainer, pl_module), step, first=True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Probe when an optimizer step has made it due."""
        del outputs, batch, batch_idx
        if self.schedule.crosses(trainer.global_step, trainer.current_epoch):
            step = batches_that_stepped(trainer, in_batch_end=True)
            self._visit(TrainerHost(trainer, pl_module), step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last probe, where the training ended before it, and a word on what was missed."""
        step = batches_that_stepped(trainer, in_batch_end=False)
        self._end(TrainerHost(trainer, pl_module), step)


def monitors_of(trainer: Trainer) -> list[NTKMonitor]:
    """The monitors of a training.

    Args:
        trainer: Its Trainer.

    Returns:
        Those among its callbacks, in order.
    """
    return [c for c in trainer.callbacks if isinstance(c, NTKMonitor)]  # type: ignore[attr-defined]
