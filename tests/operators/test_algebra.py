"""How operators combine, print and refuse; their products are in test_suite."""

import math
from collections.abc import Callable

import pytest
import torch
from support.operator_suite import random

from ntk_monitor.operators import (
    BlockRow,
    Dense,
    Diagonal,
    DirectSum,
    Identity,
    OuterProduct,
    PartialTrace,
    TensorProduct,
)


def dense(*shape: int, shape_in: tuple[int, ...], seed: int = 0) -> Dense:
    return Dense(random(*shape, seed=seed), shape_in)


def identity(*shape: int) -> Identity:
    return Identity(shape, torch.float64)


A = dense(2, 3, 4, shape_in=(4,))
B = dense(2, 3, 4, shape_in=(4,), seed=1)
C = dense(4, 2, 2, shape_in=(2, 2), seed=2)
P = dense(2, 3, 2, 3, shape_in=(2, 3), seed=3)
LONG = TensorProduct(identity(2000), P).reshape((2000, 2, 3))


def test_every_partial_trace_of_a_three_axis_operator() -> None:
    M = Dense(random(2, 3, 4, 2, 3, 4), shape_in=(2, 3, 4))
    views = {
        (0,): "abcaef->bcef",
        (1,): "abcdbf->acdf",
        (2,): "abcdec->abde",
        (0, 1): "abcabf->cf",
        (0, 2): "abcaec->be",
        (1, 2): "abcdbc->ad",
        (0, 1, 2): "abcabc->",
    }
    for axes, formula in views.items():
        wanted = torch.einsum(formula, M.to_dense())
        torch.testing.assert_close(M.partial_trace(axes).to_dense(), wanted)


def test_partial_trace_is_not_the_sum_over_an_axis() -> None:
    G = random(12, 12)
    M = Dense((G @ G.T).reshape(4, 3, 4, 3), shape_in=(4, 3))
    trace = M.partial_trace(1).to_dense()
    axis_sum = torch.einsum("abcd->ac", M.to_dense())  # (I (x) 1*) A (I (x) 1)
    assert float((trace - axis_sum).norm() / trace.norm()) > 0.1
    torch.testing.assert_close(trace.trace(), torch.einsum("abab->", M.to_dense()))


def test_gram_is_recognised_as_positive_semidefinite() -> None:
    assert (A @ A.T).is_psd
    assert (A.T @ A).is_psd
    assert not (A @ B.T).is_psd
    assert TensorProduct(A @ A.T, identity(2)).is_psd
    assert (2 * (A @ A.T)).is_psd
    assert not (-1 * (A @ A.T)).is_psd
    gram = A @ A.T
    assert gram.T is gram


def test_adjoint_of_adjoint_is_the_operator() -> None:
    assert A.T.T is A


