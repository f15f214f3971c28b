"""What the coming steps do: learned fractions, forecasts and transfer, against training itself."""

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adamax, AdamW, Optimizer

from descent.small import data, learned, mse, network, step
from ntk_monitor.descent import Clipping, Scheduled, descent_of, read_ahead
from ntk_monitor.probe import Probe
from ntk_monitor.snapshot import Snapshot

prediction_module: Any = sys.modules["ntk_monitor.descent.prediction"]

F = nn.functional
Loss = Callable[[Tensor, Tensor], Tensor]


class Outputs(nn.Module):
    """Outputs as they are given, at a state that they depend on."""

    def __init__(self, outputs: Tensor, loss: Loss) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 3).double()
        self.readout = nn.Linear(3, outputs.shape[1]).double()
        with torch.no_grad():
            self.readout.weight.zero_()
            self.readout.bias.zero_()
        self.outputs, self.loss = outputs, loss

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.hidden(x).tanh()) + self.outputs


def fractions(outputs: Tensor, target: Tensor, loss: Loss, modes: int = 4) -> list[float]:
    """The learned fractions that a probe finds of some outputs."""
    torch.manual_seed(0)
    model = Outputs(outputs, loss)
    measured = Probe(
        dtype=None, modes=modes, tier="modes", loss_fn=lambda m, b: loss(m(b[0]), b[1])
    )
    x = torch.randn(len(outputs), 2).double()
    found = measured(model, (x, target), descent=descent_of([SGD(model.parameters(), 1e-3)], model),
                     horizon=3)  # fmt: skip
    plain = measured(model, (x, target))
    for a, b in zip(found.target_modes, plain.target_modes, strict=True):
        assert a.learned == pytest.approx(b.learned, abs=1e-9)
    return [mode.learned for mode in found.target_modes]


