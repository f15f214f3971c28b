"""The forward-tangent sketch: every kernel number from one set of samples ``y = J g``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntk_monitor.estimators.core import CoreGram
from ntk_monitor.estimators.pairs import GramPairs, squared_norms
from ntk_monitor.estimators.statistics import KernelStatistics
from ntk_monitor.estimators.subspace import fix_signs, starting_block, subspace_iteration
from ntk_monitor.uncertainty import (
    Estimate,
    mean_and_deletes,
    mean_estimate,
    pair_mean_and_deletes,
    student,
)

MIN_SAMPLES = 4
"""Fewest samples from which a delete-one value over pairs can be taken with some stability."""


LEADING_ROWS, SKETCHED_ROWS = 128, 64
"""Rows that a long temporal axis is compressed to: leading directions, a sketch of the rest."""
MAX_REMAINDER = 0.01
"""Largest share of the samples' energy that may be left to the sketch."""


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

    for ``i != j``. A part ``A_0 = sum_c F_c F_c^*`` that is known exactly enters as *atoms*: in
    every moment each ``F_c`` counts once where a sample counts ``1/s``,

    .. math::
        \|A\|_F^2 = \sum_{cd} \langle F_c, F_d\rangle^2
            + 2\, E \sum_c \langle F_c, y\rangle^2 + E\langle y_i, y_j\rangle^2

    and likewise for the other moments. Means over pairs are U-statistics and unbiased; without
    atoms the relative variance of the norm of ``A`` is ``((8 s - 4) t + 4) / (s (s - 1))`` with
    ``t = tr A^4 / (tr A^2)^2``. Time ``O(s^2 k n min(k, n))``, memory ``O(s k n)``. Where ``k`` is
    long and the samples hardly leave a few temporal directions, which the first samples decide,
    only compressed rows are kept (see `row_compression`), and memory is ``O(s n)``.

    References:
        Kong and Valiant, Spectrum estimation from samples, Annals of Statistics 45 (2017).
    """

    def __init__(self, core: CoreGram) -> None:
        """Start without samples.

        Args:
            core: The core, on the ``k`` rows of the state.
        """
        self.core = core
        self.atoms = 0
        self._rounds: list[Tensor] = []
        self._squares = torch.empty(0, dtype=torch.float64)
        self._core = torch.empty(0, dtype=torch.float64)
        self._pairs = torch.empty(3, 0, 0, dtype=torch.float64)
        self._compression: Tensor | None = None
        self._images = torch.empty(0)  # of W*: under the atoms, and under the samples
        self._temporal, self._spatial = GramPairs(), GramPairs()

    def __len__(self) -> int:
        """Number of samples, the atoms not counted."""
        return len(self._squares) - self.atoms

    def extend(self, Y: Tensor) -> None:
        """Add samples.

        Args:
            Y: Samples ``J g``, shape ``(s, k, n)``. They are not kept where a compression is.
        """
        if not self._rounds:
            self._compression = row_compression(Y)
        self._add(Y)

    def deflated(self, F: Tensor) -> TangentSketch:
        """A sketch without samples, for those of the kernel less some directions.

        Args:
            F: Tensors ``F_c``, shape ``(r, k, n)``, with ``sum_c F_c F_c^*`` the part of the kernel
                that samples will lack beside this sketch's atoms.

        Returns:
            The sketch, with the atoms of both.
        """
        sketch, r = TangentSketch(self.core), self.atoms
        sketch._compression = self._compression
        if r:
            sketch._append(self._kept()[:r], self._squares[:r], self._core[:r])
        sketch._add(F)
        sketch.atoms = len(sketch._squares)
        if self._compression is not None:
            atoms = self._images[0] + sketch._images[1]
            sketch._images = torch.stack([atoms, torch.zeros_like(atoms)])
        return sketch

    def leading_directions(self, count: int) -> Tensor:
        """Orthonormal directions that hold most of the samples.

        Args:
            count: How many, at most as many as there are samples.

        Returns:
            Shape ``(count, k, n)``.
        """
        Y, W = self._kept()[self.atoms :], self._compression
        if W is not None:
            Y = Y[:, :LEADING_ROWS]
        U, _, _ = torch.linalg.svd(Y.flatten(1).T, full_matrices=False)
        directions: Tensor = U.T[:count].reshape(-1, *Y.shape[1:])
        if W is not None:
            directions = W[:LEADING_ROWS].T @ directions
        return directions

    def _kept(self) -> Tensor:
        return torch.cat(self._rounds)

    def _add(self, Y: Tensor) -> None:
        squares, core = squared_norms(Y), squared_norms(self.core.factor.T @ Y)
        if self._compression is not None:
            kept = self._compression @ Y
            images = (Y @ kept.transpose(1, 2)).sum(0)
            if not len(self._images):
                self._images = torch.zeros(2, *images.shape).to(images)
            self._images[1] += images
            Y = kept
        self._append(Y, squares, core)

    def _append(self, Y: Tensor, squares: Tensor, core: Tensor) -> None:
        """Add tensors as they are kept, their squared norms, and those of their core images."""
        old = len(self._squares)
        self._rounds.append(Y)
        self._squares = torch.cat([self._squares, squares])
        self._core = torch.cat([self._core, core])
        flat = Y.flatten(1).T
        inner = torch.cat([earlier.flatten(1) @ flat for earlier in self._rounds])
        count = len(self._squares)
        pairs = torch.zeros(3, count, count, dtype=torch.float64)
        pairs[:, :old, :old] = self._pairs
        pairs[0, :, old:] = inner.double().square().cpu()
        pairs[1, :, old:] = self._temporal.extend(Y)
        pairs[2, :, old:] = self._spatial.extend(Y.transpose(1, 2))
        pairs[:, old:, :old] = pairs[:, :old, old:].transpose(1, 2)
        self._pairs = pairs

    @property
    def statistics(self) -> KernelStatistics:
        """Every number with its standard error; needs `MIN_SAMPLES` samples."""
        squares, r = self._squares, self.atoms
        rest = student(mean_estimate(squares[r:]), len(self))
        norm, temporal, spatial = (self._over_pairs(pairs) for pairs in self._pairs)
        return KernelStatistics(
            trace=Estimate(float(squares[:r].sum()) + rest.value, rest.stderr),
            trace_squared=self._over_pairs(torch.outer(squares, squares)),
            norm_squared=norm,
            temporal_norm_squared=temporal,
            spatial_norm_squared=spatial,
            core_inner=self._core[:r].sum() + mean_and_deletes(self._core[r:]),
            core_norm_squared=self.core.norm_squared.cpu(),
            units=self._rounds[0].shape[2],
        )

    @property
    def residual_effective_rank(self) -> float:
        """Participation ratio of what is not in the atoms, by its U-statistics; nan if zero."""
        squares, pairs = self._squares[self.atoms :], self._pairs[0, self.atoms :, self.atoms :]
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
        times spatial effective rank there are per temporal direction. Of compressed samples
        the pairs are those of the Nystrom approximation ``C (W C)^+ C^*``, ``C = T W^*``, with the
        compression ``W``.

        Args:
            count: How many.
            seed: Of the starting block.

        Returns:
            Eigenvalues ``(r,)`` and modes ``(k, r)`` with ``r = min(count, k)``.
        """
        like = self._rounds[0]
        _, k, n = like.shape
        if self._compression is not None:
            C = (self._images[0] + self._images[1] / len(self)).double() / n
            within, rotation = torch.linalg.eigh(self._compression.double() @ C)
            large = within > torch.finfo(like.dtype).eps * within[-1]
            root = C @ (rotation[:, large] / within[large].sqrt())
            vectors, values, _ = torch.linalg.svd(root, full_matrices=False)
            return values[:count].square().to(like), fix_signs(vectors[:, :count].to(like))
        weights = torch.full((len(self._squares),), 1.0 / (n * len(self)))
        weights[: self.atoms] = 1.0 / n
        weights = weights.to(like)

        def apply(Q: Tensor) -> Tensor:
            parts = torch.split(weights, [len(Y) for Y in self._rounds])
            images = [
                torch.einsum("i,ikb->kb", w, Y @ (Y.transpose(1, 2) @ Q))
                for w, Y in zip(parts, self._rounds, strict=True)
            ]
            return torch.stack(images).sum(0)

        generator = torch.Generator(device=like.device).manual_seed(seed)
        start = starting_block(k, count, generator, dtype=like.dtype)
        return subspace_iteration(apply, start, count)


