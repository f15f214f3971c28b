"""Models as chains of stages, and ways to write a stage that leave its function alone.

A stage has its parameters in a module of its own; a way takes the module and the activity, and
returns what the first way of its kind returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, linear, pad, scaled_dot_product_attention
from torch.nn.functional import relu as plain_relu
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Way = Callable[[Any, Tensor], Tensor]


def shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))


# ---- ways to call a stage on other rows or layouts ----------------------------------------------


def by_sorted_trials(way: Way) -> Way:
    def call(m: Any, x: Tensor) -> Tensor:
        order = x.flatten(1)[:, 0].argsort()
        return way(m, x[order])[order.argsort()]

    return call


def by_parts_of_the_batch(way: Way) -> Way:
    return lambda m, x: torch.cat([way(m, part) for part in x.split([2, len(x) - 2])])


def by_trials_one_by_one(way: Way) -> Way:
    return lambda m, x: torch.stack([way(m, trial[None])[0] for trial in x])


def into_a_buffer(way: Way) -> Way:
    def call(m: Any, x: Tensor) -> Tensor:
        y = way(m, x)
        out = torch.zeros_like(y)
        for i in range(len(y)):
            out[i] = y[i]
        return out

    return call


def in_place(way: Way) -> Way:
    return lambda m, x: way(m, x).mul_(1.0).add_(0.0)


def with_expanded_and_dropped_axes(way: Way) -> Way:
    return lambda m, x: way(m, x.unsqueeze(0).expand(2, *x.shape)[1])


ANY = (
    by_sorted_trials,
    by_parts_of_the_batch,
    by_trials_one_by_one,
    into_a_buffer,
    in_place,
    with_expanded_and_dropped_axes,
)
"""For stages that treat trials alike."""


def backward_in_time(way: Way) -> Way:
    return lambda m, x: way(m, x.flip(1)).flip(1)


def time_first(way: Way) -> Way:
    return lambda m, x: way(m, x.transpose(0, 1)).transpose(0, 1)


def rows_in_one_axis(way: Way) -> Way:
    def call(m: Any, x: Tensor) -> Tensor:
        y = way(m, x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])

    return call


def step_by_step(way: Way) -> Way:
    return lambda m, x: torch.stack([way(m, z) for z in x.unbind(1)], 1)


def parts_of_the_time(way: Way) -> Way:
    return lambda m, x: torch.cat([way(m, part) for part in x.split([1, x.shape[1] - 1], 1)], 1)


def rolled(way: Way) -> Way:
    return lambda m, x: way(m, x.roll(2, 1)).roll(-2, 1)


def padded_and_cropped(way: Way) -> Way:
    return lambda m, x: way(m, pad(x, (0, 0, 1, 2)))[:, 1:-2]


def gathered_and_scattered(way: Way) -> Way:
    def call(m: Any, x: Tensor) -> Tensor:
        order = shuffled(x.shape[1])
        y = way(m, x.index_select(1, order))
        return torch.zeros_like(y).index_copy(1, order, y)

    return call


def by_a_mask(way: Way) -> Way:
    def call(m: Any, x: Tensor) -> Tensor:
        places = x[..., 0].flatten().argsort().argsort().view(x.shape[:-1])
        mask = places < places.numel() // 2  # neither half is empty, whatever the numbers
        out = torch.zeros_like(way(m, x).detach())
        out[mask] = way(m, x[mask])
        out[~mask] = way(m, x[~mask])
        return out

    return call


ROW_BY_ROW = (
    backward_in_time,
    time_first,
    rows_in_one_axis,
    step_by_step,
    parts_of_the_time,
    rolled,
    padded_and_cropped,
    gathered_and_scattered,
    by_a_mask,
)
"""For stages that treat rows alike."""


# ---- linear layers ------------------------------------------------------------------------------


def called(m: Any, x: Tensor) -> Tensor:
    return m(x)


def by_forward(m: Any, x: Tensor) -> Tensor:
    return m.forward(x)


def by_keywords(m: Any, x: Tensor) -> Tensor:
    return linear(bias=m.bias, weight=m.weight, input=x)


def by_matmul(m: Any, x: Tensor) -> Tensor:
    return torch.matmul(x, other=m.weight.T) + m.bias


def by_einsum(m: Any, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, m.weight).add(m.bias)


def by_addmm(m: Any, x: Tensor) -> Tensor:
    flat = torch.addmm(m.bias, x.reshape(-1, x.shape[-1]), m.weight.T, beta=1, alpha=1)
    return flat.reshape(*x.shape[:-1], len(m.bias))


def by_scaled_weights(m: Any, x: Tensor) -> Tensor:
    return torch.sub(linear(x, -m.weight / 2 * -2), -m.bias, alpha=1)


def by_scaled_rows(m: Any, x: Tensor) -> Tensor:
    out = linear(x, (2 * m.weight).mul(0.5))
    return torch.add(out, 2 * m.bias, alpha=0.5)


def by_expansion(m: Any, x: Tensor) -> Tensor:
    wide = x if x.ndim == 3 else x[None]
    out = torch.bmm(wide, m.weight.T.expand(len(wide), -1, -1)) + m.bias
    return out if x.ndim == 3 else out[0]


def by_repetition(m: Any, x: Tensor) -> Tensor:
    wide = x if x.ndim == 3 else x[None]
    out = torch.bmm(wide, m.weight.repeat(len(wide), 1, 1).transpose(1, 2)) + m.bias
    return out if x.ndim == 3 else out[0]


def by_convolution(m: Any, x: Tensor) -> Tensor:
    wide = x if x.ndim == 3 else x[None]
    out = conv1d(wide.transpose(1, 2), m.weight[:, :, None], m.bias).transpose(1, 2)
    return out if x.ndim == 3 else out[0]


LINEAR: tuple[Way, ...] = (
    called,
    by_forward,
    by_keywords,
    by_matmul,
    by_einsum,
    by_addmm,
    by_scaled_weights,
    by_scaled_rows,
    by_expansion,
    by_repetition,
    by_convolution,
)


# ---- recurrent layers ---------------------------------------------------------------------------


def layer(m: Any, x: Tensor) -> Tensor:
    return m(x)[0]


def layer_time_first(m: Any, x: Tensor) -> Tensor:
    m.batch_first = False
    try:
        return m(x.transpose(0, 1))[0].transpose(0, 1)
    finally:
        m.batch_first = True


def packed(m: Any, x: Tensor) -> Tensor:
    lengths = torch.full((len(x),), x.shape[1])
    sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(m(sequence)[0], batch_first=True)[0]


def each_by_itself(m: Any, x: Tensor) -> Tensor:
    return torch.stack([m(trial)[0] for trial in x])


def in_two_passes(m: Any, x: Tensor) -> Tensor:
    first, state = m(x[:, :2])
    return torch.cat([first, m(x[:, 2:], state)[0]], 1)


def with_a_first_state(m: Any, x: Tensor) -> Tensor:
    zeros = x.new_zeros(m.num_layers, len(x), m.hidden_size)
    state = [zeros, zeros] if isinstance(m, nn.LSTM) else zeros
    return m(x, state)[0] if not isinstance(m, nn.LSTM) else m(x, tuple(state))[0]


def by_cells(m: Any, x: Tensor) -> Tensor:
    weights = (m.weight_ih_l0, m.weight_hh_l0, m.bias_ih_l0, m.bias_hh_l0)
    h = c = x.new_zeros(len(x), m.hidden_size)
    states = []
    for z in x.unbind(1):
        if isinstance(m, nn.LSTM):
            h, c = torch.lstm_cell(z, (h, c), *weights)
        elif isinstance(m, nn.GRU):
            h = torch.gru_cell(z, h, *weights)
        else:
            h = torch.rnn_tanh_cell(z, h, *weights)
        states.append(h)
    return torch.stack(states, 1)


def by_hand(m: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(len(x), m.hidden_size)
    states = []
    for z in x.unbind(1):
        p = linear(z, m.weight_ih_l0, m.bias_ih_l0)
        q = linear(h, m.weight_hh_l0, m.bias_hh_l0)
        if isinstance(m, nn.LSTM):
            i, f, g, o = (q + p).chunk(4, -1)
            c = c * f.sigmoid() + i.sigmoid() * g.tanh()
            h = c.tanh() * o.sigmoid()
        elif isinstance(m, nn.GRU):
            (pr, pz, pn), (qr, qz, qn) = p.chunk(3, -1), q.chunk(3, -1)
            gate = torch.sigmoid(qz + pz)
            h = gate * h + (1 - gate) * torch.tanh(torch.sigmoid(pr + qr) * qn + pn)
        else:
            h = torch.tanh(q + p)
        states.append(h)
    return torch.stack(states, 1)


RECURRENT: tuple[Way, ...] = (
    layer,
    layer_time_first,
    packed,
    each_by_itself,
    in_two_passes,
    with_a_first_state,
    by_cells,
    by_hand,
)
DEEP: tuple[Way, ...] = (layer, layer_time_first, packed, each_by_itself)
"""Of several layers, or of two directions."""


# ---- attention ----------------------------------------------------------------------------------


def attention(m: Any, x: Tensor) -> Tensor:
    found: Tensor = m(x, x, x, need_weights=False)[0]
    return found


def attention_with_weights(m: Any, x: Tensor) -> Tensor:
    found: Tensor = m(query=x, key=x, value=x)[0]
    return found


def attention_time_first(m: Any, x: Tensor) -> Tensor:
    m.batch_first = False
    try:
        t = x.transpose(0, 1)
        found: Tensor = m(t, t, t, need_weights=False)[0]
        return found.transpose(0, 1)
    finally:
        m.batch_first = True


def _heads(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = linear(x, m.in_proj_weight, m.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in parts)
    return q, k, v


def attention_by_products(m: Any, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    scores = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
    found: Tensor = m.out_proj((scores @ v).transpose(1, 2).flatten(2))
    return found


def attention_by_keys_first(m: Any, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    scores = torch.softmax(k @ q.transpose(-1, -2) / q.shape[-1] ** 0.5, -2)
    found = (v.transpose(-1, -2) @ scores).transpose(-1, -2)
    out: Tensor = m.out_proj(found.transpose(1, 2).flatten(2))
    return out


def attention_fused(m: Any, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    found = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out: Tensor = m.out_proj(found)
    return out


ATTENTION: tuple[Way, ...] = (
    attention,
    attention_with_weights,
    attention_time_first,
    attention_by_products,
    attention_by_keys_first,
    attention_fused,
)


# ---- convolutions, embeddings, and what has no weights ------------------------------------------


def convolution(m: Any, x: Tensor) -> Tensor:
    found: Tensor = m(x.transpose(1, 2)).transpose(1, 2)
    return found


def convolution_as_an_image(m: Any, x: Tensor) -> Tensor:
    (p,) = m.padding
    return conv2d(
        input=x.transpose(1, 2)[:, :, None], weight=m.weight[:, :, None], bias=m.bias,
        padding=(0, p),
    )[:, :, 0].transpose(1, 2)  # fmt: skip


def convolution_padded_before(m: Any, x: Tensor) -> Tensor:
    (p,) = m.padding
    wide = pad(x.transpose(1, 2), (p, p))
    return conv1d(wide, m.weight, m.bias).transpose(1, 2)


CONVOLUTION: tuple[Way, ...] = (
    convolution, convolution_as_an_image, convolution_padded_before
)  # fmt: skip


def causal(m: Any, x: Tensor) -> Tensor:
    reach = m.kernel_size[0] - 1
    return conv1d(pad(x.transpose(1, 2), (reach, 0)), m.weight, m.bias).transpose(1, 2)


def causal_by_cropping(m: Any, x: Tensor) -> Tensor:
    reach = m.kernel_size[0] - 1
    wide = conv1d(x.transpose(1, 2), m.weight, m.bias, padding=reach)
    return wide[..., : x.shape[1]].transpose(1, 2)


CAUSAL: tuple[Way, ...] = (causal, causal_by_cropping)


def looked_up(m: Any, x: Tensor) -> Tensor:
    found: Tensor = m(_tokens(x))
    return found


def indexed(m: Any, x: Tensor) -> Tensor:
    return m.weight[_tokens(x)]


def selected(m: Any, x: Tensor) -> Tensor:
    tokens = _tokens(x)
    return m.weight.index_select(0, tokens.flatten()).unflatten(0, tokens.shape)


def _tokens(x: Tensor) -> Tensor:
    return (x[..., 0] * 7).long() % 6


EMBEDDING: tuple[Way, ...] = (looked_up, indexed, selected)


def tanh(m: Any, x: Tensor) -> Tensor:
    del m
    return torch.tanh(x)


def tanh_in_place(m: Any, x: Tensor) -> Tensor:
    del m
    return (x + 0).tanh_()


def relu(m: Any, x: Tensor) -> Tensor:
    del m
    return torch.relu(x)


def relu_in_place(m: Any, x: Tensor) -> Tensor:
    del m
    return plain_relu(x * 1, inplace=True)


KINDS: dict[str, tuple[tuple[Way, ...], tuple[Callable[[Way], Way], ...]]] = {
    "linear": (LINEAR, (*ANY, *ROW_BY_ROW)),
    "recurrent": (RECURRENT, ANY),
    "deep": (DEEP, ANY),
    "attention": (ATTENTION, ANY),
    "convolution": (CONVOLUTION, ANY),
    "causal": (CAUSAL, ANY),
    "embedding": (EMBEDDING, (*ANY, *ROW_BY_ROW)),
    "tanh": ((tanh, tanh_in_place), ROW_BY_ROW),
    "relu": ((relu, relu_in_place), ROW_BY_ROW),
}
"""Of each kind of stage the ways to write it, and those to call it."""

Stage = tuple[str, Callable[[], nn.Module]]


def _linear(a: int, b: int) -> Stage:
    return "linear", lambda: nn.Linear(a, b)


def _nothing(kind: str) -> Stage:
    return kind, nn.Identity


def _conv(kind: str, width: int, size: int) -> Stage:
    padding = size // 2 if kind == "convolution" else 0
    return kind, lambda: nn.Conv1d(width, 4, size, padding=padding)


MODELS: dict[str, list[Stage]] = {
    "one layer": [_linear(3, 5), _nothing("tanh")],
    "three layers": [
        _linear(3, 5), _nothing("relu"), _linear(5, 4), _nothing("tanh"), _linear(4, 4)
    ],
    "RNN": [("recurrent", lambda: nn.RNN(3, 4, batch_first=True))],
    "GRU after a layer": [_linear(3, 4), ("recurrent", lambda: nn.GRU(4, 4, batch_first=True))],
    "LSTM before a layer": [
        ("recurrent", lambda: nn.LSTM(3, 4, batch_first=True)), _linear(4, 4), _nothing("tanh")
    ],
    "two GRU layers": [("deep", lambda: nn.GRU(3, 4, 2, batch_first=True))],
    "two directions": [("deep", lambda: nn.RNN(3, 3, batch_first=True, bidirectional=True))],
    "tokens": [
        ("embedding", lambda: nn.Embedding(6, 4)),
        ("recurrent", lambda: nn.RNN(4, 4, batch_first=True)),
    ],
    "attention": [
        _linear(3, 4), ("attention", lambda: nn.MultiheadAttention(4, 2, batch_first=True)),
        _linear(4, 4), _nothing("relu"),
    ],
    "convolutions": [_conv("convolution", 3, 3), _nothing("tanh"), _conv("convolution", 4, 5)],
    "causal convolutions": [_conv("causal", 3, 2), _nothing("relu"), _conv("causal", 4, 3)],
    "a mixture": [
        _conv("convolution", 3, 3), _linear(4, 4),
        ("attention", lambda: nn.MultiheadAttention(4, 1, batch_first=True)),
        ("recurrent", lambda: nn.GRU(4, 3, batch_first=True)),
    ],
}  # fmt: skip


class Chain(nn.Module):
    """Stages one after the other, each in a way that can be chosen; a state, and a readout."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kinds = [kind for kind, _ in MODELS[name]]
        self.stages = nn.ModuleList(make() for _, make in MODELS[name])
        self.ways: list[Way] = [KINDS[kind][0][0] for kind in self.kinds]
        self.state = nn.Identity()
        self.readout = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        for stage, way in zip(self.stages, self.ways, strict=True):
            x = way(stage, x)
        return self.readout(self.state(x))