def smoothed(y: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(y, t, label_smoothing=0.1)


def by_hand(y: Tensor, t: Tensor) -> Tensor:
    return -y.log_softmax(-1).gather(1, t[:, None]).mean()


@pytest.mark.parametrize("loss", [F.cross_entropy, by_hand])
@pytest.mark.parametrize("shares", [(1, 1), (1, 1, 1, 1), (1,) * 10, (9, 1), (6, 1, 1, 4)])
def test_classes_go_from_chance_to_solved(shares: tuple[int, ...], loss: Loss) -> None:
    t = torch.cat([torch.full((4 * n,), i) for i, n in enumerate(shares)])
    t = t[torch.randperm(len(t), generator=torch.Generator().manual_seed(0))]
    k = len(shares)
    uniform = torch.zeros(len(t), k).double()
    constant = (torch.tensor(shares).double() / sum(shares)).log().expand(len(t), k)
    for chance in (uniform, constant):
        assert fractions(chance, t, loss) == pytest.approx([0] * min(k, 4), abs=1e-9)
    solved = 40 * F.one_hot(t, k).double()
    assert fractions(solved, t, loss) == pytest.approx([1] * min(k, 4), abs=1e-6)
    half = (0.5 * F.one_hot(t, k) + 0.5 * torch.tensor(shares) / sum(shares)).double().log()
    assert fractions(half, t, loss) == pytest.approx([0.5] * min(k, 4), abs=1e-6)


def test_smoothed_labels_are_solved_at_what_the_loss_asks_for() -> None:
    t = torch.arange(20) % 4
    assert fractions(torch.zeros(20, 4).double(), t, smoothed) == pytest.approx([0] * 4, abs=1e-9)
    best = (0.9 * F.one_hot(t, 4) + 0.1 / 4).double().log()
    assert fractions(best, t, smoothed) == pytest.approx([1] * 4, abs=1e-6)


@pytest.mark.parametrize("kind", ["ignored", "weighted"])
def test_classes_that_do_not_all_count_alike(kind: str) -> None:
    t = torch.arange(24) % 3
    if kind == "ignored":
        t = t.where(torch.arange(24) % 5 > 0, -100)

    def loss(y: Tensor, given: Tensor) -> Tensor:
        if kind == "ignored":
            return F.cross_entropy(y, given)
        return F.cross_entropy(y, given, weight=torch.tensor([1.0, 2.0, 3.0]).double())

    noise = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)).double()
    counted = t >= 0
    unseen = noise * ~counted[:, None]  # outputs that the loss does not look at
    assert fractions(unseen, t, loss) == pytest.approx([0] * 3, abs=1e-9)
    solved = 40 * F.one_hot(t.clamp_min(0), 3).double() * counted[:, None] + unseen
    assert fractions(solved, t, loss) == pytest.approx([1] * 3, abs=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_yes_or_no_goes_from_chance_to_solved(outputs: int) -> None:
    t = (torch.rand(30, outputs, generator=torch.Generator().manual_seed(0)) > 0.6).double()
    loss = F.binary_cross_entropy_with_logits
    zero = torch.zeros(30, outputs).double()
    assert fractions(zero, t, loss) == pytest.approx([0] * outputs, abs=1e-9)
    assert fractions(zero + t.mean(0).logit(), t, loss) == pytest.approx([0] * outputs, abs=1e-9)
    assert fractions(60 * t - 30, t, loss) == pytest.approx([1] * outputs, abs=1e-6)


def test_values_with_a_mean_go_from_their_mean_to_solved() -> None:
    t = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double() + 5
    assert fractions(torch.zeros_like(t), t, F.mse_loss) == pytest.approx([0] * 3, abs=1e-9)
    mean = t.mean(0).expand_as(t)
    assert fractions(mean, t, F.mse_loss) == pytest.approx([0] * 3, abs=1e-9)
    assert fractions(t, t, F.mse_loss) == pytest.approx([1] * 3, abs=1e-9)
    assert fractions(0.3 * mean + 0.7 * t, t, F.mse_loss) == pytest.approx([0.7] * 3, abs=1e-9)


def numbers(snapshot: Snapshot) -> list[float]:
    """All that does not depend on which outputs the model is linearised in."""
    assert snapshot.instruments is not None
    found = [snapshot.loss or math.nan, snapshot.instruments.gradient_norm]
    for mode in snapshot.target_modes:
        assert mode.transfer is not None
        found += [mode.learned, mode.rate, mode.transfer.value, mode.core_overlap]
    return found


def classes(count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator).double()
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def classifier() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def gathered(m: nn.Module, b: Any) -> Tensor:
    return -m(b[0]).log_softmax(-1).gather(1, b[1][:, None]).mean()


def in_logs(m: nn.Module, b: Any) -> Tensor:
    return F.nll_loss(F.log_softmax(m(b[0]), dim=-1), b[1])


def flattened(m: nn.Module, b: Any) -> Tensor:
    logs = m(b[0]).log_softmax(-1).view(2, -1, 3)
    return F.nll_loss(logs.flatten(0, 1), b[1], reduction="sum") / len(b[1])


def plain(m: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1])


def shot_of(loss: Any, make: Callable[[Any], Optimizer]) -> Snapshot:
    net = classifier()
    descent = descent_of([make(net.parameters())], net)
    measured = Probe(dtype=None, loss_fn=loss, tier="modes")
    return measured(net, classes(), descent=descent, horizon=10)


MAKERS: list[Callable[[Any], Optimizer]] = [
    lambda p: SGD(p, lr=0.1),
    lambda p: AdamW(p, lr=0.01),
]


@pytest.mark.parametrize("other", [gathered, in_logs, flattened])
@pytest.mark.parametrize("make", MAKERS)
def test_the_same_loss_written_otherwise_gives_the_same_numbers(
    make: Callable[[Any], Optimizer], other: Any
) -> None:
    found, wanted = (numbers(shot_of(loss, make)) for loss in (other, plain))
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("other", [gathered, in_logs, flattened])
@pytest.mark.parametrize("make", MAKERS)
def test_and_the_same_forecast(make: Callable[[Any], Optimizer], other: Any) -> None:
    found, wanted = (shot_of(loss, make) for loss in (other, plain))
    assert found.forecast is not None
    assert wanted.forecast is not None
    torch.testing.assert_close(
        found.forecast.loss[:11], wanted.forecast.loss[:11], rtol=1e-4, atol=0
    )
    for a, b in zip(found.target_modes, wanted.target_modes, strict=True):
        assert a.gain == pytest.approx(b.gain)


# Forecasts ------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Linear in what is trained."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Identity()
        self.readout = nn.Linear(3, outputs).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.body(x))


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "decay": lambda p: SGD(p, lr=0.05, weight_decay=0.01),
}


