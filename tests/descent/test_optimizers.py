"""What optimizers do with a gradient; the optimizers themselves are the oracle."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, AdamW, Optimizer, RMSprop

from descent.small import (
    EXACT,
    RATE,
    LossOf,
    data,
    gradient,
    kept,
    learned,
    mse,
    network,
    others,
    penalised,
    same,
    step,
    values,
)
from ntk_monitor.descent import Ahead, Clipping, Descent, Velocity, descent_of, plain_descent
from ntk_monitor.monitor.measurement import descent_in
from ntk_monitor.probe import Probe
from ntk_monitor.snapshot import Snapshot

CLIPS: dict[str, tuple[Clipping, Callable[[nn.Module], object]]] = {
    "nothing": (Clipping(), lambda _: None),
    "the norm": (
        Clipping(norm=0.2),
        lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.2),
    ),
    "a norm that is out of reach": (
        Clipping(norm=100.0),
        lambda net: nn.utils.clip_grad_norm_(net.parameters(), 100.0),
    ),
    "each entry": (
        Clipping(value=0.05),
        lambda net: nn.utils.clip_grad_value_(net.parameters(), 0.05),
    ),
}


def of(
    optimizers: Sequence[Optimizer], net: nn.Module, clipping: Clipping = CLIPS["nothing"][0]
) -> Descent:
    found = descent_of(optimizers, net, clipping=clipping)
    assert found is not None
    return found


def measure(net: nn.Module, descent: Descent, loss: LossOf = mse) -> Snapshot:
    measured = Probe(dtype=None, loss_fn=loss, modes=2, tier="modes")
    return measured(net, data(), descent=descent)


@pytest.mark.parametrize("clipped", CLIPS)
@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("name", EXACT)
def test_the_update_is_the_one_that_is_then_made(name: str, taken: int, clipped: str) -> None:
    net, (clipping, clip) = network(), CLIPS[clipped]
    optimizer = EXACT[name](net.parameters())
    for seed in range(taken):
        step(net, [optimizer], data(seed + 1))
    before, state = values(net), kept(optimizer)
    found = of([optimizer], net, clipping).update(gradient(net, data()))
    assert same(values(net), before)
    assert same(kept(optimizer), state)
    assert all(p.grad is None for p in net.parameters())
    step(net, [optimizer], data(), clip=clip)
    for n, p in net.named_parameters():
        torch.testing.assert_close(found[n], p.detach() - before[n], rtol=1e-4, atol=1e-13)


def test_hooks_of_an_optimizer_are_not_called() -> None:
    net, called = network(), []
    optimizer = Adam(net.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: called.append(1))
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    of([optimizer], net).update(gradient(net, data()))
    assert not called


def test_an_update_resolves_steps_that_single_precision_does_not() -> None:
    net = network().float()
    x, y = (t.float() for t in data())
    optimizer = SGD(net.parameters(), lr=1e-12)
    g = gradient(net, (x, y))
    found = of([optimizer], net).update(g)
    for n in g:
        torch.testing.assert_close(found[n], -1e-12 * g[n].double(), rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("name", EXACT)
def test_a_rate_is_what_a_real_step_does(name: str, taken: int) -> None:
    net = network()
    optimizer = EXACT[name](net.parameters())
    for seed in range(taken):
        step(net, [optimizer], data(seed + 1))
    require_rates(net, [optimizer])


@pytest.mark.parametrize("clipped", CLIPS)
@pytest.mark.parametrize("name", ["momentum with decay", "AdamW", "Adam with decay", "Adamax"])
def test_so_it_is_of_a_step_that_is_clipped_and_a_loss_with_a_penalty(
    name: str, clipped: str
) -> None:
    net = network()
    optimizer = EXACT[name](net.parameters())
    for seed in range(2):
        step(net, [optimizer], data(seed + 1), penalised)
    require_rates(net, [optimizer], clipped, penalised)


def require_rates(
    net: nn.Module,
    optimizers: Sequence[Optimizer],
    clipped: str = "nothing",
    loss: LossOf = mse,
) -> None:
    """Rates are the changes of the learned fractions at the step that is really made."""
    clipping, clip = CLIPS[clipped]
    found = measure(net, of(optimizers, net, clipping), loss).target_modes
    x, y = data()
    before = learned(net(x), y).detach()
    step(net, optimizers, data(), loss, clip)
    after = learned(net(x), y).detach()
    for mode, was, change in zip(found, before, after - before, strict=True):
        assert mode.learned == pytest.approx(float(was), rel=1e-6)
        assert mode.rate == pytest.approx(float(change), rel=2e-3, abs=1e-3 * float(
            (after - before).abs().max()
        ))  # fmt: skip


def test_groups_and_optimizers_have_rates_of_their_own() -> None:
    net = network()
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 3 * RATE}]
    optimizer = Adam(groups, lr=RATE)
    step(net, [optimizer], data(1))
    require_rates(net, [optimizer])
    net = network()
    both = [AdamW(net[2].parameters(), lr=3 * RATE), AdamW(net[0].parameters(), lr=RATE)]
    step(net, both, data(1))
    require_rates(net, both)


def test_shampoos_groups_too() -> None:
    net = network()
    groups = [
        {"params": net[0].parameters(), "lr": RATE},
        {"params": net[2].parameters(), "lr": 2 * RATE},
    ]
    optimizer = others("Shampoo")(groups)
    step(net, [optimizer], data(1))
    require_rates(net, [optimizer])


def test_what_no_optimizer_steps_does_not_learn() -> None:
    net = network()
    optimizer = SGD(net[2].parameters(), lr=RATE)
    assert set(of([optimizer], net).parts(gradient(net, data()))) == {"2.weight", "2.bias"}
    require_rates(net, [optimizer])
    assert descent_of([], net) is None


def test_a_group_at_rest_is_no_reference() -> None:
    net = network()
    groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": net[2].parameters()}]
    optimizer = Adam(groups, lr=RATE)
    step(net, [optimizer], data(1))
    assert of([optimizer], net).learning_rate == RATE
    require_rates(net, [optimizer])


class Own(Optimizer):
    """One of somebody's own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": RATE})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                held = self.state[p].setdefault("held", torch.zeros_like(p))
                held.mul_(0.5).add_(p.grad.sign() * p.grad.abs().sqrt())
                p.sub_(self.param_groups[0]["lr"] * held)


