"""The adaptive engine on Jacobians of prescribed spectrum."""

import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from support.operator_suite import random
from torch import Tensor

from ntk_monitor.estimators import (
    CoreGram,
    ExactKernel,
    Measured,
    TangentSketch,
    draw_tangents,
    sample_kernel,
)
from ntk_monitor.estimators.kernel import adaptive
from ntk_monitor.operators import Dense, LinearOperator

B, T, N = 4, 5, 8
K = B * T
NUMBERS = (
    "trace",
    "frobenius_norm",
    "effective_rank",
    "temporal_effective_rank",
    "spatial_effective_rank",
    "core_cosine",
    "temporal_core_cosine",
)
SPECTRA = {
    "few": 0.5 ** torch.arange(100, dtype=torch.float64),
    "some": 0.9 ** torch.arange(100, dtype=torch.float64),
    "many": torch.ones(100, dtype=torch.float64),
    "one": torch.cat([torch.ones(1), torch.zeros(99)]).double(),
    "spiked": torch.cat([torch.full((3,), 50.0), torch.ones(97)]).double(),
}


class Spent(LinearOperator):
    """A dense Jacobian whose products are counted, with tangents of a seed."""

    at_once, seed = 16, 0

    def __init__(self, spectrum: Tensor) -> None:
        p = len(spectrum)
        U = torch.linalg.qr(random(K * N, p, seed=1)).Q
        W = torch.linalg.qr(random(p, p, seed=2)).Q
        entries = (U * spectrum.sqrt()) @ W.T
        super().__init__((p,), (B, T, N), entries.dtype, entries.device)
        self.dense = Dense(entries.reshape(B, T, N, p))
        self.products = 0

    def _matmat(self, X: Tensor) -> Tensor:
        self.products += len(X)
        return self.dense._matmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        self.products += len(Y)
        return self.dense._rmatmat(Y)

    def tangents(self, indices: range) -> Tensor:
        return draw_tangents(self.input_size, indices, self.seed, dtype=torch.float64)

    def sample(self, indices: range) -> Tensor:
        return self.matmat(self.tangents(indices))

    def pull(self, u: Tensor) -> Tensor:
        return self.rmatvec(u)

    def pulls(self, several: Iterable[Tensor], *, here: bool = False) -> Iterator[Tensor]:
        del here
        return map(self.rmatvec, several)

    def push(self, x: Tensor) -> Tensor:
        return self.matvec(x)

    def inner(self, index: int, x: Tensor) -> float:
        return float(self.tangents(range(index, index + 1))[0] @ x)


def core() -> CoreGram:
    return CoreGram(random(K, 3, seed=3))


def measure(J: Spent, seed: int, tolerance: float = 0.05, budget: int = 96) -> Measured:
    J.products, J.seed = 0, seed
    return sample_kernel(
        J,
        core(),
        tolerance=tolerance,
        left=lambda: budget - J.products,
        seed=seed,
    )


def exact(J: Spent) -> dict[str, float]:
    entries = J.dense.matrix.reshape(K, N, -1).movedim(2, 0)
    statistics = ExactKernel(entries, core()).statistics
    return {name: getattr(statistics, name).value for name in NUMBERS}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_every_number_is_right_on_average_and_in_its_error(spectrum: str) -> None:
    J = Spent(SPECTRA[spectrum])
    truth = exact(J)
    found = [measure(J, seed, tolerance=0.0, budget=60).sketch.statistics for seed in range(60)]
    for name in NUMBERS:
        estimates = [getattr(s, name) for s in found]
        values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - truth[name]) < 4 * error + 0.02 * truth[name], name
        stated = torch.tensor([e.stderr for e in estimates]).square().mean().sqrt()
        if float(values.std()) > 1e-6 * truth[name]:
            assert 0.6 < float(stated) / float(values.std()) < 1.7, name


@pytest.mark.parametrize(
    ("spectrum", "scheme"), [("few", "deflated"), ("spiked", "deflated"), ("many", "sampled")]
)
def test_the_rule_takes_out_few_directions_and_samples_many(spectrum: str, scheme: str) -> None:
    for seed in range(5):
        found = measure(Spent(SPECTRA[spectrum]), seed)
        assert found.scheme == scheme
        assert found.tolerance_met


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("budget", [20, 40, 60, 96])
def test_the_budget_is_kept(spectrum: str, budget: int) -> None:
    J = Spent(SPECTRA[spectrum])
    found = measure(J, 0, tolerance=0.001, budget=budget)
    assert J.products <= budget
    if found.tolerance_met:
        assert found.sketch.statistics.relative_error <= 0.001


def test_the_tolerance_ends_the_sampling() -> None:
    J = Spent(SPECTRA["many"])
    loose = measure(J, 0, tolerance=0.5)
    assert loose.tolerance_met
    assert J.products == 13  # the pilot, and the comparison with the adjoint
    assert not measure(J, 0, tolerance=1e-9).tolerance_met


def test_deflation_beats_plain_sampling_by_far(monkeypatch: pytest.MonkeyPatch) -> None:
    J = Spent(SPECTRA["few"])
    truth = exact(J)

    def errors() -> dict[str, float]:
        found = [measure(J, s, tolerance=0.0, budget=48).sketch.statistics for s in range(30)]
        return {
            name: math.sqrt(
                sum((getattr(f, name).value / truth[name] - 1) ** 2 for f in found) / 30
            )
            for name in NUMBERS
        }

    deflated = errors()
    monkeypatch.setattr(adaptive, "DIRECTIONS", 0)
    plain = errors()
    for name in NUMBERS:
        assert deflated[name] < plain[name] / 20, name


