"""The core's factor: the Gram matrix of site activity, never formed larger than it must be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ntk_monitor.estimators.formulas import participation_ratio


@dataclass(frozen=True)
class CoreGram:
    r"""The Gram matrix :math:`G = V V^*` of site activity, all of it exact.

    Attributes:
        V: Site activity with the columns of all sites side by side, shape ``(k, m)``.
    """

    V: Tensor

    @cached_property
    def _small(self) -> Tensor:
        """The smaller of ``V V*`` and ``V* V``, which share their nonzero eigenvalues; float64."""
        V = self.V.double()
        return V.T @ V if V.shape[1] <= V.shape[0] else V @ V.T

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenpairs of the smaller Gram matrix, ascending; nan where it is not finite."""
        small = self._small
        if bool(torch.isfinite(small).all()):
            values, vectors = torch.linalg.eigh(small)
            return values, vectors
        return torch.full_like(small[0], torch.nan), torch.full_like(small, torch.nan)

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of ``G`` that can differ from zero, descending, shape ``(min(k, m),)``."""
        return self._eigen[0].flip(0).clamp(min=0).cpu()

    @cached_property
    def factor(self) -> Tensor:
        """``F`` of shape ``(k, r)``, ``r <= m``, with ``F F* = G`` up to rounding.

        Directions are left out whose eigenvalues sum to less than the rounding unit of ``V``
        times the trace of ``G``. Activity with fast decaying spectrum has few columns left.
        """
        values, vectors = self._eigen
        limit = torch.finfo(self.V.dtype).eps * values.sum()
        kept = ~(values.clamp(min=0).cumsum(0) < limit)
        if self.V.shape[1] <= self.V.shape[0]:
            return self.V @ vectors[:, kept].to(self.V.dtype)
        return (vectors[:, kept] * values[kept].sqrt()).to(self.V.dtype)

    @property
    def norm_squared(self) -> Tensor:
        """``||G||_F^2``."""
        return self._small.square().sum()

    @property
    def effective_rank(self) -> float:
        """``(tr G)^2 / ||G||_F^2``; nan for ``G = 0``."""
        return float(participation_ratio(self._small.trace().square(), self.norm_squared))

    def overlap(self, q: Tensor) -> float:
        r"""How much of the core's largest gain a direction gets.

        .. math:: \|V^* q\|_F^2 / (\|V\|_{op}^2 \|q\|_F^2) \in [0, 1]

        Args:
            q: Direction over the state's rows, shape ``(k,)`` or ``(k, n)``.

        Returns:
            The overlap; nan when ``V`` or ``q`` is zero.
        """
        q = q.double()
        image = self.V.double().T @ q
        largest = self.spectrum[0].to(q.device) if len(self.spectrum) else q.new_zeros(())
        return float(image.square().sum() / (largest * q.square().sum()))
