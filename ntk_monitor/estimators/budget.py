"""What every estimator asks of its operator, its budget and its products."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ntk_monitor.operators import LinearOperator


def dimension(A: LinearOperator) -> int:
    """Dimension of the space that an operator maps to itself.

    Args:
        A: The operator.

    Returns:
        The number of entries of an input.

    Raises:
        ValueError: If it maps between two spaces.
    """
    if A.shape_in != A.shape_out:
        raise ValueError(
            f"{A}: {A.shape_in} -> {A.shape_out} has no trace: it must map a space to itself"
        )
    return prod(A.shape_in)


def require_psd(A: LinearOperator) -> None:
    """Refuse an operator that is not known to be positive semidefinite.

    Args:
        A: The operator.

    Raises:
        ValueError: If it is not.
    """
    if not A.is_psd:
        raise ValueError(
            f"{A} is not known to be symmetric positive semidefinite: build it as L @ L.T, or "
            "declare it with is_psd=True"
        )


def require_budget(products: int, least: int, multiple: int = 1) -> None:
    """Refuse a budget that cannot be spent as it is.

    Args:
        products: The budget.
        least: The smallest one that gives a standard error.
        multiple: What it must be divisible by.

    Raises:
        ValueError: If it is too small or does not divide.
    """
    if products < least or products % multiple:
        divisible = "" if multiple == 1 else f" and divisible by {multiple}"
        raise ValueError(f"products must be at least {least}{divisible}, got {products}")


def gaussian(A: LinearOperator, count: int, generator: torch.Generator) -> Tensor:
    """Standard normal inputs.

    Args:
        A: The operator.
        count: How many.
        generator: Their source.

    Returns:
        Shape ``(count, *shape_in)``, in the operator's dtype and on its device.
    """
    X = torch.randn(count, *A.shape_in, generator=generator, device=generator.device)
    return X.to(A.device, A.dtype)


def images(A: LinearOperator, X: Tensor) -> Tensor:
    """Products with flat vectors, checked.

    Args:
        A: The operator.
        X: Inputs, shape ``(b, *shape_in)`` or ``(b, N)``.

    Returns:
        Shape ``(b, M)`` in float64.

    Raises:
        FloatingPointError: If one of them is not finite.
    """
    Y = A.matmat(X.to(A.dtype).reshape(len(X), *A.shape_in)).reshape(len(X), -1).double()
    if not bool(torch.isfinite(Y).all()):
        raise FloatingPointError(f"{A} has products that are not finite")
    return Y


def dense_matrix(A: LinearOperator) -> Tensor:
    """All entries of a small operator, checked; as many products as its dimension.

    Args:
        A: The operator.

    Returns:
        A matrix in float64.

    Raises:
        FloatingPointError: If an entry is not finite.
    """
    matrix = A.to_dense().reshape(prod(A.shape_out), prod(A.shape_in)).double()
    if not bool(torch.isfinite(matrix).all()):
        raise FloatingPointError(f"{A} has products that are not finite")
    return matrix