def row_compression(Y: Tensor) -> Tensor | None:
    r"""A short matrix ``W`` with ``(W Y_i)* (W Y_j)`` close to ``Y_i* Y_j``.

    With an orthonormal basis ``U`` of leading temporal directions and a Gaussian sketch ``O`` of
    ``d`` rows,

    .. math:: W = \begin{pmatrix} U^* \\ O (I - U U^*) / \sqrt d \end{pmatrix}

    keeps the leading part exactly and the remainder without bias. If the remainder holds a share
    ``e`` of the energy, ``||Y_i* Y_j||_F^2`` gains a relative bias of at most ``2 e^2 PR(T) / d``
    and a relative noise of about ``2 e / sqrt(d)``: with the limits used here 0.04 % and 0.3 %.

    Args:
        Y: The first samples, shape ``(s, k, n)``.

    Returns:
        ``W`` of shape ``(LEADING_ROWS + SKETCHED_ROWS, k)``; None where the rows are too few for
        it to pay, or the remainder is too large.

    References:
        Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 53 (2011).
    """
    k, energy = Y.shape[1], squared_norms(Y).sum()
    if k <= 2 * (LEADING_ROWS + SKETCHED_ROWS) or not bool(torch.isfinite(energy)):
        return None
    generator = torch.Generator(device=Y.device).manual_seed(0)
    count = LEADING_ROWS + SKETCHED_ROWS
    noise = torch.randn(k, count, generator=generator, device=Y.device, dtype=Y.dtype)
    start, O = noise[:, :LEADING_ROWS], noise[:, LEADING_ROWS:]  # noqa: E741
    U = start
    for _ in range(2):
        U = torch.linalg.qr((Y @ (Y.transpose(1, 2) @ U)).sum(0)).Q
    if bool(energy - squared_norms(U.T @ Y).sum() > MAX_REMAINDER * energy):
        return None
    remainder = O - U @ (U.T @ O)
    return torch.cat([U, remainder / math.sqrt(SKETCHED_ROWS)], dim=1).T
