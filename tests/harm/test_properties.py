"""Any model on any batch: a snapshot, or an error that we wrote ourselves; never a trace."""

from __future__ import annotations

import os
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

import ntk_monitor
from ntk_monitor import Snapshot, probe

NIGHTLY = "NTK_MONITOR_NIGHTLY" in os.environ
PACKAGE = Path(ntk_monitor.__file__).parent
WORDS = 7


class Keep(nn.Module):
    """The first thing that a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


class Residual(nn.Module):
    """A block beside which its input goes on."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Twice(Residual):
    """A block that is used twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Raw(nn.Module):
    """Weights without a layer, in one of several ways of writing a product."""

    def __init__(self, width: int, way: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(width, width) / width**0.5)])
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        W = self.weights[0]
        ways = (
            lambda: x @ W,
            lambda: torch.einsum("...i,ij->...j", x, W),
            lambda: nn.functional.linear(x, W),
            lambda: x * W.diagonal(),
            lambda: x + W[0],
            lambda: torch.tanh(x @ W.T.softmax(0)),
        )
        return ways[self.way]()


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class OverTime(nn.Module):
    """A convolution over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(requires_grad=False)


def blocks(width: int, *, sequence: bool) -> st.SearchStrategy[nn.Module]:
    """Modules that keep the width."""
    plain = [
        lambda: nn.Linear(width, width),
        lambda: nn.Linear(width, width, bias=False),
        nn.Tanh,
        nn.ReLU,
        nn.GELU,
        nn.Identity,
        lambda: nn.Dropout(0.5),
        lambda: nn.LayerNorm(width),
        lambda: frozen(nn.Linear(width, width)),
        lambda: weight_norm(nn.Linear(width, width)),
        lambda: spectral_norm(nn.Linear(width, width)),
        *(lambda way=way: Raw(width, way) for way in range(6)),
    ]
    if sequence:
        plain += [
            lambda: Keep(nn.GRU(width, width, batch_first=True)),
            lambda: Keep(nn.LSTM(width, width, batch_first=True)),
            lambda: Keep(nn.RNN(width, width, 2, batch_first=True)),
            lambda: Attention(width),
            lambda: nn.TransformerEncoderLayer(width, 1, 2 * width, batch_first=True),
            lambda: OverTime(width),
        ]
    else:
        plain += [lambda: nn.BatchNorm1d(width)]
    leaf = st.sampled_from(plain).map(lambda make: make())
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(lambda some: nn.Sequential(*some)),
            inner.map(Residual),
            inner.map(Twice),
        ),
        max_leaves=5,
    )


class Net(nn.Module):
    """What comes first, a body, and a readout."""

    def __init__(self, first: nn.Module, body: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.first, self.body, self.readout = first, body, readout

    def forward(self, x: Any) -> Tensor:
        return self.readout(self.body(self.first(x)))


class Packed(nn.Module):
    """A recurrent layer on a packed sequence, its last states read out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn, self.readout = nn.GRU(2, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, x: Any) -> Tensor:
        return self.readout(self.rnn(x)[1][-1])


@dataclass
class Example:
    """A batch as a dataclass."""

    x: Any
    y: Any


@dataclass
class Question:
    """A model, a batch, and how to look at them."""

    model: nn.Module
    batch: Any
    settings: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.model}\n{self.settings}\n{type(self.batch)}"


@st.composite
def questions(draw: st.DrawFn) -> Question:
    torch.manual_seed(draw(st.integers(0, 3)))
    B, T, width, out = (draw(st.integers(1, 4)) for _ in range(4))
    kind = draw(st.sampled_from(["rows", "sequences", "tokens", "packed"]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]))
    rows = (B,) if kind == "rows" else (B, T)
    if kind == "packed":
        model: nn.Module = Packed(width)
        lengths = torch.tensor(sorted((draw(st.integers(1, T)) for _ in range(B)), reverse=True))
        x: Any = pack_padded_sequence(torch.randn(B, T, 2).to(dtype), lengths, batch_first=True)
        rows, out = (B,), 2
    else:
        words = kind == "tokens"
        first = nn.Embedding(WORDS, width) if words else nn.Linear(2, width)
        body = draw(blocks(width, sequence=kind != "rows"))
        model = Net(first, body, nn.Linear(width, out))
        x = torch.randint(WORDS, rows) if words else torch.randn(*rows, 2).to(dtype)
    y = draw(
        st.sampled_from([
            torch.randn(*rows, out),
            torch.randint(out, rows),
            torch.full(rows, -100),
            torch.randint(out, (B,)),
            torch.randn(B, 5),
            torch.full((*rows, out), torch.nan),
            None,
        ])
    )
    y = y.to(dtype) if isinstance(y, Tensor) and y.is_floating_point() else y
    batch = draw(st.sampled_from([(x, y), [x, y], {"x": x, "labels": y}, Example(x, y), x, (x,)]))
    paths = [path for path, _ in model.named_modules() if path]
    names = [name for name, _ in model.named_parameters()]
    chosen = {
        "state": draw(st.sampled_from(["auto"] * 6 + [*paths, "nowhere"])),
        "parameters": draw(st.sampled_from([None] * 6 + [*names, "*weight*", "nothing"])),
        "tier": draw(st.sampled_from(["kernel"] * 4 + ["modes", "core"])),
        "modes": draw(st.integers(0, 3)),
        "method": draw(
            st.sampled_from(["auto"] * 4 + ["exact", "finite-difference", "double-backward"])
        ),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64, None])),
        "max_products": draw(st.integers(20, 40)),
        "tolerance": draw(st.sampled_from([0.0, 0.05, 1.0])),
        "learning_rate": draw(st.sampled_from([None, 0.1])),
    }
    return Question(model.to(dtype), batch, chosen)


def held(model: nn.Module) -> list[str]:
    return [str({k: v for k, v in vars(m).items() if k != "_modules"}) for m in model.modules()]


def outcome(question: Question) -> Snapshot | Exception:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return probe(question.model, question.batch, **question.settings)
        except (ValueError, TypeError, RuntimeError, FloatingPointError) as error:
            return error


@settings(
    max_examples=2000 if NIGHTLY else 200,
    deadline=None,
    derandomize=not NIGHTLY,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(questions())
def test_a_snapshot_or_an_error_of_our_own(question: Question) -> None:
    model = question.model
    before, numbers = held(model), [t.clone() for t in model.state_dict().values()]
    noise = torch.get_rng_state()
    found = outcome(question)
    if isinstance(found, Snapshot):
        assert all(type(value) is float for value in found.scalars().values())
        assert 0 <= found.coverage.fraction <= 1
        found.require_valid()
    else:
        last = traceback.extract_tb(found.__traceback__)[-1]
        ours = Path(last.filename).is_relative_to(PACKAGE) and (last.line or "").startswith("raise")
        assert ours, "".join(traceback.format_exception(found))
        assert len(str(found)) > 40, found
    assert held(model) == before
    for now, then in zip(model.state_dict().values(), numbers, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.get_rng_state(), noise)
