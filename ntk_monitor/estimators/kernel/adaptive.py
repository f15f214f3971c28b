"""The adaptive engine: as few products as give every number of a kernel its wanted accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ntk_monitor.estimators.kernel.core import CoreGram
from ntk_monitor.estimators.kernel.sampling import JacobianSampler, Sampling, X
from ntk_monitor.estimators.kernel.statistics import KernelStatistics
from ntk_monitor.estimators.kernel.tangent_sketch import MIN_SAMPLES, TangentSketch
from ntk_monitor.estimators.kernel.trials import SpatialMoments, TrialFactor, TrialMoments
from ntk_monitor.uncertainty import jackknifed

PILOT, TOP_UP = 12, 4
"""Samples of the first round, and the fewest of each further one, which at most doubles them: few
looks at the error keep a lucky one from ending the sampling."""
DIRECTIONS = 10
"""Directions of a round of deflation; each takes two products."""
SETTLED = 0.8
"""Share of the tolerance below which the temporal and the spatial view need no more samples: pairs
of their samples are dear."""
CAUTION = 1.0
"""Standard deviations of the standard error itself that must fit below the tolerance."""
START, ATOMS = 8, 4
"""Where trials are told apart: samples that show the leading directions of each group of them, and
how many of these are taken out."""
FEWEST, ROUND, MOST = 2, 4, 16
"""Draws of a round: the fewest, those of the first, and the most; only pairs of one round count."""
PARTS = 64
"""Where nothing is taken out of them, groups of all draws that the first round has, together."""
LEADING = 4
"""Leading directions of all groups that are taken out of samples at a time."""
INDEPENDENT = 4
"""Parts of draws that tell as much of an error as a sample does: groups are unlike."""
FOR_VIEWS = 16
"""Products that are kept for the views."""


@dataclass(frozen=True)
class Measured:
    """A sampled kernel, and how the sampling went.

    Attributes:
        sketch: The samples.
        scheme: ``"sampled"``, or ``"deflated"`` where leading directions were taken out.
        tolerance_met: Whether every number reached the wanted relative standard error; otherwise
            the budget ended the sampling.
        adjoint_error: By how much both directions of differentiation disagree on one pair,
            relative to the usual size of their inner products.
        trials: Draws group by group, which the numbers of the whole kernel are from; None where
            these are from the samples.
        spatial: The samples that the spatial numbers are from, likewise.
    """

    sketch: TangentSketch
    scheme: str
    tolerance_met: bool
    adjoint_error: float
    trials: TrialMoments | None = None
    spatial: SpatialMoments | None = None

    @property
    def statistics(self) -> KernelStatistics:
        """Every number with its standard error."""
        return statistics_of(self.sketch, self.trials, self.spatial)

    def temporal_eigenpairs(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Leading eigenpairs of the temporal view; see `TangentSketch.temporal_eigenpairs`.

        Where the trace is from draws, eigenvalues are shares of it: samples err in both alike.

        Args:
            count: How many.
            seed: Of the starting block.

        Returns:
            Eigenvalues, and this process's rows of the modes.
        """
        values, modes = self.sketch.temporal_eigenpairs(count, seed)
        if self.trials is not None:
            sampled = self.sketch.statistics.trace.value
            values = values * (float(self.trials.moments[0][0]) / sampled if sampled else 1.0)
        return values, modes


def sample_kernel(
    J: JacobianSampler[X],
    core: CoreGram,
    *,
    tolerance: float,
    left: Callable[[], int],
    seed: int = 0,
    max_memory: float = math.inf,
    trials: TrialFactor | None = None,
) -> Measured:
    r"""Sample ``A = J J*`` until its numbers are accurate enough, or the budget is spent.

    A pilot of samples ``y = J g`` comes first. While the largest relative standard error ``e`` is
    not safely below the tolerance, there are two ways to go on. More samples reduce it as
    ``1 / sqrt(s)``: good where ``A`` has many directions. Where it has few, they are taken out of
    the samples (`TangentSketch.deflate`): a Krylov space of ``A``

    .. math:: u_0 = z / \|z\|, \quad u_{i+1} = r_i / \|r_i\|, \quad r_i = (I - U_i U_i^*) A u_i,

    with ``U_i`` the directions up to ``u_i``, starts from a random ``z`` that no sample depends on.
    The samples stay independent of it and unbiased, so none is thrown away: each direction, at two
    products, makes all samples better, the earlier ones too. One direction at a time reaches
    deeper into the space than a block of as many products.

    The tolerance would take ``N = s (e / tol)^2`` plain samples, or as many as the budget allows.
    Taking ``r`` out of ``R`` equal directions, ``R`` the effective rank of what is sampled, costs
    ``2 r`` products and saves about ``2 r N / R`` of them. So deflation is chosen where ``R`` is
    safely below ``N``, at most half, and a round of it is not dearer than the ``N - s`` samples;
    and while there are more samples than directions taken out, lest the standard errors rest on
    too few. The first direction that drowns in the error of the products is
    the last.

    The temporal and the spatial view are often known long before the norm of the whole; samples
    from then on are left out of them.

    Where trials can be told apart, gradients of each group of them take the place of most samples
    (``TrialMoments``): the trace, the norm, and what follows from them and the core are from these.
    Their leading directions are those of the first samples in each group. Samples remain for the
    views. Where they have few directions, the leading ones of the groups' gradients, all groups
    together, are taken out of samples that are drawn anew; and where only the spatial view is not
    known yet, samples go on with a tangent for each group (``SpatialMoments``).

    Args:
        J: The Jacobian.
        core: The core on the same rows, spread over the same processes.
        tolerance: Wanted relative standard error of every number.
        left: Products that may still be spent, at least one more than ``MIN_SAMPLES``. It is asked
            before each round of tangents or direction, so that one that takes more than its
            products is followed by fewer; the first ``MIN_SAMPLES`` are taken in any case.
        seed: Names the start of the Krylov space.
        max_memory: Bytes that the samples may take.
        trials: The same Jacobian by groups of trials, where they do not act on one another.

    Returns:
        The samples and how they came about.

    References:
        Persson, Cortinovis and Kressner, arXiv:2109.10659 (2021), for deflation before sampling;
        Chen et al., arXiv:2310.12364 (2023), for its use in partial traces; Tropp and Webber,
        arXiv:2306.12418 (2023), for Nystrom approximation from Krylov spaces.
    """
    sampling = Sampling(J, core, left, seed, max_memory, viewed=START if trials else None)
    if trials is None:
        return _by_samples(sampling, tolerance)
    return _ByTrial(sampling, trials, tolerance).run()


