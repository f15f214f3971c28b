"""One function written in two ways, where a rewritten stage is not all: outputs, states, uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ntk_monitor import Snapshot, linearize, probe

EXACT: dict[str, Any] = {"method": "exact", "dtype": torch.float64}


class Made(nn.Module):
    """A function of its parts and its inputs."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * torch.randn(*shape))


def numbers(shot: Snapshot) -> list[float]:
    found = [shot.trace.value, shot.core_cosine.value, shot.coverage.fraction]
    for mode in shot.target_modes:
        found += [mode.singular_value, mode.learned, mode.gain, mode.core_overlap, mode.rate]
    return found


def require_same(*shots: Snapshot) -> None:
    first, *others = map(numbers, shots)
    assert all(map(math.isfinite, first))
    for other in others:
        assert other == pytest.approx(first, rel=1e-8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def packed(*, batch_first: bool, sort: bool, rnn: nn.GRU, readout: nn.Linear) -> nn.Module:
    def forward(m: Made, x: Tensor, lengths: Tensor) -> Tensor:
        order = lengths.argsort(descending=True) if sort else torch.arange(len(x))
        sequence = pack_padded_sequence(
            x[order], lengths[order], batch_first=True, enforce_sorted=sort
        )
        padded = pad_packed_sequence(m.rnn(sequence)[0], batch_first=True)[0]
        return m.readout(padded[order.argsort()])

    own = nn.GRU(3, 4, batch_first=batch_first).double()
    own.load_state_dict(rnn.state_dict())
    return Made(forward, rnn=own, readout=readout)


def test_packed_sequences_are_the_same_whatever_their_order_and_layout() -> None:
    rnn, readout = nn.GRU(3, 4).double(), nn.Linear(4, 2).double()
    lengths = torch.tensor([2, 6, 3, 4])
    x, y = torch.randn(4, 6, 3).double(), torch.randn(4, 6, 2).double()
    shots = [
        probe(
            packed(batch_first=first, sort=sort, rnn=rnn, readout=readout),
            (x, y, lengths),
            forward_fn=lambda m, b: m(b[0], b[2]),
            learning_rate=0.1,
            **EXACT,
        )
        for first in (True, False)
        for sort in (False, True)
    ]
    require_same(*shots)
    mask = (torch.arange(6) < lengths[:, None])[..., None]
    t = y * mask
    centred = (t - t.sum((0, 1)) / mask.sum()) * mask
    wanted = torch.linalg.svdvals(centred.flatten(0, 1))
    found = [mode.singular_value for mode in shots[0].target_modes]
    assert found == pytest.approx(wanted.tolist(), rel=1e-8)


@pytest.mark.parametrize("steps", [7, 5])  # as many trials as steps
def test_features_are_found_behind_a_convolution(steps: int) -> None:
    conv, readout = nn.Conv1d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(torch.tanh(m.conv(x.transpose(1, 2))).transpose(1, 2))

    def channels_first(m: Made, x: Tensor) -> Tensor:
        return forward(m, x).transpose(1, 2)

    x, y = torch.randn(5, steps, 3), torch.randn(5, steps, 2)
    parts = {"conv": conv, "readout": readout}
    shots = [
        probe(Made(forward, **parts), (x, y), learning_rate=0.1, **EXACT),
        probe(Made(channels_first, **parts), (x, y.transpose(1, 2)), learning_rate=0.1, **EXACT),
    ]
    require_same(*shots)
    flat = y.double().flatten(0, 1)
    wanted = torch.linalg.svdvals(flat - flat.mean(0))
    found = [mode.singular_value for mode in shots[0].target_modes]
    assert found == pytest.approx(wanted.tolist(), rel=1e-8)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize(("layers", "two"), [(1, True), (2, True), (2, False), (1, False)])
def test_what_a_layer_returns_beside_its_output_counts(
    kind: type[nn.RNNBase], layers: int, two: bool
) -> None:
    def by_states(m: Made, x: Tensor) -> Tensor:
        last = m.rnn(x)[1]
        last = last if isinstance(last, Tensor) else last[0]
        return m.readout(torch.cat([last[-2], last[-1]], 1) if two else last[-1])

    def by_output(m: Made, x: Tensor) -> Tensor:
        out = m.rnn(x)[0]
        ends = torch.cat([out[:, -1, :5], out[:, 0, 5:]], 1)
        return m.readout(ends if two else out[:, -1])

    rnn = kind(4, 5, layers, batch_first=True, bidirectional=two)
    parts = {"rnn": rnn, "readout": nn.Linear(10 if two else 5, 3)}
    batch = torch.randn(6, 7, 4), torch.randn(6, 3)
    require_same(
        *(
            probe(Made(forward, **parts), batch, learning_rate=0.1, **EXACT)
            for forward in (by_states, by_output)
        )
    )


def test_a_cell_over_two_sequences_has_each_row_once_for_either() -> None:
    rnn, readout = nn.RNN(3, 4, batch_first=True), nn.Linear(8, 2)

    def by_cells(m: Made, x: Tensor) -> Tensor:
        weights = (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0)
        states = []
        for part in x.split(3, -1):
            h, own = x.new_zeros(len(x), 4), []
            for z in part.unbind(1):
                h = torch.rnn_tanh_cell(z, h, *weights)
                own.append(h)
            states.append(torch.stack(own, 1))
        return m.readout(m.state(torch.cat(states, -1)))

    def by_layers(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(torch.cat([m.rnn(part)[0] for part in x.split(3, -1)], -1)))

    batch = torch.randn(3, 5, 6), torch.randn(3, 5, 2)
    parts = {"rnn": rnn, "state": nn.Identity(), "readout": readout}
    require_same(
        *(
            probe(Made(forward, **parts), batch, state="state", learning_rate=0.1, **EXACT)
            for forward in (by_cells, by_layers)
        )
    )


def with_a_learned_first_state(m: Made, x: Tensor, *, cell: bool) -> Tensor:
    h, states = m.first.expand(len(x), 4), []
    for z in x.unbind(1):
        inner = None if cell else h @ m.W.T + z @ m.U.T
        h = torch.rnn_tanh_cell(z, h, m.U, m.W) if inner is None else torch.tanh(inner)
        states.append(h)
    return m.readout(m.state(torch.stack(states, 1)))


def learned_first_state() -> dict[str, Any]:
    return {
        "W": drawn(4, 4), "U": drawn(4, 3), "first": drawn(4), "state": nn.Identity(),
        "readout": nn.Linear(4, 2),
    }  # fmt: skip


def test_a_learned_first_state_is_what_a_weight_acts_on() -> None:
    parts, x = learned_first_state(), torch.randn(6, 5, 3)
    lins = [
        linearize(Made(partial(with_a_learned_first_state, cell=cell), **parts), x, state="state")
        for cell in (True, False)
    ]
    for lin in lins:
        assert set(lin.coverage.left_out) == {"first"}
        assert lin.coverage.missed == ()
    cores = [lin.core.to_dense() for lin in lins]
    torch.testing.assert_close(*cores)


@pytest.mark.parametrize("shape", [(6, 5, 3), (5, 5, 3)])
def test_a_weight_on_the_first_steps_alone_is_on_none_of_the_state_s_rows(
    shape: tuple[int, ...],
) -> None:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(m.all(x) + m.first(x[:, 0])[:, None]))

    module = Made(
        forward, all=nn.Linear(3, 4), first=nn.Linear(3, 4), state=nn.Tanh(),
        readout=nn.Linear(4, 2),
    )  # fmt: skip
    found = linearize(module, torch.randn(shape), state="state").coverage
    assert [name for name, *_ in found.sites] == ["all.weight"]
    assert f"rows ({shape[0]},)" in found.left_out["first.weight"]