def test_operators_print_as_mathematics() -> None:
    V = Dense(random(2, 3, 4), shape_in=(4,), name="V")
    core = TensorProduct(V @ V.T, identity(5))
    assert str(core) == "(V V*) ⊗ I_5"
    assert repr(core) == "<(V V*) ⊗ I_5: (2, 3, 5) -> (2, 3, 5)>"
    assert str(core.partial_trace(2)) == "(V V*) ⊗ (5 I_1)"
    assert str((V + V) @ (2 * V.T)) == "(V + V) (2 V*)"
    assert str(V - 2 * V) == "V - (2 V)"
    assert str(V - V) == "V - V"
    assert str(BlockRow(V, V)) == "[V, V]"
    assert str(DirectSum(V, V @ V.T)) == "V ⊕ (V V*)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A @ B, r"takes \(4,\), the right one returns \(2, 3\)"),
        (lambda: A + C, r"cannot add .*\(4,\) -> \(2, 3\) and .*\(2, 2\) -> \(4,\)"),
        (lambda: A.partial_trace(0), "from a space to itself"),
        (lambda: P.partial_trace(2), "different axes"),
        (lambda: P.partial_trace((1, -1)), "different axes"),
        (lambda: A.matvec(random(5)), r"expects a tensor of shape \(4,\), got \(5,\)"),
        (lambda: A.matmat(random(4)), r"expects a tensor of shape \(batch, 4\), got \(4,\)"),
        (lambda: A.matvec(random(4).float()), "float64.*got torch.float32"),
        (lambda: A + Dense(random(2, 3, 4).float(), (4,)), "one dtype and one device"),
        (lambda: Dense(random(2, 3), (4,)), "trailing axes"),
        (lambda: Dense(random(3, 3), is_psd=True), "not symmetric"),
        (lambda: A.reshape((7,), (4,)), r"\(7,\) has 7 entries, \(2, 3\) has 6"),
        (DirectSum, "at least one operator"),
        (lambda: DirectSum(A, Identity((2,))), "one dtype and one device"),
        (lambda: BlockRow(A, C), r"returns \(2, 3\), .* returns \(4,\)"),
        (lambda: OuterProduct(random(2), random(2).float()), "one dtype and one device"),
        (lambda: LONG.partial_trace(0), "takes 2000 products.*probes=64"),
        (lambda: LONG.partial_trace(0, probes=8), "generator"),
        (lambda: LONG.partial_trace(0, probes=0), "probes must be at least 1, got 0"),
        (lambda: A.compare(C), "cannot compare"),
        (lambda: P.compare(0 * P), "is zero"),
        (lambda: P.compare(P, products=2), "products must be at least 3"),
        (lambda: Diagonal(random(2).bfloat16()).to_scipy(), "numpy has no torch.bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_only_numbers_scale_an_operator() -> None:
    with pytest.raises(TypeError):
        A + 1.0  # type: ignore[operator]
    with pytest.raises(TypeError):
        A * A  # type: ignore[operator]


def test_congruences_are_recognised_as_positive_semidefinite() -> None:
    K = Dense(torch.eye(6).double().reshape(2, 3, 2, 3), (2, 3), is_psd=True)
    V = TensorProduct(A, identity(5))
    assert (P @ K @ P.T).is_psd
    assert (P @ (A @ A.T) @ P.T).factor is not None
    assert (P @ K @ P.T).factor is None  # K has no known factor
    assert not (P @ P @ P.T).is_psd
    assert not (P @ K @ K).is_psd
    assert (V @ V.T).is_psd


def test_sampled_partial_trace_is_unbiased() -> None:
    hidden = Dense(random(4, 6, 4, 6), (4, 6))
    exact = hidden.partial_trace(1).to_dense()
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([
        PartialTrace(hidden, 1, probes=2, generator=generator).to_dense() for _ in range(400)
    ])
    error = samples.std(0) / 20
    assert bool(((samples.mean(0) - exact).abs() < 4 * error).all())
    assert PartialTrace(hidden, 1, probes=6, generator=generator).vectors is None


def test_sampled_partial_trace_of_a_gram_stays_positive() -> None:
    found = PartialTrace(P @ P.T, 1, probes=2, generator=torch.Generator().manual_seed(0))
    assert found.is_psd
    assert torch.linalg.eigvalsh(found.to_dense()).min() > -1e-12
    assert str(found) == "tr_1[2 probes](Dense Dense*)"


def test_comparison_is_exact_on_small_spaces() -> None:
    other = dense(2, 3, 2, 3, shape_in=(2, 3), seed=8)
    found = P.compare(other)
    wanted = (P.matrix - other.matrix).norm() / other.matrix.norm()
    assert found.value == pytest.approx(float(wanted))
    assert found.stderr == 0.0
    assert P.compare(P).value == 0.0


def test_comparison_by_samples_covers_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    M, E = random(200, 200), 0.1 * random(200, 200, seed=1)
    left, right = Dense(M + E), Dense(M)
    truth = float(E.norm() / M.norm())
    found = [left.compare(right, products=10, generator=generator) for _ in range(100)]
    values = torch.tensor([e.value for e in found])
    errors = torch.tensor([e.stderr for e in found])
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 10
    assert 0.7 < float(errors.mean() / values.std()) < 1.4
    assert right.compare(right, products=10).value == 0.0
    with pytest.raises(FloatingPointError, match="not finite"):
        right.compare(math.nan * right, products=10)
