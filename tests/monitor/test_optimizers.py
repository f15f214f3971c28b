"""The optimizer's own map of the gradient, and the steps to learn under it."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from ntk_monitor import NTKMonitor, probe
from ntk_monitor.monitor.measuring import optimization
from ntk_monitor.monitor.optimizers import learning_rate, preconditioner
from ntk_monitor.probe import Probe
from ntk_monitor.ranks import ALONE

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Adam": lambda p: Adam(p, lr=0.01, betas=(0.0, 0.9)),
    "AMSGrad": lambda p: Adam(p, lr=0.01, betas=(0.0, 0.9), amsgrad=True),
    "AdamW": lambda p: AdamW(p, lr=0.01, betas=(0.0, 0.9), weight_decay=0.0),
    "NAdam": lambda p: NAdam(p, lr=0.01, betas=(0.0, 0.9)),
    "RMSprop": lambda p: RMSprop(p, lr=0.01),
    "RMSprop, centered": lambda p: RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: Adagrad(p, lr=0.01),
    "Adagrad with decay": lambda p: Adagrad(p, lr=0.01, lr_decay=0.5),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 3, generator=generator).double()
    return x, torch.stack([x[:, 0], x[:, 1] * x[:, 2]], dim=1)


def step(net: nn.Module, optimizer: Optimizer, seed: int) -> None:
    x, y = data(seed)
    optimizer.zero_grad()
    nn.functional.mse_loss(net(x), y).backward()
    optimizer.step()


def shampoo(parameters: Any) -> Optimizer:
    library = pytest.importorskip("pytorch_optimizer")
    return library.Shampoo(parameters, lr=0.01)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "Shampoo"])
def test_a_step_is_the_map_of_the_gradient(name: str) -> None:
    """The optimizer itself is the oracle."""
    net = model()
    optimizer = OPTIMIZERS.get(name, shampoo)(net.parameters())
    assert preconditioner([optimizer], net) is None  # before the first step
    for seed in range(4):
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        step(net, optimizer, seed)
    _require_the_map_of_a_step([optimizer], net, before, rate=0.01, seed=3)


def _require_the_map_of_a_step(
    optimizers: list[Optimizer], net: nn.Module, before: dict[str, Tensor], rate: float, seed: int
) -> None:
    found = preconditioner(optimizers, net)
    assert found is not None
    assert set(found) == set(before)
    for n, parameter in net.named_parameters():
        gradient = _gradient(net, before, n, seed)
        torch.testing.assert_close(
            before[n] - rate * found[n](gradient), parameter.detach(), rtol=2e-5, atol=1e-7
        )


def _gradient(net: nn.Module, at: dict[str, Tensor], name: str, seed: int) -> Tensor:
    x, y = data(seed)
    leaves = {n: p.clone().requires_grad_() for n, p in at.items()}
    loss = nn.functional.mse_loss(torch.func.functional_call(net, leaves, x), y)
    return torch.autograd.grad(loss, leaves[name])[0]


def test_groups_keep_the_ratio_of_their_rates() -> None:
    net = model()
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.02}]
    optimizer = Adam(groups, lr=0.01, betas=(0.0, 0.9))
    step(net, optimizer, 0)
    found = preconditioner([optimizer], net)
    assert found is not None
    ones = torch.ones(2, dtype=torch.float64)
    state = optimizer.state[net[2].bias]
    wanted = 2 / ((state["exp_avg_sq"] / 0.1).sqrt() + 1e-8)
    torch.testing.assert_close(found["2.bias"](ones), wanted, rtol=1e-5, atol=0)


def test_so_do_shampoos() -> None:
    library = pytest.importorskip("pytorch_optimizer")
    found = []
    for rate in (0.01, 0.02):
        net = model()
        groups = [
            {"params": net[0].parameters(), "lr": 0.01},
            {"params": net[2].parameters(), "lr": rate},
        ]
        optimizer = library.Shampoo(groups, lr=0.01)
        step(net, optimizer, 0)
        maps = preconditioner([optimizer], net)
        assert maps is not None
        found.append(maps["2.weight"](torch.ones(2, 5, dtype=torch.float64)))
    torch.testing.assert_close(found[1], 2 * found[0])


class Own(Adam):
    """Keeps a state of its own."""

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {"count": 1}


def adafactor(parameters: Any) -> Optimizer:
    return pytest.importorskip("transformers").Adafactor(parameters)  # its lr is None


def shampoo_with_momentum(parameters: Any) -> Optimizer:
    return pytest.importorskip("pytorch_optimizer").Shampoo(parameters, lr=0.01, momentum=0.9)


OTHERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "its own": lambda p: Own(p, lr=0.1),
    "Adafactor": adafactor,
    "Shampoo with momentum": shampoo_with_momentum,
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_have_none(name: str) -> None:
    net = model().float()
    optimizer = OTHERS[name](net.parameters())
    nn.functional.mse_loss(net(torch.ones(2, 3)), torch.ones(2, 2)).backward()
    optimizer.step()
    assert preconditioner([optimizer], net) is None


def test_only_heavy_balls_add_up() -> None:
    averaging = getattr(torch.optim, "Muon", None)
    if averaging is None:
        pytest.skip("this torch has no Muon")
    optimizer = averaging([nn.Parameter(torch.ones(2, 2))], lr=0.01, momentum=0.9)
    assert learning_rate([optimizer]) == pytest.approx(0.01)


def test_several_optimizers_are_one_map() -> None:
    net = model()
    optimizers = [
        Adam(net[2].parameters(), lr=0.02, betas=(0.0, 0.9)),
        SGD(net[0].parameters(), lr=0.01),
    ]
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    step(net, optimizers[0], 0)
    optimizers[1].step()
    _require_the_map_of_a_step(optimizers, net, before, rate=0.02, seed=0)


def test_what_no_optimizer_steps_does_not_learn() -> None:
    net = model()
    found = preconditioner([SGD(net[2].parameters(), lr=0.1)], net)
    assert found is not None
    assert set(found) == {"2.weight", "2.bias"}
    net[0].requires_grad_(False)
    assert preconditioner([SGD(net[2].parameters(), lr=0.1)], net) is None


def test_a_group_at_rest_is_no_reference() -> None:
    net = model()
    groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": net[2].parameters()}]
    optimizer = Adam(groups, lr=0.02, betas=(0.0, 0.9))
    step(net, optimizer, 0)
    assert learning_rate([optimizer]) == 0.02
    found = preconditioner([optimizer], net)
    assert found is not None
    assert float(found["0.weight"](torch.ones(5, 3, dtype=torch.float64)).abs().max()) == 0
    assert float(found["2.bias"](torch.ones(2, dtype=torch.float64)).abs().min()) > 0


def test_one_that_cannot_be_read_costs_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("exp_avg_sq")

    monkeypatch.setattr("ntk_monitor.monitor.measuring.preconditioner", broken)
    net = model()
    host: Any = SimpleNamespace(optimizers=[SGD(net.parameters(), lr=0.1)], module=net)
    assert optimization(Probe(), host, ALONE) == (0.1, None)


def test_all_processes_go_by_what_the_first_one_and_all_of_them_can_read() -> None:
    net = model()
    optimizer = Adam(net.parameters(), lr=0.1)
    net(data()[0]).sum().backward()
    optimizer.step()
    host: Any = SimpleNamespace(optimizers=[optimizer], module=net)
    alone = optimization(Probe(), host, ALONE)
    assert alone[0] == 0.1
    assert alone[1] is not None
    for first, all_can in ((0.3, True), (math.nan, False)):
        everyone = SimpleNamespace(each=lambda own, f=first: [f, own], all=lambda _, a=all_can: a)
        ranks: Any = SimpleNamespace(everyone=everyone)
        rate, scales = optimization(Probe(), host, ranks)
        assert rate == (None if math.isnan(first) else first)
        assert (scales is not None) == all_can


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({"lr": 0.1}, 0.1),
        ({"lr": 0.1, "momentum": 0.9}, 1.0),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, 0.5),
        ({"lr": 0.0}, None),
    ],
)
def test_momentum_multiplies_the_rate(settings: dict[str, float], rate: float | None) -> None:
    found = learning_rate([SGD(model().parameters(), **settings)])
    assert found == (None if rate is None else pytest.approx(rate))


def test_steps_to_learn_are_those_of_the_preconditioned_kernel() -> None:
    net, (x, y) = model(), data()
    generator = torch.Generator().manual_seed(1)
    D = {n: torch.rand(p.shape, generator=generator).double() for n, p in net.named_parameters()}
    del D["0.bias"]  # which is not stepped
    maps = {n: (lambda g, d=d: g * d) for n, d in D.items()}
    measure = Probe(dtype=None, modes=2, learning_rate=0.1)
    found = measure(net, (x, y), preconditioner=maps).target_modes
    U, _, Vh = torch.linalg.svd(y, full_matrices=False)
    for i, mode in enumerate(found):
        e = torch.outer(U[:, i], Vh[i])
        gradients = torch.autograd.grad((net(x) * e).sum(), list(net.parameters()))
        named = dict(zip(dict(net.named_parameters()), gradients, strict=True))
        size = sum(float((named[n].square() * d).sum()) for n, d in D.items())
        assert mode.preconditioned_steps_to_learn == pytest.approx(24 / (0.2 * size), rel=1e-6)
        assert mode.steps_to_learn == pytest.approx(
            24 / (0.2 * sum(float(g.square().sum()) for g in gradients)), rel=1e-6
        )


def test_without_one_there_are_none() -> None:
    found = probe(model(), data(), dtype=None, learning_rate=0.1)
    assert found.target_modes[0].preconditioned_steps_to_learn is None
    assert not any("preconditioned" in tag for tag in found.scalars())


def test_a_mode_learns_at_the_rate_that_is_told() -> None:
    """Of an Adam without momentum: what the kernel says is what a step does."""
    net, (x, y) = model(), data()
    optimizer = Adam(net.parameters(), lr=1e-5, betas=(0.0, 0.999))
    for _ in range(50):
        step(net, optimizer, 0)
    U, _, Vh = torch.linalg.svd(y, full_matrices=False)
    e = torch.outer(U[:, 0], Vh[0])
    maps = preconditioner([optimizer], net)
    assert maps is not None
    # An error along e alone, so that no other mode has a part in it.
    leaves = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    output = torch.func.functional_call(net, leaves, x)
    gradients = torch.autograd.grad((output * 2 * e / output.numel()).sum(), list(leaves.values()))
    moved = {
        n: leaf.detach() - 1e-5 * maps[n](g)
        for (n, leaf), g in zip(leaves.items(), gradients, strict=True)
    }
    fall = float(((output - torch.func.functional_call(net, moved, x)) * e).sum().detach())
    measure = Probe(dtype=None, learning_rate=1e-5)
    mode = measure(net, (x, y), preconditioner=maps).target_modes[0]
    assert fall == pytest.approx(1 / mode.preconditioned_steps_to_learn, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_monitor_reads_it_off_the_optimizer() -> None:
    from lightning.pytorch import LightningModule, Trainer  # noqa: PLC0415
    from torch.utils.data import DataLoader, TensorDataset  # noqa: PLC0415

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model().float()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Optimizer:
            return Adam(self.parameters(), lr=1e-3)

    x, y = (t.float() for t in data())
    logged: list[dict[str, float]] = []

    class Listener(NTKMonitor):
        def on_probe(self, trainer: Any, module: Any, snapshot: Any, step: int) -> None:
            logged.append(snapshot.scalars())

    trainer = Trainer(
        max_steps=2, logger=False, accelerator="cpu", enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Listener(every_n_steps=1, max_overhead=None)],
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(TensorDataset(x, y), batch_size=12))
    tag = "target/mode_1/preconditioned_steps_to_learn"
    assert tag not in logged[0]
    assert 0 < logged[1][tag] < logged[1]["target/mode_1/steps_to_learn"]
    assert math.isfinite(logged[1][tag])
