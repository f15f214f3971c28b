"""The models and batches that the benchmarks measure, each with its seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import memory_pro_trials


@dataclass(frozen=True)
class Workload:
    """A model, a batch, and where its state is."""

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    state: str

    def to(self, device: str) -> Workload:
        """The same on another device."""
        x, y = self.batch
        return Workload(self.model.to(device), (x.to(device), y.to(device)), self.state)


class Block(nn.Module):
    """A transformer of causal self-attention blocks over features."""

    def __init__(self, inputs: int, width: int, layers: int, heads: int, outputs: int) -> None:
        """Make the blocks."""
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.readout = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, inputs)`` to ``(B, T, outputs)``."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.readout(self.blocks(self.embed(x), mask=mask.to(x.dtype), is_causal=True))


class ChaoticRNN(nn.Module):
    """A plain RNN whose recurrent weights have a gain above the edge of chaos."""

    def __init__(self, units: int, gain: float) -> None:
        """Draw the weights."""
        super().__init__()
        self.rnn = nn.RNN(3, units, batch_first=True)
        self.readout = nn.Linear(units, 3)
        nn.init.normal_(self.rnn.weight_hh_l0, std=gain / math.sqrt(units))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, 3)`` to ``(B, T, 3)``."""
        return self.readout(self.rnn(x)[0])


def gru(units: int = 32, trials: int = 8, steps: int = 8) -> Workload:
    """A GRU on Memory-Pro at initialisation; ``steps`` per phase."""
    torch.manual_seed(0)
    angles = 2 * math.pi * torch.arange(trials) / trials
    return Workload(
        GRURegression(hidden_size=units), memory_pro_trials(angles, steps, steps, steps), "auto"
    )


def trained_gru() -> Workload:
    """The same GRU after 800 Adam steps with noise, when few directions carry its kernel."""
    work = gru()
    optimizer = torch.optim.Adam(work.model.parameters(), lr=0.01)
    x, y = (tensor.repeat(8, 1, 1) for tensor in work.batch)
    for _ in range(800):
        optimizer.zero_grad()
        noise = 0.5 * torch.randn_like(x)
        nn.functional.mse_loss(work.model(x + noise), y).backward()
        optimizer.step()
    return work


def chaotic_rnn() -> Workload:
    """A plain RNN of gain 1.5."""
    torch.manual_seed(0)
    x = torch.randn(8, 32, 3)
    return Workload(ChaoticRNN(32, 1.5), (x, x.roll(1, 1)), "rnn")


def transformer() -> Workload:
    """One small transformer block."""
    torch.manual_seed(0)
    x = torch.randn(8, 16, 6)
    return Workload(Block(6, 24, 1, 2, 3), (x, x[..., :3]), "blocks")


def mlp() -> Workload:
    """A network of two hidden layers on random vectors."""
    torch.manual_seed(0)
    layers = [nn.Linear(10, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 3)]
    x = torch.randn(128, 10)
    return Workload(nn.Sequential(*layers), (x, x[:, :3]), "3")


ACCURACY: dict[str, Callable[[], Workload]] = {
    "GRU, initial": gru,
    "GRU, trained": trained_gru,
    "RNN, chaotic": chaotic_rnn,
    "transformer": transformer,
    "MLP": mlp,
}
"""Workloads small enough for a dense Jacobian as the truth."""


def wide_gru() -> Workload:
    """The paper's GRU: 256 units, 20 trials of 90 steps."""
    return gru(units=256, trials=20, steps=30)


def wide_transformer() -> Workload:
    """Four causal layers of width 128 on 8 sequences of 64 steps."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 16)
    return Workload(Block(16, 128, 4, 4, 3), (x, x[..., :3]), "blocks")


COST: dict[str, Callable[[], Workload]] = {
    "GRU-256, 20 x 90": wide_gru,
    "transformer 4 x 128, 8 x 64": wide_transformer,
}
"""Workloads of a realistic size."""
