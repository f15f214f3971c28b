"""Traces by random vectors, plain and after deflation."""

from __future__ import annotations

import torch

from ntk_monitor.estimators.budget import (
    dense_matrix,
    dimension,
    gaussian,
    images,
    require_budget,
)
from ntk_monitor.operators import LinearOperator
from ntk_monitor.uncertainty import Estimate, mean_estimate


def hutchinson(A: LinearOperator, products: int, generator: torch.Generator) -> Estimate:
    r"""The trace by Girard's and Hutchinson's estimator.

    .. math:: \mathrm{tr} A = E\,\langle z, A z\rangle, \quad z \sim N(0, I)

    Unbiased; for a symmetric operator the variance of the mean is ``2 ||A||_F^2 / products``, a
    relative error of ``sqrt(2 / (products PR(A)))``: good where the effective rank is large.

    Args:
        A: An operator from a space to itself.
        products: Products to spend, at least 2; with as many as dimensions the result is exact.
        generator: Source of the vectors.

    Returns:
        The trace.

    References:
        Girard, Numerische Mathematik 56 (1989); Hutchinson, Communications in Statistics 18 (1989).
    """
    require_budget(products, 2)
    if products >= dimension(A):
        return Estimate(float(dense_matrix(A).trace()))
    X = gaussian(A, products, generator)
    return mean_estimate((X.reshape(products, -1).double() * images(A, X)).sum(1))


def hutch_plus_plus(A: LinearOperator, products: int, generator: torch.Generator) -> Estimate:
    r"""The trace by Hutch++: exact on a sketched range, Hutchinson on the rest.

    .. math:: \mathrm{tr} A = \mathrm{tr}(Q^* A Q) + \mathrm{tr}((I - QQ^*) A (I - QQ^*)),
        \quad Q = \mathrm{orth}(A\,\Omega)

    Unbiased, since the second term is estimated with vectors independent of ``Q``; the relative
    error is of order ``1 / products`` for positive semidefinite operators, against the square
    root of it for `hutchinson`. A third of the products each goes to ``A Omega``, ``A Q`` and the
    rest.

    Args:
        A: An operator from a space to itself.
        products: Products to spend, at least 6 and divisible by 3; with as many as dimensions the
            result is exact.
        generator: Source of the vectors.

    Returns:
        The trace; its standard error is that of the second term.

    References:
        Meyer, Musco, Musco and Woodruff, arXiv:2010.09649 (2021).
    """
    require_budget(products, 6, multiple=3)
    if products >= dimension(A):
        return Estimate(float(dense_matrix(A).trace()))
    third = products // 3
    Q = torch.linalg.qr(images(A, gaussian(A, third, generator)).T).Q
    head = (Q.T * images(A, Q.T)).sum()
    X = gaussian(A, third, generator).reshape(third, -1).double()
    X = X - (X @ Q) @ Q.T
    rest = mean_estimate((X * images(A, X)).sum(1))
    return Estimate(float(head) + rest.value, rest.stderr)
