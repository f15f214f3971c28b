"""One loss, written in several ways, gives one answer: modes, rates, steps to learn, forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntk_monitor import Snapshot, probe

F = nn.functional
B, M, N, C = 12, 3, 6, 3
EXACT: dict[str, Any] = {"method": "exact", "dtype": None, "learning_rate": 0.5, "modes": 3}
Loss = Callable[[Tensor], Tensor]


def net(outputs: int = C) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(M, N), nn.Tanh(), nn.Linear(N, outputs)).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


X, VALUES = draw(B, M), draw(B, C, seed=1)


def of_loss(loss: Loss, model: nn.Module | None = None, x: Tensor = X) -> Snapshot:
    return probe(model or net(), x, loss_fn=lambda module, x: loss(module(x)), **EXACT)


def numbers(found: Snapshot) -> list[float]:
    """All that the modes and the forecast say."""
    assert found.forecast is not None
    said = [found.forecast.loss_in(steps) for steps in (1, 10, 30)]
    for m in found.target_modes:
        said += [m.singular_value, m.learned, m.rate, m.gain, m.share, m.steps_to_learn]
    return [float(x) for x in said]


def same(found: Snapshot, wanted: Snapshot, rel: float = 1e-6) -> None:
    assert len(found.target_modes) == len(wanted.target_modes) > 0
    assert numbers(found) == pytest.approx(numbers(wanted), rel=rel, abs=1e-8)
    assert found.remarks == wanted.remarks


@pytest.mark.parametrize(
    ("plain", "swapped"),
    [
        (lambda y: F.mse_loss(y, VALUES), lambda y: F.mse_loss(VALUES, y)),
        (lambda y: F.mse_loss(y, VALUES), lambda y: F.mse_loss(target=y, input=VALUES)),
        (lambda y: F.l1_loss(y, VALUES), lambda y: nn.L1Loss()(VALUES, y)),
        (lambda y: F.smooth_l1_loss(y, VALUES), lambda y: nn.SmoothL1Loss()(VALUES, y)),
        (lambda y: F.huber_loss(y, VALUES), lambda y: nn.HuberLoss()(VALUES, y)),
    ],
    ids=["mse_loss", "by name", "l1_loss", "smooth_l1_loss", "huber_loss"],
)
def test_a_symmetric_loss_may_be_given_the_target_first(plain: Loss, swapped: Loss) -> None:
    same(of_loss(swapped), of_loss(plain))
