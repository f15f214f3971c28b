"""Pair functions of samples: what the U-statistics of a kernel's views are means of."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 2**14
"""Entries of a row that are converted to float64 at a time."""


def squared_norms(X: Tensor) -> Tensor:
    """``||X_i||_F^2`` of each matrix, its rows accumulated in float64.

    Args:
        X: Shape ``(s, a, b)``.

    Returns:
        Shape ``(s,)``, on the CPU.
    """
    rows: Tensor = torch.linalg.vector_norm(X, dim=2)
    return rows.double().square().sum(1).cpu()


def inner_products(X: Tensor, Y: Tensor) -> Tensor:
    """``<X_i, Y_j>``, accumulated in float64 piece by piece.

    Args:
        X: Shape ``(r, a)``.
        Y: Shape ``(s, a)``.

    Returns:
        Shape ``(r, s)``, on the CPU.
    """
    pieces = zip(torch.split(X, PIECE, dim=1), torch.split(Y, PIECE, dim=1), strict=True)
    return torch.stack([x.double() @ y.double().T for x, y in pieces]).sum(0).cpu()


class GramPairs:
    """``||Y_i* Y_j||_F^2 = <Y_i Y_i*, Y_j Y_j*>`` over pairs of samples that come in rounds.

    With ``Y_i`` of shape ``(a, b)`` the right side costs ``a^2 b`` a sample, whose Gram matrix is
    kept, and is taken when ``a <= 2 b``; the left side costs ``a b^2`` a pair, and refers to the
    samples.
    """

    def __init__(self) -> None:
        """Start without samples."""
        self._kept: list[Tensor] = []

    def extend(self, Y: Tensor) -> Tensor:
        """Add samples.

        Args:
            Y: Shape ``(s, a, b)``.

        Returns:
            The pairs of all samples so far with the new ones, shape ``(all, s)``.
        """
        if Y.shape[1] <= 2 * Y.shape[2]:
            new = (Y @ Y.transpose(1, 2)).flatten(1)
            self._kept.append(new)
            return torch.cat([inner_products(kept, new) for kept in self._kept])
        self._kept.append(Y)
        columns = [
            torch.cat([squared_norms(kept.transpose(1, 2) @ y) for kept in self._kept]) for y in Y
        ]
        return torch.stack(columns, dim=1)


class PairMoments:
    """What the moments of a kernel are means of, for all samples and all pairs of them.

    Attributes:
        core: ``F`` of the core ``F F*`` on the samples' rows, shape ``(d, r)``.
        squares: ``||Y_i||_F^2``.
        core_squares: ``||F* Y_i||_F^2``.
        pairs: ``<Y_i, Y_j>^2``, ``||Y_i* Y_j||_F^2`` and ``||Y_i Y_j*||_F^2``, shape ``(3, s, s)``.
    """

    def __init__(self, core: Tensor) -> None:
        """Start without samples."""
        self.core = core
        self.squares = torch.empty(0, dtype=torch.float64, device="cpu")
        self.core_squares = torch.empty(0, dtype=torch.float64, device="cpu")
        self.pairs = torch.empty(3, 0, 0, dtype=torch.float64, device="cpu")
        self._flat: list[Tensor] = []
        self._temporal, self._spatial = GramPairs(), GramPairs()

    def extend(self, Y: Tensor) -> None:
        """Add samples, shape ``(s, d, n)``."""
        old, new = len(self.squares), Y.flatten(1)
        self.squares = torch.cat([self.squares, squared_norms(Y)])
        self.core_squares = torch.cat([self.core_squares, squared_norms(self.core.T @ Y)])
        self._flat.append(new)
        inner = torch.cat([inner_products(kept, new) for kept in self._flat])
        columns = torch.stack([
            inner.square(), self._temporal.extend(Y), self._spatial.extend(Y.transpose(1, 2))
        ])  # fmt: skip
        count = len(self.squares)
        pairs = torch.zeros(3, count, count, dtype=torch.float64, device="cpu")
        pairs[:, :old, :old] = self.pairs
        pairs[:, :, old:] = columns
        pairs[:, old:, :old] = columns[:, :old].transpose(1, 2)
        self.pairs = pairs
