"""Pair functions of samples: what the U-statistics of a kernel's views are means of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ntk_monitor.processes import ALONE, Processes

Views = Callable[[Tensor], tuple[Tensor, Tensor]]
WIDE = 4
"""How many times as long as the other one a side may be of which Gram matrices are kept."""
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


class _Pairs:
    """A pair function over samples that come in rounds; each process has a share of its work.

    What one process finds is summed over processes by whoever asks.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        """Start without samples.

        Args:
            processes: The processes, which all have the same samples.
        """
        self._processes = processes
        self._kept: list[tuple[Tensor, Tensor]] = []


class TemporalPairs(_Pairs):
    """``||Y_i* Y_j||_F^2 = <Y_i Y_i*, Y_j Y_j*>`` over pairs of samples.

    Of two views ``A_i``, ``B_i`` of a sample it is ``<A_i* A_j, B_i* B_j> = <A_i B_i*, A_j B_j*>``.
    With ``Y_i`` of shape ``(a, b)`` the right side costs ``a^2 b`` a sample, whose Gram matrix is
    kept, and is taken when ``a <= 4 b``; the left side costs ``a b^2`` a pair, and refers to the
    samples. A process's share is some rows of these matrices.
    """

    def extend(self, A: Tensor, B: Tensor) -> Tensor:
        """Add samples.

        Args:
            A: One view of each, shape ``(s, a, b)``.
            B: The other view; the same tensor where there is one.

        Returns:
            This process's share of the pairs of all samples so far with the new ones, shape
            ``(all, s)``.
        """
        if A.shape[1] <= WIDE * A.shape[2]:
            own = self._processes.share(A.shape[1])
            new = (A[:, own] @ B.transpose(1, 2)).flatten(1)
            self._kept.append((new, new))
            return torch.cat([inner_products(kept, new) for kept, _ in self._kept])
        own = self._processes.share(A.shape[2])
        one = A[:, :, own]
        self._kept.append((one, one if B is A else B[:, :, own]))
        columns = [
            torch.cat([_against(one, two, a, b) for one, two in self._kept])
            for a, b in zip(A, B, strict=True)
        ]
        return torch.stack(columns, dim=1)


class SpatialPairs(_Pairs):
    """``||Y_i Y_j*||_F^2`` over pairs of samples.

    Of two views it is the mean of ``||A_i B_j*||_F^2`` and ``||B_i A_j*||_F^2``. With ``b <= 4 a``
    the Gram matrices ``Y_i* Y_i`` are kept, else the samples are referred to.
    """

    def extend(self, A: Tensor, B: Tensor) -> Tensor:
        """Add samples; see `TemporalPairs`.

        Args:
            A: One view of each, shape ``(s, a, b)``.
            B: The other view; the same tensor where there is one.

        Returns:
            This process's share of the pairs of all samples so far with the new ones, shape
            ``(all, s)``.
        """
        if A.shape[2] <= WIDE * A.shape[1]:
            own = self._processes.share(A.shape[2])
            one = (A[:, :, own].transpose(1, 2) @ A).flatten(1)
            two = one if B is A else (B[:, :, own].transpose(1, 2) @ B).flatten(1)
            self._kept.append((one, two))
            pairs = torch.cat([inner_products(kept, two) for kept, _ in self._kept])
            if B is A:
                return pairs
            return (pairs + torch.cat([inner_products(kept, one) for _, kept in self._kept])) / 2
        own = self._processes.share(A.shape[1])
        self._kept.append((A[:, own], B[:, own]))
        columns = []
        for a, b in zip(A, B, strict=True):
            column = torch.cat([squared_norms(one @ b.T) for one, _ in self._kept])
            if B is not A:
                other = torch.cat([squared_norms(two @ a.T) for _, two in self._kept])
                column = (column + other) / 2
            columns.append(column)
        return torch.stack(columns, dim=1)


def _against(one: Tensor, two: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``<A_i* a, B_i* b>`` for all samples."""
    found = one.transpose(1, 2) @ a
    if one is two:
        return squared_norms(found)
    products = found * (two.transpose(1, 2) @ b)
    return products.double().sum((1, 2)).cpu()


def _with_columns(before: Tensor, columns: Tensor) -> Tensor:
    """Symmetric matrices that grow by some columns, shape ``(..., s, new)``."""
    old, count = before.shape[-1], columns.shape[-2]
    grown = torch.zeros(*before.shape[:-2], count, count, dtype=before.dtype, device="cpu")
    grown[..., :old, :old] = before
    grown[..., :, old:] = columns
    grown[..., old:, :old] = columns[..., :old, :].transpose(-1, -2)
    return grown


class PairMoments:
    """What the moments of a kernel are means of, for all samples and all pairs of them.

    Attributes:
        squares: ``||Y_i||_F^2``.
        core_squares: ``||F* Y_i||_F^2``, with the core ``F F*``.
        pairs: ``<Y_i, Y_j>^2``, shape ``(s, s)``.
        views: ``||Y_i* Y_j||_F^2`` and ``||Y_i Y_j*||_F^2`` of the first ``v`` samples, shape
            ``(2, v, v)``.
    """

    def __init__(self, core: Tensor, views: Views, processes: Processes = ALONE) -> None:
        """Start without samples.

        Args:
            core: ``F`` on the samples' rows, shape ``(d, r)``.
            views: From samples to two views of them, whose noise is independent, or one twice.
            processes: The processes, which all have the same samples, and share the work.
        """
        self._processes = processes
        self._views, self._core = views, views(core[:, processes.share(core.shape[1])])
        self.squares = torch.empty(0, dtype=torch.float64, device="cpu")
        self.core_squares = torch.empty(0, dtype=torch.float64, device="cpu")
        self.pairs = torch.empty(0, 0, dtype=torch.float64, device="cpu")
        self.views = torch.empty(2, 0, 0, dtype=torch.float64, device="cpu")
        self._flat: list[tuple[Tensor, Tensor]] = []
        self._temporal, self._spatial = TemporalPairs(processes), SpatialPairs(processes)

    def extend(self, Y: Tensor, *, with_views: bool = True) -> None:
        """Add samples.

        Args:
            Y: Shape ``(s, d, n)``.
            with_views: Whether to look at their views, which is most of the work; not any more
                after the first that come without.
        """
        A, B = self._views(Y)
        squares = squared_norms(A) if A is B else (squared_norms(A) + squared_norms(B)) / 2
        self.squares = torch.cat([self.squares, squares])
        own = self._processes.share(A[0].numel())
        self._flat.append((A.flatten(1)[:, own], B.flatten(1)[:, own]))
        ways = (0,) if A is B else (0, 1)
        shares = [
            torch.cat([inner_products(k[i], self._flat[-1][i]) for k in self._flat]) for i in ways
        ]
        if with_views:
            shares += [self._temporal.extend(A, B), self._spatial.extend(A, B)]
        core = self._with_core(A, B)
        sums = self._processes.sum(torch.cat([torch.stack(shares).flatten(), core]))
        self.core_squares = torch.cat([self.core_squares, sums[-len(core) :]])
        products = sums[: -len(core)].reshape(len(shares), -1, len(Y))
        self.pairs = _with_columns(self.pairs, products[0] * products[len(ways) - 1])
        if with_views:
            self.views = _with_columns(self.views, products[len(ways) :])

    def _with_core(self, A: Tensor, B: Tensor) -> Tensor:
        """This process's share of ``||F* Y_i||_F^2``."""
        one = self._core[0].T @ A
        if A is B:
            return squared_norms(one)
        return (one * (self._core[1].T @ B)).double().sum((1, 2)).cpu()
