# ruff: noqa: E501 (tables with one line a case)
"""The zoo: every model that the monitor is shown to work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel
from lightning.pytorch.demos.lstm import SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer
from torch import Tensor, nn

from zoo.architectures import ARCHITECTURES, build
from zoo.layers import DERIVED, DISCRETE, LAYERS, B, N, T, Wrapped, reals, tokens


@dataclass(frozen=True)
class Animal:
    """A model, what to call it on, and where its state is.

    ``precision`` is what finite differences of the model in float64 can be trusted to; some models
    compute a part in float32 whatever they are given.
    """

    group: str
    make: Callable[[], tuple[nn.Module, Any]]
    state: str = "auto"
    precision: float = 1e-6


def alone(make: Callable[[], nn.Module], batch: Callable[[], Tensor]) -> tuple[nn.Module, Any]:
    torch.manual_seed(1)
    return nn.Sequential(make()), batch()


def small(*shape: int) -> Tensor:
    return reals(*shape).float()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = SimpleLSTM(7, 6, 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, self.model.init_hidden(len(x)))[0]


def lazy() -> nn.Module:
    layer = nn.Sequential(nn.LazyConv1d(4, 3), nn.Flatten(), nn.LazyLinear(3))
    layer(torch.zeros(1, 2, 6))
    return layer


def words() -> nn.Module:
    """A language model with a tied head."""
    embedding = nn.Embedding(7, 6)
    head = nn.Linear(6, 7, bias=False)
    head.weight = embedding.weight
    return nn.Sequential(embedding, nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), head)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "LayerNorm": (lambda: nn.Sequential(nn.Linear(N, 4), nn.LayerNorm(4)), partial(small, B, T, N)),
    "RMSNorm": (lambda: nn.Sequential(nn.Linear(N, 4), nn.RMSNorm(4)), partial(small, B, T, N)),
    "GroupNorm": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4)), partial(small, B, 2, 6)),
    "BatchNorm1d": (lambda: nn.Sequential(nn.Linear(N, 4), nn.BatchNorm1d(4)), partial(small, B, N)),
    "InstanceNorm2d": (lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.InstanceNorm2d(4, affine=True)), partial(small, B, 2, 4, 4)),
    "PReLU": (lambda: nn.Sequential(nn.Linear(N, 4), nn.PReLU(4)), partial(small, B, N)),
    "LazyConv1d, LazyLinear": (lazy, partial(small, B, 2, 6)),
    "TransformerEncoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2), partial(small, B, T, 6)),
    "Transformer": (lambda: Wrapped(nn.Transformer(6, 2, 1, 1, 8, batch_first=True), lambda f, x: f(x, x.flip(1))), partial(small, B, T, 6)),
    "residual CNN with BatchNorm": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), partial(small, B, 1, 5, 5)),
    "autoencoder": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.GELU(), nn.ConvTranspose1d(4, 2, 3, stride=2)), partial(small, B, 2, 7)),
    "language model with a tied head": (words, tokens),
}  # fmt: skip
LIGHTNING: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "BoringModel": (BoringModel, partial(small, B, 32)),
    "DemoModel": (lambda: DemoModel(4), partial(small, B, 32)),
    "LightningTransformer": (lambda: LightningTransformer(7), lambda: (tokens(), tokens())),
    "SimpleLSTM": (Lstm, tokens),
}


def seeded(make: Callable[[], nn.Module], batch: Callable[[], Any]) -> tuple[nn.Module, Any]:
    torch.manual_seed(1)
    return make(), batch()


CASES: dict[str, Animal] = {
    **{n: Animal("torch.nn", partial(alone, make, partial(small, *shape)), "0") for n, (make, shape) in LAYERS.items()},
    **{n: Animal("torch.nn", partial(alone, make, tokens), "0") for n, make in DISCRETE.items()},
    **{f"{n} weight": Animal("weights computed from parameters", partial(alone, make, partial(small, B, T, N)), "0") for n, make in DERIVED.items()},
    **{n: Animal("networks of torch.nn", partial(seeded, make, batch)) for n, (make, batch) in NETWORKS.items()},
    **{n: Animal("Lightning's demonstrations", partial(seeded, make, batch)) for n, (make, batch) in LIGHTNING.items()},
    **{n: Animal("transformers", partial(build, n), precision=1e-3) for n in ARCHITECTURES},
}  # fmt: skip
