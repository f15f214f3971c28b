"""What is known of a kernel after a probe, however it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ntk_monitor.estimators.formulas import cosine, participation_ratio
from ntk_monitor.uncertainty import Estimate, log_jackknife, sample_count, student

WIDTH = 1.96
"""Standard errors to the end of an interval of 95 %."""


@dataclass(frozen=True)
class KernelStatistics:
    r"""Moments of a kernel ``A`` on a ``k x n`` state, and every number that follows from them.

    Each moment is a vector: its value on all samples, then with each sample left out in turn,
    then with each two. An exact measurement has vectors of length one. With ``T = tr_n(A)/n``,
    ``S = tr_k(A)/k`` and the core ``G``:

    Attributes:
        trace: The trace of ``A``, itself an estimate.
        trace_squared: ``(tr A)^2``.
        norm_squared: ``||A||_F^2``.
        temporal_norm_squared: ``||n T||_F^2``.
        spatial_norm_squared: ``||k S||_F^2``.
        core_inner: ``<A, G (x) I> = <n T, G>``.
        core_norm_squared: ``||G||_F^2``, exact.
        units: ``n``.
        noise: A relative error of all moments beside that of sampling; see `Rows`.
        taken_out: What of ``||A||_F^2`` is known without sampling.
        of_views: ``(tr A)^2`` and ``<A, G (x) I>`` by the samples that the norms of ``T`` and ``S``
            are from, where these are not all.
    """

    trace: Estimate
    trace_squared: Tensor
    norm_squared: Tensor
    temporal_norm_squared: Tensor
    spatial_norm_squared: Tensor
    core_inner: Tensor
    core_norm_squared: Tensor
    units: int
    noise: float = 0.0
    taken_out: float = 0.0
    of_views: tuple[Tensor, Tensor] | None = None

    @property
    def frobenius_norm(self) -> Estimate:
        """``||A||_F``; the error of what was sampled of it is taken on a scale of its own."""
        found = self._norm
        rest = self.norm_squared - self.taken_out
        if not self.taken_out or not bool((rest > 0).all()):
            return found
        # A few directions of the rest make most of it, and their squares have a long tail upwards.
        error = WIDTH * self._estimate(rest).relative_error
        above = float(rest[0]) * math.expm1(error) / WIDTH / (2 * float(self.norm_squared[0]))
        return Estimate(found.value, max(found.stderr, above * found.value))

    @property
    def _norm(self) -> Estimate:
        """With the error of the samples alone, which more of them make smaller."""
        return self._estimate(self.norm_squared.sqrt())

    @property
    def effective_rank(self) -> Estimate:
        """Participation ratio of ``A``."""
        return self._estimate(participation_ratio(self.trace_squared, self.norm_squared))

    @property
    def temporal_effective_rank(self) -> Estimate:
        """Participation ratio of ``T``."""
        return self._view_rank(self.temporal_norm_squared)

    @property
    def spatial_effective_rank(self) -> Estimate:
        """Participation ratio of ``S``."""
        return self._view_rank(self.spatial_norm_squared)

    def _view_rank(self, norm_squared: Tensor) -> Estimate:
        trace_squared = self.trace_squared if self.of_views is None else self.of_views[0]
        return self._estimate(participation_ratio(trace_squared, norm_squared))

    @property
    def core_cosine(self) -> Estimate:
        """``cos(A, G (x) I_n)``, which equals ``cos(T, G) sqrt(PR(A) / (n PR(T)))``."""
        norm_squared = self.units * self.core_norm_squared
        values = cosine(self.core_inner, self.norm_squared, norm_squared)
        return self._estimate(values, self._cosine_noise)

    @property
    def temporal_core_cosine(self) -> Estimate:
        """``cos(T, G)``."""
        return self._estimate(self._temporal_cosines, self._cosine_noise)

    @property
    def _temporal_cosines(self) -> Tensor:
        inner = self.core_inner if self.of_views is None else self.of_views[1]
        return cosine(inner, self.temporal_norm_squared, self.core_norm_squared)

    @property
    def _cosine_noise(self) -> float:
        """Relative noise of an inner product, which does not become less as that does."""
        return self.noise / float(self._temporal_cosines[0]) if self.noise else 0.0

    @property
    def relative_error(self) -> float:
        """The largest relative standard error among the sampled numbers; infinite for a nan."""
        estimates = [self.trace, self._norm, self.effective_rank]
        if self._has_core:
            estimates.append(self.core_cosine)
        return max(_largest(estimates), self.relative_error_of_views)

    @property
    def relative_error_of_views(self) -> float:
        """The same of those that are of the temporal or the spatial view alone."""
        estimates = [self.temporal_effective_rank, self.spatial_effective_rank]
        if self._has_core:
            estimates.append(self.temporal_core_cosine)
        return _largest(estimates)

    @property
    def _has_core(self) -> bool:
        """Without a core there are no cosines."""
        return bool(self.core_norm_squared != 0)

    def _estimate(self, values: Tensor, noise: float | None = None) -> Estimate:
        """An exact number from one value, a jackknifed one from a value and its delete-one ones."""
        if len(values) == 1:
            return Estimate(float(values[0]))
        found = student(log_jackknife(values.double()), sample_count(values))
        noise = self.noise if noise is None else noise
        return Estimate(found.value, math.hypot(found.stderr, noise * found.value))


def _largest(estimates: Sequence[Estimate]) -> float:
    """The largest relative standard error; infinite for a nan."""
    errors = [estimate.relative_error for estimate in estimates]
    return math.inf if any(map(math.isnan, errors)) else max(errors)
