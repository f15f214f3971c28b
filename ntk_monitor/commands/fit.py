"""``ntk-monitor fit`` and ``ntk-monitor probe``, each with a config."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.text import Text

from ntk_monitor.checkpoints import ProbingTrainer
from ntk_monitor.monitor import StallAlert
from ntk_monitor.monitor.integrations.lightning.callback import monitors_of
from ntk_monitor.views import summary_tables, summary_verdict
from ntk_monitor.views.summary import STYLES
from ntk_monitor.views.verdict import Judge


class MonitorCLI(LightningCLI):
    """LightningCLI that ends a fit with a table of what the NTK could and could not see."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer methods that can be called from the command line."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "probe": {"model", "datamodule"},
        }

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Make the Trainer, and correct what will be saved."""
        for each in (self.config, self.config_init):
            own = each if self.subcommand is None else each[self.subcommand]  # None: to run nothing
            correct_integers(own["trainer"])
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Print the table."""
        print_summary(self.trainer, Console())


def correct_integers(trainer: MutableMapping[str, Any]) -> None:
    """Make an integer of a number of batches that was read as 500.0.

    What the Trainer declares as ``int | float`` is ``float | int`` in Python's typing where another
    library has asked for that before.

    Args:
        trainer: Arguments of a Trainer, as LightningCLI has read them; they are changed.
    """
    batches = trainer["val_check_interval"]
    if isinstance(batches, float) and batches > 1 and batches.is_integer():
        trainer["val_check_interval"] = int(batches)


def print_summary(trainer: Trainer, console: Console) -> None:
    """Print the last snapshots of a training, its alerts, and where its logs are.

    Args:
        trainer: A Trainer that has finished.
        console: Where to print.
    """
    alerts = [c for c in trainer.callbacks if isinstance(c, StallAlert)]  # type: ignore[attr-defined]
    history = alerts[0].history if alerts else {}
    for i, monitor in enumerate(monitors_of(trainer)):
        if monitor.snapshot is None:
            console.print("NTKMonitor: no probe succeeded", style="bold red")
            continue
        state, own = monitor.states[0], history if i == 0 else {}  # which StallAlert watches
        judge = judge_of(alerts[0]) if alerts and i == 0 else None
        verdict = summary_verdict(monitor.snapshot, state.losses, own, judge)
        when = f"At {verdict.when}: " if verdict.when else ""
        console.print(Text(f"{when}{verdict.text}", STYLES.get(verdict.state, "yellow")))
        whole = None if monitor.snapshot.tier == "kernel" else state.whole
        for table in summary_tables(monitor.snapshot, own, whole):
            console.print(table)
    for message in (m for alert in alerts for m in alert.messages):
        console.print(message, style="red" if "is stalled" in message else "green", markup=False)
    if trainer.log_dir is not None:
        console.print(
            f"See it in TensorBoard:  ntk-monitor view {trainer.log_dir}",
            markup=False,
            soft_wrap=True,
        )


def judge_of(alert: StallAlert) -> Judge:
    """What the verdict has to know of an alert.

    Args:
        alert: The alert, after the last probe.

    Returns:
        That it is there, how sure it is, and of how many steps.
    """
    endless = alert.planned is None and alert.horizon is None
    return Judge(True, True, alert.rule.level, alert.planned, endless, alert.unsure)


def main(arguments: Sequence[str]) -> int:
    """Train, or probe.

    Args:
        arguments: What stands behind ``ntk-monitor``.

    Returns:
        0.
    """
    # One worker process per loader is Lightning's advice for files on disk; our tasks compute.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # inside Lightning
    with command_line(arguments):
        MonitorCLI(
            LightningModule,
            LightningDataModule,
            trainer_class=ProbingTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
        )
    return 0


@contextmanager
def command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Arguments as LightningCLI reads them.

    Args:
        arguments: What stands behind the program's name.

    Yields:
        Nothing.
    """
    before, sys.argv = sys.argv, ["ntk-monitor", *arguments]
    try:
        yield
    finally:
        sys.argv = before
