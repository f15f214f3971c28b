"""Tangents at the weight sites: the same products, the same law, and a way back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Made
from torch import Tensor, nn

from ntk_monitor import Probe, probe
from ntk_monitor.estimators import Activities
from ntk_monitor.model import linearize
from ntk_monitor.model.derivatives import site_sampling
from ntk_monitor.model.derivatives.site_sampling import SiteSampler


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights are worth while here, however small, and however many rows there are."""
    monkeypatch.setattr(site_sampling, "WORTHWHILE", 1)
    monkeypatch.setattr(site_sampling, "DEAR", 10**6)
    torch.manual_seed(0)


def two_layers() -> nn.Module:
    return Made(
        lambda m, x: m.readout(m.state(m.b(torch.tanh(m.a(x))))),
        a=nn.Linear(20, 16), b=nn.Linear(16, 5), state=nn.Tanh(), readout=nn.Linear(5, 2),
    )  # fmt: skip


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    return Made(
        lambda m, x: m.readout(m.state(m.a(x))),
        a=nn.Linear(20, 16), state=layer, readout=nn.Linear(16, 2),
    )  # fmt: skip


def with_a_frozen_bias() -> nn.Module:
    net = two_layers()
    net.a.bias.requires_grad_(False)
    return net


def by_operations() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(torch.einsum("bti,ij->btj", x.flip(1), m.a.weight.T) / 2)
        return m.readout(m.state(torch.matmul(hidden.flip(1), m.b.weight.T) + m.b.bias))

    return Made(
        forward, a=nn.Linear(20, 16, bias=False), b=nn.Linear(16, 5), state=nn.Tanh(),
        readout=nn.Linear(5, 2),
    )  # fmt: skip


