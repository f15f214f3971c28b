"""Estimators of operators on prescribed spectra, against naive transcriptions, with counts."""

import math
from collections.abc import Callable

import pytest
import torch
from support.operator_suite import random
from torch import Tensor

from ntk_monitor.estimators import (
    correction_rank,
    cumulative_variance,
    effective_rank,
    frobenius_norm,
    hutch_plus_plus,
    hutchinson,
    inner_product,
    leading_eigenpairs,
    operator_cosine,
    operator_norm,
    xnystrace,
    xtrace,
)
from ntk_monitor.operators import Dense, Identity, LinearOperator, OuterProduct, TensorProduct
from ntk_monitor.uncertainty import Estimate

N = 60
SPECTRA = {
    "flat": torch.ones(N, dtype=torch.float64),
    "step": torch.cat([torch.full((5,), 10.0), torch.full((N - 5,), 0.1)]).double(),
    "geometric": 0.8 ** torch.arange(N, dtype=torch.float64),
    "power": torch.arange(1, N + 1, dtype=torch.float64) ** -1.5,
    "low rank": torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.zeros(N - 3)]).double(),
    "zero": torch.zeros(N, dtype=torch.float64),
}
REPEATS = 400


class Counting(LinearOperator):
    """Another operator's products, counted."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(
            operator.shape_in,
            operator.shape_out,
            operator.dtype,
            operator.device,
            is_psd=operator.is_psd,
        )
        self.operator = operator
        self.count = 0

    def _matmat(self, X: Tensor) -> Tensor:
        self.count += len(X)
        return self.operator._matmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        self.count += len(Y)
        return self.operator._rmatmat(Y)


def basis() -> Tensor:
    return torch.linalg.qr(random(N, N, seed=11)).Q


def matrix(spectrum: str) -> Tensor:
    U = basis()
    return U * SPECTRA[spectrum] @ U.T


def psd(spectrum: str, shape: tuple[int, ...] = (N,)) -> Dense:
    M = matrix(spectrum)
    return Dense(((M + M.T) / 2).reshape(*shape, *shape), shape, is_psd=True)


def gram(spectrum: str, shape: tuple[int, ...] = (N,)) -> LinearOperator:
    L = Dense((basis() * SPECTRA[spectrum].sqrt()).reshape(*shape, N))
    return L @ L.T


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TRACES = {
    "hutchinson": lambda A, g: hutchinson(A, 12, g),
    "hutch++": lambda A, g: hutch_plus_plus(A, 12, g),
    "xtrace": lambda A, g: xtrace(A, 12, g),
    "xnystrace": lambda A, g: xnystrace(A, 12, g),
}


def is_unbiased(estimates: list[Estimate], truth: float, slack: float = 0.0) -> None:
    """Mean within four standard errors of the truth; stated errors of the right size."""
    values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(values))
    bias = abs(float(values.mean()) - truth)
    assert bias <= 4 * error + slack * abs(truth) + 1e-10 * (1 + abs(truth))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", TRACES)
def test_traces_are_unbiased(method: str, spectrum: str) -> None:
    A, generator = psd(spectrum), seeded(1)
    estimates = [TRACES[method](A, generator) for _ in range(REPEATS)]
    is_unbiased(estimates, float(SPECTRA[spectrum].sum()))


@pytest.mark.parametrize("spectrum", ["flat", "step", "geometric", "power"])
@pytest.mark.parametrize("method", TRACES)
def test_stated_errors_are_the_observed_ones(method: str, spectrum: str) -> None:
    A, generator = psd(spectrum), seeded(2)
    found = [TRACES[method](A, generator) for _ in range(REPEATS)]
    observed = torch.tensor([e.value for e in found]).std()
    stated = torch.tensor([e.stderr for e in found]).square().mean().sqrt()
    if observed < 1e-8:  # flat spectra have no error left
        assert stated < 1e-8
    else:
        # Leave-one-out values share their other vectors, so that X-methods understate a little.
        assert 0.5 < float(stated / observed) < 2.0


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_norms_and_inner_products_are_unbiased(spectrum: str) -> None:
    A, B, generator = psd(spectrum), psd("geometric"), seeded(3)
    norms = [frobenius_norm(A, 12, generator) for _ in range(REPEATS)]
    is_unbiased(norms, float(SPECTRA[spectrum].norm()), slack=0.01)
    inner = [inner_product(A, B, 12, generator) for _ in range(REPEATS)]
    is_unbiased(inner, float((matrix(spectrum) * matrix("geometric")).sum()))
    if spectrum != "zero":
        angles = [operator_cosine(A, B, 12, generator) for _ in range(REPEATS)]
        wanted = (matrix(spectrum) * matrix("geometric")).sum()
        wanted /= SPECTRA[spectrum].norm() * SPECTRA["geometric"].norm()
        is_unbiased(angles, float(wanted), slack=0.02)


@pytest.mark.parametrize("traced", [(), 0, (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("spectrum", ["flat", "step", "geometric", "power", "low rank"])
@pytest.mark.parametrize("make", [gram, psd])
def test_effective_ranks_of_every_view(
    make: Callable[..., LinearOperator], spectrum: str, traced: tuple[int, ...] | int
) -> None:
    A = make(spectrum, (3, 4, 5))
    M = A.partial_trace(traced).to_dense()
    M = M.reshape(round(math.sqrt(M.numel())), -1)
    truth = float(M.trace() ** 2 / M.square().sum())
    generator = seeded(4)
    found = [effective_rank(A, 24, generator, traced=traced) for _ in range(100)]
    is_unbiased(found, truth, slack=0.05)


def test_effective_rank_counts_products_of_the_factor() -> None:
    L = Counting(Dense(random(N, 80)))
    effective_rank(L @ L.T, 24, seeded(0))
    assert L.count == 24


@pytest.mark.parametrize("method", TRACES)
def test_budgets_count_the_products_that_are_spent(method: str) -> None:
    A = Counting(psd("power"))
    TRACES[method](A, seeded(0))
    assert A.count == 12


def test_other_budgets_count_too() -> None:
    for spend in (
        lambda A: frobenius_norm(A, 12, seeded(0)),
        lambda A: effective_rank(A, 12, seeded(0)),
        lambda A: inner_product(A, psd("flat"), 12, seeded(0)),
        lambda A: operator_cosine(psd("flat"), A, 12, seeded(0)),
    ):
        A = Counting(psd("power"))
        spend(A)
        assert A.count == 12
    A = Counting(psd("power"))
    cumulative_variance(A, 3, 40, seeded(0))
    assert A.count == 40
    for method in ("dense", "block-krylov", "eigsh"):
        A = Counting(psd("power"))
        pairs = leading_eigenpairs(A, 3, seeded(0), method=method)
        assert A.count == pairs.products, method


@pytest.mark.parametrize("method", TRACES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_more_products_than_dimensions_are_exact(method: str, spectrum: str) -> None:
    A = psd(spectrum)
    estimate = {
        "hutchinson": lambda: hutchinson(A, N, seeded(0)),
        "hutch++": lambda: hutch_plus_plus(A, N, seeded(0)),
        "xtrace": lambda: xtrace(A, N, seeded(0)),
        "xnystrace": lambda: xnystrace(A, N, seeded(0)),
    }[method]()
    assert estimate.stderr == 0.0
    assert estimate.value == pytest.approx(float(SPECTRA[spectrum].sum()))


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "xnystrace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rank_below_the_probes_is_exact(method: str, dtype: torch.dtype) -> None:
    M = matrix("low rank").to(dtype)
    estimate = TRACES[method](Dense(M, is_psd=True), seeded(0))
    assert estimate.value == pytest.approx(6.0, rel=1e-5)
    assert estimate.stderr < 1e-4


def naive_xtrace(A: Tensor, Omega: Tensor) -> Tensor:
    """XTrace by its definition: a new basis for every vector that is left out."""
    k, values = Omega.shape[1], []
    for i in range(k):
        others = [j for j in range(k) if j != i]
        Q = torch.linalg.qr(A @ Omega[:, others]).Q
        v = Omega[:, i] - Q @ (Q.T @ Omega[:, i])
        scale = (len(A) - k + 1) / v.square().sum()
        values.append((Q.T @ A @ Q).trace() + scale * (v @ A @ v))
    return torch.stack(values)


def naive_xnystrace(A: Tensor, Omega: Tensor) -> Tensor:
    """XNysTrace by its definition: a new Nystrom approximation for every vector left out."""
    m, values = Omega.shape[1], []
    for i in range(m):
        others = [j for j in range(m) if j != i]
        O = Omega[:, others]  # noqa: E741
        Y = A @ O
        A_i = Y @ torch.linalg.solve(O.T @ Y, Y.T)
        Q = torch.linalg.qr(O).Q
        v = Omega[:, i] - Q @ (Q.T @ Omega[:, i])
        scale = (len(A) - m + 1) / v.square().sum()
        values.append(A_i.trace() + scale * (v @ (A - A_i) @ v))
    return torch.stack(values)


@pytest.mark.parametrize("spectrum", ["flat", "step", "geometric", "power"])
def test_fast_x_methods_equal_their_definitions(spectrum: str) -> None:
    M = matrix(spectrum)
    for fast, naive, vectors in ((xtrace, naive_xtrace, 6), (xnystrace, naive_xnystrace, 12)):
        Omega = torch.randn(vectors, N, generator=seeded(5)).double().T
        values = naive(M, Omega)
        found = fast(psd(spectrum), 12, seeded(5))
        assert found.value == pytest.approx(float(values.mean()), rel=1e-8)
        assert found.stderr == pytest.approx(
            float(values.std()) / math.sqrt(vectors), rel=1e-5, abs=1e-8
        )


def test_hutch_plus_plus_equals_its_definition() -> None:
    M, generator = matrix("power"), seeded(6)
    S = torch.randn(4, N, generator=generator).double().T
    Q = torch.linalg.qr(M @ S).Q
    G = torch.randn(4, N, generator=generator).double().T
    G = G - Q @ (Q.T @ G)
    wanted = (Q.T @ M @ Q).trace() + (G * (M @ G)).sum() / 4
    found = hutch_plus_plus(psd("power"), 12, seeded(6))
    assert found.value == pytest.approx(float(wanted))


@pytest.mark.parametrize("method", ["auto", "dense", "block-krylov", "eigsh"])
@pytest.mark.parametrize("spectrum", ["step", "geometric", "power", "low rank"])
def test_leading_eigenpairs(method: str, spectrum: str) -> None:
    A = psd(spectrum, (3, 4, 5))
    pairs = leading_eigenpairs(A, 3, seeded(0), tolerance=1e-7, method=method)
    truth = SPECTRA[spectrum][:3]
    torch.testing.assert_close(pairs.values, truth, rtol=1e-6, atol=1e-9)
    assert pairs.vectors.shape == (3, 3, 4, 5)
    V = pairs.vectors.flatten(1).double()
    torch.testing.assert_close(V @ V.T, torch.eye(3).double(), rtol=0, atol=1e-8)
    assert bool(((pairs.values - truth).abs() <= pairs.residuals + 1e-9).all())
    gap = torch.linalg.vector_norm(matrix(spectrum) @ V.T - V.T * pairs.values, dim=0)
    torch.testing.assert_close(gap, pairs.residuals, rtol=0, atol=1e-6)


def test_repeated_eigenvalues_are_all_found_by_blocks() -> None:
    """The core's eigenvalues repeat once per unit."""
    temporal = Dense(
        torch.diag(torch.tensor([4.0, 1.0, 0.5, 0.1] + [0.0] * 4)).double(), is_psd=True
    )
    core = TensorProduct(temporal, Identity((40,), torch.float64))
    pairs = leading_eigenpairs(core, 40, seeded(0), method="block-krylov")
    torch.testing.assert_close(pairs.values, torch.full((40,), 4.0).double())


