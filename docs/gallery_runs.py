"""The trainings of the gallery: each under NTKMonitor and StallAlert, then again with a remedy.

Most are kinds of ``benchmarks/kinds.py``, whose end is known because it was built in; seed 0.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, IterableDataset

from ntk_monitor import NTKMonitor, Snapshot, StallAlert, try_remedies
from ntk_monitor.reason import Reason
from ntk_monitor.remedies import ApplyRemedy, Remedy, Trials
from ntk_monitor.views.report import write_report

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from kinds import KINDS, Batch, Training, digits, flat, memory_pro

SEED = 0
"""Of all trainings; the first one that was tried, whatever came of it."""
PROBES = 30
Make = Callable[[int], Training]


# ---- trainings that are in the gallery only -----------------------------------------------------


def two_optimizers(seed: int, make: Callable[..., Optimizer]) -> Training:
    """Memory-Pro by Network 1: the same weights and trials, whatever the optimizer."""
    return memory_pro(seed, "xavier", make, 1000)


def noisy_steps(seed: int) -> Training:
    """Digits by steps that are large, and of four images each."""
    training = digits(
        seed, lambda: flat(64, 64, 10, activation=nn.Tanh), partial(SGD, lr=0.1, momentum=0.9), 600
    )
    draw = training.batch
    return replace(training, batch=lambda: draw(4))  # type: ignore[call-arg]


OWN: dict[str, Make] = {
    "Network 1 with Adam": partial(two_optimizers, make=partial(Adam, lr=2e-3)),
    "Network 1 with SGD": partial(two_optimizers, make=partial(SGD, lr=0.05)),
    "noisy steps": noisy_steps,
}


def training_of(kind: str, seed: int = SEED) -> Training:
    """A training of the gallery.

    Args:
        kind: Its name here, or in ``benchmarks/kinds.py``.
        seed: Of its weights and data.

    Returns:
        The training, before its first step.
    """
    return OWN[kind](seed) if kind in OWN else KINDS[kind].make(seed)


# ---- as Lightning has it ------------------------------------------------------------------------


class Learner(LightningModule):
    """A training of a kind as a LightningModule."""

    def __init__(self, kind: str, seed: int = SEED) -> None:
        """Make the model."""
        super().__init__()
        training = training_of(kind, seed)
        self.network, self.loss, self.optimizer = (
            training.model, training.loss, training.optimizer,
        )  # fmt: skip
        self.rate = training.rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The kind's loss."""
        x, y = batch
        loss = self.loss(self.network(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """The kind's optimizer, of all that trains by now, and its schedule."""
        if isinstance(self.rate, LRScheduler):  # made for this very optimizer
            schedule = {"scheduler": self.rate, "interval": "step"}
            return {"optimizer": self.optimizer, "lr_scheduler": schedule}
        kind = type(self.optimizer)
        accepted = inspect.signature(kind).parameters
        settings = {k: v for k, v in self.optimizer.defaults.items() if k in accepted}
        optimizer = kind([p for p in self.network.parameters() if p.requires_grad], **settings)
        schedule = {"scheduler": LambdaLR(optimizer, self.rate), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Batches(IterableDataset[Batch]):
    """The batches of a kind, the same ones each time."""

    def __init__(self, kind: str, seed: int = SEED) -> None:
        """Keep what makes them."""
        self.kind, self.seed = kind, seed

    def __iter__(self) -> Iterator[Batch]:
        """Draw without end."""
        training = training_of(self.kind, self.seed)
        torch.manual_seed(self.seed + 1)
        while True:
            yield training.batch()


# ---- a run --------------------------------------------------------------------------------------


@dataclass
class Curves(Callback):
    """What each probe said, for the pictures.

    Attributes:
        steps: Of each probe.
        loss: On the batch that is probed.
        learned: The learned fraction of each followed mode.
        forecasts: By step, the loss to come: steps ahead and losses, for how many steps it is
            known to hold, and each mode's steps to learn.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    learned: list[list[float]] = field(default_factory=list)
    forecasts: dict[int, dict[str, list[float]]] = field(default_factory=dict)

    def on_probe(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot, step: int
    ) -> None:
        """Keep it."""
        self.steps.append(step)
        self.loss.append(math.nan if snapshot.loss is None else snapshot.loss)
        self.learned.append([mode.learned for mode in snapshot.target_modes])
        if snapshot.forecast is not None:
            ahead = snapshot.forecast
            steps = [mode.steps_to_learn for mode in snapshot.target_modes]
            self.forecasts[step] = {
                "steps": ahead.steps.tolist(), "loss": ahead.loss.tolist(),
                "to_learn": [math.nan if s is None else s for s in steps],
                "holds_for": [ahead.valid_for],
            }  # fmt: skip


class Run(NamedTuple):
    """A training that has ended.

    Attributes:
        curves: What its probes said.
        told: What ``ntk-monitor report --format json`` says of it.
        history: For each mode its states, with the steps since when.
        planned: Its steps.
    """

    curves: Curves
    told: dict[str, Any]
    history: dict[int, list[tuple[int, str]]]
    planned: int


def train(kind: str, folder: Path, remedy: Remedy | None = None, probes: int = PROBES) -> Run:
    """Train under the monitor, and report.

    Args:
        kind: Which training.
        folder: For its logs; emptied first.
        remedy: What to change; its run is not judged, only measured.
        probes: How many, one before the first step apart.

    Returns:
        What came of it.
    """
    shutil.rmtree(folder, ignore_errors=True)  # logs of an earlier run would be read as well
    training = training_of(kind)
    state = training.state if training.state == "auto" else f"network.{training.state}"
    monitor = NTKMonitor(
        probe_batch=training.evaluation, modes=training.modes, state=state, figures=False,
        tier="core" if remedy else "modes", max_overhead=None,
        every_n_steps=max(training.steps // probes, 1),
    )  # fmt: skip
    curves, alert = Curves(), StallAlert(actions=())
    callbacks = [monitor, alert, curves, *([ApplyRemedy(remedy)] if remedy else [])]
    logger = TensorBoardLogger(folder, name="", version="")
    torch.manual_seed(SEED)
    trainer = Trainer(**settings_of(training), logger=logger, callbacks=callbacks, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and logging
        trainer.fit(Learner(kind), DataLoader(Batches(kind), batch_size=None))
    logger.finalize("success")
    report = json.loads(write_report([folder], None, kind="json").text)
    (told,) = report["runs"]
    return Run(curves, told, alert.history, training.steps)


def computed() -> float:
    """Seconds of computing so far, of this process and those that it has waited for."""
    return sum(os.times()[:4])


QUIET: dict[str, Any] = {
    "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    "log_every_n_steps": 10,
}  # fmt: skip


def settings_of(training: Training) -> dict[str, Any]:
    """How a Trainer trains a kind.

    Args:
        training: The kind's training.

    Returns:
        Arguments of the Trainer.
    """
    return {
        "max_steps": training.steps, "max_epochs": -1, "accelerator": "cpu",
        "gradient_clip_val": training.clip_norm,
    }  # fmt: skip


def tried(kind: str, reason: Reason | None) -> Trials:
    """Short trials of all remedies, as ``ntk-monitor try`` makes them.

    Args:
        kind: Which training.
        reason: Of the alert.

    Returns:
        The trials, best first.
    """
    return try_remedies(
        partial(Learner, kind), DataLoader(Batches(kind), batch_size=None),
        trainer=settings_of(training_of(kind)), reason=reason, progress=False, seed=SEED,
    )  # fmt: skip


def silence() -> None:
    """No word of Lightning on accelerators."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
