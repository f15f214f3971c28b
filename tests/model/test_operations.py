# ruff: noqa: E501 (a table with one line a case)
"""Every kind of weight site: Theorem 1's block identity, alone and inside a network."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo.layers import DERIVED, DISCRETE, LAYERS, B, N, Raw, Wrapped, reals, tokens

from ntk_monitor import Probe, linearize
from ntk_monitor.model import Linearization, weight_sites

OUTSIDE = {
    "bmm": {"W"},
    "MultiheadAttention, bias_k and zero": {"bias_k", "bias_v"},
    "TransformerEncoderLayer": {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"},
    "TransformerEncoderLayer, time first": {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"},
    "TransformerDecoderLayer": {f"norm{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")},
}  # fmt: skip
"""Parameters that are outside the core by nature."""


def holds(lin: Linearization, module: nn.Module, batch: Any, state: str) -> None:
    """NTK_S = P_core (+)_l (V_l V_l* (x) I) P_core* + what is left out."""
    ntk = flat(lin.ntk)
    total = torch.zeros_like(ntk)
    for P, site in zip(lin.site_propagators, lin.sites, strict=True):
        rows = flat(P).reshape(len(ntk), -1, site.units)
        moved = torch.einsum("ikq,km->iqm", rows, site.activity.flatten(0, 1)).flatten(1)
        total += moved @ moved.T
    if lin.coverage.left_out:
        names = list(lin.coverage.left_out)
        total += flat(linearize(module, batch, state=state, dtype=None, parameters=names).ntk)
    assert float((total - ntk).norm() / ntk.norm()) < 1e-8


def flat(operator: Any) -> Tensor:
    entries = operator.to_dense()
    return entries.reshape(entries.shape[: len(operator.shape_out)].numel(), -1)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("name", LAYERS)
def test_theorem_1_for_every_site(name: str, *, inside: bool) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(1)
    layer = make()
    net = nn.Sequential(layer)
    if inside:
        axis = 1 if "Conv" in name or name == "conv2d" else -1
        mixing = nn.Linear(shape[axis], shape[axis])
        net = nn.Sequential(
            Wrapped(mixing, lambda f, x: torch.tanh(f(x.movedim(axis, -1)).movedim(-1, axis))),
            layer,
        )
    net, x = net.double(), reals(*shape)
    path = "1" if inside else "0"
    lin = linearize(net, x, state=path, dtype=None)
    prefix = f"{path}." + ("layer." if isinstance(layer, Wrapped) else "")
    left_out = {n for n in lin.coverage.left_out if n.startswith(path)}
    assert left_out == {prefix + n for n in OUTSIDE.get(name, ())}
    assert not lin.coverage.missed
    holds(lin, net, x, path)
    if name.startswith("Linear") and not inside:  # the identity holds for any order of the rows
        placed = x.unsqueeze(1) if x.ndim == 2 else x
        torch.testing.assert_close(lin.site_activity[..., :N], placed)


@pytest.mark.parametrize("name", DISCRETE)
def test_theorem_1_for_sites_of_tokens(name: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(DISCRETE[name](), nn.Linear(N, 3)).double()
    for state in ("0", "1"):
        lin = linearize(net, tokens(), state=state, dtype=None)
        assert lin.coverage.fraction == 1.0
        holds(lin, net, tokens(), state)


def test_depthwise_convolution_is_outside_by_nature() -> None:
    net = nn.Sequential(nn.Conv1d(3, 6, 2, groups=3), nn.Conv1d(6, 2, 1)).double()
    lin = linearize(net, reals(B, 3, 5), state="1", dtype=None)
    assert set(lin.coverage.left_out) == {"0.weight", "0.bias"}
    assert lin.coverage.missed == ()
    holds(lin, net, reals(B, 3, 5), "1")


@pytest.mark.parametrize("name", DERIVED)
def test_a_weight_computed_from_parameters_is_a_site_and_says_so(name: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(DERIVED[name]())
    lin = linearize(net, reals().float(), state="0")
    (site,) = lin.sites
    assert site.derived
    assert lin.coverage.fraction == 1.0
    torch.testing.assert_close(site.activity[..., :N], reals().float())


def test_a_detached_weight_and_a_use_after_the_state_do_not_count() -> None:
    def forward(self: Raw, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.inner(x @ self.W + x @ self.W.detach()) @ self.W

    net = Raw(forward, W=(N, N))
    net.first, net.inner = nn.Linear(N, N), nn.Tanh()
    net = net.double()
    lin = linearize(net, reals(), state="inner", dtype=None)
    assert [site.name for site in lin.sites] == ["first.weight", "W"]
    holds(lin, net, reals(), "inner")


class Hidden(torch.autograd.Function):
    """A product that torch's operations do not show."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        return torch.ops.aten.mm(x, W.T)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, W = ctx.saved_tensors
        return grad @ W, grad.T @ x


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(x, self.weight) + self.bias


def test_what_no_operation_shows_is_missed() -> None:
    net = nn.Sequential(Own(N, 3)).double()
    lin = linearize(net, reals(B, N), state="0", dtype=None)
    assert lin.coverage.missed == ("0.weight",)
    assert "unseen" in lin.coverage.left_out["0.weight"]
    measure = Probe(dtype=None, state="0")
    with pytest.warns(RuntimeWarning, match=r"the core misses weights.*0\.weight"):
        measure(net, reals(B, N))
    measure(net, reals(B, N))  # said once: warnings are errors here


def test_a_registered_layer_is_not_missed() -> None:
    class Registered(Own):
        pass

    @weight_sites(Registered)
    def read(layer: Registered, x: Tensor) -> Any:
        yield layer.weight, x, layer.bias

    net = nn.Sequential(Registered(N, 3), nn.Tanh()).double()
    lin = linearize(net, reals(B, N), state="0", dtype=None)
    assert lin.coverage.fraction == 1.0
    (site,) = lin.sites
    assert site.units == 3
    torch.testing.assert_close(site.activity[:, 0, :N], reals(B, N))
    assert lin.core.compare(lin.ntk, products=1000).value < 1e-8  # a linear layer is its core
    with pytest.raises(ValueError, match="not where its output is"):
        lin.core_propagator  # noqa: B018

    @weight_sites(Registered)
    def wrong(layer: Registered, x: Tensor) -> Any:
        yield layer.weight.T, x

    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(3, 5\)"):
        linearize(net, reals(B, N), state="0", dtype=None)
