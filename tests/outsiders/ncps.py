"""Recurrent networks of ncps, in the LightningModule of its documentation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from ncps.torch import LTC, CfC
from ncps.wirings import AutoNCP
from torch import Tensor, nn
from torch.utils.data import DataLoader

from outsiders.data import loader
from outsiders.training import Training, usual

REQUIREMENTS = ("torch==2.13.0", "ncps==1.0.1")
LIBRARY = "ncps"


class SequenceLearner(pl.LightningModule):
    def __init__(self, model: nn.Module, lr: float = 0.005) -> None:
        super().__init__()
        self.model = model
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        y_hat, _ = self.model.forward(x)
        y_hat = y_hat.view_as(y)
        loss = nn.MSELoss()(y_hat, y)
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)


def sines() -> DataLoader:
    t = np.linspace(0, 3 * np.pi, 24)
    x = np.stack([np.sin(t), np.cos(t)], axis=1)[None].astype(np.float32)
    y = np.sin(2 * t)[None, :, None].astype(np.float32)
    return loader(torch.from_numpy(x), torch.from_numpy(y), batch_size=1)


TRAININGS = (
    Training(
        "closed-form continuous",
        usual(lambda: (SequenceLearner(CfC(2, 16, proj_size=1)), sines())),
        states=("model.rnn_cell", "model.rnn_cell.backbone*"),
        targets="1 value at each of 24 steps",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "wired closed-form continuous",
        usual(lambda: (SequenceLearner(CfC(2, AutoNCP(16, 1))), sines()), max_steps=40),
        states=("model.rnn_cell", "model.rnn_cell.layer_[01]*"),
        targets="1 value at each of 24 steps",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "liquid time constants",
        usual(lambda: (SequenceLearner(LTC(2, AutoNCP(16, 1))), sines()), max_steps=40),
        states=("model.rnn_cell",),
        targets="1 value at each of 24 steps",
        modes=True,
        library=LIBRARY,
    ),
)
