"""Training steps that read the trainer, log pictures, need the index, or leave batches out."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional

from outsiders.data import curves, images, loader, table, waves
from outsiders.training import Fitted, Training, quiet, usual


class WarmupVAE(pl.LightningModule):
    """The weight of one term follows the trainer's epoch and step."""

    def __init__(self, latent: int = 4, warmup_epochs: int = 3) -> None:
        super().__init__()
        self.warmup_epochs = warmup_epochs
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.mu, self.logvar = nn.Linear(32, latent), nn.Linear(32, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid()
        )

    def kl_weight(self) -> float:
        done = self.trainer.current_epoch + self.trainer.fit_loop.batch_idx / max(
            self.trainer.num_training_batches, 1
        )
        return min(1.0, done / self.warmup_epochs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        hidden = self.encoder(x)
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        reconstruction = self.decoder(z)
        target = x.flatten(1)
        bce = functional.binary_cross_entropy(reconstruction, target, reduction="sum") / len(x)
        kl = -0.5 * torch.mean(torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1))
        self.log_dict({"bce": bce, "kl": kl, "kl_weight": self.kl_weight()})
        return bce + self.kl_weight() * kl

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=1e-2, total_steps=self.trainer.estimated_stepping_batches
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class LogsPictures(pl.LightningModule):
    """Images, a histogram of weights, and an example for the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        x = functional.relu(self.conv2(x))
        return functional.log_softmax(self.fc(x.flatten(1)), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.nll_loss(self(x), y)
        if batch_idx % 8 == 0:
            board = self.logger.experiment
            board.add_images("inputs", x[:4], self.global_step)
            board.add_histogram("conv1/weight", self.conv1.weight, self.global_step)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def with_board(callbacks: list[Callback]) -> Fitted:
    pl.seed_everything(0, verbose=False)
    module, data = LogsPictures(), loader(*images())
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder, name="pictures")
        trainer = Trainer(callbacks=callbacks, **quiet(logger=logger, log_every_n_steps=10))
        trainer.fit(module, data)
    return Fitted(trainer, module)


class Alternating(pl.LightningModule):
    """Which loss it is depends on the index of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.labels, self.inputs = nn.Linear(16, 4), nn.Linear(16, 12)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        hidden = self.body(x)
        if batch_idx % 2:
            loss = functional.mse_loss(self.inputs(hidden), x)
        else:
            loss = functional.cross_entropy(self.labels(hidden), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Skipping(pl.LightningModule):
    """No loss for a batch with too few samples of interest."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x, y = batch
        keep = y[:, 0] > 0
        if keep.sum() < 15:
            return None
        loss = functional.huber_loss(self(x[keep]), y[keep])
        self.log("huber", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Regularized(pl.LightningModule):
    """A sparse autoencoder: penalties on activations that a hook keeps, and on weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(40, 64)
        self.decode = nn.Linear(64, 40)
        self.activations: Tensor | None = None
        self.encode.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.activations = output

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.relu(self.encode(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        loss = torch.mean((self(x) - x) ** 2)
        loss = loss + 1e-3 * self.activations.abs().mean()
        loss = loss + 1e-4 * sum(p.abs().sum() for p in self.parameters())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Forecaster(pl.LightningModule):
    """The window is cut inside the step, and the network feeds on its own predictions."""

    def __init__(self, horizon: int = 5) -> None:
        super().__init__()
        self.horizon = horizon
        self.cell = nn.GRUCell(2, 24)
        self.project = nn.Linear(24, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (series,) = batch
        past, future = series[:, : -self.horizon], series[:, -self.horizon :]
        h = series.new_zeros(len(series), 24)
        for t in range(past.size(1)):
            h = self.cell(past[:, t], h)
        predictions, value = [], past[:, -1]
        for _ in range(self.horizon):
            value = value + self.project(h)
            predictions.append(value)
            h = self.cell(value, h)
        loss = functional.mse_loss(torch.stack(predictions, 1), future)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


TRAININGS = (
    Training(
        "vae that reads the trainer",
        usual(lambda: (WarmupVAE(), loader(*images()))),
        states=("encoder*", "decoder.[01]"),
        targets="x itself, 64 values, by binary cross-entropy",
        modes=True,
    ),
    Training(
        "pictures in the step",
        with_board,
        states=("conv[12]",),
        targets="class labels, 4",
        modes=True,
    ),
    Training(
        "loss by index",
        usual(lambda: (Alternating(), loader(*table()))),
        states=("body*",),
        targets="class labels, 4, or x itself, 12 values, by turns",
        modes=True,
    ),
    Training(
        "some batches without a loss",
        usual(lambda: (Skipping(), loader(*curves()))),
        states=("fc1",),
        targets="y where positive, 1 value",
        modes=True,
    ),
    Training(
        "sparse autoencoder",
        usual(lambda: (Regularized(), loader(waves()))),
        states=("encode",),
        targets="x itself, 40 values",
        modes=True,
    ),
    Training(
        "forecast by its own predictions",
        usual(lambda: (Forecaster(), loader(waves()))),
        states=("cell",),
        targets="the last 5 time steps, 2 values",
        modes=True,
    ),
)