def partly() -> nn.Module:
    """A weight that is used twice, one on other rows, a recurrent layer, and one that is wide."""

    def forward(m: Any, x: Tensor) -> Tensor:
        twice = torch.tanh(m.twice(torch.tanh(m.twice(x))))
        hidden = m.rnn(m.wide(twice) + m.few(x[:, :1]))[0]
        return m.readout(m.state(hidden))

    return Made(
        forward, twice=nn.Linear(20, 20), wide=nn.Linear(20, 4), few=nn.Linear(20, 4),
        rnn=nn.GRU(4, 5, batch_first=True), state=nn.Identity(), readout=nn.Linear(5, 2),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "two layers": (two_layers, {"a.weight", "a.bias", "b.weight", "b.bias"}),
    "attention": (
        attention,
        {"a.weight", "a.bias"}
        | {f"state.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
        | {"state.self_attn.in_proj_weight", "state.self_attn.in_proj_bias"}
        | {"state.self_attn.out_proj.weight", "state.self_attn.out_proj.bias"},
    ),
    "a frozen bias": (with_a_frozen_bias, {"a.weight", "b.weight", "b.bias"}),
    "by operations": (by_operations, {"a.weight", "b.weight"}),
    "partly": (partly, {"wide.weight", "wide.bias"}),
}


def factor_of(net: nn.Module, x: Tensor, dtype: torch.dtype = torch.float64) -> SiteSampler:
    parts = Activities()
    lin = linearize(
        net, x, state="state", dtype=dtype, method="finite-difference", consume=parts.add
    )
    factor = lin.sampler(3)
    assert isinstance(factor, SiteSampler)
    return factor


@pytest.mark.parametrize("name", MODELS)
def test_products_at_sites_are_those_in_parameters(name: str) -> None:
    make, wide = MODELS[name]
    x = torch.randn(2, 3, 20)
    x[1, 2] = x[1, 1] = 0  # rows that are alike, and zero: no full rank
    factor = factor_of(make(), x)
    assert {n for site in factor._sites for n in site.names} == wide
    u = torch.randn(factor.shape_out, dtype=torch.float64)
    assert factor.distance_to_parameters(u) < 1e-6
    pulled = factor.pull(u)
    full = factor._jacobian.rmatvec(u)
    assert sum(factor.squares(pulled).values()) == pytest.approx(float(full @ full), rel=1e-9)
    image = factor.sample(range(2, 3))[0]
    assert float((image * u).sum()) == pytest.approx(factor.inner(2, pulled), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_samples_at_sites_have_the_kernel_as_covariance(name: str) -> None:
    make, _ = MODELS[name]
    net, x = make(), torch.randn(2, 3, 20)
    factor = factor_of(net, x)
    count = 400
    Y = factor.sample(range(count)).flatten(1)
    J = linearize(net, x, state="state", dtype=torch.float64, method="double-backward").jacobian
    dense = J.to_dense().reshape(Y.shape[1], -1)
    kernel = dense @ dense.T
    gap = Y.T @ Y / count - kernel
    # Each entry of a sample covariance has the variance (K_ij^2 + K_ii K_jj) / s.
    spread = (kernel.square() + torch.outer(kernel.diag(), kernel.diag())) / count
    z = gap / spread.sqrt().clamp(min=1e-12)
    assert float(z.abs().max()) < 5.5
    assert 0.7 < float(z.square().mean()) < 1.4


def test_a_probe_has_the_numbers_that_it_has_without() -> None:
    net, batch = attention(), (torch.randn(2, 3, 20), torch.randn(2, 3, 2))
    settings: dict[str, Any] = {"state": "state", "method": "finite-difference", "tolerance": 0.03}
    measure, exact = Probe(max_products=60, **settings), probe(
        net, batch, state="state", method="exact", dtype=torch.float64
    )  # fmt: skip
    shots = [measure(net, batch, seed=seed) for seed in range(20)]
    assert all(measure._kernel._at_sites.values())
    for name in ("trace", "effective_rank", "temporal_effective_rank", "core_cosine"):
        values = torch.tensor([getattr(shot, name).value for shot in shots])
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - getattr(exact, name).value) < 4 * error, name
    for ours, theirs in zip(shots[0].target_modes, exact.target_modes, strict=True):
        assert ours.gain == pytest.approx(theirs.gain, rel=1e-4)
        shares = [share for _, share in ours.by_site]
        assert shares == sorted(shares, reverse=True)


def test_no_parameter_is_written_to() -> None:
    net, x = attention(), torch.randn(2, 3, 20)
    factor = factor_of(net, x, torch.float32)
    versions = [p._version for p in net.parameters()]
    factor.push(factor.pull(factor.sample(range(1))[0]))
    assert [p._version for p in net.parameters()] == versions
    assert all(p.grad is None for p in net.parameters())


def test_operations_in_another_order_without_gradients_are_found_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was seen with gradients is not what products run: vectors of parameters take over."""

    def forward(m: Any, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            a, b = m.a(x), m.b(x)
        else:
            b, a = m.b(x), m.a(x)
        return m.readout(m.state(torch.tanh(a) * b))

    net = Made(
        forward, a=nn.Linear(20, 6), b=nn.Linear(20, 6), state=nn.Tanh(), readout=nn.Linear(6, 2)
    )
    x = torch.randn(2, 3, 20)
    measure = Probe(state="state", method="finite-difference", max_products=40, modes=0)
    with caplog.at_level(logging.INFO):
        shot = measure(net, x)
    assert list(measure._kernel._at_sites.values()) == [False]
    assert "products at the weight sites are" in caplog.text
    truth = probe(net, x, state="state", method="exact", dtype=torch.float64, modes=0)
    assert abs(shot.trace.value - truth.trace.value) < 5 * shot.trace.stderr


def test_few_entries_and_many_rows_have_tangents_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts, net = Activities(), two_layers()
    assert isinstance(factor_of(net, torch.randn(2, 3, 20)), SiteSampler)
    many = linearize(
        net, torch.randn(9, 3, 20), state="state", method="finite-difference", consume=parts.add
    )
    assert not isinstance(many.sampler(0), SiteSampler)
    monkeypatch.setattr(site_sampling, "WORTHWHILE", 10**6)
    with pytest.raises(AssertionError):
        factor_of(net, torch.randn(2, 3, 20))


def test_it_is_told_where_a_mode_can_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same at the sites and in parameters, which is what autograd says, site by site."""
    net, (x, y) = two_layers().double(), (torch.randn(6, 20), torch.randn(6, 2))
    settings: dict[str, Any] = {"state": "state", "dtype": torch.float64, "tier": "modes"}
    at = probe(net, (x, y), method="finite-difference", **settings)
    monkeypatch.setattr(site_sampling, "WORTHWHILE", 10**6)
    apart = probe(net, (x, y), method="finite-difference", **settings)
    U, _, V = torch.linalg.svd((y - y.mean(0)).double(), full_matrices=False)
    for i, (one, two) in enumerate(zip(at.target_modes, apart.target_modes, strict=True)):
        assert dict(one.by_site) == pytest.approx(dict(two.by_site), rel=1e-8)
        state = net.state(net.b(torch.tanh(net.a(x.double()))))
        (q,) = torch.autograd.grad(net.readout(state), state, torch.outer(U[:, i], V[i]))
        state = net.state(net.b(torch.tanh(net.a(x.double()))))
        parts = {"a.weight": net.a.parameters(), "b.weight": net.b.parameters()}
        squares = {
            name: sum(
                float(g.square().sum())
                for g in torch.autograd.grad(state, list(own), q, retain_graph=True)
            )
            for name, own in parts.items()
        }
        total = sum(squares.values())
        wanted = {name: square / total for name, square in squares.items()}
        assert dict(one.by_site) == pytest.approx(wanted, rel=1e-6)
        assert list(one.by_site) == sorted(one.by_site, key=lambda each: -each[1])


def test_what_was_not_compared_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other methods have tangents and gradients of parameters; a core takes no product at all."""

    def refused(*_: object) -> None:
        raise AssertionError("a product at the sites")

    for name in ("pulls", "push", "sample"):
        monkeypatch.setattr(SiteSampler, name, refused)
    net, batch = attention(), (torch.randn(2, 3, 20), torch.randn(2, 3, 2))
    modes = Probe(state="state", method="forward-ad", tier="modes")(net, batch).target_modes
    assert all(math.isfinite(mode.gain) for mode in modes)
    core = Probe(state="state", method="finite-difference", tier="core")(net, batch)
    assert core.products == 0
    with pytest.raises(AssertionError, match="at the sites"):
        Probe(state="state", method="finite-difference", tier="modes")(net, batch)
