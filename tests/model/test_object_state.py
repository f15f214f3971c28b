"""Whatever a forward pass can reach is as it was, at every product and after the probe."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ntk_monitor import probe
from ntk_monitor.model import quiet
from ntk_monitor.model.isolation.object_state import ObjectState


class Meter:
    """A helper object that counts."""

    def __init__(self) -> None:
        self.sum, self.seen = 0.0, []


class Stubborn(dict[str, int]):
    """A dictionary that does not let itself be changed from outside."""

    def clear(self) -> None:
        raise RuntimeError("no")

    def force(self) -> None:
        dict.__setitem__(self, "b", len(self))


class Done(Meter):
    """What a helper becomes."""


class Slotted:
    """Another, without a dictionary."""

    __slots__ = ("calls", "late")

    def __init__(self) -> None:
        self.calls = 0


class Hidden(Slotted):
    """A third, which hides a slot behind a property."""

    __slots__ = ("more",)

    @property
    def late(self) -> int:  # type: ignore[override]
        return self.calls


class Teacher(nn.Module):
    """A module that is kept where torch does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)


class Rope:
    """A cache filled at the first call."""

    def __init__(self) -> None:
        self.table: dict[int, Tensor] = {}

    def __call__(self, n: int) -> Tensor:
        if n not in self.table:
            self.table[n] = torch.linspace(-1, 1, n)
        return self.table[n]


Start = Callable[[nn.Module], Any]
Act = Callable[[nn.Module, Any, Tensor], object]
CASES: dict[str, tuple[Start, Act]] = {
    "tensor in a tuple": (lambda m: (torch.zeros(4),), lambda m, s, h: s[0].add_(h.detach()[0])),
    "tensor deep down": (
        lambda m: {"a": [(torch.zeros(4),)]},
        lambda m, s, h: s["a"][0][0].add_(h.detach()[0]),
    ),
    "list in a dictionary": (
        lambda m: defaultdict(list, {"r": []}),
        lambda m, s, h: s["r"].append(h.pow(2).mean()),
    ),
    "ordered dictionary": (
        lambda m: OrderedDict(a=1),
        lambda m, s, h: s.update({"b": len(s)}) or s.move_to_end("a"),
    ),
    "a dictionary that refuses": (lambda m: Stubborn(a=1), lambda m, s, h: s.force()),
    "queue": (lambda m: deque([1], maxlen=3), lambda m, s, h: s.append(2)),
    "set": (lambda m: {1}, lambda m, s, h: s.add(len(s) + 1)),
    "real parameters": (
        lambda m: list(m.parameters()),
        lambda m, s, h: [p.data.mul_(0.5) for p in s],
    ),
    "real buffer": (lambda m: [m.buffer], lambda m, s, h: s[0].add_(1)),
    "helper object": (
        lambda m: Meter(),
        lambda m, s, h: (setattr(s, "sum", s.sum + 1), s.seen.append(1)),
    ),
    "namespace": (lambda m: SimpleNamespace(n=0), lambda m, s, h: setattr(s, "n", s.n + 1)),
    "slots": (
        lambda m: Slotted(),
        lambda m, s, h: (setattr(s, "calls", s.calls + 1), setattr(s, "late", 1)),
    ),
    "hidden slot": (
        lambda m: Hidden(),
        lambda m, s, h: (setattr(s, "calls", s.calls + 1), setattr(s, "more", 1)),
    ),
    "generator in a dictionary": (
        lambda m: {"g": torch.Generator().manual_seed(0)},
        lambda m, s, h: torch.randn(1, generator=s["g"]),
    ),
    "numpy generator": (lambda m: [np.random.default_rng(0)], lambda m, s, h: s[0].normal()),
    "python generator": (lambda m: (random.Random(0),), lambda m, s, h: s[0].random()),
    "Sobol": (lambda m: torch.quasirandom.SobolEngine(2), lambda m, s, h: s.draw(2)),
    "module in a list": (
        lambda m: [Teacher()],
        lambda m, s, h: s[0].norm(torch.randn(5, 3)),
    ),
    "through .data": (lambda m: torch.zeros(2), lambda m, s, h: s.data.add_(1)),
    "another .data": (lambda m: torch.zeros(2), lambda m, s, h: setattr(s, "data", torch.ones(3))),
    "through numpy": (lambda m: torch.zeros(2), lambda m, s, h: s.numpy().fill(3.0)),
    "resized": (lambda m: torch.zeros(2), lambda m, s, h: s.resize_(5).fill_(1)),
    "requires_grad": (lambda m: torch.zeros(2), lambda m, s, h: s.requires_grad_()),
    "array in a list": (lambda m: [np.zeros(2)], lambda m, s, h: s[0].__iadd__(1)),
    "cache": (lambda m: Rope(), lambda m, s, h: s(3)),
    "class": (lambda m: Meter(), lambda m, s, h: setattr(s, "__class__", Done)),
}