def test_the_rule_that_chooses_the_method() -> None:
    assert leading_eigenpairs(psd("power"), 10, seeded(0)).method == "dense"
    assert leading_eigenpairs(psd("power"), 2, seeded(0)).method == "block-krylov"
    assert leading_eigenpairs(psd("power"), 2, seeded(0), tolerance=1e-10).method == "eigsh"
    few = leading_eigenpairs(psd("flat"), 2, seeded(0), products=12, method="block-krylov")
    assert few.products <= 12


def test_operator_norm_is_the_largest_singular_value() -> None:
    wide = Dense(random(20, 90))
    found = operator_norm(wide, seeded(0), tolerance=1e-6)
    wanted = float(torch.linalg.matrix_norm(wide.matrix, 2))
    assert found.value == pytest.approx(wanted, rel=1e-5)
    assert abs(found.value - wanted) <= found.stderr + 1e-9
    assert operator_norm(psd("step"), seeded(0)).value == pytest.approx(10.0)
    assert operator_norm(psd("zero"), seeded(0)) == Estimate(0.0, 0.0)


@pytest.mark.parametrize("products", [40, N])
def test_cumulative_variance_and_k95(products: int) -> None:
    found = cumulative_variance(psd("step"), 8, products, seeded(0))
    truth = SPECTRA["step"].cumsum(0)[:8] / SPECTRA["step"].sum()
    gap = (found.shares - truth).abs()
    assert bool((gap <= 4 * found.stderr + 1e-9).all())
    assert found.count_to(0.5) == 3
    assert found.count_to(0.999999) is None
    exact = cumulative_variance(psd("geometric"), N, N, seeded(0))
    wanted = int((SPECTRA["geometric"].cumsum(0) / SPECTRA["geometric"].sum() < 0.95).sum()) + 1
    assert exact.count_to(0.95) == wanted


