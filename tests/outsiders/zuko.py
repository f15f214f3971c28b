"""Normalizing flows of zuko: a density, and one that depends on a context."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import zuko
from torch import Tensor, nn

from outsiders.data import curves, loader
from outsiders.training import Training, usual

REQUIREMENTS = ("torch==2.13.0", "zuko==1.6.0")
LIBRARY = "zuko"


class Density(pl.LightningModule):
    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        context, x = batch
        loss = -self.flow(context).log_prob(x).mean()
        self.log("nll", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.flow.parameters(), lr=1e-3)


class Unconditional(Density):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = torch.cat(batch, dim=1)
        loss = -self.flow().log_prob(x).mean()
        self.log("nll", loss)
        return loss


def spline() -> Density:
    return Unconditional(zuko.flows.NSF(features=4, transforms=2, hidden_features=(24, 24)))


def posterior() -> Density:
    return Density(zuko.flows.MAF(1, 3, transforms=2, hidden_features=(24, 24)))


TRAININGS = (
    Training(
        "spline flow",
        usual(lambda: (spline(), loader(*curves())), max_steps=40),
        states=("flow.transform.transforms.*.hyper.[0-3]",),
        targets="none: likelihood of x",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "conditional flow",
        usual(lambda: (posterior(), loader(*curves())), max_steps=40),
        states=("flow.transform.transforms.*.hyper.[0-3]",),
        targets="none: likelihood of y given x",
        modes=False,
        library=LIBRARY,
    ),
)
