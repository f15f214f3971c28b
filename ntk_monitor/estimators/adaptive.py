"""The adaptive engine: as few products as give every number of a kernel its wanted accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ntk_monitor.estimators.core import CoreGram
from ntk_monitor.estimators.formulas import at_least_float32, relative_gap
from ntk_monitor.estimators.pairs import inner_products
from ntk_monitor.estimators.rows import Room
from ntk_monitor.estimators.sketch import MIN_SAMPLES, TangentSketch
from ntk_monitor.estimators.tangents import draw_tangents

PILOT, TOP_UP = 12, 4
"""Samples of the first round, and the fewest of each further one, which at most doubles them: few
looks at the error keep a lucky one from ending the sampling."""
AGAIN = 4
"""How many products one may take, with those that are done again for it; as many must be left for
each of those that are computed together."""
DIRECTIONS = 10
"""Directions of a round of deflation; each takes two products."""
EXHAUSTED = 1e-5
"""Share of an image outside of the directions so far, below which a Krylov space is at its end."""
STARTS = (1,)
"""The family of random directions that begin Krylov spaces."""
SETTLED = 0.8
"""Share of the tolerance below which the temporal and the spatial view need no more samples: pairs
of their samples are dear."""
CAUTION = 1.0
"""Standard deviations of the standard error itself that must fit below the tolerance."""

X = TypeVar("X")
"""A direction in parameter space, in whatever form a kernel has it."""


class Factor(Protocol[X]):
    """``J`` of a kernel ``A = J J*``, with random tangents ``g_0, g_1, ...`` of its own.

    Where the rows of the state are spread over processes, each has its own rows of images, and all
    that is in parameter space is summed over them.
    """

    @property
    def shape_out(self) -> tuple[int, ...]:
        """``(B, T, n)`` of this process's rows."""

    @property
    def at_once(self) -> int:
        """Tangents that are best carried at once."""

    @property
    def dtype(self) -> torch.dtype:
        """Of images."""

    @property
    def device(self) -> torch.device:
        """Of images."""

    def sample(self, indices: range) -> Tensor:
        """``J g_i``, shape ``(len, B, T, n)``; a product each."""

    def pull(self, u: Tensor) -> X:
        """``J* u`` for ``u`` of shape ``(B, T, n)``; one product."""

    def push(self, x: X) -> Tensor:
        """``J x``, shape ``(B, T, n)``; one product."""

    def inner(self, index: int, x: X) -> float:
        """``<g_i, x>``."""

    @property
    def fingerprint(self) -> int:
        """A number that tells whether processes have the same tangents."""


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
    """

    sketch: TangentSketch
    scheme: str
    tolerance_met: bool
    adjoint_error: float


def sample_kernel(
    J: Factor[X],
    core: CoreGram,
    *,
    tolerance: float,
    left: Callable[[], int],
    seed: int = 0,
    max_memory: float = math.inf,
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

    Args:
        J: The Jacobian.
        core: The core on the same rows, spread over the same processes.
        tolerance: Wanted relative standard error of every number.
        left: Products that may still be spent, at least one more than `MIN_SAMPLES`. It is asked
            before each round of tangents or direction, so that one that takes more than its
            products is followed by fewer; the first `MIN_SAMPLES` are taken in any case.
        seed: Names the start of the Krylov space.
        max_memory: Bytes that the samples may take.

    Returns:
        The samples and how they came about.

    References:
        Persson, Cortinovis and Kressner, arXiv:2109.10659 (2021), for deflation before sampling;
        Chen et al., arXiv:2310.12364 (2023), for its use in partial traces; Tropp and Webber,
        arXiv:2306.12418 (2023), for Nystrom approximation from Krylov spaces.
    """
    used = 0
    itemsize = torch.promote_types(J.dtype, torch.float32).itemsize
    numbers = core.ranks.least(max_memory) / itemsize
    sketch = TangentSketch(core, Room(numbers, max(left(), MIN_SAMPLES)))

    def sample(count: int, spare: Callable[[], int]) -> None:
        nonlocal used
        pieces: list[Tensor] = []
        end = used + count
        while used < end and (free := spare()) > 0:
            # Processes that wait for one another do so once for several products.
            several = max(J.at_once, min(free // AGAIN, MIN_SAMPLES), 1)
            indices = range(used, min(end, used + several))
            pieces.append(at_least_float32(J.sample(indices)).flatten(1, 2))
            used = indices.stop
            # Not all at once: the sketch may keep them in less memory.
            if sum(map(len, pieces)) >= MIN_SAMPLES:
                sketch.extend(torch.cat(pieces))
                pieces = []
        if pieces:
            sketch.extend(torch.cat(pieces))

    sample(MIN_SAMPLES, lambda: AGAIN * MIN_SAMPLES)  # a step check's products show after these
    krylov = _Krylov(J, sketch, seed)

    def spare() -> int:
        """Products for samples: one is kept for the comparison with the adjoint."""
        return left() - (krylov.adjoint_error is None)

    sample(min(PILOT - MIN_SAMPLES, spare()), spare)
    while True:
        statistics = sketch.statistics
        error = core.ranks.least(statistics.relative_error)  # the same to the last bit
        views = core.ranks.least(statistics.relative_error_of_views)
        caution = 1 + CAUTION / math.sqrt(2 * len(sketch))
        error *= caution
        if views * caution <= SETTLED * tolerance:
            sketch.settle_views()
        met = error <= tolerance
        if met or spare() < 1 or not math.isfinite(error):
            scheme = "deflated" if sketch.atoms else "sampled"
            return Measured(sketch, scheme, met, krylov.compare())
        samples = len(sketch)
        missing = min(samples * ((error / tolerance) ** 2 - 1), left()) if tolerance else left()
        directions = min(DIRECTIONS, left() // 2)
        few = core.ranks.least(sketch.residual_effective_rank) < (samples + missing) / 2
        deeper = few and sketch.atoms < samples and not sketch.drowned
        if directions and deeper and missing >= 2 * directions:
            krylov.extend(directions, left)
        else:
            krylov.compare()  # now rather than at the end, when there are more samples to hold
            count = min(max(math.ceil(missing), TOP_UP), samples, spare())
            sample(count, spare)


class _Krylov(Generic[X]):
    """A Krylov space that is taken out of a sketch as it grows.

    Attributes:
        adjoint_error: Of the first direction and the first sample; None before their comparison.
    """

    adjoint_error: float | None = None

    def __init__(self, J: Factor[X], sketch: TangentSketch, seed: int) -> None:
        """Draw the start.

        Args:
            J: The Jacobian.
            sketch: With the first samples, none deflated.
            seed: Names the start.
        """
        self._J, self._sketch = J, sketch
        self._first = sketch.leading_sample(0)
        self._seed = seed
        self._direction = self._random()

    def extend(self, directions: int, left: Callable[[], int]) -> None:
        """Take out some more directions, at two products each or a few more, while there are."""
        for _ in range(directions):
            if left() < 2 or self._sketch.drowned:
                return
            image = at_least_float32(self._J.push(self._pull())).flatten(0, 1)
            self._sketch.deflate(self._direction, image[None])
            rows = self._sketch.rows
            size = rows.ranks.sum(image.double().square().sum()).sqrt()
            further = self._sketch.outside(rows.lead(rows.keep(image)))
            exhausted = torch.linalg.vector_norm(further) <= EXHAUSTED * size
            self._direction = self._random() if bool(exhausted) else _unit(further)[None]

    def compare(self) -> float:
        """The adjoint error; one product, unless it is known."""
        if self.adjoint_error is None:
            self._pull()
        assert self.adjoint_error is not None
        return self.adjoint_error

    def _random(self) -> Tensor:
        """A direction of its own, where there is none to go on with; shape (1, leading, n)."""
        trials, T, n = self._J.shape_out
        rows, self._seed = self._sketch.rows, self._seed + 1
        # Trial by trial, so that it does not depend on which process has which.
        own = rows.ranks.own(rows.ranks.counts(trials))
        indices, device = range(own.start, own.stop), self._J.device
        noise = draw_tangents(T * n, indices, self._seed, device=device, family=STARTS)
        kept = rows.lead(rows.keep(noise.reshape(trials * T, n).to(self._first)))
        return _unit(self._sketch.outside(kept))[None]

    def _pull(self) -> X:
        """``J* u``."""
        u = self._direction[0]
        lifted = self._sketch.rows.lift(u).to(self._J.dtype)
        pulled = self._J.pull(lifted.reshape(self._J.shape_out))
        if self.adjoint_error is None:
            forward = float(inner_products(self._first.reshape(1, -1), u.reshape(1, -1)))
            usual = float(torch.linalg.vector_norm(self._first.double())) / math.sqrt(u.numel())
            self.adjoint_error = relative_gap(forward - self._J.inner(0, pulled), usual)
        return pulled


def _unit(X: Tensor) -> Tensor:
    """A tensor at norm one."""
    unit: Tensor = X / torch.linalg.vector_norm(X)
    return unit
