"""Weight sites found without keeping activations: the same sites, and the same core."""

import gc
from typing import Any

import pytest
import torch
from conftest import Case, recurrent
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from ntk_monitor import linearize, probe, weight_sites
from ntk_monitor.estimators import Activities, CoreGram
from ntk_monitor.model import Linearization, discovery
from ntk_monitor.model.derivatives import trial_gradients
from ntk_monitor.model.sites.saved_tensors import GraphNeededError, without_saved_tensors


def both(module: nn.Module, batch: Any, **settings: object) -> tuple[Linearization, Linearization]:
    """Linearised with all activations kept, and with none."""
    settings = {"dtype": torch.float64} | settings
    kept = linearize(module, batch, max_memory=2**40, **settings)
    return kept, linearize(module, batch, max_memory=1, **settings)


def require_same(kept: Linearization, streamed: Linearization) -> None:
    assert streamed.coverage == kept.coverage
    assert streamed.parameters == kept.parameters
    assert streamed.modules == kept.modules
    assert (streamed._found.recurrence is None) == (kept._found.recurrence is None)
    assert torch.equal(streamed.state, kept.state)
    assert len(streamed.sites) == len(kept.sites)
    for site, other in zip(streamed.sites, kept.sites, strict=True):
        assert (site.name, site.parameters, site.units) == (
            other.name,
            other.parameters,
            other.units,
        )
        assert site.tap == other.tap
        assert torch.equal(site.activity, other.activity)


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways of surveying were gone to the end."""
    ways: list[str] = []

    def watch(name: str) -> None:
        way = getattr(discovery, name)

        def watching(*args: Any) -> Any:
            found = way(*args)
            ways.append(name)
            return found

        monkeypatch.setattr(discovery, name, watching)

    for name in ("_kept", "_streamed"):
        watch(name)
    return ways


def test_small_models(case: Case, watched: list[str]) -> None:
    require_same(*both(case.make_model(), case.make_batch(), state=case.state))
    assert watched == ["_kept", "_streamed"]


class Cell(nn.Module):
    """Steps through time in a submodule, and begins from zero, which the weights do not touch."""

    def __init__(self, *, late: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.late = late
        self.step = nn.Linear(4, 4)
        self.inner = nn.Linear(2, 4)
        self.kept = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(len(x), 4), []
        for t in range(x.shape[1]):
            if not self.late or t:
                h = torch.tanh(self.step(h) + self.inner(x[:, t]))
            states.append(h)
        return self.kept(torch.stack(states, dim=1))


@pytest.mark.parametrize("late", [True, False])
def test_steps_through_time(late: bool, watched: list[str]) -> None:
    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    kept, streamed = both(Cell(late=late), x, state="kept")
    require_same(kept, streamed)
    assert streamed.coverage.fraction == 1.0
    assert watched == ["_kept", "_streamed"]


@pytest.mark.parametrize("swapped", [True, False])
def test_rows_whose_order_the_shape_does_not_tell(swapped: bool, watched: list[str]) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(2, 6), nn.Linear(6, 3)
            self.end = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1) if swapped else x
            h = torch.tanh(self.second(torch.tanh(self.first(x.flatten(0, 1)))))
            h = h.reshape(*x.shape[:2], -1)
            return self.end(h.transpose(0, 1) if swapped else h)

    x = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(0))
    kept, streamed = both(Flat(), x, state="end")
    require_same(kept, streamed)
    assert streamed.coverage.fraction == 1.0
    assert watched == ["_kept", "_streamed"]


def test_a_step_that_is_the_state_is_known_as_the_recurrence() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell = nn.GRUCell(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            h, states = x.new_zeros(len(x), 4), []
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
                states.append(h)
            return torch.stack(states, dim=1)

    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    kept, streamed = both(nn.Sequential(Loop(), nn.Linear(4, 1)), x, state="0")
    require_same(kept, streamed)
    assert streamed._found.recurrence is not None
    u = torch.randn(kept.state.shape, dtype=torch.float64)
    torch.testing.assert_close(streamed.propagator.matvec(u), kept.propagator.matvec(u))


def test_packed_sequences(watched: list[str]) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = recurrent(nn.LSTM).rnn

        def forward(self, x: PackedSequence) -> PackedSequence:
            return self.rnn(x)[0]

    generator = torch.Generator().manual_seed(0)
    packed = pack_sequence([torch.randn(n, 2, generator=generator).double() for n in (5, 3, 2)])
    require_same(*both(Packed(), packed))
    assert watched == ["_kept", "_streamed"]


def test_a_registered_layer_is_streamed_as_its_rows_are_followed(watched: list[str]) -> None:
    class Own(nn.Linear):
        pass

    @weight_sites(Own)
    def read(layer: Own, x: Tensor) -> Any:
        yield layer.weight, x, layer.bias

    torch.manual_seed(0)
    net = nn.Sequential(Own(2, 4), nn.Tanh(), nn.Linear(4, 1))
    require_same(*both(net, torch.randn(4, 4, 2).double(), state="1"))
    assert watched == ["_kept", "_streamed"]


@pytest.mark.parametrize("method", ["finite-difference", "forward-ad", "in-place"])
def test_a_probe_has_the_same_numbers_with_little_memory(
    case: Case, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trials are told apart where there is the memory: by samples alone numbers are the same.
    monkeypatch.setattr(trial_gradients, "FEWEST_GROUPS", 10**6)
    settings = {"state": case.state, "method": method, "dtype": None, "max_products": 40}
    found, wanted = (
        probe(case.make_model(), case.make_batch(), max_memory=size, **settings).scalars()
        for size in (1, None)
    )
    for tag in found.keys() - {"ntk/probe_seconds"}:
        assert found[tag] == pytest.approx(wanted[tag], rel=1e-9), tag


@pytest.mark.parametrize("columns", [(3, 4, 2), (3, 9, 8, 5), (30,), (0,), (12,), (13,)])
def test_activities_one_by_one_make_the_core_of_all(columns: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    V = [torch.randn(12, m, generator=generator) for m in columns]
    parts = Activities()
    for v in V:
        parts.add(v)
    assert (parts.gram is None) == (sum(columns) <= 12)
    assert sum(v.shape[1] for v in parts.kept) == (sum(columns) if parts.gram is None else 0)
    core, G = CoreGram.of(parts), torch.cat(V, dim=1).double()
    G = G @ G.T
    torch.testing.assert_close(
        core.factor.double() @ core.factor.double().T, G, rtol=1e-4, atol=1e-4
    )
    wanted = torch.linalg.eigvalsh(G).flip(0)[: min(12, sum(columns))]
    torch.testing.assert_close(core.spectrum, wanted, rtol=1e-4, atol=1e-4)
    assert float(core.norm_squared) == pytest.approx(float(G.square().sum()), rel=1e-6)


def test_a_survey_in_place_keeps_no_activations() -> None:
    torch.manual_seed(0)
    depth, x = 20, torch.randn(1024, 128)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(128, 128), nn.Tanh())]
    net = nn.Sequential(*layers, nn.Linear(128, 1))
    most, wrapped = 0, torch._C._functorch.is_functorch_wrapped_tensor  # left by other tests

    def look(*_: object) -> None:
        nonlocal most
        tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor and not wrapped(o)]
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        most = max(most, sum(size for at, size in storages.items() if at not in own))

    net[2 * depth - 2].register_forward_hook(look)
    sizes = []
    gc.collect()  # what other tests left behind is not counted
    for method in ("in-place", "finite-difference"):
        most = 0
        linearize(net, x, method=method, consume=lambda *_: None)
        sizes.append(most)
    activation = x.numel() * x.element_size()
    assert sizes[0] < 10 * activation
    assert sizes[1] > depth * activation


def test_a_graph_without_tensors_cannot_go_backward() -> None:
    x = torch.randn(3, requires_grad=True)
    with without_saved_tensors():
        y = x.exp().sum()
    with pytest.raises(GraphNeededError):
        y.backward()