def test_correction_rank() -> None:
    V = Dense(random(10, 2))
    core = TensorProduct(V @ V.T, Identity((6,), torch.float64))
    assert correction_rank(core, random(10, 6, seed=1), rtol=1e-10) == 2
    assert correction_rank(0 * core, random(10, 6, seed=1)) == 0
    with pytest.raises(FloatingPointError, match="not finite"):
        correction_rank(math.inf * core, random(10, 6, seed=1))


def test_zero_operators() -> None:
    A = psd("zero", (3, 4, 5))
    for method in TRACES.values():
        assert method(A, seeded(0)) == Estimate(0.0, 0.0)
    assert frobenius_norm(A, 12, seeded(0)) == Estimate(0.0, 0.0)
    assert inner_product(A, A, 12, seeded(0)) == Estimate(0.0, 0.0)
    for method in ("dense", "block-krylov", "eigsh"):
        pairs = leading_eigenpairs(A, 3, seeded(0), method=method)
        assert not pairs.values.any()
    with pytest.raises(ValueError, match="is zero"):
        operator_cosine(A, A, 12, seeded(0))
    for products in (12, 100):
        with pytest.raises(ValueError, match="is zero"):
            effective_rank(A, products, seeded(0))
        with pytest.raises(ValueError, match="is zero"):
            cumulative_variance(A, 1, 5 * products, seeded(0))