def test_an_optimizer_that_nobody_knows_is_stepped() -> None:
    net = network()
    optimizer = Own(net.parameters())
    step(net, [optimizer], data(1))
    require_rates(net, [optimizer])


@pytest.mark.parametrize("kind", [Adam, Adamax, RMSprop])
def test_one_that_is_derived_from_one_that_is_known_is_not_known(kind: type[Any]) -> None:
    """It may do anything else as well."""
    net = network()
    settings = {"momentum": 0.9} if kind is RMSprop else {}
    optimizer = type("Derived", (kind,), {})(net.parameters(), lr=RATE, **settings)
    for seed in range(3):
        step(net, [optimizer], data(seed + 1))
    require_rates(net, [optimizer])


def test_one_whose_rate_is_none_has_rates_all_the_same() -> None:
    net = network().float()
    optimizer = pytest.importorskip("transformers").Adafactor(net.parameters())
    x, y = (t.float() for t in data())
    step(net, [optimizer], (x, y))
    found = of([optimizer], net)
    assert found.learning_rate is None
    before = values(net)
    update = found.update(gradient(net, (x, y)))
    step(net, [optimizer], (x, y))
    for n, p in net.named_parameters():
        torch.testing.assert_close(update[n].float(), p.detach() - before[n], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "velocity"),
    [
        (lambda p: SGD(p, lr=0.1), Velocity()),
        (lambda p: SGD(p, lr=0.1, momentum=0.9), Velocity(0.9)),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.5), Velocity(0.9, 0.5)),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), Velocity(0.9, nesterov=True)),
        (lambda p: RMSprop(p, lr=0.1, momentum=0.9), Velocity(0.9)),
        (lambda p: Adam(p, lr=0.1, betas=(0.8, 0.99)), Velocity(0.8, 1 - 0.8, taken=0)),
        (lambda p: Adamax(p, lr=0.1, betas=(0.8, 0.99)), Velocity(0.8, 1 - 0.8, taken=0)),
    ],
)
def test_how_steps_are_carried_on(make: Callable[[Any], Optimizer], velocity: Velocity) -> None:
    net = network()
    found = of([make(net.parameters())], net).velocity
    assert found == velocity
    assert found.total == pytest.approx({0.0: 1.0, 1.0: 10.0, 0.5: 5.0}.get(
        velocity.gain if velocity.beta else 0.0, 1.0
    ))  # fmt: skip


