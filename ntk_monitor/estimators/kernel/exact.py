"""The same numbers from a dense Jacobian, without sampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ntk_monitor.estimators.kernel.core import CoreGram
from ntk_monitor.estimators.kernel.statistics import KernelStatistics
from ntk_monitor.estimators.subspace import fix_signs
from ntk_monitor.uncertainty import Estimate


@dataclass(frozen=True)
class ExactKernel:
    """A kernel ``A = J J*`` given by all entries of ``J``.

    Attributes:
        rows: This process's rows of the Jacobian, by columns: ``rows[c]`` is the image of parameter
            ``c``, shape ``(p, k_r, n)``.
        core: The core on the same rows.
    """

    rows: Tensor
    core: CoreGram

    @cached_property
    def J(self) -> Tensor:
        """All rows, shape ``(p, k, n)``."""
        return self.core.processes.join(self.rows, 1)

    @property
    def statistics(self) -> KernelStatistics:
        """Every number, with standard error zero."""
        flat = self.J.flatten(1).double()
        small = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
        trace = small.trace()
        factor = self.core.processes.join(self.core.factor)
        return KernelStatistics(
            trace=Estimate(float(trace)),
            trace_squared=trace.square().reshape(1),
            norm_squared=small.square().sum().reshape(1),
            temporal_norm_squared=self._temporal.square().sum().reshape(1),
            spatial_norm_squared=self._spatial.square().sum().reshape(1),
            core_inner=(factor.double().T @ self.J.double()).square().sum().reshape(1),
            core_norm_squared=self.core.norm_squared,
            units=self.J.shape[2],
        )

    @property
    def _temporal(self) -> Tensor:
        """``n T``."""
        rows = self.J.double().transpose(0, 1).flatten(1)
        return rows @ rows.T

    @property
    def _spatial(self) -> Tensor:
        """``k S``."""
        rows = self.J.double().flatten(0, 1)
        return rows.T @ rows

    def temporal_eigenpairs(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Leading eigenpairs of ``T``.

        Args:
            count: How many.
            seed: Not used; there is nothing random here.

        Returns:
            Eigenvalues ``(r,)`` and this process's rows of the modes, ``(k_r, r)``, with
            ``r = min(count, k)``.
        """
        del seed
        processes = self.core.processes
        values, vectors = torch.linalg.eigh(self._temporal / self.J.shape[2])
        values, vectors = processes.first(values, vectors)
        order, own = slice(0, count), processes.own(processes.counts(self.rows.shape[1]))
        return values.flip(0)[order].clamp(min=0), fix_signs(vectors.flip(1)[:, order])[own]
