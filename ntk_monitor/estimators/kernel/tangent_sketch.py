"""The forward-tangent sketch: every kernel number from one set of samples ``y = J g``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntk_monitor.estimators.kernel.core import CoreGram
from ntk_monitor.estimators.kernel.row_sketch import Room, Rows, choose_rows
from ntk_monitor.estimators.kernel.statistics import KernelStatistics
from ntk_monitor.estimators.kernel.tsqr import tall_svd
from ntk_monitor.estimators.pairs import PairMoments
from ntk_monitor.estimators.subspace import starting_block, subspace_iteration
from ntk_monitor.uncertainty import (
    Estimate,
    mean_and_deletes,
    mean_estimate,
    pair_mean_and_deletes,
    student,
)

MIN_SAMPLES = 4
"""Fewest samples from which a delete-one value over pairs can be taken with some stability."""
SYMMETRY = 2.0
"""How many times larger than the asymmetry of the products what is taken out must be."""


class TangentSketch:
    r"""Samples ``Y_i = J g_i`` of a kernel ``A = J J*`` and their pair statistics.

    For ``g ~ N(0, I)`` the sample ``y = J g`` has covariance ``A``. Over independent samples,
    with each ``Y_i`` a ``k x n`` matrix and ``V`` the site activity,

    .. math::
        E\|y\|^2 = \mathrm{tr} A, \quad
        E\langle y_i, y_j\rangle^2 = \|A\|_F^2, \quad
        E\|Y_i^* Y_j\|_F^2 = \|nT\|_F^2, \quad
        E\|Y_i Y_j^*\|_F^2 = \|kS\|_F^2, \quad
        E\|V^* Y\|_F^2 = \langle A, G \otimes I\rangle

    for ``i != j``. Means over pairs are U-statistics and unbiased; the relative variance of the
    norm of ``A`` is ``((8 s - 4) t + 4) / (s (s - 1))`` with ``t = tr A^4 / (tr A^2)^2``.

    Deflation (`deflate`) takes a part ``A_0 = sum_c F_c F_c^*`` out of all samples, past and
    future, which then measure only the rest. The part enters as *atoms*: in every moment each
    ``F_c`` counts once where a sample counts ``1/s``,

    .. math::
        \|A\|_F^2 = \sum_{cd} \langle F_c, F_d\rangle^2
            + 2\, E \sum_c \langle F_c, y\rangle^2 + E\langle y_i, y_j\rangle^2

    and likewise for the other moments. Time ``O(s^2 k n min(k, n))``, memory ``O(s k n)``. Where
    ``k`` is long and the first samples hardly leave a few temporal directions, or where memory
    demands it, only compressed rows are kept (``Rows``), and memory is ``O(s n)``.

    The ``k`` rows may be spread over processes, as those of the core are: each then gives its own
    rows of every tensor, and all that is kept is the same in all.

    Attributes:
        rows: In which rows the samples are kept.
        drowned: Whether a direction was left in because of the error of its product.

    References:
        Kong and Valiant, Spectrum estimation from samples, Annals of Statistics 45 (2017).
    """

    def __init__(self, core: CoreGram, room: Room | None = None) -> None:
        """Start without samples.

        Args:
            core: The core, on the ``k`` rows of the state.
            room: How much memory the samples may take.
        """
        self._gram = core
        self._room = room
        self._samples: list[Tensor] = []
        self._viewed: list[bool] = []
        self._settled = False
        self._directions: list[Tensor] = []
        self._pictures: list[Tensor] = []
        self._products = torch.empty(0, 0, dtype=torch.float64, device="cpu")
        self._factor = torch.empty(0, 0, dtype=torch.float64, device="cpu")
        self._taken_out: tuple[Tensor, Tensor] | None = None
        self._moments: PairMoments | None = None
        self._images = torch.empty(0, device="cpu")  # of W*, under the plain samples
        self._imaged = 0
        self.rows = Rows(None, 0)
        self.drowned = False

    @property
    def atoms(self) -> int:
        """How many tensors make up the deflated part."""
        return len(self._factor)

    def __len__(self) -> int:
        """Number of samples, the atoms not counted."""
        return sum(map(len, self._samples))

    def extend(self, Y: Tensor) -> None:
        """Add samples.

        Args:
            Y: Samples ``J g``, this process's rows, shape ``(s, k_r, n)``. The first ones decide
                what is kept.
        """
        if not self._samples:
            self.rows = choose_rows(Y, self._gram.processes, self._room)
        kept = self.rows.keep(Y)
        if self.rows.W is not None and not self.atoms and not self._settled:
            images = sum(y @ x.T for y, x in zip(Y, kept, strict=True))
            self._images = self._images + images if len(self._images) else images
            self._imaged += len(Y)
        self._samples.append(kept)
        self._viewed.append(not self._settled)
        if self._moments is not None:
            self._moments.extend(self._rest(kept), with_views=self._viewed[-1])

    def settle_views(self) -> None:
        """Take the temporal and the spatial view from the samples so far, and from no others."""
        self._settled = True

    def leading_sample(self, index: int) -> Tensor:
        """Coordinates of a sample in the leading directions, shape ``(leading, n)``."""
        for kept in self._samples:
            if index < len(kept):
                return self.rows.lead(kept[index]).clone()
            index -= len(kept)
        raise IndexError(f"there are {len(self)} samples")

    def deflate(self, U: Tensor, images: Tensor) -> None:
        r"""Take directions out of all samples.

        With all directions so far as an orthonormal ``U``, the part taken out is the Nystrom
        approximation

        .. math::
            A U (U^* A U)^{+} U^* A = F F^*, \quad F = A U Q \Lambda^{-1/2}, \quad
            U^* A U = Q \Lambda Q^*, \quad y \to y - F \Lambda^{-1/2} Q^* U^* y.

        In parameter space this is the orthogonal projection that takes ``J^* U`` out of every
        tangent, without a vector of that space being kept. It leaves no bias, as long as the
        directions do not depend on the samples.

        Eigenvalues below the error of the products are left out, since they would come out at a
        multiple of their size. That error shows in how far ``U^* A U`` is from symmetric.

        Args:
            U: Coordinates of the directions (see ``Rows.lift``), shape ``(b, leading, n)``.
            images: ``A U``, this process's rows, shape ``(b, k_r, n)``.
        """
        before = self.atoms
        for direction, image in zip(U, self.rows.keep(images), strict=True):
            self._add_direction(direction, image)
        H = self._products
        values, vectors = torch.linalg.eigh((H + H.T) / 2)
        error = SYMMETRY * float(torch.linalg.matrix_norm(H - H.T, 2)) / 2
        rounding = 100 * torch.finfo(images.dtype).eps * float(values.abs().max())
        large = values > max(error, rounding)
        self._factor = (vectors[:, large] / values[large].sqrt()).T
        self.drowned |= self.atoms < before + len(U) and error > rounding
        self._taken_out = self._moments = None

    def outside(self, X: Tensor) -> Tensor:
        """What is left of coordinates beside the directions so far, shape ``(leading, n)``."""
        for _ in range(2):  # once more, for what rounding leaves
            for U in self._directions:
                X = X - (U * X).sum() * U
        return X

    def _add_direction(self, U: Tensor, image: Tensor) -> None:
        """Orthonormalise a direction and its image, unless the direction is out already."""
        size = torch.linalg.vector_norm(U)
        for direction, picture in zip(self._directions, self._pictures, strict=True):
            image = image - (direction * U).sum() * picture
        U = self.outside(U)
        length = torch.linalg.vector_norm(U)
        if not bool(length > math.sqrt(torch.finfo(U.dtype).eps) * size):
            return
        self._directions.append(U / length)
        self._pictures.append(image / length)
        r = len(self._directions)
        H = torch.zeros(r, r, dtype=torch.float64, device="cpu")
        H[:-1, :-1] = self._products
        last = self.rows.lead(self._pictures[-1])
        for i, (direction, picture) in enumerate(
            zip(self._directions, self._pictures, strict=True)
        ):
            H[i, -1] = float((direction * last).sum())
            H[-1, i] = float((self._directions[-1] * self.rows.lead(picture)).sum())
        self._products = H

    def _combine(self, tensors: list[Tensor]) -> Tensor:
        """``Q Lambda^{-1/2}`` combinations of tensors that belong to the directions."""
        stacked = torch.stack(tensors)
        combined: Tensor = torch.einsum("ri,i...->r...", self._factor.to(stacked), stacked)
        return combined

    @property
    def _atoms(self) -> Tensor:
        """``F``, shape ``(r, d, n)``."""
        return self._deflation[0]

    @property
    def _deflation(self) -> tuple[Tensor, Tensor]:
        """``F`` and the combinations of directions it belongs to; kept until there are more."""
        if self._taken_out is None:
            self._taken_out = self._combine(self._pictures), self._combine(self._directions)
        return self._taken_out

    def _rest(self, kept: Tensor) -> Tensor:
        """What deflation leaves of samples."""
        if not self.atoms:
            return kept
        F, dual = self._deflation
        shares = self.rows.lead(kept).flatten(1) @ dual.flatten(1).T
        return kept - torch.einsum("sr,rdn->sdn", shares, F)

    @property
    def _pair_moments(self) -> PairMoments:
        """Of atoms and samples, in this order; kept until the samples change by deflation."""
        if self._moments is None:
            core = self.rows.keep(self._gram.factor)
            self._moments = PairMoments(core, self.rows.views, self._gram.processes)
            if self.atoms:
                self._moments.extend(self._atoms)
            for kept, viewed in zip(self._samples, self._viewed, strict=True):
                self._moments.extend(self._rest(kept), with_views=viewed)
        return self._moments

    @property
    def statistics(self) -> KernelStatistics:
        """Every number with its standard error; needs ``MIN_SAMPLES`` samples."""
        moments, r = self._pair_moments, self.atoms
        squares, core = moments.squares, moments.core_squares
        rest = student(mean_estimate(squares[r:]), len(self))
        temporal, spatial = (self._over_pairs(pairs) for pairs in moments.views)
        v = len(moments.views[0])

        def core_inner(count: int) -> Tensor:
            return core[:r].sum() + mean_and_deletes(core[r:count])

        def trace_squared(count: int) -> Tensor:
            return self._over_pairs(torch.outer(squares[:count], squares[:count]))

        return KernelStatistics(
            trace=Estimate(float(squares[:r].sum()) + rest.value, rest.stderr),
            trace_squared=trace_squared(len(squares)),
            norm_squared=self._over_pairs(moments.pairs),
            temporal_norm_squared=temporal,
            spatial_norm_squared=spatial,
            core_inner=core_inner(len(squares)),
            core_norm_squared=self._gram.norm_squared.cpu(),
            units=self._samples[0].shape[2],
            noise=self.rows.noise,
            taken_out=float(moments.pairs[:r, :r].sum()),
            of_views=None if v == len(squares) else (trace_squared(v), core_inner(v)),
        )

    @property
    def residual_effective_rank(self) -> float:
        """Participation ratio of what is not in the atoms, by its U-statistics; nan if zero."""
        moments, r = self._pair_moments, self.atoms
        squares, pairs = moments.squares[r:], moments.pairs[r:, r:]
        trace_squared = pair_mean_and_deletes(torch.outer(squares, squares))[0]
        return float(trace_squared / pair_mean_and_deletes(pairs)[0])

    def _over_pairs(self, pairs: Tensor) -> Tensor:
        """The sum over atoms, twice their mean with a sample, and the mean over sample pairs."""
        r = self.atoms
        mixed = mean_and_deletes(pairs[:r, r:].sum(0))
        return pairs[:r, :r].sum() + 2 * mixed + pair_mean_and_deletes(pairs[r:, r:])

    def temporal_eigenpairs(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        r"""Leading eigenpairs of the sampled temporal view.

        .. math:: \hat T = \frac{1}{n} \Bigl(\sum_c F_c F_c^* + \frac1s \sum_i Y_i Y_i^*\Bigr)

        The eigenvalues of a sample covariance spread upwards, the more so the fewer samples
        times spatial effective rank there are per temporal direction. With compressed rows the
        pairs are those of the Nystrom approximation ``C (W C)^+ C^*``, ``C = T W^*``; after
        deflation too, those of ``T`` between the leading directions.

        Args:
            count: How many.
            seed: Of the starting block.

        Returns:
            Eigenvalues ``(r,)`` and this process's rows of the modes, of either sign, ``(k_r, r)``,
            with ``r = min(count, k)``.
        """
        like, processes = self._samples[0], self._gram.processes
        n = like.shape[2]
        if self.rows.W is not None and not self.atoms:
            C = self._images.double() / (n * self._imaged)
            within, rotation = processes.first(
                *torch.linalg.eigh(processes.sum(self.rows.W.double() @ C))
            )
            large = within > torch.finfo(like.dtype).eps * within[-1]
            root = C @ (rotation[:, large] / within[large].sqrt())
            vectors, values, _ = tall_svd(root, processes)
            return values[:count].square().to(like), vectors[:, :count].to(like)
        weighted = [(1 / n, self._atoms)] if self.atoms else []
        weighted += [(1 / (n * len(self)), self._rest(kept)) for kept in self._samples]

        every = [(weight, Y) for weight, kept in weighted for Y in self.rows.lead(kept)]
        own = every[processes.share(len(every))]

        def apply(Q: Tensor) -> Tensor:
            total = torch.zeros_like(Q)
            for weight, Y in own:
                total += weight * (Y @ (Y.T @ Q))
            return processes.sum(total)

        generator = torch.Generator(device=like.device).manual_seed(seed)
        start = starting_block(self.rows.leading, count, generator, dtype=like.dtype)
        pairs = subspace_iteration(apply, start, min(count, self.rows.leading))
        values, modes = processes.first(*pairs)
        return values, self.rows.lift(modes)
