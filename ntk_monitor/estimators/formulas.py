"""The two ratios that every kernel metric is, effective rank and cosine; and what sums share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def participation_ratio(trace_squared: Tensor, norm_squared: Tensor) -> Tensor:
    r"""Participation ratio of a positive semidefinite operator.

    .. math:: \mathrm{PR}(M) = (\mathrm{tr}\, M)^2 / \|M\|_F^2

    It lies between 1 (a single eigenvalue) and the dimension (all eigenvalues equal), and does
    not change when ``M`` is multiplied by a number.

    Args:
        trace_squared: ``(tr M)^2``.
        norm_squared: ``||M||_F^2``.

    Returns:
        The effective rank, elementwise.
    """
    return trace_squared / norm_squared


def cosine(inner: Tensor, norm_squared: Tensor, other_norm_squared: Tensor) -> Tensor:
    r"""Cosine of the angle between two operators.

    .. math:: \cos(M, N) = \langle M, N \rangle / (\|M\|_F \|N\|_F)

    It lies in [0, 1] when both are positive semidefinite.

    Args:
        inner: ``<M, N>``.
        norm_squared: ``||M||_F^2``.
        other_norm_squared: ``||N||_F^2``.

    Returns:
        The cosine, elementwise.
    """
    return inner / (norm_squared * other_norm_squared).sqrt()


def relative_gap(gap: float, size: float) -> float:
    """A difference in relation to a size.

    Args:
        gap: The difference.
        size: The size, 0 or more.

    Returns:
        ``|gap| / size``; 0 where both are.
    """
    if size == 0:
        return 0.0 if gap == 0 else math.inf
    return abs(gap) / size


def at_least_float32(X: Tensor) -> Tensor:
    """A tensor, in float32 if it is of 16 bits, in which nothing can be summed up.

    Args:
        X: A floating tensor.

    Returns:
        The tensor itself, or a copy.
    """
    return X.float() if torch.finfo(X.dtype).bits < 32 else X
