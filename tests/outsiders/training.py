"""Trainings as their authors write them, to try callbacks on that know nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch import Callback, LightningModule, Trainer


class Fitted(NamedTuple):
    trainer: Trainer
    module: LightningModule


Fit = Callable[[list[Callback]], Fitted]


@dataclass(frozen=True)
class Training:
    """A training, and what someone who knows its model would say of it.

    Attributes:
        name: Short and unique.
        fit: Seeds everything, builds model, data and Trainer with these callbacks beside the
            training's own, and trains.
        states: Patterns (of `fnmatch`) of module paths that are acceptable as the state: hidden
            activations between trained weights and the loss. Not an output, a loss, or a metric,
            not one head beside another, not an embedding of inputs.
        targets: What the loss compares.
        modes: Whether it compares outputs with data, so that there are target modes.
        library: What it needs beside the project's own test requirements, for pip.
    """

    name: str
    fit: Fit
    states: tuple[str, ...]
    targets: str
    modes: bool
    library: str = ""


def quiet(**settings: Any) -> dict[str, Any]:
    """Settings of a Trainer: a short training on the CPU that leaves no file and prints nothing."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "max_steps": 60,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **settings,
    }


def usual(
    build: Callable[[], tuple[LightningModule, Any]],
    own: Callable[[], list[Callback]] = list,
    **settings: Any,
) -> Fit:
    """How to fit a module to data: the usual script, from the seed to ``trainer.fit``.

    Args:
        build: Gives the module and its loader, loaders or datamodule.
        own: Gives the callbacks that belong to the training.
        settings: Of the Trainer, beside those of `quiet`.

    Returns:
        What fits it, with more callbacks.
    """

    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        module, data = build()
        trainer = Trainer(callbacks=[*own(), *callbacks], **quiet(**settings))
        trainer.fit(module, data)
        return Fitted(trainer, module)

    return fit


class Keeper(Callback):
    """Keeps the Trainer of a library that drops it; stays itself where callbacks are copied."""

    trainer: Any = None
    module: Any = None

    def __deepcopy__(self, memo: dict) -> Keeper:
        return self

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trainer, self.module = trainer, pl_module

    @property
    def fitted(self) -> Fitted:
        return Fitted(self.trainer, self.module)