def test_a_weight_that_also_acts_on_other_rows_counts_in_part() -> None:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(m.shared(x) + 3 * m.shared(torch.tanh(x).mean(1))[:, None]))

    parts = {"shared": nn.Linear(4, 4), "state": nn.Tanh(), "readout": nn.Linear(4, 2)}
    found = linearize(Made(forward, **parts), torch.randn(4, 5, 4), state="state").coverage
    assert found.fraction == pytest.approx(0.5)
    assert "it also acts on rows (4,)" in found.left_out["shared.weight"]
    assert found.missed == ()


def test_experts_that_rows_are_sent_to_are_left_out() -> None:
    def forward(m: Made, x: Tensor) -> Tensor:
        chosen = x[..., 0] > 0
        out = x.new_zeros(*x.shape[:-1], 4)
        out[chosen] = m.one(x[chosen])
        out[~chosen] = m.two(x[~chosen])
        return m.readout(m.state(m.all(x) + out))

    parts = {
        "one": nn.Linear(3, 4), "two": nn.Linear(3, 4), "all": nn.Linear(3, 4),
        "state": nn.Tanh(), "readout": nn.Linear(4, 2),
    }  # fmt: skip
    found = linearize(Made(forward, **parts), torch.randn(4, 5, 3), state="state").coverage
    assert [name for name, *_ in found.sites] == ["all.weight"]
    assert {name.partition(".")[0] for name in found.left_out} == {"one", "two"}
    assert found.missed == ()


