"""A small training with everything that a monitor could disturb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Small(LightningModule):
    """A GRU regression with dropout, shuffled data and momentum."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = optimizers == 1
        self.optimizers_wanted = optimizers
        torch.manual_seed(0)
        self.rnn = nn.GRU(2, 8, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.readout = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.dropout(self.rnn(x)[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.Adam(self.parameters(), lr=0.01)
        return [torch.optim.SGD(m.parameters(), lr=0.01) for m in (self.rnn, self.readout)]


def data(batches: int = 10, batch_size: int = 4, *, shuffle: bool = True) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batches * batch_size, 5, 2, generator=generator)
    y = torch.randn(batches * batch_size, 5, 2, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)


def fit(
    callbacks: list[Callback],
    module: LightningModule | None = None,
    ckpt_path: Path | None = None,
    **settings: Any,
) -> tuple[Trainer, LightningModule]:
    """Train the small model for ten batches."""
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "log_every_n_steps": 50,
    }
    trainer = Trainer(callbacks=callbacks, **(defaults | settings))
    module = Small() if module is None else module
    torch.manual_seed(1)
    trainer.fit(module, data(), data(2, shuffle=False), ckpt_path=ckpt_path)
    return trainer, module


class Recorder(Callback):
    """Listens to probes."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.traces: list[float] = []

    def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
        self.steps.append(step)
        self.traces.append(snapshot.trace.value)
