"""The alert in a training by Lightning."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ntk_monitor.monitor.alerts.service import StallDetector
from ntk_monitor.monitor.integrations.lightning.callback import NTKMonitor, monitors_of
from ntk_monitor.monitor.integrations.lightning.trainer import CallbackOfEither, TrainerHost
from ntk_monitor.snapshot import Snapshot


class StallAlert(StallDetector, CallbackOfEither):
    """Say when a target mode is stalled: visible in the loss, invisible to gradient descent.

    After each probe every mode has a state: ``"warming up"``, ``"insufficient data"`` (whether it
    comes within reach cannot be told yet), ``"learning"``, ``"learned"``, ``"stalled"``,
    ``"recovered"``, ``"unpredictable"`` (a step on one batch does nothing for others), or ``"not
    judged"`` (no optimizer could be read). A mode is stalled if it is not learned, by the forecast
    needs more steps than remain, and neither its rate nor its learned fraction grows as fast as the
    remaining steps need, with 95 % certainty and at ``patience`` probes in a row (``StallWatch``).
    Each stall is told of once, with what holds the mode back and what helps, while there is a probe
    to come; so is its recovery, and, as information, a mode that is unpredictable. Steps to learn
    are those of the optimizers in use, with schedule, clipping and decay.

    Alerts go to the loggers as text, to ``alerts.jsonl`` in the log directory, to ``on_alert``, and
    (stalls and recoveries) to ``notify``. The verdicts are logged as ``alert/mode_<i>`` (1 while
    stalled, else 0), also to ``callback_metrics``. A channel that fails harms no other one.

    Attributes:
        alerts: Every alert given, in order.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is something to watch.

        Raises:
            MisconfigurationException: If the Trainer has no NTKMonitor that follows target modes,
                or no end and no ``horizon`` is given.
        """
        del pl_module
        if stage != "fit":
            return
        if _watched(trainer) is None:
            raise MisconfigurationException(
                "StallAlert watches the target modes of an NTKMonitor, and the Trainer has none: "
                "add NTKMonitor(modes=3) to its callbacks"
            )
        if self.horizon is None and trainer.max_steps == -1 and trainer.max_epochs == -1:
            raise MisconfigurationException(
                "StallAlert compares steps to learn with the steps that remain, and this training "
                "has no end: give StallAlert(horizon=...), in optimizer steps"
            )
        if trainer.global_step == 0:
            self.begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the log directory, which all processes must ask for together."""
        self.open(TrainerHost(trainer, pl_module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait a little for notifications that are on their way."""
        del trainer, pl_module, stage
        self.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Likewise, where training ends otherwise."""
        del trainer, pl_module, exception
        self.close()

    def on_probe(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot, step: int
    ) -> None:
        """Judge every target mode after a probe."""
        monitor = _watched(trainer)
        if monitor is not None and snapshot is monitor.snapshot:
            self.judge(TrainerHost(trainer, pl_module), monitor, snapshot, step)


def _watched(trainer: Trainer) -> NTKMonitor | None:
    """The first monitor that follows target modes."""
    return next((monitor for monitor in monitors_of(trainer) if monitor.probe.modes), None)
