"""Unusual models that are legitimate: each is measured as its usual twin, or refused by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from model.test_same_function import EXACT, Made, require_same
from torch import Tensor, nn

from ntk_monitor import Probe, probe


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6, 3), torch.randn(4, 6, 2)


def test_a_parameter_without_axes() -> None:
    parts = {"rnn": nn.GRU(3, 4, batch_first=True), "readout": nn.Linear(4, 2)}
    shots = [
        probe(
            Made(
                lambda m, x: m.readout(m.rnn(m.gain * x)[0]),
                gain=nn.Parameter(torch.full(shape, 0.5)), **parts,
            ),
            (torch.ones(4, 6, 3), torch.arange(48.0).reshape(4, 6, 2)),
            learning_rate=0.1,
            **EXACT,
        )
        for shape in ((), (1,))
    ]  # fmt: skip
    require_same(*shots)


def test_sparse_gradients_of_an_embedding() -> None:
    tokens, y = torch.randint(10, (4, 6)), torch.randn(4, 6, 2)
    rnn, readout = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2)
    shots = []
    for sparse in (False, True):
        torch.manual_seed(1)
        words = nn.Embedding(10, 4, sparse=sparse)
        module = Made(lambda m, x: m.readout(m.rnn(m.words(x))[0]), words=words, rnn=rnn,
                      readout=readout)  # fmt: skip
        shots.append(probe(module, (tokens, y), learning_rate=0.1, **EXACT))
        assert words.sparse is sparse
    require_same(*shots)


def test_a_first_state_given_as_a_list() -> None:
    rnn, readout = nn.LSTM(3, 4, 2, batch_first=True), nn.Linear(4, 2)
    data = batch()

    def forward(m: Made, x: Tensor, kind: Any) -> Tensor:
        zeros = x.new_zeros(2, len(x), 4)
        return m.readout(m.rnn(x, kind([zeros, zeros]))[0])

    require_same(
        *(
            probe(
                Made(partial(forward, kind=kind), rnn=rnn, readout=readout),
                data,
                learning_rate=0.1,
                **EXACT,
            )
            for kind in (tuple, list)
        )
    )


def test_inputs_that_forward_draws_are_data() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))
    found = probe(Made(lambda m, x: m.net(torch.randn(len(x), 5)), net=net), torch.randn(8, 5))
    assert found.coverage.fraction == 1.0


def test_outputs_with_more_axes_than_usual() -> None:
    parts = {"inner": nn.Linear(3, 4), "readout": nn.Linear(4, 1)}
    x, y = torch.randn(4, 6, 3), torch.randn(4, 6, 1)

    def forward(m: Made, x: Tensor, axes: int) -> Tensor:
        return m.readout(torch.tanh(m.inner(x))).reshape(4, 6, *[1] * axes)

    require_same(
        *(
            probe(
                Made(partial(forward, axes=axes), **parts),
                (x, y.reshape(4, 6, *[1] * axes)),
                learning_rate=0.1,
                **EXACT,
            )
            for axes in (1, 2)
        )
    )


def test_weights_that_forward_normalises_are_not_measured_in_place_and_left_alone() -> None:
    tokens = torch.randint(10, (4, 6))
    words = nn.Embedding(10, 4, max_norm=1.0)
    module = Made(lambda m, x: m.readout(m.rnn(m.words(x))[0]), words=words,
                  rnn=nn.GRU(4, 4, batch_first=True), readout=nn.Linear(4, 10))  # fmt: skip
    before = words.weight.detach().clone()
    assert probe(module, (tokens, tokens)).trace.is_finite
    assert torch.equal(words.weight, before)
    with pytest.raises(Exception, match="max_norm"):
        probe(module, (tokens, tokens), method="in-place")
    assert torch.equal(words.weight, before)


@pytest.mark.parametrize("method", ["auto", "finite-difference", "in-place"])
def test_a_tenth_that_is_detached_is_found_at_any_seed(method: str) -> None:
    def forward(m: Made, x: Tensor) -> Tensor:
        h = torch.tanh(m.second(torch.tanh(m.first(x))))
        return m.readout(m.state(h + 0.1 * h.detach()))

    module = Made(forward, first=nn.Linear(3, 24), second=nn.Linear(24, 24), state=nn.Identity(),
                  readout=nn.Linear(24, 2))  # fmt: skip
    x = torch.randn(8, 20, 3)
    settings: dict[str, Any] = {"state": "state", "modes": 0}
    truth = probe(module, x, **settings, **EXACT).trace.value
    for seed in range(6):
        if method == "auto":
            found = probe(module, x, seed=seed, **settings)
            assert abs(found.trace.value - truth) < 4 * found.trace.stderr
            assert found.method == "double-backward"
        else:
            with pytest.raises(RuntimeError, match="disagree"):
                probe(module, x, seed=seed, method=method, **settings)


def test_a_probe_compares_its_products_for_each_module() -> None:
    def made(detached: float) -> Made:
        def forward(m: Made, x: Tensor) -> Tensor:
            h = torch.tanh(m.first(x))
            return m.readout(m.state(h + detached * h.detach()))

        parts = {"first": nn.Linear(3, 24), "readout": nn.Linear(24, 2)}
        return Made(forward, state=nn.Identity(), **parts)

    x = torch.randn(8, 20, 3)
    whole, partly = made(0.0), made(0.1)
    for seed in range(6):
        measure = Probe(state="state", modes=0, method="finite-difference", seed=seed)
        measure(whole, x)
        with pytest.raises(RuntimeError, match="disagree"):
            measure(partly, x)


def clamped(m: Made, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.inner.weight.clamp_(-0.1, 0.1)
    return m.readout(torch.tanh(m.inner(x)))


@pytest.mark.parametrize("method", ["exact", "finite-difference", "forward-ad"])
def test_weights_that_forward_changes_are_measured_as_they_are_then(method: str) -> None:
    parts = {"inner": nn.Linear(3, 4).double(), "readout": nn.Linear(4, 2).double()}
    data = batch()
    before = parts["inner"].weight.detach().clone()
    settings: dict[str, Any] = {"method": method, "dtype": torch.float64, "tolerance": 0.2}
    found = probe(Made(clamped, **parts), data, learning_rate=0.1, **settings)
    assert torch.equal(parts["inner"].weight, before)
    assert found.method == method
    with torch.no_grad():
        parts["inner"].weight.clamp_(-0.1, 0.1)
    plain = Made(lambda m, x: m.readout(torch.tanh(m.inner(x))), **parts)
    require_same(found, probe(plain, data, learning_rate=0.1, **settings))


def test_normalised_embeddings_are_measured_as_they_are_then() -> None:
    tokens, y = torch.randint(10, (4, 6)), torch.randn(4, 6, 2)
    words, readout = nn.Embedding(10, 4, max_norm=1.0).double(), nn.Linear(4, 2).double()
    state = nn.Tanh()
    module = Made(lambda m, x: m.readout(m.state(m.words(x))), words=words, readout=readout,
                  state=state)  # fmt: skip
    found = probe(module, (tokens, y), learning_rate=0.1, **EXACT)
    words(tokens)
    words.max_norm = None
    require_same(found, probe(module, (tokens, y), learning_rate=0.1, **EXACT))


def test_complex_parameters_are_refused_in_a_sentence() -> None:
    gain = nn.Parameter(torch.ones(3, dtype=torch.cfloat))
    module = Made(lambda m, x: m.readout((x * m.gain).real), gain=gain, readout=nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"gain of Made are complex.*view_as_complex"):
        probe(module, batch())