def statistics_of(
    sketch: TangentSketch, trials: TrialMoments | None, spatial: SpatialMoments | None
) -> KernelStatistics:
    """Every number, from samples and from what takes their place.

    Args:
        sketch: The samples.
        trials: Draws group by group.
        spatial: Samples with a tangent for each group.

    Returns:
        The numbers.
    """
    found = sketch.statistics
    if trials is not None:
        trace, norm_squared, inner = trials.moments
        sampled = found.of_views or (found.trace_squared, found.core_inner)
        found = replace(
            found,
            trace=jackknifed(trace),
            trace_squared=trace.square(),
            norm_squared=norm_squared,
            taken_out=0.0,
            of_views=sampled,
            drawn=True,
        )
        # A core that has little of the kernel is seen better by the samples.
        either = [replace(found, core_inner=each) for each in (inner, sampled[1])]
        found = min(either, key=_error_of_core)
    if spatial is not None:
        trace, norm_squared = spatial.moments
        found = replace(found, of_spatial=trace.square(), spatial_norm_squared=norm_squared)
    return found


def _error_of_core(found: KernelStatistics) -> float:
    error = found.core_cosine.relative_error
    return math.inf if math.isnan(error) else error


def _scheme(sketch: TangentSketch) -> str:
    return "deflated" if sketch.atoms else "sampled"


def _cautious(error: float, draws: float) -> float:
    """A standard error with what it may be off by."""
    return error * (1 + CAUTION / math.sqrt(2 * draws))


def _missing(draws: int, error: float, tolerance: float, most: int) -> float:
    """Draws until an error is at the tolerance, as it falls with their root."""
    return min(draws * ((error / tolerance) ** 2 - 1), most) if tolerance else most