def forecast_and_truth(
    net: nn.Module,
    optimizer: Optimizer,
    loss: Any,
    batch: tuple[Tensor, Tensor],
    clip: float | None = None,
    steps: int = 30,
) -> tuple[Tensor, Tensor]:
    """The losses of the coming steps: as foreseen, and as they come."""
    clipping = Clipping(norm=clip)
    descent = descent_of([optimizer], net, clipping=clipping)
    measured = Probe(dtype=None, loss_fn=loss, tier="modes")
    found = measured(net, batch, descent=descent, horizon=steps).forecast
    assert found is not None
    assert found.steps[: steps + 1].tolist() == list(range(steps + 1))
    assert found.valid_for > 0
    losses = [loss(net, batch).detach()]

    def clipped(module: nn.Module) -> None:
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)

    for _ in range(steps):
        step(net, [optimizer], batch, loss, clipped)
        losses.append(loss(net, batch).detach())
    return found.loss[: steps + 1], torch.stack(losses)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_values_of_a_linear_model_are_foreseen(name: str, clip: float | None) -> None:
    net = Linear(1)
    x, y = data()
    optimizer = OPTIMIZERS[name](net.parameters())
    found, wanted = forecast_and_truth(net, optimizer, mse, (x, y[:, :1]), clip)
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0)
    assert float(wanted[-1]) < 0.9 * float(wanted[0])


def test_and_with_momentum_that_holds_something() -> None:
    net = Linear(1)
    x, y = data()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    for seed in range(3):
        other, values = data(seed + 1)
        step(net, [optimizer], (other, values[:, :1]))
    found, wanted = forecast_and_truth(net, optimizer, mse, (x, y[:, :1]))
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0)


def test_and_under_a_small_adamw() -> None:
    net = Linear(1)
    x, y = data()
    optimizer = AdamW(net.parameters(), lr=1e-4)
    for _ in range(200):
        step(net, [optimizer], (x, y[:, :1]))
    found, wanted = forecast_and_truth(net, optimizer, mse, (x, y[:, :1]))
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("taken", [0, 5])
def test_and_under_an_adamax_whose_momentum_holds_another_target(taken: int, decay: float) -> None:
    """Far enough to be linearised anew, where its state must be that of then."""
    net, (x, y) = network(), data()
    optimizer = Adamax(net.parameters(), lr=0.001, weight_decay=decay)
    for sign in [1] * taken + [-1] * 3:
        step(net, [optimizer], (x, sign * y))
    found, wanted = forecast_and_truth(net, optimizer, mse, (x, y))
    torch.testing.assert_close(found, wanted, rtol=0.003, atol=0)
    assert float(wanted[-1]) < 0.95 * float(wanted[0])


