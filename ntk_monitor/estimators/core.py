"""The core's factor: the Gram matrix of site activity, never formed larger than it must be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ntk_monitor.estimators.formulas import at_least_float32, participation_ratio
from ntk_monitor.ranks import ALONE, Ranks

PIECE = 256
"""Rows or columns of site activity that are converted to float64 at a time."""
ROUNDING = 4
"""Rounding units of the largest eigenvalue within which an eigenvalue may be zero."""


class CoreGram:
    r"""The Gram matrix :math:`G = V V^*` of site activity, all of it exact.

    Of ``V`` nothing is kept but a factor of ``G``, which has few columns where the spectrum of
    ``G`` decays fast. The rows of ``V`` may be spread over processes; then all have the same
    spectrum, and each its own rows of the factor.

    Attributes:
        spectrum: Eigenvalues of ``G`` that can differ from zero, descending, shape
            ``(min(k, m),)``; nan where the activity is not finite.
        factor: This process's rows of ``F``, shape ``(k_r, r)``, ``r <= m``, with ``F F* = G`` up
            to rounding: directions are left out whose eigenvalues cannot be told from zero in the
            arithmetic of ``V``, or in float32 if that is of 16 bits.
        norm_squared: ``||G||_F^2``.
        is_finite: Whether the activity is.
        ranks: The processes.
    """

    def __init__(self, *activities: Tensor, ranks: Ranks = ALONE) -> None:
        """Take the Gram matrix.

        Args:
            activities: The columns of ``V``, site by site, each of shape ``(k_r, m_l)``.
            ranks: The processes over which the rows are spread.
        """
        self.ranks = ranks
        activities = tuple(map(at_least_float32, activities))
        own = ranks.own(len(activities[0]))
        columns = sum(V.shape[1] for V in activities)
        by_columns = columns <= sum(ranks.counts(len(activities[0])))
        if by_columns:
            small = ranks.sum(_columns_gram(activities))
        else:
            small = _rows_gram(activities, ranks)
        self.norm_squared = small.square().sum()
        self.is_finite = bool(torch.isfinite(self.norm_squared))
        self._trace = small.trace()
        dtype = activities[0].dtype
        if self.is_finite:
            values, vectors = (ranks.first(x) for x in torch.linalg.eigh(small.to(dtype)))
        else:
            vectors = torch.full_like(small, torch.nan)
            values = vectors.diagonal()
        self.spectrum = values.flip(0).clamp(min=0).double().cpu()
        kept = ~(values <= ROUNDING * torch.finfo(dtype).eps * values[-1:])
        vectors = vectors[:, kept]
        if by_columns:
            parts = torch.split(vectors.to(dtype), [V.shape[1] for V in activities])
            self.factor = activities[0] @ parts[0]
            for V, part in zip(activities[1:], parts[1:], strict=True):
                self.factor += V @ part
        else:
            self.factor = (vectors[own] * values[kept].sqrt()).to(dtype)

    @property
    def effective_rank(self) -> float:
        """``(tr G)^2 / ||G||_F^2``; nan for ``G = 0``."""
        return float(participation_ratio(self._trace.square(), self.norm_squared))

    def overlap(self, q: Tensor) -> float:
        r"""How much of the core's largest gain a direction gets.

        .. math:: \|V^* q\|_F^2 / (\|V\|_{op}^2 \|q\|_F^2) \in [0, 1]

        Args:
            q: Direction over the state's rows, this process's part, shape ``(k_r,)`` or
                ``(k_r, n)``.

        Returns:
            The overlap; nan when ``V`` or ``q`` is zero.
        """
        image = self.ranks.sum(self.factor.double().T @ q.double())
        size = self.ranks.sum(q.double().square().sum())
        largest = self.spectrum[0].to(q.device) if len(self.spectrum) else q.new_zeros(())
        return float(image.square().sum() / (largest * size))


def _rows_gram(activities: Sequence[Tensor], ranks: Ranks) -> Tensor:
    """``V V*`` in float64, of the rows of all processes."""
    rows = sum(ranks.counts(len(activities[0])))
    gram = activities[0].new_zeros(rows, rows, dtype=torch.float64)
    for V in activities:
        for piece in torch.split(V, PIECE, dim=1):
            wide = ranks.join(piece).double()
            gram += wide @ wide.T
    return gram


def _columns_gram(activities: Sequence[Tensor]) -> Tensor:
    """``V* V`` in float64."""
    columns = sum(V.shape[1] for V in activities)
    gram = activities[0].new_zeros(columns, columns, dtype=torch.float64)
    for pieces in zip(*(torch.split(V, PIECE) for V in activities), strict=True):
        wide = torch.cat(pieces, dim=1).double()
        gram += wide.T @ wide
    return gram
