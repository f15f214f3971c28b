"""What is known of a kernel after a probe, however it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ntk_monitor.estimators.formulas import cosine, participation_ratio
from ntk_monitor.uncertainty import Estimate, jackknifed

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
        noise: A relative error of all moments of samples beside that of sampling; see ``Rows``.
        taken_out: What of ``||A||_F^2`` is known without sampling.
        of_views: ``(tr A)^2`` and ``<A, G (x) I>`` by the samples that the norms of ``T`` and ``S``
            are from, where these are not all.
        of_spatial: ``(tr A)^2`` by the samples that the norm of ``S`` is from, where these are
            others than those of ``T``.
        drawn: Whether the trace and the norm of ``A``, and the inner product where it has their
            shape, are from draws without that noise.
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
    of_spatial: Tensor | None = None
    drawn: bool = False

    @property
    def frobenius_norm(self) -> Estimate:
        """``||A||_F``; the error of what was sampled of it is taken on a scale of its own."""
        found = self._norm
        rest = self.norm_squared - self.taken_out
        if not self.taken_out or not bool((rest > 0).all()):
            return found
        # A few directions of the rest make most of it, and their squares have a long tail upwards.
        error = WIDTH * self._estimate(rest, self._whole_noise).relative_error
        above = float(rest[0]) * math.expm1(error) / WIDTH / (2 * float(self.norm_squared[0]))
        return Estimate(found.value, max(found.stderr, above * found.value))

    @property
    def _norm(self) -> Estimate:
        """With the error of the samples alone, which more of them make smaller."""
        return self._estimate(self.norm_squared.sqrt(), self._whole_noise)

    @property
    def effective_rank(self) -> Estimate:
        """Participation ratio of ``A``."""
        ratio = participation_ratio(self.trace_squared, self.norm_squared)
        return self._estimate(ratio, self._whole_noise)

    @property
    def temporal_effective_rank(self) -> Estimate:
        """Participation ratio of ``T``."""
        return self._view_rank(self.temporal_norm_squared, self._trace_squared_of_views)

    @property
    def spatial_effective_rank(self) -> Estimate:
        """Participation ratio of ``S``."""
        if self.of_spatial is not None:
            ratio = participation_ratio(self.of_spatial, self.spatial_norm_squared)
            return self._estimate(ratio, 0.0)
        return self._view_rank(self.spatial_norm_squared, self._trace_squared_of_views)

    @property
    def _trace_squared_of_views(self) -> Tensor:
        return self.trace_squared if self.of_views is None else self.of_views[0]

    def _view_rank(self, norm_squared: Tensor, trace_squared: Tensor) -> Estimate:
        return self._estimate(participation_ratio(trace_squared, norm_squared), self.noise)

    @property
    def _whole_noise(self) -> float:
        return 0.0 if self.drawn else self.noise

    @property
    def core_cosine(self) -> Estimate:
        """``cos(A, G (x) I_n)``, which equals ``cos(T, G) sqrt(PR(A) / (n PR(T)))``."""
        norm_squared = self.units * self.core_norm_squared
        if self.core_inner.shape == self.norm_squared.shape:
            values = cosine(self.core_inner, self.norm_squared, norm_squared)
            return self._estimate(values, 0.0 if self.drawn else self._cosine_noise)
        # Relative to the trace, which errs as the inner product does, by the samples of that.
        assert self.of_views is not None
        shares = self.core_inner / self.of_views[0].sqrt()
        trace_over_norm = (self.trace_squared / self.norm_squared / norm_squared).sqrt()
        parts = (
            self._estimate(shares, self._cosine_noise),
            self._estimate(trace_over_norm, self._whole_noise),
        )
        value = math.prod(part.value for part in parts)
        return Estimate(value, value * math.hypot(*(part.relative_error for part in parts)))

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
        cosines = [self.core_cosine] if self._has_core else []
        return max(self.relative_error_of_whole, self.relative_error_of_views, _largest(cosines))

    @property
    def relative_error_of_whole(self) -> float:
        """The same of the trace and the norm of ``A``, and of what follows from them."""
        return _largest([self.trace, self._norm, self.effective_rank])

    @property
    def relative_error_of_views(self) -> float:
        """The same of those that are of the temporal or the spatial view alone."""
        return max(self.relative_error_in_time, _largest([self.spatial_effective_rank]))

    @property
    def relative_error_in_time(self) -> float:
        """The same of those that are of the temporal view alone."""
        estimates = [self.temporal_effective_rank]
        if self._has_core:
            estimates.append(self.temporal_core_cosine)
        return _largest(estimates)

    @property
    def _has_core(self) -> bool:
        """Without a core there are no cosines."""
        return bool(self.core_norm_squared != 0)

    def _estimate(self, values: Tensor, noise: float) -> Estimate:
        """An exact number from one value, a jackknifed one from a value and its delete-one ones."""
        if len(values) == 1:
            return Estimate(float(values[0]))
        found = jackknifed(values.double())
        return Estimate(found.value, math.hypot(found.stderr, noise * found.value))


def _largest(estimates: Sequence[Estimate]) -> float:
    """The largest relative standard error; infinite for a nan."""
    errors = [estimate.relative_error for estimate in estimates]
    return math.inf if any(map(math.isnan, errors)) else max(errors, default=0.0)