def test_all_directions_taken_out_are_the_exact_kernel() -> None:
    J = Spent(SPECTRA["some"])
    entries = J.dense.matrix.reshape(K, N, -1).movedim(2, 0)
    sketch = TangentSketch(core())
    sketch.extend(J.matmat(draw_tangents(100, range(4), 0, dtype=torch.float64)).flatten(1, 2))
    basis = torch.linalg.qr(entries.flatten(1).T).Q.T
    images = (basis @ entries.flatten(1).T) @ entries.flatten(1)
    sketch.deflate(basis.reshape(-1, K, N), images.reshape(-1, K, N))
    assert sketch.atoms == 100
    for name, truth in exact(J).items():
        estimate = getattr(sketch.statistics, name)
        assert estimate.value == pytest.approx(truth), name
        assert estimate.stderr == pytest.approx(0.0, abs=1e-9)
    values, modes = sketch.temporal_eigenpairs(3, 0)
    wanted, vectors = ExactKernel(entries, core()).temporal_eigenpairs(3, 0)
    torch.testing.assert_close(values, wanted, rtol=0.01, atol=0)
    assert float((modes * vectors).sum(0).abs().min()) > 0.9


def test_deflation_is_the_projection_in_parameter_space() -> None:
    """Samples past and future lose what the pulled-back directions span, whatever the rounds."""
    J = Spent(SPECTRA["few"])
    entries = J.dense.matrix.reshape(K * N, -1)
    G = draw_tangents(100, range(9), 0, dtype=torch.float64)
    sketch = TangentSketch(core())
    sketch.extend(J.matmat(G[:5]).flatten(1, 2))
    U = random(5, K, N, seed=4)
    for part in (U[:2], U[2:]):
        pulled = part.flatten(1) @ entries
        sketch.deflate(part, (pulled @ entries.T).reshape(-1, K, N))
    sketch.extend(J.matmat(G[5:]).flatten(1, 2))
    Q = torch.linalg.qr((U.flatten(1) @ entries).T).Q
    rest = (G - G @ Q @ Q.T) @ entries.T
    found = torch.cat([sketch._rest(kept) for kept in sketch._samples]).flatten(1)
    torch.testing.assert_close(found, rest, rtol=1e-7, atol=1e-9)
    # and what was taken out is the rest of the kernel
    assert sketch.statistics.trace.value == pytest.approx(
        float((entries @ Q).square().sum() + rest.square().sum() / 9)
    )


def test_directions_that_are_out_already_are_left_out() -> None:
    J = Spent(SPECTRA["one"])
    sketch = TangentSketch(core())
    sketch.extend(J.matmat(draw_tangents(100, range(4), 0, dtype=torch.float64)).flatten(1, 2))
    U = random(2, K, N, seed=4)
    images = J.matmat(J.rmatmat(U.reshape(-1, B, T, N))).flatten(1, 2)
    for _ in range(2):
        sketch.deflate(U, images)
        assert sketch.atoms == 1
    assert sketch.statistics.effective_rank.value == pytest.approx(1.0)


@pytest.mark.parametrize("spectrum", ["few", "some"])
def test_directions_that_drown_in_the_error_of_the_products_stay_in(spectrum: str) -> None:
    """They would be taken out at a multiple of their size; what is left goes to samples."""

    class Noisy(Spent):
        def _matmat(self, X: Tensor) -> Tensor:
            Y = super()._matmat(X)
            noise = random(*Y.shape, seed=self.products)
            return Y + 1e-3 * Y.norm() * noise / noise.norm()

    J = Noisy(SPECTRA[spectrum])
    truth = exact(J)
    for budget, most in ((60, 0.15), (120, 0.08), (240, 0.08)):
        for seed in range(8):
            found = measure(J, seed, tolerance=0.0, budget=budget)
            assert J.products <= budget
            assert len(found.sketch) > budget / 6
            for name in NUMBERS:
                value = getattr(found.sketch.statistics, name).value
                assert abs(value / truth[name] - 1) < most, (name, budget, seed)


def test_what_is_taken_out_is_no_more_than_there_is() -> None:
    J = Spent(SPECTRA["few"])
    U = torch.linalg.qr(random(K * N, 30, seed=4)).Q.T.reshape(-1, B, T, N)
    images = J.matmat(J.rmatmat(U)).flatten(1, 2)
    noise = random(*images.shape, seed=5)
    size = images.flatten(1).norm(dim=1).mean() / math.sqrt(K * N)
    taken = []
    for share in (0.0, 1e-2):
        sketch = TangentSketch(core())
        sketch.extend(J.matmat(draw_tangents(100, range(4), 0, dtype=torch.float64)).flatten(1, 2))
        sketch.deflate(U.flatten(1, 2), images + share * size * noise)
        taken.append(float(sketch._atoms.square().sum()))
    assert taken[1] < 1.05 * taken[0] < 1.05 * exact(J)["trace"]
    assert sketch.drowned


def test_a_wrong_adjoint_is_seen() -> None:
    class Wrong(Spent):
        def _rmatmat(self, Y: Tensor) -> Tensor:
            return 1.1 * super()._rmatmat(Y)

    for spectrum in ("few", "many"):
        assert measure(Spent(SPECTRA[spectrum]), 0).adjoint_error < 1e-9
        errors = [measure(Wrong(SPECTRA[spectrum]), seed).adjoint_error for seed in range(10)]
        assert max(errors) > 0.05


def test_a_non_finite_sample_ends_the_sampling() -> None:
    J = Spent(SPECTRA["few"])
    J.dense.matrix[0, 0] = math.nan
    found = measure(J, 0)
    assert not found.tolerance_met
    assert J.products <= 13
