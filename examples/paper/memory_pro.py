"""GRUs trained on Memory-Pro under the monitor: what Figures 3 and 4 have in common."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from ntk_monitor import NTKMonitor, Snapshot
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import MemoryProDataModule, memory_pro_trials

RESPONSE = 60
"""The step at which the response period begins; stimulus and delay have 30 steps each."""


def evaluation(trials: int = 20) -> tuple[Tensor, Tensor]:
    """The task without noise, at equally spaced directions."""
    return memory_pro_trials(2 * math.pi * torch.arange(trials) / trials)


def train(
    model: GRURegression,
    steps: int,
    seed: int,
    every: int,
    **settings: Any,  # noqa: ANN401
) -> tuple[list[tuple[int, Snapshot]], list[float]]:
    """Train on noisy trials in batches of 64, probing on the noise-free ones.

    Args:
        model: Trained in place, by its own optimizer.
        steps: Optimizer steps.
        seed: Of the trials.
        every: Steps from probe to probe.
        settings: Of the monitor.

    Returns:
        Steps with their snapshots, and the training loss of every step.
    """
    watch = _Watch()
    monitor = NTKMonitor(every, None, evaluation(), figures=False, on_error="raise", **settings)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[monitor, watch],
        )
        trainer.fit(model, MemoryProDataModule(batch_size=64, noise_std=0.5, seed=seed))
    return watch.snapshots, watch.losses


class _Watch(Callback):
    """Keeps every snapshot and every loss."""

    def __init__(self) -> None:
        self.snapshots: list[tuple[int, Snapshot]] = []
        self.losses: list[float] = []

    def on_probe(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot, step: int
    ) -> None:
        del trainer, pl_module
        self.snapshots.append((step, snapshot))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        del trainer, pl_module, batch, batch_idx
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self.losses.append(float(loss))