# Theorem 1, wherever a weight is used once --------------------------------------------------------


def flipped() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(m.a(x.flip(1)).flip(1)))

    parts = {"a": nn.Linear(3, 5), "state": nn.Tanh(), "readout": nn.Linear(5, 2)}
    return Made(forward, **parts), torch.randn(4, 6, 3)


def shuffled() -> tuple[nn.Module, Any]:
    order = torch.randperm(5)

    def forward(m: Made, x: Tensor) -> Tensor:
        inner = torch.tanh(linear(input=x[:, order], weight=m.W, bias=2 * m.b))
        return m.readout(m.state(inner[:, order.argsort()].flip(0) @ m.V.T).flip(0))

    parts = {
        "W": drawn(4, 3), "b": drawn(4), "V": drawn(5, 4), "state": nn.Tanh(),
        "readout": nn.Linear(5, 2),
    }  # fmt: skip
    return Made(forward, **parts), torch.randn(3, 5, 3)


def packed_as(*, batch_first: bool, sort: bool) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        rnn, readout = nn.GRU(3, 4).double(), nn.Linear(4, 2).double()
        module = packed(batch_first=batch_first, sort=sort, rnn=rnn, readout=readout)
        return module, (torch.randn(4, 6, 3), torch.tensor([2, 6, 3, 4]))

    return make


def behind_a_convolution() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(m.conv(x.transpose(1, 2)).transpose(1, 2)))

    parts = {
        "conv": nn.Conv1d(3, 4, 3, padding=1), "state": nn.Tanh(), "readout": nn.Linear(4, 2),
    }  # fmt: skip
    return Made(forward, **parts), torch.randn(5, 7, 3)


def of_two_directions() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.rnn(x)[1].transpose(0, 1).flatten(1))

    rnn = nn.GRU(4, 3, batch_first=True, bidirectional=True)
    return Made(forward, rnn=rnn, readout=nn.Linear(6, 3)), torch.randn(4, 5, 4)


def expanded() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(torch.bmm(x, m.W.expand(len(x), -1, -1))))

    parts = {"W": drawn(3, 5), "state": nn.Tanh(), "readout": nn.Linear(5, 2)}
    return Made(forward, **parts), torch.randn(5, 6, 3)


def on_all_and_on_the_first_steps() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(m.a(x) + m.first(x[:, 0])[:, None]))

    parts = {
        "a": nn.Linear(3, 4), "first": nn.Linear(3, 4), "state": nn.Tanh(),
        "readout": nn.Linear(4, 2),
    }  # fmt: skip
    return Made(forward, **parts), torch.randn(5, 5, 3)