@pytest.mark.parametrize("clipped", CLIPS)
def test_the_rate_and_what_clipping_leaves_are_told(clipped: str) -> None:
    net = network()
    clipping, clip = CLIPS[clipped]
    optimizer = SGD(net.parameters(), lr=0.03)
    found = measure(net, of([optimizer], net, clipping)).instruments
    assert found is not None
    assert found.learning_rate == 0.03
    mse(net, data()).backward()
    before = nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    clip(net)
    after = nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    assert found.clip_coefficient == pytest.approx(float(after / before), rel=1e-5)
    assert (found.clip_coefficient < 0.99) == (clipped in {"the norm", "each entry"})


def test_clipping_of_a_users_own_sees_the_gradient_and_leaves_none() -> None:
    net = network()
    optimizer = SGD(net.parameters(), lr=RATE)

    def halved(which: Optimizer) -> None:
        for p in which.param_groups[0]["params"]:
            assert p.grad is not None
            p.grad.mul_(0.5)

    g = gradient(net, data())
    found = of([optimizer], net, Clipping(own=halved))
    for n, clipped in found.clipped(g).items():
        torch.testing.assert_close(clipped, 0.5 * g[n])
    assert all(p.grad is None for p in net.parameters())
    full, half = (measure(net, d).target_modes for d in (of([optimizer], net), found))
    for a, b in zip(full, half, strict=True):
        assert b.rate == pytest.approx(0.5 * a.rate, rel=1e-6)


def test_plain_descent_is_gradient_descent() -> None:
    net = network()
    net[0].bias.requires_grad_(False)
    found = plain_descent(net, 0.1)
    assert set(found.stepped) == {"0.weight", "2.weight", "2.bias"}
    assert found.learning_rate == pytest.approx(0.1)
    by_setting = Probe(dtype=None, modes=2, learning_rate=0.1, tier="modes", loss_fn=mse)
    shots = by_setting(net, data(), horizon=5), by_setting(net, data(), horizon=5, descent=found)
    for a, b in zip(*(shot.target_modes for shot in shots), strict=True):
        assert (a.rate, a.steps_to_learn) == (b.rate, b.steps_to_learn)