@pytest.mark.parametrize(("count", "error"), [(2, 0.02), (3, 0.1)])
@pytest.mark.parametrize("name", ["SGD", "momentum"])
def test_the_loss_of_a_linear_classifier_is_foreseen(name: str, count: int, error: float) -> None:
    """Of two classes there are no more directions than the forecast has."""
    net = Linear(count)
    x, y = classes()

    def loss(m: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(m(b[0]), b[1])

    make = {"SGD": lambda p: SGD(p, lr=0.5), "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9)}
    found, wanted = forecast_and_truth(
        net, make[name](net.parameters()), loss, (x, y.clamp_max(count - 1))
    )
    torch.testing.assert_close(found, wanted, rtol=error, atol=0)


def test_steps_to_learn_are_those_of_a_linear_model_and_inf_where_nothing_moves() -> None:
    net = Linear(1)
    x, _ = data()
    y = x @ torch.tensor([[1.0], [0.0], [0.0]]).double() + 0.3
    with torch.no_grad():
        net.readout.weight.zero_()
    optimizer = SGD(net.parameters(), lr=0.2)
    measured = Probe(dtype=None, loss_fn=mse, tier="modes")
    (mode,) = measured(net, (x, y), descent=descent_of([optimizer], net), horizon=40).target_modes
    u = (y - y.mean()) / (y - y.mean()).norm()
    count = 0
    while float((net(x).detach() * u).sum() / (y - y.mean()).norm()) < 0.9:
        step(net, [optimizer], (x, y))
        count += 1
    assert count < 30
    assert mode.steps_to_learn is not None
    assert count - 1 <= mode.steps_to_learn <= count
    assert mode.steps_band is not None
    assert mode.steps_band[0] <= mode.steps_to_learn <= mode.steps_band[1]
    dead = Linear(1)
    frozen = SGD([dead.readout.bias], lr=0.2)  # a constant, which no mode has a part of
    (mode,) = measured(dead, (x, y), descent=descent_of([frozen], dead), horizon=40).target_modes
    assert mode.rate == pytest.approx(0, abs=1e-9)
    assert mode.steps_to_learn == math.inf
    assert dict(mode.steps_if)["as it is"] == math.inf


def test_a_forecast_leaves_all_as_it_was() -> None:
    net = classifier()
    optimizer = AdamW(net.parameters(), lr=0.01)

    def loss(m: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(m(b[0]), b[1])

    step(net, [optimizer], classes(), loss)
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    measured = Probe(dtype=None, loss_fn=loss)
    measured(net, classes(), descent=descent_of([optimizer], net), horizon=10, second=classes(9, 1))
    assert torch.equal(torch.get_rng_state(), before[2])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[0][name])
    for key, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, before[1]["state"][key][name])
    assert all(p.grad is None for p in net.parameters())


# Transfer -------------------------------------------------------------------------------------


def transfer_of(batch: Any, loss: Any = mse, **given: Any) -> Snapshot:
    net = network()
    descent = descent_of([SGD(net.parameters(), lr=0.01)], net)
    measured = Probe(dtype=None, loss_fn=loss, tier="modes", modes=2)
    return measured(net, batch, descent=descent, horizon=1, **given)


def own_and_other(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """``<g_a, g_a>`` of batches, and ``<g_a, g_b>`` of pairs of them."""
    net = network()
    found = []
    for batch in batches:
        gradients = torch.autograd.grad(mse(net, batch), list(net.parameters()))
        found.append(torch.cat([g.flatten() for g in gradients]))
    own = torch.stack([g @ g for g in found])
    others = torch.stack([a @ b for a, b in zip(found[::2], found[1::2], strict=True)])
    return own, others


def test_transfer_within_a_batch_is_that_between_batches_on_average() -> None:
    batches = [data(seed, 16) for seed in range(1, 31)]
    inside = []
    for batch in batches:
        found = transfer_of(batch).transfer
        assert found is not None
        assert found.stderr > 0
        inside.append(found.value)
    own, _ = own_and_other(batches)
    effects = torch.tensor(inside, dtype=torch.float64) * own
    _, others = own_and_other([data(seed, 16) for seed in range(100, 1100)])
    errors = [float(x.std()) / math.sqrt(len(x)) for x in (effects, others)]
    assert abs(float(effects.mean() - others.mean())) < 4 * math.hypot(*errors)
    assert float(others.mean()) > 4 * errors[1]  # that there is something to find


def noise(seed: int) -> tuple[Tensor, Tensor]:
    """Targets that inputs say nothing of, at outputs of zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 3, generator=generator).double()
    return x, (torch.rand(16, 2, generator=generator).double() > 0.5) * 2.0 - 1.0


def test_labels_at_random_transfer_nothing() -> None:
    found = []
    for seed in range(20):
        net = network()
        with torch.no_grad():
            net[2].weight.mul_(1e-3)
            net[2].bias.zero_()
        descent = descent_of([SGD(net.parameters(), lr=0.01)], net)
        measured = Probe(dtype=None, loss_fn=mse, tier="modes", modes=2)
        shot = measured(net, noise(seed), descent=descent, horizon=1)
        assert shot.transfer is not None
        found.append(shot.transfer.value)
    values = torch.tensor(found)
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(len(values))


def test_a_batch_of_twins_transfers_wholly() -> None:
    x, y = data(0, 4)
    found = transfer_of((x.repeat_interleave(4, 0), y.repeat_interleave(4, 0)))
    assert found.transfer is not None
    assert found.transfer.value == pytest.approx(1, abs=0.02)
    for mode in found.target_modes:
        assert mode.transfer is not None
        assert mode.transfer.value == pytest.approx(1, abs=0.05)


def test_a_second_batch_counts_as_much() -> None:
    first, second = data(0, 16), data(1, 16)
    alone, both = transfer_of(first), transfer_of(first, second=second)
    own, others = own_and_other([first, second])
    assert alone.transfer is not None
    assert both.transfer is not None
    wanted = (alone.transfer.value + float(others[0] / own[0])) / 2
    assert both.transfer.value == pytest.approx(wanted, rel=1e-4)
    few = first[0][:2], first[1][:2]  # too few to tell by themselves
    assert transfer_of(few).transfer is None
    known = transfer_of(few, second=second).transfer
    own, others = own_and_other([few, second])
    assert known is not None
    assert known.value == pytest.approx(float(others[0] / own[0]), rel=1e-4)


def test_a_class_that_a_second_batch_lacks_is_known_from_the_first_alone() -> None:
    first, (x, y) = classes(24, 0), classes(24, 1)
    lacking = x[y < 2], y[y < 2]
    found = []
    for second in (None, lacking):
        net = classifier()
        descent = descent_of([SGD(net.parameters(), lr=0.01)], net)
        measured = Probe(dtype=None, loss_fn=plain, tier="modes")
        modes = measured(net, first, descent=descent, horizon=1, second=second).target_modes
        found.append([mode.transfer for mode in modes])
    frequent = first[1].bincount(minlength=3)
    order = (frequent * (len(first[1]) - frequent)).sort(descending=True, stable=True)[1].tolist()
    for which, alone, both in zip(order, *found, strict=True):
        assert (alone == both) == (which == 2)


def test_a_loss_falls_as_slowly_as_transfer_leaves_it() -> None:
    """Of a training on ever new batches, whose steps on each other are of less use."""
    said, came, own = [], [], []
    for seed in range(4):
        net = nn.Sequential(nn.Linear(400, 1, bias=False)).double()
        with torch.no_grad():
            net[0].weight.zero_()
        batches = [sparse(1000 * seed + k) for k in range(12)]
        optimizer = SGD(net.parameters(), lr=0.02)
        measured = Probe(dtype=None, loss_fn=mse, tier="modes")
        for second, found in ((batches[1], said), (None, own)):
            descent = descent_of([optimizer], net)
            forecast = measured(net, batches[0], descent=descent, horizon=20, second=second)
            assert forecast.forecast is not None
            found.append(forecast.forecast.loss_in(10))
        for batch in batches[2:]:
            step(net, [optimizer], batch)
        came.append(float(mse(net, batches[0]).detach()))
    after, slower, fitted = (sum(losses) / len(losses) for losses in (came, said, own))
    assert abs(after - slower) < 0.3 * (after - fitted)


def sparse(seed: int) -> tuple[Tensor, Tensor]:
    """A weak signal and much noise: a batch can be fitted far better than the task can."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 400, generator=generator).double()
    return x, 0.8 * x[:, :1] + torch.randn(512, 1, generator=generator).double()


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_where_every_batch_is_this_one_the_next_steps_are_foreseen_exactly(rate: float) -> None:
    (x, y), net = data(0, 16), network()
    optimizer = SGD(net.parameters(), lr=rate, momentum=0.5)
    descent = descent_of([optimizer], net)
    measured = Probe(dtype=None, loss_fn=mse, tier="modes", modes=2)
    second = x.flip(0), y.flip(0)
    shot = measured(net, (x, y), descent=descent, horizon=60, second=second)
    forecast = shot.forecast
    assert forecast is not None
    assert forecast.valid_for == 30
    assert forecast.steps.tolist()[:31] == list(range(31))
    modes, so_far = shot.target_modes, fractions_of(net, x, y)
    assert [mode.learned for mode in modes] == pytest.approx(so_far)
    for k in range(31):
        assert float(forecast.loss[k]) == pytest.approx(float(mse(net, (x, y)).detach()))
        assert forecast.learned[k].tolist() == pytest.approx(fractions_of(net, x, y), abs=1e-6)
        step(net, [optimizer], (x, y))
    assert forecast.steps[-1] >= 60


def fractions_of(net: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    with torch.no_grad():
        return learned(net(x), y).tolist()


def test_a_forecast_that_memory_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = network(), data()
    measure = Probe(tier="modes", loss_fn=mse)
    descent = descent_of([SGD(net.parameters(), lr=0.1)], net)
    whole = measure(net, batch, descent=descent, horizon=100.0)
    outputs = batch[1].numel()
    enough = 30 * 4 * outputs
    monkeypatch.setattr(prediction_module, "room", lambda *_: enough)
    assert measure(net, batch, descent=descent, horizon=100.0).forecast is not None
    monkeypatch.setattr(prediction_module, "room", lambda *_: enough - 1)
    shot = measure(net, batch, descent=descent, horizon=100.0)
    assert shot.forecast is None
    assert shot.loss == whole.loss
    assert any(f"with {outputs:,} outputs it would take" in each for each in shot.remarks)
    assert [mode.gain for mode in shot.target_modes] == [m.gain for m in whole.target_modes]


def test_of_another_shape_it_is_left_out() -> None:
    first = data(0, 16)
    wrong = first[0][:, :2], first[1]
    assert transfer_of(first, second=wrong).transfer == transfer_of(first).transfer


def test_what_training_does_to_a_batch_that_it_does_not_see() -> None:
    validation, training = data(0, 16), data(1, 16)
    found = transfer_of(validation, source=training)
    net = network()
    optimizer = SGD(net.parameters(), lr=1e-6)
    before = [float(mse(net, batch).detach()) for batch in (validation, training)]
    fraction = _fraction(net, validation)
    step(net, [optimizer], training)
    after = [float(mse(net, batch).detach()) for batch in (validation, training)]
    assert found.loss == pytest.approx(before[0])
    assert found.transfer is not None
    wanted = (after[0] - before[0]) / (after[1] - before[1])
    assert found.transfer.value == pytest.approx(wanted, rel=1e-3)
    moved = (_fraction(net, validation) - fraction) * 0.01 / 1e-6
    for mode, change in zip(found.target_modes, moved.tolist(), strict=True):
        assert mode.rate == pytest.approx(change, rel=2e-3)
    assert found.forecast is not None
    net = network()
    optimizer = SGD(net.parameters(), lr=0.01)
    for k in range(10):
        wanted = float(mse(net, validation).detach())
        assert float(found.forecast.loss[k]) == pytest.approx(wanted, rel=0.01)
        step(net, [optimizer], training)


def _fraction(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    from descent.small import learned  # noqa: PLC0415

    return learned(net(batch[0]), batch[1]).detach()


@pytest.mark.parametrize("waiting", [0.0, 1e-3])
def test_a_forecast_does_not_come_to_rest_while_a_schedule_waits(waiting: float) -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).double()
    batch = (
        data()[0],
        data()[0] @ torch.randn(3, 2, generator=torch.Generator().manual_seed(1)).double(),
    )
    optimizer = SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: waiting if t < 200 else 1.0)
    descent = descent_of([optimizer], net, rates=read_ahead([Scheduled(schedule)], 2000))
    shot = Probe(dtype=None, loss_fn=mse, tier="modes")(net, batch, descent=descent, horizon=2000)
    assert shot.instruments is not None
    assert shot.instruments.rate_ahead == (1 / waiting if waiting else math.inf)
    for mode in shot.target_modes:
        assert mode.steps_to_learn is not None
        assert 200 < mode.steps_to_learn < 2000


@pytest.mark.parametrize("how", ["value", "own"])
def test_without_clipping_of_entries_a_mode_would_be_learned(how: str) -> None:
    net, batch = network(), data()
    own = None if how == "value" else lambda o: nn.utils.clip_grad_value_(every_of(o), 1e-6)
    clipping = Clipping(value=1e-6 if how == "value" else None, own=own)
    descent = descent_of([SGD(net.parameters(), lr=0.1)], net, clipping=clipping)
    free = descent_of([SGD(net.parameters(), lr=0.1)], net)
    measured = Probe(dtype=None, loss_fn=mse, tier="modes")
    clipped, plain = (measured(net, batch, descent=d, horizon=40) for d in (descent, free))
    for stuck, mode in zip(clipped.target_modes, plain.target_modes, strict=True):
        assert dict(stuck.rate_if)["as it is"] == pytest.approx(stuck.rate, rel=1e-6)
        assert dict(stuck.rate_if)["without clipping"] == pytest.approx(mode.rate, rel=1e-6)
        assert abs(stuck.rate) < 1e-2 * abs(mode.rate)


def every_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_optimizers_that_step_nothing_of_the_loss_are_told_of() -> None:
    net = network()
    descent = descent_of([SGD(network().parameters(), lr=0.1)], net)
    shot = Probe(dtype=None, loss_fn=mse, tier="modes")(net, data(), descent=descent, horizon=20)
    assert any("step none of the parameters" in each for each in shot.remarks)
