# ruff: noqa: E501 (a table with one line a case)
"""Every kind of weight site: Theorem 1's block identity, alone and inside a network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ntk_monitor import linearize
from ntk_monitor.model import Linearization

B, T, N = 3, 4, 5


class Raw(nn.Module):
    """A layer whose parameters no submodule owns."""

    def __init__(self, forward: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.run = (forward,)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(0.5 * torch.randn(shape)))

    def forward(self, *args: Tensor) -> Tensor:
        return self.run[0](self, *args)


class Wrapped(nn.Module):
    """A layer called in a way of its own."""

    def __init__(self, layer: nn.Module, run: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.run = layer, (run,)

    def forward(self, x: Tensor) -> Any:
        return self.run[0](self.layer, x)


def tokens() -> Tensor:
    return torch.randint(7, (B, T), generator=torch.Generator().manual_seed(0))


def reals(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*(shape or (B, T, N)), generator=generator).double()


def vanilla(self: Raw, x: Tensor) -> Tensor:
    h, states = torch.zeros(len(x), N, dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ self.W_in + h @ self.W + self.b)
        states.append(h)
    return torch.stack(states, dim=1)


def gated(self: Raw, x: Tensor) -> Tensor:
    h, states = x.new_zeros(len(x), N), []
    for x_t in x.unbind(1):
        both = torch.cat([x_t, h], dim=1)
        z, r = torch.sigmoid(F.linear(both, self.W_zr, self.b_zr)).chunk(2, dim=1)
        new = torch.tanh(torch.einsum("bi,ji->bj", torch.cat([x_t, r * h], dim=1), self.W_n))
        h = (1 - z) * h + z * new
        states.append(h)
    return torch.stack(states, dim=1)


def heads(self: Raw, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("btm,hmd->bhtd", x, W) for W in (self.q, self.k, self.v))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return torch.einsum("bhtd,hdm->btm", mixed, self.o)


def packed(rnn: nn.Module, x: Tensor) -> Tensor:
    sequence = nn.utils.rnn.pack_padded_sequence(
        x, [2, T, 3], batch_first=True, enforce_sorted=False
    )
    return nn.utils.rnn.pad_packed_sequence(rnn(sequence)[0], batch_first=True)[0]


def attend(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: Wrapped(
        nn.MultiheadAttention(6, 2, batch_first=True, **settings),
        lambda mha, x: mha(x[..., :6], x[..., : mha.kdim], x[..., : mha.vdim])[0],
    )


def transformer(layer: nn.Module) -> nn.Module:
    return layer.eval()


Make = Callable[[], nn.Module]
LAYERS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(N, 3), (B, T, N)),
    "Linear, no bias": (lambda: nn.Linear(N, 3, bias=False), (B, T, N)),
    "Linear, square rows": (lambda: nn.Linear(N, 3), (4, 4, N)),
    "Linear, flattened rows": (
        lambda: Wrapped(
            nn.Linear(N, 3), lambda f, x: f(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        ),
        (B, T, N),
    ),
    "Linear, transposed and flattened rows": (
        lambda: Wrapped(
            nn.Linear(N, 3),
            lambda f, x: (
                f(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (T, B)).transpose(0, 1)
            ),
        ),
        (B, T, N),
    ),
    "Linear, transposed square rows": (
        lambda: Wrapped(nn.Linear(N, 3), lambda f, x: f(x.transpose(0, 1)).transpose(0, 1)),
        (4, 4, N),
    ),
    "Linear on vectors": (lambda: nn.Linear(N, 3), (B, N)),
    "Bilinear": (lambda: Wrapped(nn.Bilinear(N, N, 3), lambda f, x: f(x, x.flip(1))), (B, T, N)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (B, 2, 6)),
    "Conv1d, same padding": (lambda: nn.Conv1d(2, 3, 4, padding="same"), (B, 2, 6)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (B, 2, 5, 4)),
    "Conv2d, dilated": (lambda: nn.Conv2d(2, 3, 2, dilation=2, bias=False), (B, 2, 5, 4)),
    "Conv2d, grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2), (B, 4, 3, 3)),
    "Conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (B, 2, 4, 3)),
    "Conv2d, reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (B, 2, 4, 3)),
    "Conv3d": (lambda: nn.Conv3d(2, 2, 2), (2, 2, 3, 3, 2)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1), (B, 2, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, (2, 3), stride=(1, 2), dilation=(2, 1)), (B, 2, 2, 3)),
    "ConvTranspose2d, grouped": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, stride=2), (B, 4, 2, 2)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 2, 2), (2, 2, 2, 2, 1)),
    "RNN": (lambda: nn.RNN(N, 3, batch_first=True), (B, T, N)),
    "RNN, relu, time first": (lambda: nn.RNN(N, 3, nonlinearity="relu"), (T, B, N)),
    "GRU, two layers and directions": (
        lambda: nn.GRU(N, 3, 2, batch_first=True, bidirectional=True, dropout=0.5), (B, T, N),
    ),
    "LSTM, projected": (lambda: nn.LSTM(N, 3, 2, batch_first=True, proj_size=2), (B, T, N)),
    "LSTM, unbatched": (lambda: nn.LSTM(N, 3), (T, N)),
    "GRU, packed": (lambda: Wrapped(nn.GRU(N, 3, batch_first=True), packed), (B, T, N)),
    "LSTM, packed, two layers and directions": (
        lambda: Wrapped(nn.LSTM(N, 3, 2, batch_first=True, bidirectional=True), packed), (B, T, N),
    ),
    "RNNCell": (lambda: Wrapped(nn.RNNCell(N, 3), lambda f, x: f(x)), (B, N)),
    "GRUCell": (lambda: Wrapped(nn.GRUCell(N, 3), lambda f, x: f(x)), (B, N)),
    "LSTMCell": (lambda: Wrapped(nn.LSTMCell(N, 3), lambda f, x: f(x)[0]), (B, N)),
    "MultiheadAttention": (attend(), (B, T, 6)),
    "MultiheadAttention, separate dimensions": (attend(kdim=4, vdim=5), (B, T, 6)),
    "MultiheadAttention, no bias": (attend(bias=False), (B, 4, 6)),
    "MultiheadAttention, bias_k and zero": (
        attend(add_bias_kv=True, add_zero_attn=True), (B, T, 6),
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (B, T, 6),
    ),
    "TransformerEncoderLayer, time first": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, norm_first=True, activation="gelu"), (T, B, 6),
    ),
    "TransformerDecoderLayer": (
        lambda: Wrapped(
            nn.TransformerDecoderLayer(6, 2, 8, batch_first=True), lambda f, x: f(x, x.flip(1))
        ),
        (B, T, 6),
    ),
    "x @ W": (lambda: Raw(lambda s, x: x @ s.W, W=(N, 3)), (B, T, N)),
    "W @ x": (lambda: Raw(lambda s, x: (s.W @ x.mT).mT, W=(3, N)), (B, T, N)),
    "W @ vector": (lambda: Raw(lambda s, x: torch.stack([s.W @ v for v in x]), W=(3, N)), (1, N)),
    "F.linear and a bias": (lambda: Raw(lambda s, x: F.linear(x, s.W) + s.b, W=(3, N), b=(3,)), (B, T, N)),
    "in-place bias": (lambda: Raw(lambda s, x: F.linear(x, s.W).add_(s.b), W=(3, N), b=(3,)), (B, T, N)),
    "addmm": (lambda: Raw(lambda s, x: torch.addmm(s.b, x, s.W), W=(N, 3), b=(3,)), (B, N)),
    "chunks of one weight": (
        lambda: Raw(lambda s, x: sum(torch.tanh(x @ w.T) for w in s.W.chunk(2)), W=(6, N)), (B, T, N),
    ),
    "matrices for each head": (heads_layer := (lambda: Raw(heads, q=(2, N, 3), k=(2, N, 3), v=(2, N, 3), o=(2, 3, N))), (B, T, N)),
    "bmm": (lambda: Raw(lambda s, x: torch.bmm(x.transpose(0, 1), s.W).transpose(0, 1), W=(T, N, 3)), (B, T, N)),
    "learned positions": (lambda: Raw(lambda s, x: torch.tanh(x + s.P[:, : x.shape[1]]), P=(1, 6, N)), (B, T, N)),
    "conv2d": (lambda: Raw(lambda s, x: F.conv2d(x, s.W, s.b, padding=1), W=(3, 2, 3, 3), b=(3,)), (B, 2, 3, 4)),
    "RNN by hand": (lambda: Raw(vanilla, W_in=(N, N), W=(N, N), b=(N,)), (B, T, N)),
    "GRU by hand": (lambda: Raw(gated, W_zr=(2 * N, 2 * N), b_zr=(2 * N,), W_n=(N, 2 * N)), (B, T, N)),
}  # fmt: skip
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


def bag(mode: str, **settings: Any) -> Make:
    def run(f: nn.Module, x: Tensor) -> Tensor:
        weights = x.double() / 7 if settings.get("weighted") else None
        return f(x, per_sample_weights=weights)

    padding = settings.get("padding_idx")
    return lambda: Wrapped(nn.EmbeddingBag(7, N, mode=mode, padding_idx=padding), run)


def with_positions(f: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(
        f[0](x) + f[1](torch.arange(x.shape[1])) + f[2](torch.zeros(1, x.shape[1]).long())
    )


DISCRETE: dict[str, Make] = {
    "Embedding": lambda: nn.Embedding(7, N),
    "Embedding, padding": lambda: nn.Embedding(7, N, padding_idx=3),
    "EmbeddingBag, sum": bag("sum"),
    "EmbeddingBag, mean, padding": bag("mean", padding_idx=2),
    "EmbeddingBag, weighted": bag("sum", weighted=True),
    "EmbeddingBag, offsets": lambda: Wrapped(
        nn.EmbeddingBag(7, N, mode="mean"), lambda f, x: f(x.flatten(), torch.tensor([0, 5, 6]))
    ),
    "W[tokens]": lambda: Raw(lambda s, x: s.W[x], W=(7, N)),
    "positions and types": lambda: Wrapped(
        nn.ModuleList([nn.Embedding(7, N), nn.Embedding(9, N), nn.Embedding(2, N)]), with_positions
    ),
}  # fmt: skip


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


DERIVED: dict[str, Make] = {
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(N, 3)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(N, 3)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(N, 3)),
    "masked": lambda: Raw(lambda s, x: x @ (s.W * torch.eye(N)), W=(N, N)),
    "Dale's law": lambda: Raw(
        lambda s, x: x @ (s.W.abs() @ torch.diag(torch.tensor([1.0, 1, 1, -1, -1]))), W=(N, N)
    ),
    "low rank": lambda: Raw(lambda s, x: x @ (s.A @ s.B), A=(N, 2), B=(2, 3)),
}  # fmt: skip


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
        return self.inner(x @ self.W + x @ self.W.detach()) @ self.W

    net = Raw(forward, W=(N, N)).double()
    net.inner = nn.Tanh()
    lin = linearize(net, reals(), state="inner", dtype=None)
    assert len(lin.sites) == 1
    holds(lin, net, reals(), "inner")


def test_what_no_operation_shows_is_missed() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, W: Tensor) -> Tensor:
            ctx.save_for_backward(x, W)
            return x.numpy() @ W.numpy() if False else torch.ops.aten.mm(x, W)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, W = ctx.saved_tensors
            return grad @ W.T, x.T @ grad

    net = nn.Sequential(Raw(lambda s, x: Hidden.apply(x, s.W), W=(N, N))).double()
    lin = linearize(net, reals(B, N), state="0", dtype=None)
    assert lin.coverage.missed == ("0.W",)
    assert "unseen" in lin.coverage.left_out["0.W"]
