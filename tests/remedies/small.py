"""Trainings that take a second, at the top of a module so that other processes can make them."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from ntk_monitor.remedies import PlainTraining

MAP = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))


def draw(count: int = 32) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 4)
    return x, x @ MAP


def mse(module: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def slow() -> PlainTraining:
    """A learning rate that is far too small."""
    model = network()
    optimizer = SGD(model.parameters(), lr=1e-5)
    return PlainTraining(model, optimizer, draw, 400, loss_fn=mse)


def of_noise() -> PlainTraining:
    """A target that is noise."""
    model = network()
    return PlainTraining(
        model,
        lambda parameters: SGD(parameters, lr=0.05),
        lambda: (torch.randn(64, 4), torch.randn(64, 4)),
        400,
        loss_fn=mse,
    )


def without_order() -> PlainTraining:
    """Data that no seed names."""
    training = slow()
    generator = torch.Generator()
    generator.seed()

    def own() -> tuple[Tensor, Tensor]:
        x = torch.randn(32, 4, generator=generator)
        return x, x @ MAP

    training.batches = own
    return training


def deadly() -> PlainTraining:
    """Ends its process in the middle of a step, unless it is the baseline."""
    training = slow()

    def loss_fn(module: nn.Module, batch: Any) -> Tensor:
        if training.model[0].bias.abs().sum() == 0:
            os._exit(7)
        return mse(module, batch)

    training.loss_fn = loss_fn
    return training


def broken() -> PlainTraining:
    raise RuntimeError("no such file: weights.pt\nwith a second line")


def with_every_generator() -> PlainTraining:
    """Data by torch, numpy and random."""
    training = slow()

    def own() -> tuple[Tensor, Tensor]:
        x = torch.randn(32, 4) + float(np.random.rand()) + random.random()
        return x, x @ MAP

    training.batches = own
    return training


class Regression(LightningModule):
    """The same in Lightning."""

    def __init__(self, lr: float = 1e-5) -> None:
        super().__init__()
        self.net = network()
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = mse(self.net, batch)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Data(LightningDataModule):
    """Fresh or finite, with or without validation."""

    def __init__(self, samples: int = 640, validation: bool = True) -> None:
        super().__init__()
        self.samples, self.validation = samples, validation
        self.difficulties: list[float] = []

    def set_difficulty(self, difficulty: float) -> None:
        self.difficulties.append(difficulty)

    def _data(self, seed: int, count: int) -> TensorDataset:
        x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(x, x @ MAP)

    def train_dataloader(self) -> Any:
        return DataLoader(self._data(0, self.samples), batch_size=32, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self._data(1, 64), batch_size=32) if self.validation else []


def regression() -> Regression:
    return Regression()
