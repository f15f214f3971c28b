# ruff: noqa: E501 (tables with one line a case)
"""Layers of every kind, small, and what to call them on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

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
    "matrices for each head": (lambda: Raw(heads, q=(2, N, 3), k=(2, N, 3), v=(2, N, 3), o=(2, 3, N)), (B, T, N)),
    "bmm": (lambda: Raw(lambda s, x: torch.bmm(x.transpose(0, 1), s.W).transpose(0, 1), W=(T, N, 3)), (B, T, N)),
    "learned positions": (lambda: Raw(lambda s, x: torch.tanh(x + s.P[:, : x.shape[1]]), P=(1, 6, N)), (B, T, N)),
    "conv2d": (lambda: Raw(lambda s, x: F.conv2d(x, s.W, s.b, padding=1), W=(3, 2, 3, 3), b=(3,)), (B, 2, 3, 4)),
    "RNN by hand": (lambda: Raw(vanilla, W_in=(N, N), W=(N, N), b=(N,)), (B, T, N)),
    "GRU by hand": (lambda: Raw(gated, W_zr=(2 * N, 2 * N), b_zr=(2 * N,), W_n=(N, 2 * N)), (B, T, N)),
}  # fmt: skip


def bag(mode: str, **settings: Any) -> Make:
    def run(f: nn.Module, x: Tensor) -> Tensor:
        weights = x.to(f.weight.dtype) / 7 if settings.get("weighted") else None
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


DERIVED: dict[str, Make] = {
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(N, 3)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(N, 3)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(N, 3)),
    "masked": lambda: Raw(lambda s, x: x @ (s.W * torch.eye(N, dtype=x.dtype)), W=(N, N)),
    "Dale's law": lambda: Raw(
        lambda s, x: x @ (s.W.abs() @ torch.diag(torch.tensor([1.0, 1, 1, -1, -1], dtype=x.dtype))), W=(N, N)
    ),
    "low rank": lambda: Raw(lambda s, x: x @ (s.A @ s.B), A=(N, 2), B=(2, 3)),
}  # fmt: skip