class Holder(nn.Module):
    """Does one thing to what it holds, in every forward pass."""

    def __init__(self, start: Start, act: Act) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4)
        self.register_buffer("buffer", torch.zeros(1))
        self.held = start(self)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(x))
        self.act(self, self.held, h)
        return h


PICTURES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (Tensor, lambda v: (v.tolist(), v.requires_grad)),
    (torch.Generator, lambda v: v.get_state().tolist()),
    (np.random.Generator, lambda v: str(v.bit_generator.state)),
    (random.Random, lambda v: v.getstate()),
    (np.ndarray, lambda v: v.tolist()),
    (dict, lambda v: {k: picture(x) for k, x in v.items()}),
    ((list, tuple, set, deque), lambda v: [picture(x) for x in v]),
    (Slotted, lambda v: (v.calls, hasattr(v, "late"))),
    (nn.Module, lambda v: ({k: picture(x) for k, x in v.state_dict().items()}, v.training)),
    ((Meter, Rope, SimpleNamespace), lambda v: (type(v), picture(vars(v)))),
    (torch.quasirandom.SobolEngine, lambda v: picture(vars(v))),
)


def picture(value: Any) -> Any:
    """Nested values as something that compares by contents."""
    draw = next((draw for kind, draw in PICTURES if isinstance(value, kind)), None)
    return value if draw is None else draw(value)


@pytest.mark.parametrize("name", CASES)
def test_what_is_held_is_put_back(name: str) -> None:
    net = Holder(*CASES[name])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    before = picture((net.held, dict(net.state_dict())))
    held = net.held
    with quiet(net):
        net(x)
        net(x)
    assert net.held is held
    assert picture((net.held, dict(net.state_dict()))) == before
    settings = {"state": "0", "method": "finite-difference", "max_products": 20}
    snapshot = probe(nn.Sequential(net), x, **settings)
    assert snapshot.trace.is_finite
    assert picture((net.held, dict(net.state_dict()))) == before
    net(x)
    assert picture((net.held, dict(net.state_dict()))) != before


def test_a_loaded_lazy_model_stays_lazy() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3)
    assert probe(net, x).trace == probe(plain, x).trace
    assert type(net[0]) is nn.LazyLinear
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=0)


def test_one_thing_that_cannot_be_put_back_does_not_keep_the_others() -> None:
    net = nn.Linear(2, 2)
    net.first = np.zeros(2)
    net.last = [1]
    held = ObjectState([net])
    net.first += 1
    net.first.setflags(write=False)
    net.last.append(2)
    with pytest.raises(RuntimeError, match="could not be put back"):
        held.put_back()
    assert net.last == [1]


def test_a_gradient_of_another_shape_is_left_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net(torch.randn(5, 3)).sum().backward()
    net[0].weight.data = net[0].weight.data[:, :2].clone()
    gradients = [p.grad for p in net.parameters()]
    with quiet(net):
        pass
    assert all(p.grad is g for p, g in zip(net.parameters(), gradients, strict=True))


def test_global_backward_hooks_are_not_called() -> None:
    calls: list[int] = []
    handle = nn.modules.module.register_module_full_backward_hook(lambda *_: calls.append(1))
    try:
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        probe(net, torch.randn(5, 3))
        assert calls == []
        net(torch.randn(5, 3, requires_grad=True)).sum().backward()
        assert calls
    finally:
        handle.remove()


class Graph:
    """A batch that is an object of the user's."""

    def __init__(self) -> None:
        self.x, self.y = torch.ones(5, 3), torch.zeros(5, 4)


def test_a_batch_that_is_an_object_is_copied_for_every_call() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, graph: Graph) -> Tensor:
            graph.x = torch.tanh(self.layer(graph.x))
            return graph.x

    graph = Graph()
    x, kept = graph.x, copy.deepcopy(graph)
    found = probe(
        Net(), graph, forward_fn=lambda m, b: m(b), target_fn=lambda b: None, state="layer"
    )
    assert found.trace.is_finite
    assert graph.x is x
    assert torch.equal(x, kept.x)


def test_a_path_may_keep_what_it_is_asked_for() -> None:
    held = nn.Linear(2, 2)
    held.folder = Path("a", "b")  # type: ignore[assignment]
    state = ObjectState(held.modules())
    assert (str(held.folder), held.folder.parts, hash(held.folder)) is not None
    changed = state.changed()
    if changed is not None:
        changed.put_back()
    state.put_back()
    assert held.folder == Path("a", "b")
    assert str(held.folder / "c") == str(Path("a", "b", "c"))
