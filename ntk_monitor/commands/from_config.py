"""Trainings for trials, made from the arguments of ``ntk-monitor fit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from ntk_monitor.commands.fit import command_line, correct_integers
from ntk_monitor.remedies.lightning import LightningTraining
from ntk_monitor.remedies.trial import LIBRARIES, silent


class FromConfig:
    """Makes a training from the arguments of ``ntk-monitor fit``."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Keep them.

        Args:
            arguments: As on the command line.
        """
        self.arguments = list(arguments)

    def check(self) -> None:
        """Read them, and make nothing; ends the program where they are wrong."""
        _Reader(self.arguments)

    def __call__(self) -> LightningTraining:
        """Make the training."""
        maker = _Maker(self.arguments)
        return LightningTraining(maker.model, maker.datamodule, maker.settings)


class _Maker(LightningCLI):
    """Makes what a config says, but its Trainer."""

    settings: dict[str, Any]

    def __init__(self, arguments: list[str]) -> None:
        with command_line(arguments), silent(*LIBRARIES):
            super().__init__(
                LightningModule,
                LightningDataModule,
                save_config_callback=None,
                subclass_mode_model=True,
                subclass_mode_data=True,
                parser_kwargs={"prog": "ntk-monitor try"},
                run=False,
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        del kwargs
        self.settings = dict(self.config_init["trainer"])
        correct_integers(self.settings)
        self.settings.pop("logger", None)  # which would write files
        return None  # type: ignore[return-value]


class _Reader(_Maker):
    """Reads a config, and makes nothing."""

    def instantiate_classes(self) -> None:
        pass
