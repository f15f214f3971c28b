"""Gradients and tangents trial by trial, against the dense Jacobian."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Made
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ntk_monitor import Probe, probe
from ntk_monitor.estimators import Activities, CoreGram
from ntk_monitor.model import Linearization, discovery, linearize
from ntk_monitor.model.derivatives import trial_gradients
from ntk_monitor.model.derivatives.trial_gradients import TrialGradients

B, T = 6, 5


def first(output: Any) -> Tensor:
    return output[0]


def rows() -> Tensor:
    return torch.randn(B, T, 4)


def layers() -> nn.Module:
    """A weight that is used twice, one that no rows of the state are of, and a gain."""

    def forward(m: Any, x: Tensor) -> Tensor:
        twice = torch.tanh(m.twice(torch.tanh(m.twice(x)))) + m.once(x.mean(1, keepdim=True))
        return m.readout(m.state(m.norm(twice)))

    return Made(
        forward, twice=nn.Linear(4, 4), once=nn.Linear(4, 4), norm=nn.LayerNorm(4),
        state=nn.Linear(4, 3), readout=nn.Linear(3, 2),
    )  # fmt: skip


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return Made(lambda m, x: m.readout(m.state(x)), state=layer, readout=nn.Linear(4, 2))


def recurrent(**options: Any) -> nn.Module:
    layer = nn.GRU(4, 3, batch_first=True, **options)
    size = 6 if options.get("bidirectional") else 3
    return Made(lambda m, x: m.readout(first(m.state(x))), state=layer, readout=nn.Linear(size, 2))


def around() -> nn.Module:
    """Weights before and after a recurrent layer, which is written out in between."""
    return Made(
        lambda m, x: m.readout(m.state(first(m.layer(m.inside(x))))),
        inside=nn.Linear(4, 3), layer=nn.GRU(3, 3, batch_first=True), state=nn.Linear(3, 3),
        readout=nn.Linear(3, 2),
    )  # fmt: skip


def cells() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h, hidden = x.new_zeros(B, 3), []
        for each in x.unbind(1):
            h = torch.tanh(m.inside(h) + m.outside(each))
            hidden.append(h)
        return m.readout(m.state(torch.stack(hidden, 1)))

    return Made(
        forward, inside=nn.Linear(3, 3), outside=nn.Linear(4, 3), state=nn.Identity(),
        readout=nn.Linear(3, 2),
    )  # fmt: skip


def images() -> nn.Module:
    state = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Tanh(), nn.Conv2d(6, 2, 1))
    return Made(lambda m, x: m.readout(m.state(x).flatten(1)), state=state, readout=nn.Linear(8, 2))


def wide() -> nn.Module:
    """Weights of more entries than there are pairs of rows."""

    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(m.twice(torch.tanh(m.twice(torch.tanh(m.once(x))))))
        return m.readout(m.state(hidden))

    return Made(
        forward, once=nn.Linear(4, 30), twice=nn.Linear(30, 30), state=nn.Linear(30, 5),
        readout=nn.Linear(5, 2),
    )  # fmt: skip


def words() -> nn.Module:
    return Made(
        lambda m, x: m.readout(m.state(m.embed(x))),
        embed=nn.Embedding(5, 4, padding_idx=0), state=nn.Linear(4, 3), readout=nn.Linear(3, 2),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], set[str]]] = {
    "layers": (layers, rows, {"once.weight", "once.bias", "norm.weight", "norm.bias"}),
    "attention": (
        attention,
        rows,
        {f"state.norm{i}.{n}" for i in (1, 2) for n in ("weight", "bias")},
    ),
    "GRU": (recurrent, rows, set()),
    "GRU, both ways": (lambda: recurrent(num_layers=2, bidirectional=True), rows, set()),
    "around": (around, rows, set()),
    "cells": (cells, rows, set()),
    "images": (images, lambda: torch.randn(B, 4, 2, 2), set()),
    "wide": (wide, lambda: torch.randn(B, 1, 4), set()),
    "words": (words, lambda: torch.randint(0, 5, (B, T)), {"embed.weight"}),
}


def parts_of(net: nn.Module, x: Tensor) -> tuple[Linearization, TrialGradients]:
    parts = Activities()
    lin = linearize(net, x, state="state", dtype=torch.float64, consume=parts.add)
    trials = lin.by_trial(CoreGram.of(parts), 3)
    assert trials is not None
    return lin, trials


def dense(lin: Linearization) -> Tensor:
    """``J``, shape ``(B, T, n, p)``."""
    size = lin.jacobian.shape_in[0]
    columns = lin.jacobian.matmat(torch.eye(size, dtype=torch.float64))
    return columns.movedim(0, -1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("groups", "atoms_taken"), [(4, 2), (32, 2), (4, 0)])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_groups_are_those_of_the_dense_jacobian(
    name: str, groups: int, atoms_taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trial_gradients, "MOST_GROUPS", groups
    )  # with 4, two of them have two trials
    monkeypatch.setattr(trial_gradients, "MANY", math.inf if atoms_taken else 0)
    monkeypatch.setattr(trial_gradients, "LEAST_PIECE", 2**20 if atoms_taken else 1)
    make, batch, others = MODELS[name]
    lin, trials = parts_of(make(), batch())
    assert (len(trials._parts) > len(trials._keys)) == (not atoms_taken)
    assert trials.groups == min(B, groups)
    assert set(trials._own) == others
    assert trials.gap() < 1e-9
    by_rows = [part.key[0][0] for part in trials._parts if part.gram is not None]
    every = ["once.weight", "twice.weight", "state.weight"]
    assert by_rows == ((every if groups > B else every[1:]) if name == "wide" else [])
    J = dense(lin)
    sizes = {n: p.numel() for n, p in lin.module.named_parameters() if n in lin.parameters}
    own = torch.cat([torch.full((sizes[n],), n in others) for n in lin.parameters])

    images = torch.randn(3, *lin.state.shape, dtype=torch.float64)
    leading = trials.take_out(images, 2, range(2))
    atoms, w = trials._directions, trials._cotangents(range(2))
    assert len(atoms) == atoms_taken
    bounds = torch.tensor(trials._counts).cumsum(0).tolist()

    def by_group(u: Tensor) -> Tensor:
        """``J_b* u_b`` of each group, shape ``(len, g, p)``."""
        each = torch.einsum("sbtn,btnp->sbp", u, J)
        return torch.stack([part.sum(1) for part in torch.tensor_split(each, bounds[:-1], 1)], 1)

    def inside(u: Tensor, v: Tensor) -> Tensor:
        each = torch.einsum("sbtn,rbtn->srb", u, v)
        return torch.stack([p.sum(2) for p in torch.tensor_split(each, bounds[:-1], 2)], 2)

    taken = inside(w, atoms)
    apart = inside(atoms, atoms)[:1, 1:]
    torch.testing.assert_close(apart, torch.zeros_like(apart))
    x, q = by_group(w), by_group(atoms)
    rest = x - torch.einsum("srb,rbp->sbp", taken, q)
    found = trials.gradients(range(2))
    sites = [v[..., ~own] for v in (q, rest, x)]
    for told, one, two in (
        (found.kernel.atoms, sites[0], sites[0]),
        (found.kernel.mixed, sites[0], sites[1]),
        (found.kernel.draws, sites[1], sites[1]),
    ):
        torch.testing.assert_close(told, torch.einsum("ibp,jcp->ibjc", one, two))
    whole = sites[2].sum(1)
    torch.testing.assert_close(found.kernel.sums, whole @ whole.T)
    together = x.sum(1)[:, own]
    torch.testing.assert_close(found.together, together @ together.T)

    if not atoms_taken:
        assert len(leading) == 0
        return
    flat = leading.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat), dtype=torch.float64))
    quotients = torch.einsum("sbtn,btnp->sp", leading, J)[:, ~own].square().sum(1)
    assert (quotients.diff() <= 1e-9).all()


def law_of(lin: Linearization, trials: TrialGradients, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel, that of samples, and the errors of the latter's entries."""
    Y = trials.sample(range(count)).reshape(count, -1)
    J = dense(lin).flatten(0, 2)
    wanted, found = J @ J.T, Y.T @ Y / count
    spread = torch.outer(wanted.diagonal(), wanted.diagonal()) + wanted.square()
    return wanted, found, spread.div(count).sqrt().clamp(min=1e-12)


