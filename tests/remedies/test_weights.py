"""Remedies that change the weights that a training starts from."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntk_monitor.remedies import (
    CentredReadout,
    FourierFeatures,
    Gain,
    HoldingRecurrence,
    LiveUnits,
    NotApplicableError,
    OrthogonalRecurrence,
    Remedy,
    Unfreeze,
    UnitVariance,
)
from ntk_monitor.remedies.held_out import looker


def mse(module: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def mlp(width: int = 32, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, 3),
    )


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(256, 4), 5 + torch.randn(256, 3)


def change(remedy: Remedy, model: nn.Module, data: Any = None) -> None:
    remedy.change_model(model, looker(model, batch() if data is None else data, mse))


class Sequence(nn.Module):
    def __init__(self, kind: str, **settings: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 8, **settings)
        self.readout = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0])


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}])
def test_orthogonal_gates(kind: str, settings: dict[str, Any]) -> None:
    model = Sequence(kind, **settings)
    inputs = model.rnn.weight_ih_l0.clone()
    change(OrthogonalRecurrence(), model)
    weights = [p for name, p in model.named_parameters() if "weight_hh" in name]
    assert len(weights) == (4 if settings else 1)
    for weight in weights:
        for gate in weight.chunk(len(weight) // 8):
            torch.testing.assert_close(gate @ gate.T, torch.eye(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.rnn.weight_ih_l0, inputs)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_recurrence_that_holds_keeps_more_of_its_state(kind: str) -> None:
    def left(model: Sequence) -> float:
        x = torch.zeros(1, 20, 3)
        x[:, 0] = 1.0
        model.rnn.batch_first = True
        states = model.rnn(x)[0] - model.rnn(torch.zeros(1, 20, 3))[0]
        norms = states.detach()[0].norm(dim=-1)
        return float(norms[-1] / norms[0])

    torch.manual_seed(0)
    model = Sequence(kind)
    before = left(model)
    change(HoldingRecurrence(), model)
    assert left(model) > max(3 * before, 0.01)


def test_a_cell_by_hand_has_named_weights() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.U = nn.Parameter(torch.randn(8, 8))
            self.W = nn.Parameter(torch.randn(4, 8))

    model = Own()
    OrthogonalRecurrence(["U"]).change_model(model, lambda: torch.zeros(()))
    torch.testing.assert_close(model.U @ model.U.T, torch.eye(8), rtol=0, atol=1e-5)
    with pytest.raises(NotApplicableError, match="no recurrent layer is one of torch's"):
        OrthogonalRecurrence().change_model(model, lambda: torch.zeros(()))
    with pytest.raises(NotApplicableError, match="has such names"):
        OrthogonalRecurrence(["V"]).change_model(model, lambda: torch.zeros(()))


def test_a_gain_is_of_the_recurrence_or_of_all_weights() -> None:
    model, other = Sequence("GRU"), mlp()
    before, bias = model.rnn.weight_hh_l0.clone(), other[0].bias.clone()
    weight, inputs = other[0].weight.clone(), model.rnn.weight_ih_l0.clone()
    change(Gain(2.0), model)
    change(Gain(2.0), other)
    torch.testing.assert_close(model.rnn.weight_hh_l0, 2 * before)
    torch.testing.assert_close(model.rnn.weight_ih_l0, inputs)
    torch.testing.assert_close(other[0].weight, 2 * weight)
    torch.testing.assert_close(other[0].bias, bias)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_unit_variance_layer_by_layer(scale: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight *= scale
        model[2].bias += 7.0
    readout = model[4].weight.clone()
    change(UnitVariance(), model)
    x = batch()[0]
    with torch.no_grad():
        first = model[0](x)
        second = model[2](model[1](first))
    assert float(first.std()) == pytest.approx(1.0, rel=0.02)
    assert float(second.std()) == pytest.approx(1.0, rel=0.02)
    torch.testing.assert_close(model[4].weight, readout)


@pytest.mark.parametrize("shift", [-10.0, 10.0])
def test_units_on_one_side_come_back_and_others_stay(shift: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].bias[:5] += shift
    before = model[2].weight.clone()
    change(LiveUnits(), model)
    with torch.no_grad():
        z = model[2](model[1](model[0](batch()[0])))
    active = (z > 0).float().mean(0)
    assert bool(((active[:5] > 0.2) & (active[:5] < 0.8)).all())
    torch.testing.assert_close(model[2].weight[10:], before[10:])


def test_a_unit_that_crosses_zero_once_is_left_alone() -> None:
    model, (x, y) = mlp(), batch()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.1, 1.0  # far above zero on all rows
        x[0] = -2.6  # but one, which is just below
    before = model[0].weight.clone()
    with suppress(NotApplicableError):  # unless another unit is idle
        change(LiveUnits(), model, (x, y))
    torch.testing.assert_close(model[0].weight, before)
    x[0] = 0.0
    change(LiveUnits(), model, (x, y))
    assert not torch.equal(model[0].weight[0], before[0])


def test_live_units_of_convolutions_are_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))
    with torch.no_grad():
        model[0].bias[2] = -20.0
    x = torch.randn(64, 1, 6, 6)
    change(LiveUnits(), model, (x, torch.randn(64, 3)))
    with torch.no_grad():
        active = (model[0](x)[:, 2] > 0).float().mean()
    assert 0.2 < float(active) < 0.8


def test_the_readout_begins_at_chance() -> None:
    model, (x, y) = mlp(), batch()
    others = [p.clone() for name, p in model.named_parameters() if name != "4.bias"]
    model[0].weight.requires_grad_(False)
    change(CentredReadout(), model)
    mse(model, (x, y)).backward()
    assert float(model[4].bias.grad.norm()) < 1e-3
    left = [p for name, p in model.named_parameters() if name != "4.bias"]
    for before, after in zip(others, left, strict=True):
        torch.testing.assert_close(after, before)
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5


def test_frozen_weights_train_and_zero_ones_are_drawn() -> None:
    model = mlp()
    for parameter in model[4].parameters():
        parameter.requires_grad_(False)
    nn.init.zeros_(model[4].weight)
    change(Unfreeze(), model)
    assert all(p.requires_grad for p in model.parameters())
    assert bool(model[4].weight.any())


def test_fourier_features_take_the_first_layers_place() -> None:
    model = mlp()
    with pytest.raises(NotApplicableError, match="at most 2 inputs"):
        change(FourierFeatures(most_inputs=2), model)
    change(FourierFeatures(waves=8), model)
    assert model[0][1].in_features == 16
    assert model(batch()[0]).shape == (256, 3)
    assert "0.0.frequencies" not in dict(model.named_parameters())


NOT_FITTING: dict[str, tuple[Remedy, Callable[[], nn.Module], str]] = {
    "units": (LiveUnits(), mlp, "no unit lies on one side"),
    "frozen": (Unfreeze(), mlp, "no parameter is frozen"),
    "one layer": (FourierFeatures(), lambda: nn.Linear(4, 3), "single layer"),
    "no layer before": (UnitVariance(), lambda: nn.Linear(4, 3), "before the readout"),
    "no bias": (CentredReadout(), lambda: nn.Linear(4, 3, bias=False), "no bias"),
    "no recurrence": (HoldingRecurrence(), mlp, "no recurrent layer"),
}


@pytest.mark.parametrize("name", NOT_FITTING)
def test_what_does_not_fit_says_why_and_changes_nothing(name: str) -> None:
    remedy, make, message = NOT_FITTING[name]
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(NotApplicableError, match=message):
        change(remedy, model)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])


@pytest.mark.parametrize("remedy", [UnitVariance(), LiveUnits(), CentredReadout()])
def test_looking_at_a_batch_leaves_buffers_hooks_and_gradients(remedy: Remedy) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    with torch.no_grad():
        model[0].bias[0] = 30.0
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    change(remedy, model)
    for key, value in model.named_buffers():
        torch.testing.assert_close(value, buffers[key])
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
