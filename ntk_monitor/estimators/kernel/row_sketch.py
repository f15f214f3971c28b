"""Fewer rows for samples on a long temporal axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ntk_monitor.estimators.kernel.tsqr import tall_qr
from ntk_monitor.estimators.pairs import squared_norms
from ntk_monitor.processes import ALONE, Processes

LEADING_ROWS = (48, 128)
"""Leading directions that may be kept as they are: the fewest that suffice."""
SKETCHED_ROWS = 64
"""Rows for the sketch of all other directions."""
COPIES = 5
"""How many times as much memory as the samples, or a sketch, all that is made of them takes."""
RANK = 100
"""Rounding units of the largest singular value below which a direction is none."""
FINDING = 16
"""Products of matrices, of samples with `LEADING_ROWS` columns, that finding directions takes."""
SEED = 0
"""Of the sketches."""
MAX_REMAINDER = 0.01
"""Largest share of the samples' energy that may be left to one sketch."""


@dataclass(frozen=True)
class Rows:
    r"""The rows in which samples are kept: ``W Y`` in place of ``Y``, shape ``(d, n)``.

    With an orthonormal basis ``U`` of leading temporal directions and a Gaussian sketch ``O`` of
    ``d'`` rows,

    .. math:: W = \begin{pmatrix} U^* \\ O (I - U U^*) / \sqrt{d'} \end{pmatrix}

    keeps the leading part of inner products ``Y_i* Y_j`` exactly and the remainder without bias.
    If the remainder holds a share ``e`` of the energy, ``||Y_i* Y_j||_F^2`` gains a relative bias
    of at most ``2 e^2 PR(T) / d'`` and a relative noise of about ``2 e / sqrt(d')``: with the
    limits used here 0.04 % and 0.3 %.

    Where a larger remainder must be left, since all rows would take too much memory, there are two
    sketches of ``d'`` rows, independent of each other, each with the leading directions: the two
    `views` of a sample. Whatever is of second order in inner products takes one factor from each,
    and has no bias; its noise of ``2 e / sqrt(d')`` is part of the standard errors.

    Where the ``k`` rows are spread over processes, each gives its own rows of ``Y`` and has its own
    columns of ``W``; what is kept is the sum over processes, the same in each.

    Attributes:
        W: This process's columns, shape ``(d, k_r)``, or None where all rows are kept.
        leading: How many rows of ``W`` are orthonormal leading directions, or all rows there are.
        twofold: Whether the others are two sketches.
        noise: Relative noise that the sketches bring into numbers of second order.
        processes: The processes.
        counts: How many of all rows each process has; used where all are kept.

    References:
        Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 53 (2011).
    """

    W: Tensor | None
    leading: int
    twofold: bool = False
    noise: float = 0.0
    processes: Processes = ALONE
    counts: Sequence[int] = ()

    def keep(self, Y: Tensor) -> Tensor:
        """What is kept of tensors on all rows.

        Args:
            Y: This process's rows, shape ``(..., k_r, n)``.

        Returns:
            Shape ``(..., d, n)``.
        """
        if self.W is None:
            return self.processes.join(Y, -2, self.counts)
        return self.processes.sum(self.W @ Y)

    def lead(self, kept: Tensor) -> Tensor:
        """Coordinates in the leading directions.

        Args:
            kept: Shape ``(..., d, n)``.

        Returns:
            Shape ``(..., leading, n)``.
        """
        return kept[..., : self.leading, :]

    def views(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept, twice, the sketches apart; the same where there are not two.

        Args:
            kept: Shape ``(..., d, n)``.

        Returns:
            Both views.
        """
        if not self.twofold:
            return kept, kept
        leading, sketched = kept[..., : self.leading, :], kept[..., self.leading :, :]
        one, two = (torch.cat([leading, part], dim=-2) for part in sketched.chunk(2, dim=-2))
        return one, two

    def lift(self, X: Tensor) -> Tensor:
        """From coordinates in the leading directions to all rows; ``lead(keep(lift(X)))`` is ``X``.

        Args:
            X: Shape ``(..., leading, n)``.

        Returns:
            This process's rows, shape ``(..., k_r, n)``.
        """
        if self.W is not None:
            return self.W[: self.leading].T @ X
        return X if self.processes.size == 1 else X[..., self.processes.own(self.counts), :]


class Room(NamedTuple):
    """How much memory samples may take.

    Attributes:
        numbers: How many numbers may be kept.
        samples: How many samples there may be.
        viewed: Of how many views will probably be taken; None for all of them.
    """

    numbers: float = math.inf
    samples: int = 1
    viewed: int | None = None

    def are_few(self, first: int, n: int) -> bool:
        """Whether pairs of all rows are cheaper than it is to find the leading directions.

        Args:
            first: The samples that those would be found from.
            n: Units.

        Returns:
            True if so.
        """
        return self.viewed is not None and self.viewed**2 * n <= FINDING * LEADING_ROWS[-1] * first

    def rows(self, k: int, own: int, n: int) -> float:
        """How many rows of each sample may be kept; all ``k`` where no others take less.

        Args:
            k: Rows of a sample.
            own: The most that a process has of them.
            n: Units.

        Returns:
            Their number.
        """
        each = COPIES * self.samples * n  # what a row takes, and, in a sketch, its weights
        sketched = self.numbers / (each + COPIES * own)
        least = LEADING_ROWS[-1] + 2 * SKETCHED_ROWS
        fits = k * each <= self.numbers or k * each <= least * (each + COPIES * own)
        return k if fits else min(max(sketched, least), k * each / (each + COPIES * own))


def choose_rows(Y: Tensor, processes: Processes = ALONE, room: Room | None = None) -> Rows:
    """Rows for samples like these.

    Args:
        Y: The first samples, this process's rows of them, shape ``(s, k_r, n)``.
        processes: The processes.
        room: How much memory there is; two sketches of `SKETCHED_ROWS` are kept in any case, unless
            they take more than all rows.

    Returns:
        As few as leave at most `MAX_REMAINDER` of the energy to one sketch; else all; or, where
        those are too many, as many as may be kept.
    """
    counts = processes.counts(Y.shape[1])
    own = processes.own(counts)
    most = (room or Room()).rows(sum(counts), max(counts), Y.shape[2])
    k, energy = sum(counts), processes.sum(squared_norms(Y).sum())
    choices = [count for count in LEADING_ROWS if k > 2 * (count + SKETCHED_ROWS)]
    few = room is not None and k <= most and room.are_few(len(Y), Y.shape[2])
    if not choices or few or not bool(torch.isfinite(energy)):
        return Rows(None, k, processes=processes, counts=counts)
    generator = torch.Generator(device=Y.device).manual_seed(SEED)
    start = _noise(k, choices[-1], generator, Y)[own]
    half = len(Y) // 2
    left = _left(
        _leading(Y[:half], start, processes), Y[half:], processes
    )  # of samples not yet seen
    remainders = {c: float(left[min(c, len(left)) - 1]) for c in choices}
    count = next((c for c, rest in remainders.items() if rest <= MAX_REMAINDER), choices[-1])
    twofold = remainders[count] > MAX_REMAINDER
    if twofold and k <= most:
        return Rows(None, k, processes=processes, counts=counts)
    U = _leading(Y, start, processes)[:, :count]
    each = max(int(most - U.shape[1]) // 2, SKETCHED_ROWS) if twofold else SKETCHED_ROWS
    sketches = [_noise(k, each, generator, Y)[own] / math.sqrt(each) for _ in range(1 + twofold)]
    rest = [sketch - U @ processes.sum(U.T @ sketch) for sketch in sketches]
    noise = 2 * remainders[count] / math.sqrt(each) if twofold else 0.0
    return Rows(torch.cat([U, *rest], dim=1).T, U.shape[1], twofold, noise, processes, counts)


def _leading(Y: Tensor, start: Tensor, processes: Processes) -> Tensor:
    """Leading directions of samples, as many as they have at most; this process's rows."""
    U = start
    for _ in range(2):
        images = processes.sum(torch.stack([y.T @ U for y in Y]))
        U = tall_qr(sum(y @ image for y, image in zip(Y, images, strict=True)), processes)
    images = processes.sum(torch.stack([U.T @ y for y in Y]))
    shares = torch.linalg.svd(torch.cat([*images], dim=1), full_matrices=False)
    rotation, sizes = processes.first(shares.U, shares.S)
    U = U @ rotation
    return U[:, sizes > RANK * torch.finfo(sizes.dtype).eps * sizes[0]]


def _left(U: Tensor, Y: Tensor, processes: Processes) -> Tensor:
    """The share of samples' energy that the first one, two, ... directions leave."""
    energy = processes.sum(squared_norms(Y).sum())
    shares = processes.sum(torch.stack([U.T @ y for y in Y]))
    captured = shares.double().square().sum((0, 2)).cumsum(0).cpu()
    return processes.first(1 - captured / energy)[0]


def _noise(rows: int, columns: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(rows, columns, generator=generator, device=like.device).to(like)
