"""Subspace iteration on a map that is given as a function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SPARE = 10
"""Columns beyond the wanted ones that speed up subspace iteration."""


def subspace_iteration(
    apply: Callable[[Tensor], Tensor], start: Tensor, count: int, *, iterations: int = 4
) -> tuple[Tensor, Tensor]:
    """Leading eigenpairs by randomized subspace iteration with a Rayleigh-Ritz step.

    Args:
        apply: The map on a block of columns, ``(dimension, b) -> (dimension, b)``.
        start: Starting block, ``(dimension, b)``; random (`starting_block`), or better.
        count: How many pairs to return, at most ``b``.
        iterations: Number of applications before the last one. The error of pair ``i`` falls with
            ``(eigenvalue[b] / eigenvalue[i]) ** (2 * iterations)``.

    Returns:
        Eigenvalues, descending, shape ``(count,)``, and orthonormal eigenvectors, shape
        ``(dimension, count)``, each with its entry of largest magnitude positive.

    References:
        Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 53 (2011).
    """
    Q = start
    for _ in range(iterations):
        Q = torch.linalg.qr(apply(Q)).Q
    values, rotation = torch.linalg.eigh(Q.T @ apply(Q))
    vectors = Q @ rotation.flip(1)[:, :count]
    return values.flip(0)[:count].clamp(min=0), fix_signs(vectors)


def starting_block(
    dimension: int, count: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A random block for `subspace_iteration`, with `SPARE` more columns than are asked for.

    Args:
        dimension: Size of the space.
        count: How many pairs are wanted.
        generator: Source of the block; its device is where the work is done.
        dtype: Floating type.

    Returns:
        Shape ``(dimension, b)`` with ``b = min(dimension, count + SPARE)``.
    """
    block = min(dimension, count + SPARE)
    return torch.randn(dimension, block, generator=generator, device=generator.device, dtype=dtype)


def fix_signs(vectors: Tensor) -> Tensor:
    """Flip each column so that its entry of largest magnitude is positive.

    Args:
        vectors: Columns, shape ``(dimension, count)``.

    Returns:
        The same columns up to sign.
    """
    peaks = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(peaks < 0, -1.0, 1.0).to(vectors.dtype)