def test_samples_of_groups_have_the_law_of_their_own_rows() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net = Made(lambda m, x: m.readout(m.state(x)), state=net, readout=nn.Linear(2, 1))
    wanted, found, error = law_of(*parts_of(net, torch.randn(4, 1, 3)), 600)
    same = torch.block_diag(*[torch.ones(2, 2)] * 4)
    assert float(((found - wanted * same) / error).abs().max()) < 4.5


def test_samples_reach_weights_after_a_layer_that_is_written_out() -> None:
    wanted, found, error = law_of(*parts_of(around(), torch.randn(4, 2, 4)), 600)
    same = torch.block_diag(*[torch.ones(6, 6)] * 4)
    assert float(((found - wanted * same) / error).abs().max()) < 4.5


def test_rows_that_are_not_trained_do_not_move() -> None:
    net, x = words(), torch.zeros(B, T, dtype=torch.long)
    x[:, 2:] = torch.randint(1, 5, (B, T - 2))
    with torch.no_grad():
        net.state.weight.mul_(3)
    wanted, found, error = law_of(*parts_of(net, x), 400)
    size = T * 3
    for b in range(0, B * size, size):
        own = slice(b, b + size)
        assert float(((found - wanted) / error)[own, own].abs().max()) < 5


def test_a_site_that_is_not_seen_shows() -> None:
    _, trials = parts_of(layers(), rows())
    assert trials.gap() < 1e-9
    trials._sites, trials._graph = trials._sites[1:], None
    assert trials.gap() > 0.01


