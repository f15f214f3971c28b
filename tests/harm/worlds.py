"""Trainings of every kind that a monitor must not disturb: models x settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytorch_lightning
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import LearningRateMonitor, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

B, T, N, H = 4, 5, 2, 6


class Dropout(nn.Module):
    """A GRU with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.dropout = nn.GRU(N, H, batch_first=True), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.rnn(x)[0])


class Lstm(nn.Module):
    """Two layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(N, H, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Channels(nn.Module):
    """Layers that want the features second."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dropout": Dropout,
    "BatchNorm": lambda: Channels(nn.Conv1d(N, H, 1), nn.BatchNorm1d(H), nn.ReLU()),
    "LSTM": Lstm,
    "transformer": lambda: nn.Sequential(
        nn.Linear(N, H), nn.TransformerEncoderLayer(H, 2, 8, batch_first=True)
    ),
    "conv": lambda: Channels(nn.Conv1d(N, H, 3, padding=1), nn.BatchNorm1d(H), nn.Tanh()),
    "lazily built": lambda: nn.Sequential(nn.LazyLinear(H), nn.Dropout(0.3), nn.Tanh()),
}


class Body:
    """What a training does, for the LightningModule of either package."""

    def __init__(self, kind: str, **traits: bool) -> None:
        super().__init__()
        self.kind, self.traits = kind, traits
        self.automatic_optimization = not traits.get("manual", False)
        self.seen: list[float] = []
        self.losses: list[Tensor] = []
        self.body: nn.Module | None = None

    def configure_model(self) -> None:
        if self.body is not None:
            return
        torch.manual_seed(0)
        body = MODELS[self.kind]()
        with torch.no_grad():
            body(torch.zeros(B, T, N))
        self.body, self.readout = body, nn.Linear(H, N)
        if self.traits.get("compiled"):
            self.body = torch.compile(body, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        reentrant = self.traits.get("reentrant")
        if reentrant is not None:
            x = x.requires_grad_() if self.training and not x.requires_grad else x
            return self.readout(checkpoint(self.body, x, use_reentrant=reentrant))
        return self.readout(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.seen.append(float(batch[0].detach().double().sum()))
        self.losses.append(loss.detach().clone())
        if not self.traits.get("silent"):
            self.log("loss", loss)
        if not self.automatic_optimization:
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        if not self.automatic_optimization:
            parts = (self.body, self.readout)
            return [torch.optim.Adam(m.parameters(), lr=0.01) for m in parts]
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Module(Body, lightning.LightningModule):
    """Trained by ``lightning``."""


class OtherModule(Body, pytorch_lightning.LightningModule):
    """Trained by ``pytorch_lightning``."""


@dataclass
class World:
    """One way to train; ``without`` names models that cannot be trained so on every CPU."""

    trainer: dict[str, Any] = field(default_factory=dict)
    traits: dict[str, bool] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    monitor: dict[str, Any] = field(default_factory=dict)
    loggers: Callable[[Path], Any] = lambda _: False
    module: type = Module
    package: Any = lightning
    fits: int = 1
    whole: bool = False
    two_monitors: bool = False
    without: tuple[str, ...] = ()


WORLDS: dict[str, World] = {
    "plain": World(),
    "accumulation": World({"accumulate_grad_batches": 3}),
    "manual, two optimizers": World(traits={"manual": True}),
    "bf16-mixed": World({"precision": "bf16-mixed"}, without=("LSTM",)),
    "16-mixed": World({"precision": "16-mixed"}, without=("LSTM",)),
    "bf16-true": World({"precision": "bf16-true"}),
    "64-true": World({"precision": "64-true"}),
    "compiled module": World(whole=True, traits={"silent": True}),  # torch 2.13 cannot compile log
    "compiled submodule": World(traits={"compiled": True}),
    "checkpointing": World(traits={"reentrant": False}),
    "reentrant checkpointing": World(traits={"reentrant": True}),
    "bf16-true, checkpointing": World({"precision": "bf16-true"}, {"reentrant": False}),
    "SWA": World(callbacks=lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)]),
    "fast_dev_run": World({"fast_dev_run": 3}),
    "barebones": World({"barebones": True}),
    "overfit_batches": World({"overfit_batches": 2}),
    "several loggers": World(
        loggers=lambda path: [CSVLogger(path, "csv"), TensorBoardLogger(path, "tb")],
        callbacks=lambda: [LearningRateMonitor()],
    ),
    "sanity check and validation": World(
        {"num_sanity_val_steps": 1, "limit_val_batches": 2}, monitor={"probe_batch": "val"}
    ),
    "clipping and anomaly detection": World({"gradient_clip_val": 0.1, "detect_anomaly": True}),
    "deterministic": World({"deterministic": True}),
    "fit twice": World(fits=2),
    "two monitors": World(two_monitors=True),
    "pytorch_lightning": World(module=OtherModule, package=pytorch_lightning),
}
if hasattr(callbacks, "EMAWeightAveraging"):  # from lightning 2.6 on
    WORLDS["EMA"] = World(callbacks=lambda: [callbacks.EMAWeightAveraging(decay=0.9)])


def loader(batches: int = 6, *, shuffle: bool = True) -> DataLoader:
    """Sequences and what to make of them."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(batches * B, T, N, generator=generator) for _ in range(2))
    return DataLoader(TensorDataset(x, y), batch_size=B, shuffle=shuffle)


def train(
    kind: str,
    world: World,
    callbacks: list[Any],
    path: Path,
    ckpt_path: Path | None = None,
    *,
    shuffle: bool = True,
    **settings: Any,
) -> tuple[Any, Any]:
    """Train a model in a world, with more callbacks than it has by itself."""
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 4,
        "default_root_dir": path,
    }
    settings = defaults | world.trainer | settings
    if not settings.get("barebones"):
        quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        settings = dict.fromkeys(quiet, False) | settings
        settings.setdefault("logger", world.loggers(path))
    else:
        settings.pop("log_every_n_steps")
    module = world.module(kind, **world.traits)
    given: Any = module
    if world.whole:
        module.configure_model()
        given = torch.compile(module, backend="eager")
    trainer = world.package.Trainer(callbacks=[*world.callbacks(), *callbacks], **settings)
    torch.manual_seed(1)
    for fit in range(world.fits):
        if fit:
            trainer.fit_loop.max_epochs += 1
        trainer.fit(given, loader(shuffle=shuffle), loader(2, shuffle=False), ckpt_path=ckpt_path)
    return trainer, module


@contextmanager
def restored(flags: dict[str, tuple[Any, Any]]) -> Any:
    """Put flags of the process back after a test that changed them on purpose."""
    before = {name: read() for name, (read, _) in flags.items()}
    grad = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        for name, (read, write) in flags.items():
            if read() != before[name]:
                write(before[name])
