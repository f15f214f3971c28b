"""A small GPT under the monitor: which bytes come next in the help texts of Python?

GPT shifts its labels by itself; the monitor sees what the loss compares, and is told nothing.

    pip install -c constraints.txt ".[examples]"
    python examples/language_model.py
"""

from pydoc_data.topics import topics

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from ntk_monitor import NTKMonitor
from ntk_monitor.commands.fit import print_summary


class ByteModel(LightningModule):
    """Two layers of GPT-2 on bytes."""

    def __init__(self) -> None:
        """Make the model."""
        super().__init__()
        size = GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=4)
        self.gpt = GPT2LMHeadModel(size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of the next byte, at every position."""
        return self.gpt(input_ids).logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        loss = self.gpt(**batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with decoupled weight decay."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def text(length: int = 64) -> list[dict[str, Tensor]]:
    """The help texts, cut to equal lengths."""
    data = torch.tensor(list("\n".join(topics.values()).encode()))
    pieces = data[: len(data) // length * length].reshape(-1, length)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(
        max_steps=300,
        accelerator="cpu",
        callbacks=[NTKMonitor(every_n_steps=60, max_overhead=None)],
    )
    trainer.fit(ByteModel(), DataLoader(text(), batch_size=16, shuffle=True))
    print_summary(trainer, Console())
