"""Effective ranks of an operator's views, and ranks of what it makes of an error."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ntk_monitor.estimators.budget import (
    dense_matrix,
    dimension,
    gaussian,
    images,
    require_budget,
    require_psd,
)
from ntk_monitor.estimators.formulas import participation_ratio
from ntk_monitor.estimators.pairs import TemporalPairs
from ntk_monitor.operators import LinearOperator
from ntk_monitor.operators.tracing import traced_axes
from ntk_monitor.uncertainty import Estimate, jackknife, log_jackknife, pair_mean_and_deletes


def effective_rank(
    A: LinearOperator,
    products: int,
    generator: torch.Generator,
    *,
    traced: int | tuple[int, ...] = (),
) -> Estimate:
    r"""Participation ratio of an operator, or of its partial trace over some axes.

    .. math:: \mathrm{PR}(M) = (\mathrm{tr} M)^2 / \|M\|_F^2

    Numerator and denominator are U-statistics over pairs of the same samples, and the ratio is
    bias-corrected by the jackknife. Where a factor ``A = L L*`` is known, the samples are
    ``y = L g``, whose covariance is ``A``, and a product is one of ``L``; else ``z, A z``.

    Args:
        A: A positive semidefinite operator.
        products: Products to spend, at least 4; with as many as dimensions the result is exact.
        generator: Source of the vectors.
        traced: Axes to trace over first; none for ``A`` itself.

    Returns:
        The effective rank.

    Raises:
        ValueError: If the operator is zero, or so few products leave no positive norm.

    References:
        Kong and Valiant, Annals of Statistics 45 (2017).
    """
    require_budget(products, 4)
    require_psd(A)
    axes = traced_axes(A, traced)
    N = dimension(A)
    if products >= N:
        matrix = A.partial_trace(axes)
        M = dense_matrix(matrix)
        _require_nonzero(A, M)
        return Estimate(float(participation_ratio(M.trace().square(), M.square().sum())))
    if A.factor is not None:
        trace_squared, norm_squared = _from_factor(A, A.factor, axes, products, generator)
    else:
        trace_squared, norm_squared = _from_products(A, axes, products, generator)
    if not bool((norm_squared[0] > 0) & (trace_squared[0] > 0)):
        raise ValueError(
            f"{products} products are too few for the effective rank of {A}: its squared norm or "
            "trace came out negative; spend more"
        )
    values = participation_ratio(trace_squared, norm_squared)
    return log_jackknife(values) if bool((values > 0).all()) else jackknife(values)


def correction_rank(A: LinearOperator, error: Tensor, rtol: float | None = None) -> int:
    r"""Rank of the correction :math:`\delta h = A\, err` as a matrix of rows by units.

    Proposition 2 bounds it by the ranks of both partial traces of ``A``; one product.

    Args:
        A: An operator on states of shape ``(..., n)``.
        error: An error signal of that shape.
        rtol: Singular values below so much of the largest count as zero; by default the rounding
            unit times the larger side of the matrix.

    Returns:
        The rank.

    Raises:
        FloatingPointError: If the correction is not finite.
    """
    correction = A.matvec(error)
    if not bool(torch.isfinite(correction).all()):
        raise FloatingPointError(f"the correction by {A} is not finite")
    matrix = correction.reshape(-1, correction.shape[-1])
    return int(torch.linalg.matrix_rank(matrix, rtol=rtol))


def _from_factor(
    A: LinearOperator,
    L: LinearOperator,
    axes: tuple[int, ...],
    products: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Pair statistics of samples ``L g``: ``(tr A)^2`` and the squared norm of the view."""
    samples = images(L, gaussian(L, products, generator))
    _require_nonzero(A, samples)
    squares = samples.square().sum(1).cpu()
    Y = _by_view(samples, A, axes)
    pairs = TemporalPairs().extend(Y, Y) if axes else (samples @ samples.T).square().cpu()
    return pair_mean_and_deletes(torch.outer(squares, squares)), pair_mean_and_deletes(pairs)


def _from_products(
    A: LinearOperator, axes: tuple[int, ...], products: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same from ``z`` and ``A z``: ``E tr(A z z^*)`` over the traced axes is the view."""
    X = gaussian(A, products, generator).reshape(products, -1).double()
    Y = images(A, X)
    _require_nonzero(A, Y)
    traces = (X * Y).sum(1).cpu()
    Z, Y = _by_view(X, A, axes), _by_view(Y, A, axes)
    # <Y_i Z_i*, Y_j Z_j*> = <Y_i* Y_j, Z_i* Z_j>; averaged with one of the two transposed.
    pairs = torch.zeros(products, products, dtype=torch.float64, device="cpu")
    for j in range(products):
        straight = (Y.transpose(1, 2) @ Y[j]) * (Z.transpose(1, 2) @ Z[j])
        crossed = (Y.transpose(1, 2) @ Z[j]) * (Z.transpose(1, 2) @ Y[j])
        pairs[:, j] = (straight.sum((1, 2)) + crossed.sum((1, 2))).cpu() / 2
    return pair_mean_and_deletes(torch.outer(traces, traces)), pair_mean_and_deletes(pairs)


def _by_view(samples: Tensor, A: LinearOperator, axes: tuple[int, ...]) -> Tensor:
    """Samples as matrices: kept axes by traced axes."""
    kept = [axis for axis in range(len(A.shape_in)) if axis not in axes]
    tensors = samples.reshape(-1, *A.shape_in).permute(0, *(1 + a for a in (*kept, *axes)))
    return tensors.reshape(len(samples), prod(A.shape_in[axis] for axis in kept), -1)


def _require_nonzero(A: LinearOperator, images: Tensor) -> None:
    if not bool(images.any()):
        raise ValueError(f"{A} is zero: its effective rank is undefined")