def test_trials_that_act_on_one_another_are_not_told_apart() -> None:
    net = Made(
        lambda m, x: m.readout(m.state(m.a(x - x.mean(0)) + m.a(x).mean(0))),
        a=nn.Linear(4, 8), state=nn.Tanh(), readout=nn.Linear(8, 2),
    )  # fmt: skip
    x = rows()
    _, trials = parts_of(net, x)
    assert trials.gap() > 0.1
    settings = {"tolerance": 0.02, "max_products": 200, "method": "finite-difference"}
    measure = Probe(state="state", modes=0, **settings)
    found, exact = measure(net, x), probe(net, x, state="state", modes=0, method="exact")
    assert set(measure._kernel._apart.values()) == {False}
    assert abs(found.trace.value - exact.trace.value) < 4 * found.trace.stderr


def test_where_training_computes_activations_again_trials_are_told_apart_as_elsewhere() -> None:
    net = Made(
        lambda m, x: m.readout(m.state(checkpoint(m.a, x, use_reentrant=False))),
        a=nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 30)), state=nn.Tanh(),
        readout=nn.Linear(30, 2),
    )  # fmt: skip
    plain = Made(lambda m, x: m.readout(m.state(m.a(x))), **dict(net.named_children()))
    measures = [Probe(state="state", modes=0) for _ in range(2)]
    x = rows()
    found, right = (measure(m, x) for measure, m in zip(measures, (net, plain), strict=True))
    assert found.trace == right.trace
    assert found.frobenius_norm == right.frobenius_norm
    assert [set(m._kernel._apart.values()) for m in measures] == [{True}] * 2


def test_tangents_of_groups_that_do_not_settle_leave_a_probe_of_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unsettled(*_: object) -> Tensor:
        raise FloatingPointError("finite differences do not settle")

    measure = Probe(state="state", modes=0, tolerance=0.01, max_products=400, method="forward-ad")
    net, x = recurrent(), rows()
    apart = measure(net, x)
    for name in ("sample", "gradients"):  # whichever comes first
        monkeypatch.setattr(TrialGradients, name, unsettled)
    found = measure(net, x)
    monkeypatch.setattr(trial_gradients, "FEWEST_GROUPS", 10**6)
    assert found.trace == measure(net, x).trace != apart.trace


def test_without_memory_for_a_round_trials_are_not_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "TRIAL_MEMORY", 5000)  # the activity alone
    parts = Activities()
    lin = linearize(recurrent(), rows(), state="state", dtype=torch.float64, consume=parts.add)
    assert len(lin._found.by_trial) == 2
    assert lin.by_trial(CoreGram.of(parts), 0) is None