def cells_in_turn() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        states = []
        for cell, part in zip((m.one, m.two), x.split(3, -1), strict=True):
            h, own = x.new_zeros(len(x), 4), []
            for z in part.unbind(1):
                h = cell(z, h)
                own.append(h)
            states.append(torch.stack(own, 1))
        return m.readout(m.state(torch.cat(states, -1)))

    parts = {
        "one": nn.RNNCell(3, 4), "two": nn.RNNCell(3, 4), "state": nn.Identity(),
        "readout": nn.Linear(8, 2),
    }  # fmt: skip
    return Made(forward, **parts), torch.randn(3, 4, 6)


def from_a_learned_state(*, cell: bool) -> tuple[nn.Module, Any]:
    module = Made(partial(with_a_learned_first_state, cell=cell), **learned_first_state())
    return module, torch.randn(4, 5, 3)


def by_keywords() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(linear(input=x, weight=m.W.T, bias=m.b)))

    parts = {"W": drawn(3, 4), "b": drawn(4), "state": nn.Tanh(), "readout": nn.Linear(4, 2)}
    return Made(forward, **parts), torch.randn(6, 3)


def written_into_behind_the_state() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.relu(m.rnn(x)[0]))

    parts = {
        "rnn": nn.GRU(3, 4, batch_first=True), "relu": nn.ReLU(inplace=True),
        "readout": nn.Linear(4, 2),
    }  # fmt: skip
    return Made(forward, **parts), torch.randn(4, 5, 3)


def two_layers() -> tuple[nn.Module, Any]:
    def forward(m: Made, x: Tensor) -> Tensor:
        return m.readout(m.state(m.b(torch.relu(m.a(x)))))

    parts = {
        "a": nn.Linear(3, 6), "b": nn.Linear(6, 5), "state": nn.Tanh(), "readout": nn.Linear(5, 2),
    }  # fmt: skip
    return Made(forward, **parts), torch.randn(8, 3)


ONCE: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], dict[str, Any]]] = {
    "flipped": (flipped, {}),
    "in another order": (shuffled, {}),
    "packed": (packed_as(batch_first=True, sort=False), {"state": "rnn"}),
    "packed, time first": (packed_as(batch_first=False, sort=False), {"state": "rnn"}),
    "packed, sorted": (packed_as(batch_first=True, sort=True), {"state": "rnn"}),
    "behind a convolution": (behind_a_convolution, {}),
    "of two directions": (of_two_directions, {"state": "rnn"}),
    "expanded": (expanded, {}),
    "all steps": (on_all_and_on_the_first_steps, {"parameters": "a.*"}),
    "cells in turn": (cells_in_turn, {}),
    "by hand": (partial(from_a_learned_state, cell=False), {"parameters": ["W", "U"]}),
    "by a cell": (partial(from_a_learned_state, cell=True), {"parameters": ["W", "U"]}),
    "by keywords": (by_keywords, {}),
    "written into": (written_into_behind_the_state, {"state": "rnn"}),
    "some parameters": (two_layers, {"parameters": "b.*"}),
}
"""The lines of what was once wrong, a weight each time used once: models, and what is asked."""


@pytest.mark.parametrize("name", ONCE)
def test_theorem_1(name: str) -> None:
    make, asked = ONCE[name]
    module, batch = make()
    batch = tuple(t.double() if t.is_floating_point() else t for t in batch) if isinstance(
        batch, tuple
    ) else batch.double()  # fmt: skip
    settings = {"state": "state", **asked}
    if isinstance(batch, tuple):
        settings["forward_fn"] = lambda m, b: m(*b)
    lin = linearize(
        module.double(), batch, dtype=torch.float64, method="double-backward", **settings
    )
    assert lin.coverage.fraction == 1.0
    core = (lin.core_propagator @ lin.block_core @ lin.core_propagator.T).to_dense()
    kernel = lin.ntk.to_dense()
    assert float((core - kernel).norm() / kernel.norm()) < 1e-8
