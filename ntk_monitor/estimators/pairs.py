"""Pair functions of samples: what the U-statistics of a kernel's views are means of."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_norms(X: Tensor) -> Tensor:
    """``||X_i||_F^2`` of each matrix, its rows accumulated in float64.

    Args:
        X: Shape ``(s, a, b)``.

    Returns:
        Shape ``(s,)``, on the CPU.
    """
    rows: Tensor = torch.linalg.vector_norm(X, dim=2)
    return rows.double().square().sum(1).cpu()


class GramPairs:
    """``||Y_i* Y_j||_F^2 = <Y_i Y_i*, Y_j Y_j*>`` over pairs of samples that come in rounds.

    With ``Y_i`` of shape ``(a, b)`` the right side costs ``a^2 b`` a sample, whose Gram matrix is
    kept, and is taken when ``a <= b``; the left side costs ``a b^2`` a pair, and keeps the samples.
    """

    def __init__(self) -> None:
        """Start without samples."""
        self._kept = torch.empty(0)

    def extend(self, Y: Tensor) -> Tensor:
        """Add samples.

        Args:
            Y: Shape ``(s, a, b)``.

        Returns:
            The pairs of all samples so far with the new ones, shape ``(all, s)``.
        """
        by_gram = Y.shape[1] <= Y.shape[2]
        new = Y @ Y.transpose(1, 2) if by_gram else Y
        old = len(self._kept)
        kept = self._kept = torch.cat([self._kept, new]) if old else new
        if by_gram:
            return (kept.flatten(1).double() @ new.flatten(1).double().T).cpu()
        pairs = torch.zeros(len(kept), len(new), dtype=torch.float64)
        for j in range(len(new)):
            column = squared_norms(kept[: old + j + 1].transpose(1, 2) @ new[j])
            pairs[: old + j + 1, j] = column
            pairs[old + j, :j] = column[old : old + j]
        return pairs