LARGEST: dict[str, Callable[[Any, float], Optimizer]] = {
    "SGD": lambda p, rate: SGD(p, lr=rate),
    "momentum": lambda p, rate: SGD(p, lr=rate, momentum=0.9),
    "dampening": lambda p, rate: SGD(p, lr=rate, momentum=0.8, dampening=0.4),
    "nesterov": lambda p, rate: SGD(p, lr=rate, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", LARGEST)
def test_steps_just_below_the_headroom_converge_and_just_above_diverge(name: str) -> None:
    def linear() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.Identity()).double()

    net = linear()
    probe = Probe(dtype=None, loss_fn=mse, modes=2, tier="modes", state="0")
    found = probe(net, data(), descent=of([LARGEST[name](net.parameters(), 0.01)], net)).instruments
    assert found is not None
    assert 1 < found.headroom < math.inf
    changes = []
    for share in (0.98, 1.02):
        net = linear()
        optimizer = LARGEST[name](net.parameters(), 0.01 * share * found.headroom)
        for _ in range(2000):
            step(net, [optimizer], data())
        changes.append(max(float(g.abs().max()) for g in gradient(net, data()).values()))
    assert changes[0] < 1e-6
    assert not changes[1] < 1e6


@pytest.mark.parametrize("kind", [SGD, Adam, RMSprop])
def test_a_learning_rate_of_zero_is_a_forecast_of_no_change(kind: Any) -> None:
    """Also in single precision, where differences along one of the tangents may not settle."""
    net = network().float()
    x, y = (each.float() for each in data())
    for batch in ((x, y), (1e3 * x, y)):
        optimizer = kind(net.parameters(), lr=0.0)
        measured = Probe(loss_fn=mse, modes=2, tier="modes")
        found = measured(net, batch, descent=of([optimizer], net), horizon=100)
        assert [mode.steps_to_learn for mode in found.target_modes] == [math.inf] * 2
        assert [mode.rate for mode in found.target_modes] == [0.0] * 2
        assert found.instruments is not None
        assert found.instruments.headroom == math.inf


def test_without_an_optimizer_there_is_no_forecast() -> None:
    found = Probe(dtype=None, loss_fn=mse)(network(), data())
    assert found.forecast is None
    assert found.loss == pytest.approx(float(mse(network(), data()).detach()))
    assert found.instruments is not None
    assert found.instruments.gradient_norm > 0
    for mode in found.target_modes:
        assert mode.steps_to_learn is None
        assert math.isnan(mode.rate)
        assert mode.preconditioned_steps_to_learn is None


def test_one_that_cannot_be_read_costs_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("exp_avg_sq")

    net = network()
    host: Any = SimpleNamespace(
        optimizers=[SGD(net.parameters(), lr=0.1)], module=net, global_step=0, planned_steps=9,
        schedulers=(), clipping=Clipping(),
    )  # fmt: skip
    assert descent_in(Probe(), host, Ahead()) is not None
    monkeypatch.setattr("ntk_monitor.monitor.measurement.descent_of", broken)
    assert descent_in(Probe(), host, Ahead()) is None


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_monitor_reads_it_off_the_optimizer() -> None:
    from lightning.pytorch import LightningModule, Trainer  # noqa: PLC0415
    from torch.utils.data import DataLoader, TensorDataset  # noqa: PLC0415

    from ntk_monitor import NTKMonitor  # noqa: PLC0415

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network().float()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Optimizer:
            return Adam(self.parameters(), lr=1e-4)

    x, y = (t.float() for t in data())
    shots: list[Snapshot] = []
    fractions: list[Tensor] = []

    class Listener(NTKMonitor):
        def on_probe(self, trainer: Any, module: Any, snapshot: Any, step: int) -> None:
            shots.append(snapshot)
            with torch.no_grad():
                fractions.append(learned(module.net(x), y))

    trainer = Trainer(
        max_steps=4, logger=False, accelerator="cpu", enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Listener(every_n_steps=1, max_overhead=None)],
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(TensorDataset(x, y), batch_size=12))
    assert len(shots) >= 3
    for i, shot in enumerate(shots[:-1]):
        for j, mode in enumerate(shot.target_modes):
            assert mode.rate == pytest.approx(float(fractions[i + 1][j] - fractions[i][j]), rel=0.1)


@pytest.mark.parametrize(
    ("rates", "start", "horizon", "wanted"),
    [
        ((1.0,), 0, math.inf, 1.0),
        ((1.0, 0.5, 0.1), 0, math.inf, 1.0),
        ((0.1, 0.5, 1.0), 0, math.inf, 10.0),
        ((0.1, 0.5, 1.0), 1, math.inf, 2.0),
        ((0.1, 0.5, 1.0), 0, 2, 5.0),
        ((0.0, 0.0, 1.0), 0, math.inf, math.inf),
        ((0.0, 0.0), 0, math.inf, 1.0),
        ((0.1, 1.0), 7, math.inf, 1.0),
    ],
)
def test_how_far_a_rate_is_to_rise(
    rates: tuple[float, ...], start: int, horizon: float, wanted: float
) -> None:
    found = Descent((), {}, rates).largest_ahead(horizon, start)
    assert found == pytest.approx(wanted)
