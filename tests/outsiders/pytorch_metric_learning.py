"""Losses and miners of pytorch-metric-learning in a LightningModule."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from outsiders.data import images, loader
from outsiders.training import Training, usual

REQUIREMENTS = ("torch==2.13.0", "pytorch-metric-learning==2.9.0")
LIBRARY = "pytorch-metric-learning"


def embedder() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 16)
    )


class Mined(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = embedder()
        self.loss_func = losses.TripletMarginLoss(margin=0.2)
        self.mining_func = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        data, labels = batch
        embeddings = self(data)
        indices_tuple = self.mining_func(embeddings, labels)
        loss = self.loss_func(embeddings, labels, indices_tuple)
        self.log("train_loss", loss)
        self.log("mined", float(self.mining_func.num_triplets))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Classifying(pl.LightningModule):
    """The loss has weights of its own, one vector a class."""

    def __init__(self, loss_func: nn.Module) -> None:
        super().__init__()
        self.model = embedder()
        self.loss_func = loss_func

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        data, labels = batch
        loss = self.loss_func(self.model(data), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": self.model.parameters()},
            {"params": self.loss_func.parameters(), "lr": 1e-2},
        ]
        return torch.optim.Adam(groups, lr=1e-3)


def arcface() -> nn.Module:
    return losses.ArcFaceLoss(num_classes=4, embedding_size=16, margin=20, scale=8)


TRAININGS = (
    Training(
        "mined triplets",
        usual(lambda: (Mined(), loader(*images()))),
        states=("model.[0-3]",),
        targets="none: distances of triplets",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "arcface",
        usual(lambda: (Classifying(arcface()), loader(*images()))),
        states=("model", "model.*"),
        targets="class labels, 4, by angles to weights of the loss",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "supervised contrastive",
        usual(lambda: (Classifying(losses.SupConLoss()), loader(*images()))),
        states=("model.[0-3]",),
        targets="none: contrastive",
        modes=False,
        library=LIBRARY,
    ),
)