def test_a_rank_one_operator() -> None:
    A = OuterProduct(random(N))
    truth = float(random(N).square().sum())
    for method in ("hutch++", "xtrace", "xnystrace"):
        assert TRACES[method](A, seeded(0)).value == pytest.approx(truth)
    found = effective_rank(A, 12, seeded(0))
    assert found.value == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    entries = torch.full((N, N), bad).double()
    A = Dense(entries)
    A.is_psd = True  # declared: nan is not symmetric
    for products in (12, 60):
        for method in (
            hutchinson, hutch_plus_plus, xtrace, xnystrace, frobenius_norm, effective_rank,
        ):  # fmt: skip
            with pytest.raises(FloatingPointError, match="not finite"):
                method(A, products, seeded(0))
    for method in ("dense", "block-krylov", "eigsh"):
        with pytest.raises(FloatingPointError, match="not finite"):
            leading_eigenpairs(A, 3, seeded(0), method=method)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A, g: hutchinson(A, 1, g), "products must be at least 2, got 1"),
        (lambda A, g: hutch_plus_plus(A, 10, g), "at least 6 and divisible by 3, got 10"),
        (lambda A, g: xtrace(A, 5, g), "at least 4 and divisible by 2, got 5"),
        (lambda A, g: xnystrace(A, 2, g), "at least 3, got 2"),
        (lambda A, g: frobenius_norm(A, 2, g), "at least 3, got 2"),
        (lambda A, g: effective_rank(A, 3, g), "at least 4, got 3"),
        (lambda A, g: cumulative_variance(A, 5, 12, g), "at least 30, got 12"),
        (lambda A, g: leading_eigenpairs(A, 0, g), "count must be at least 1, got 0"),
        (lambda A, g: leading_eigenpairs(A, 2, g, products=6), "at least 12, got 6"),
        (lambda A, g: leading_eigenpairs(A, 2, g, method="qr"), "method must be auto, dense"),
        (lambda A, g: hutchinson(Dense(random(2, 3)), 2, g), "has no trace"),
        (lambda A, g: xnystrace(Dense(random(N, N)), 12, g), "not known to be symmetric positive"),
        (lambda A, g: effective_rank(A, 12, g, traced=1), "different axes"),
        (lambda A, g: inner_product(A, Dense(random(2, 3)), 4, g), "between the same spaces"),
    ],
)
def test_bad_arguments_are_refused(
    call: Callable[[LinearOperator, torch.Generator], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(psd("power"), seeded(0))
