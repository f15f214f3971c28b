"""Products of the outputs' derivative through one recorded graph, and where they see too little."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD

from ntk_monitor.descent import descent_of, lossmap
from ntk_monitor.descent.lossmap import LossMap
from ntk_monitor.model import linearize
from ntk_monitor.model.state.graph import extent
from ntk_monitor.probe import Probe

Batch = tuple[Tensor, Tensor]


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = cell(3, 5, batch_first=True)  # type: ignore[call-arg]
        self.readout = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.embed, self.readout = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.body(self.embed(x)))


class Detaching(nn.Module):
    """Half of what moves the outputs is cut off from training."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.readout = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x).tanh()
        return self.readout(h + 2 * h.detach())


def whole(module: nn.Module, batch: Batch) -> Tensor:
    return (module(batch[0]) - batch[1]).square().mean()


def made(net: nn.Module) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    return net.double(), (torch.randn(4, 6, 3).double(), torch.randn(4, 6, 2).double())


def mapped(net: nn.Module, batch: Batch, **settings: Any) -> LossMap:
    lin = linearize(net, batch, state="readout", loss_fn=whole, dtype=None)
    return LossMap(lin, **settings)


def dense(net: nn.Module, x: Tensor, names: list[str]) -> Tensor:
    theta = {name: p.detach() for name, p in net.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        J = jacrev(lambda theta: functional_call(net, theta, (x,)).flatten())(theta)
    return torch.cat([J[name].flatten(1) for name in names], dim=1)


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.act, self.readout = nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)


@pytest.mark.parametrize(
    "net",
    [Perceptron(), Recurrent(nn.RNN), Recurrent(nn.GRU), Attention()],
    ids=["mlp", "rnn", "gru", "attention"],
)
def test_products_through_the_recorded_graph_are_the_derivative(net: nn.Module) -> None:
    net, batch = made(net)
    found = mapped(net, batch)
    tangents = torch.randn(3, found.space.size).double()
    J = dense(net, batch[0], list(found.space.shapes))
    assert torch.allclose(found.push(list(tangents)), tangents @ J.T, rtol=1e-9, atol=1e-12)
    assert found.products.method == "recorded"
    assert found.by_graph
    one = found.push([tangents[1]])
    assert torch.allclose(one[0], J @ tangents[1], rtol=1e-9, atol=1e-12)
    found.close()


def test_what_a_step_detaches_moves_its_outputs_all_the_same() -> None:
    net, batch = made(Detaching())
    found = mapped(net, batch)
    g = torch.randn(found.space.size).double()
    theta = {name: p.detach() for name, p in net.named_parameters()}
    split = found.space.split(g)
    ends = [
        functional_call(net, {n: p + e * split[n] for n, p in theta.items()}, (batch[0],)).flatten()
        for e in (1e-6, -1e-6)
    ]
    (moved,) = found.push([g])
    assert torch.allclose(moved, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-6)
    assert found.products.method == "finite-difference"
    assert found.by_graph is False
    assert found.moved(found.theta).products.method == "finite-difference"
    found.close()


def test_what_a_tangent_does_not_move_is_asked_for_as_well() -> None:
    net, batch = made(Detaching())
    found = mapped(net, batch)
    g = torch.zeros(found.space.size).double()
    found.space.split(g)["readout.bias"].fill_(1.0)  # behind all that is detached
    found.push([g])
    assert found.by_graph is False
    found.close()


def test_it_is_found_out_once_for_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    before = LossMap._sees_all

    def sees_all(self: LossMap, *args: Any) -> bool:
        asked.append(1)
        return before(self, *args)

    monkeypatch.setattr(LossMap, "_sees_all", sees_all)
    for kind in (Detaching(), Recurrent(nn.GRU)):
        net, batch = made(kind)
        measured = Probe(loss_fn=whole, state="readout", tier="modes", dtype=None)
        descent = descent_of([SGD(net.parameters(), lr=0.1)], net)
        for _ in range(3):
            measured(net, batch, descent=descent, second=batch, horizon=100)
        assert len(asked) == 1
        asked.clear()


def test_no_large_graph_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = made(Recurrent(nn.GRU))
    for name in ("FEW", "SMALL"):
        with monkeypatch.context() as patch:
            patch.setattr(lossmap, name, 1)
            found = mapped(net, batch)
            assert found.products.method == "finite-difference"
            found.close()


def test_how_large_a_graph_is() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    y = x.exp().tanh().sum()
    assert extent(y, 10) == (4, (15 + 15 + 15 + 1) * 4)
    assert extent(y, 2)[0] == 3
    assert extent(torch.randn(3), 10) == (0, 0)


def test_nothing_that_a_graph_keeps_is_unpacked() -> None:
    def unpack(_: object) -> Tensor:
        raise AssertionError("it may be computed again, or fetched, for that")

    x = torch.randn(5, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        assert extent(x.exp().tanh().sum(), 10)[0] == 4