@pytest.mark.parametrize("name", MODELS)
def test_a_probe_that_tells_trials_apart_holds_the_truth(name: str) -> None:
    make, batch, _ = MODELS[name]
    net, x = make(), batch()
    exact = probe(net, x, state="state", modes=0, method="exact", dtype=torch.float64)
    measure = Probe(state="state", modes=0, tolerance=0.05, max_products=150, method="forward-ad")
    for seed in range(3):
        found = measure(net, x, seed=seed)
        for number in ("trace", "frobenius_norm", "effective_rank", "temporal_effective_rank",
                       "spatial_effective_rank", "core_cosine"):  # fmt: skip
            ours, truth = getattr(found, number), getattr(exact, number).value
            assert abs(ours.value - truth) < 4.5 * ours.stderr + 1e-3 * truth, (number, seed)
    assert set(measure._kernel._apart.values()) <= {True}


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_trace_is_told_site_by_site(
    name: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not apart:
        monkeypatch.setattr(trial_gradients, "FEWEST_GROUPS", 10**6)
    make, batch, _ = MODELS[name]
    net, x = make().double(), batch()
    x = x.double() if x.is_floating_point() else x
    settings: dict[str, Any] = {"state": "state", "dtype": torch.float64, "modes": 0}
    exact = probe(net, x, method="exact", **settings)
    found = probe(net, x, method="finite-difference", tolerance=0.0, max_products=120, **settings)
    wanted = dict(exact.trace_by_site)
    assert sum(wanted.values()) == pytest.approx(1.0)
    assert list(wanted) == sorted(wanted, key=lambda site: -wanted[site])
    assert exact.trace_by_site_stderr == (0.0,) * len(wanted)
    assert dict(found.trace_by_site).keys() == wanted.keys()
    assert found.products <= 120
    errors = found.trace_by_site_stderr
    for (site, share), error in zip(found.trace_by_site, errors, strict=True):
        assert 0 <= error < (0.05 if apart else 0.3)
        # Four pulls tell little of their own error.
        assert abs(share - wanted[site]) < (4 if apart else 8) * error + 0.02, site


def test_what_a_site_adds_to_the_trace_is_what_autograd_says() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    shot = probe(net, x, state="2", method="exact", dtype=torch.float64, modes=0)
    state, squares = net(x), {"0.weight": 0.0, "2.weight": 0.0}
    for entry in state.flatten():
        grads = torch.autograd.grad(entry, list(net.parameters()), retain_graph=True)
        for i, g in enumerate(grads):  # a bias counts with its weight
            squares[f"{2 * (i // 2)}.weight"] += float(g.square().sum())
    total = sum(squares.values())
    wanted = {site: square / total for site, square in squares.items()}
    assert dict(shot.trace_by_site) == pytest.approx(wanted)


def test_a_measurement_that_begins_anew_counts_its_own_draws() -> None:
    """As where the state is detached on the way, and double backward takes over."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h, hidden = x.new_zeros(B, 8), []
        for i, each in enumerate(x.unbind(1)):
            h = torch.tanh(m.inside(h.detach() if i % 2 else h) + m.outside(each))
            hidden.append(h)
        return m.readout(m.state(torch.stack(hidden, 1) * m.gain))

    torch.manual_seed(0)
    net = Made(
        forward, inside=nn.Linear(8, 8), outside=nn.Linear(4, 8), state=nn.Identity(),
        readout=nn.Linear(8, 2), gain=nn.Parameter(torch.tensor(0.7)),
    )  # fmt: skip
    settings: dict[str, Any] = {"state": "state", "modes": 0}
    x = torch.randn(B, T, 4)
    exact = dict(probe(net, x, method="exact", **settings).trace_by_site)
    measure = Probe(max_products=90, tolerance=0.02, **settings)
    shot = measure(net, x)
    assert shot.method == "double-backward"
    assert list(measure._kernel._apart.values()) == [True]
    assert dict(shot.trace_by_site).keys() == exact.keys() >= {"gain"}
    for (site, share), error in zip(shot.trace_by_site, shot.trace_by_site_stderr, strict=True):
        assert abs(share - exact[site]) < 5 * error + 0.02


@pytest.mark.parametrize(("directions", "taken"), [(3, 2), (400, 0)])
def test_directions_are_taken_out_of_groups_that_have_few(directions: int, taken: int) -> None:
    lin, trials = parts_of(nn.Sequential(OrderedDict(state=nn.Linear(4, 60))), rows().double())
    few = torch.randn(directions, *lin.state.shape, dtype=torch.float64)
    images = torch.einsum("sd,dbtn->sbtn", torch.randn(8, directions).double(), few)
    assert len(trials.take_out(images, 2, range(2))) == (3 * taken)
    assert len(trials._directions) == taken


def test_draws_that_are_taken_again_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_gradients, "MANY", math.inf)
    lin, trials = parts_of(recurrent().double(), rows().double())
    images = torch.randn(4, *lin.state.shape, dtype=torch.float64)
    trials.take_out(images, 2, range(0))
    trials.gradients(range(4))
    once = {name: list(x) for name, x in trials.squares.items()}
    trials.gradients(range(4))
    for name, found in trials.squares.items():
        assert found == pytest.approx(once[name])
    trials.gradients(range(4, 6))
    assert {len(x) for x in trials.squares.values()} == {6}
