"""Frobenius norms, inner products and cosines of operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ntk_monitor.estimators.budget import dense_matrix, gaussian, images, require_budget
from ntk_monitor.estimators.formulas import cosine
from ntk_monitor.operators import LinearOperator
from ntk_monitor.uncertainty import (
    Estimate,
    jackknife,
    log_jackknife,
    mean_and_deletes,
    mean_estimate,
)


def frobenius_norm(A: LinearOperator, products: int, generator: torch.Generator) -> Estimate:
    r"""The Frobenius norm.

    .. math:: \|A\|_F^2 = E \|A z\|^2, \quad z \sim N(0, I)

    The square is unbiased, with relative variance ``2 tr (A^*A)^2 / ((tr A^*A)^2 products)``; its
    root is bias-corrected by the jackknife.

    Args:
        A: Any operator.
        products: Products to spend, at least 3; with as many as input dimensions the result is
            exact.
        generator: Source of the vectors.

    Returns:
        ``||A||_F``.

    References:
        Gratton and Titley-Peloquin, SIAM Journal on Matrix Analysis 39 (2018).
    """
    require_budget(products, 3)
    if products >= A.input_size:
        return Estimate(float(dense_matrix(A).norm()))
    squares = images(A, gaussian(A, products, generator)).square().sum(1)
    return log_jackknife(mean_and_deletes(squares).sqrt().cpu())


def inner_product(
    A: LinearOperator, B: LinearOperator, products: int, generator: torch.Generator
) -> Estimate:
    r"""The inner product of two operators between the same spaces.

    .. math:: \langle A, B\rangle = \mathrm{tr}(A^* B) = E\,\langle A z, B z\rangle

    Unbiased.

    Args:
        A: One operator.
        B: The other.
        products: Products to spend on each, at least 2; with as many as input dimensions the
            result is exact.
        generator: Source of the vectors, which the two share.

    Returns:
        ``<A, B>``.
    """
    require_budget(products, 2)
    left, right, exact = _both(A, B, products, generator)
    products_of_rows = (left * right).sum(1)
    return Estimate(float(products_of_rows.sum())) if exact else mean_estimate(products_of_rows)


def operator_cosine(
    A: LinearOperator, B: LinearOperator, products: int, generator: torch.Generator
) -> Estimate:
    r"""The cosine of the angle between two operators.

    .. math:: \cos(A, B) = \langle A, B\rangle / (\|A\|_F \|B\|_F)

    All three moments come from the same vectors, so that equal operators have a cosine of exactly
    one; the ratio is bias-corrected by the jackknife.

    Args:
        A: One operator.
        B: The other.
        products: Products to spend on each, at least 3; with as many as input dimensions the
            result is exact.
        generator: Source of the vectors.

    Returns:
        The cosine, in [-1, 1] up to its error.

    Raises:
        ValueError: If one of the operators is zero.
    """
    require_budget(products, 3)
    left, right, exact = _both(A, B, products, generator)
    moments = [(x * y).sum(1) for x, y in ((left, right), (left, left), (right, right))]
    for operator, size in ((A, moments[1]), (B, moments[2])):
        if not bool(size.any()):
            raise ValueError(f"{operator} is zero: its angle with another operator is undefined")
    if exact:
        return Estimate(float(cosine(*(m.sum() for m in moments))))
    values = cosine(*(mean_and_deletes(m) for m in moments)).cpu()
    return log_jackknife(values) if bool((values > 0).all()) else jackknife(values)


def _both(
    A: LinearOperator, B: LinearOperator, products: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, bool]:
    """Images of the same vectors as rows; or all entries, and that it is so."""
    if (A.shape_in, A.shape_out) != (B.shape_in, B.shape_out):
        raise ValueError(
            f"{A}: {A.shape_in} -> {A.shape_out} and {B}: {B.shape_in} -> {B.shape_out} do not "
            "map between the same spaces"
        )
    if products >= A.input_size:
        return dense_matrix(A), dense_matrix(B), True
    X = gaussian(A, products, generator)
    return images(A, X), images(B, X), False
