"""Small models in float64 whose steps the tests take themselves."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RMSprop

Make = Callable[[Any], Optimizer]
LossOf = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
RATE = 1e-5


def others(name: str, **settings: Any) -> Make:
    """An optimizer of a package that may not be there."""

    def make(parameters: Any) -> Optimizer:
        pytest.importorskip("pytorch_optimizer")
        kind = getattr(importlib.import_module("pytorch_optimizer"), name)
        return kind(parameters, lr=RATE, **settings)

    return make


EXACT: dict[str, Make] = {
    "SGD": lambda p: SGD(p, lr=RATE),
    "momentum": lambda p: SGD(p, lr=RATE, momentum=0.9),
    "dampening": lambda p: SGD(p, lr=RATE, momentum=0.9, dampening=0.4),
    "nesterov": lambda p: SGD(p, lr=RATE, momentum=0.9, nesterov=True),
    "SGD with decay": lambda p: SGD(p, lr=RATE, weight_decay=0.3),
    "momentum with decay": lambda p: SGD(p, lr=RATE, momentum=0.9, weight_decay=0.3),
    "Adam": lambda p: Adam(p, lr=RATE),
    "Adam with decay": lambda p: Adam(p, lr=RATE, weight_decay=0.3),
    "AMSGrad": lambda p: Adam(p, lr=RATE, amsgrad=True),
    "AdamW": lambda p: AdamW(p, lr=RATE, weight_decay=0.3),
    "RMSprop": lambda p: RMSprop(p, lr=RATE),
    "RMSprop with decay": lambda p: RMSprop(p, lr=RATE, weight_decay=0.3),
    "RMSprop, centered": lambda p: RMSprop(p, lr=RATE, centered=True),
    "RMSprop with momentum": lambda p: RMSprop(p, lr=RATE, momentum=0.9),
    "Adagrad": lambda p: Adagrad(p, lr=RATE, initial_accumulator_value=0.1),
    "Adagrad whose rate decays": lambda p: Adagrad(p, lr=RATE, lr_decay=0.5),
    "Adamax": lambda p: Adamax(p, lr=RATE),
    "Adamax with decay": lambda p: Adamax(p, lr=RATE, weight_decay=0.3),
    "Lion": others("Lion", weight_decay=0.1),
    "NAdam": lambda p: NAdam(p, lr=RATE),
    "Shampoo": others("Shampoo"),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def data(seed: int = 0, count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator).double()
    return x, torch.stack([x[:, 0] + 0.3, x[:, 1] * x[:, 2]], dim=1)


def mse(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def penalised(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return mse(module, batch) + 0.1 * sum(p.square().sum() for p in module.parameters())


def step(
    net: nn.Module,
    optimizers: Sequence[Optimizer],
    batch: tuple[Tensor, Tensor],
    loss: LossOf = mse,
    clip: Callable[[nn.Module], object] = lambda _: None,
) -> None:
    """One step of training."""
    net.zero_grad()
    loss(net, batch).backward()
    clip(net)
    for optimizer in optimizers:
        optimizer.step()
    net.zero_grad()


def values(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def gradient(net: nn.Module, batch: tuple[Tensor, Tensor], loss: LossOf = mse) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss(net, batch), list(net.parameters()))
    return dict(zip(dict(net.named_parameters()), found, strict=True))


def kept(optimizer: Optimizer) -> Any:
    """All that an optimizer holds, in copies."""
    return copy.deepcopy(optimizer.state_dict())


def same(a: Any, b: Any) -> bool:
    """Whether two nested structures hold the same, to the last bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def learned(output: Tensor, target: Tensor) -> Tensor:
    """The learned fractions of values, by brute force."""
    U, sigma, Vh = torch.linalg.svd(target - target.mean(0), full_matrices=False)
    return torch.stack([(output * torch.outer(U[:, i], Vh[i])).sum() / sigma[i] for i in range(2)])