def _by_samples(sampling: Sampling[X], tolerance: float) -> Measured:
    """By samples alone."""
    sampling.extend(min(PILOT - len(sampling.sketch), sampling.spare()))
    sketch, left, processes = sampling.sketch, sampling.left, sampling.core.processes
    while True:
        statistics, samples = sketch.statistics, len(sketch)
        # The same to the last bit in all processes.
        error = _cautious(processes.least(statistics.relative_error), samples)
        views = _cautious(processes.least(statistics.relative_error_of_views), samples)
        if views <= SETTLED * tolerance:
            sketch.settle_views()
        met = error <= tolerance
        if met or sampling.spare() < 1 or not math.isfinite(error):
            return Measured(sketch, _scheme(sketch), met, sampling.krylov.compare())
        missing = _missing(samples, error, tolerance, left())
        directions = min(DIRECTIONS, left() // 2)
        few = processes.least(sketch.residual_effective_rank) < (samples + missing) / 2
        deeper = few and sketch.atoms < samples and not sketch.drowned
        if directions and deeper and missing >= 2 * directions:
            sampling.krylov.extend(directions, left)
        else:
            # Now rather than at the end, when there are more samples to hold.
            sampling.krylov.compare()
            sampling.extend(min(max(math.ceil(missing), TOP_UP), samples, sampling.spare()))


class _ByTrial:
    """By gradients of groups of trials, and samples for the views."""

    def __init__(self, sampling: Sampling[X], trials: TrialFactor, tolerance: float) -> None:
        """Begin.

        Args:
            sampling: The first samples.
            trials: The same Jacobian by groups of trials.
            tolerance: Wanted relative standard error of every number.
        """
        self._sampling, self._trials, self._tolerance = sampling, trials, tolerance
        gram, n = sampling.core, sampling.J.shape_out[2]
        known = float(gram.trace) * n, float(gram.norm_squared) * n
        self._moments = TrialMoments(*known)
        self._spatial: SpatialMoments | None = None
        self._leading: list[Tensor] = []
        self._known: tuple[tuple[int, ...], KernelStatistics] | None = None

    def run(self) -> Measured:
        """Take what every number needs."""
        sampling = self._sampling
        sampling.extend(min(START - MIN_SAMPLES, sampling.spare()))
        sampling.krylov.compare()
        several = min(max(ROUND, PARTS // self._trials.groups), self._trials.most)
        few = sampling.left() < max(several, ATOMS + ROUND) + FOR_VIEWS
        if few or self._are_samples_enough():
            return _by_samples(sampling, self._tolerance)
        self._leading = list(self._trials.take_out(sampling.taken(), ATOMS, range(ROUND)))
        self._draw(ROUND if self._leading else several)
        met = self._settle_whole() & self._settle_views()
        sketch = self._sampling.sketch
        error = self._sampling.krylov.compare()
        return Measured(sketch, _scheme(sketch), met, error, self._moments, self._spatial)

    def _are_samples_enough(self) -> bool:
        """Whether no more samples are missing than telling trials apart takes products."""
        sketch, left = self._sampling.sketch, self._sampling.left()
        error = _cautious(sketch.statistics.relative_error, len(sketch))
        known = math.isfinite(error) and error > 0
        return not known or _missing(len(sketch), error, self._tolerance, left) <= ATOMS + ROUND

    @property
    def _statistics(self) -> KernelStatistics:
        sketch, spatial = self._sampling.sketch, self._spatial
        key = (id(sketch), len(sketch), sketch.atoms, len(self._moments), len(spatial or ()))
        if self._known is None or self._known[0] != key:
            self._known = key, statistics_of(sketch, self._moments, spatial)
        return self._known[1]

    def _draw(self, count: int) -> None:
        drawn = len(self._moments)
        self._moments.extend(self._trials.gradients(range(drawn, drawn + count)))

    def _settle_whole(self) -> bool:
        """Draw until the trace and the norm of the kernel are known."""
        sampling = self._sampling
        for_views = FOR_VIEWS if self._tolerance else max(FOR_VIEWS, 3 * sampling.left() // 4)
        while True:
            draws = len(self._moments)
            found = self._statistics.relative_error_of_whole
            error = _cautious(found, draws * self._trials.groups / INDEPENDENT)
            if error <= self._tolerance:
                return True
            left = sampling.left() - for_views
            if not math.isfinite(error) or left < FEWEST:
                return False
            missing = _missing(draws, error, self._tolerance, left)
            self._draw(min(max(math.ceil(missing), ROUND), MOST, self._trials.most, left))

    def _settle_views(self) -> bool:
        """Sample until the numbers of the views are known."""
        sampling, tolerance = self._sampling, self._tolerance
        while True:
            found, sketch = self._statistics, sampling.sketch
            in_time = _cautious(
                max(found.relative_error_in_time, found.core_cosine.relative_error), len(sketch)
            )
            parts = len(self._spatial or ()) / INDEPENDENT or len(sketch)
            in_space = _cautious(found.spatial_effective_rank.relative_error, parts)
            if max(in_time, in_space) <= tolerance:
                return True
            left = sampling.left()
            if left < 1 or not math.isfinite(in_time + in_space):
                return False
            missing = _missing(len(sketch), in_time, tolerance, left)
            if in_time > tolerance and self._take_leading(missing):
                continue
            if in_time > tolerance:
                samples = len(sketch)
                sampling.extend(min(max(math.ceil(missing), TOP_UP), samples, left))
            elif not self._sample_apart(left):
                return False

    def _take_leading(self, missing: float) -> bool:
        """Take leading directions out of samples, anew at first, where that is worth while."""
        sampling = self._sampling
        sketch = sampling.sketch
        fresh = 0 if sketch.atoms else START
        count = min(LEADING, len(self._leading))
        cost = 2 * count + fresh
        few = sketch.residual_effective_rank < (len(sketch) + missing) / 2
        if not count or sketch.drowned or not few or not cost < min(missing, sampling.left()):
            return False
        if fresh:
            sampling.begin_anew()
        now, self._leading = self._leading[:count], self._leading[count:]
        sampling.krylov.take([each.flatten(0, 1) for each in now], sampling.left)
        if fresh:
            sampling.extend(START - MIN_SAMPLES)
        return True

    def _sample_apart(self, left: int) -> bool:
        """Take samples with a tangent for each group, for the spatial numbers."""
        count = ROUND
        if self._spatial is None:
            self._spatial = SpatialMoments()
        else:
            found = self._statistics.spatial_effective_rank.relative_error
            error = _cautious(found, len(self._spatial) / INDEPENDENT)
            missing = _missing(self._spatial.samples, error, self._tolerance, left)
            count = min(max(math.ceil(missing), FEWEST), MOST)
        if left < max(count, FEWEST):
            return False
        begun = self._spatial.samples
        self._spatial.extend(self._trials.sample(range(begun, begun + count)))
        return True
