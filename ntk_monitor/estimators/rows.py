"""Fewer rows for samples on a long temporal axis."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ntk_monitor.estimators.pairs import squared_norms
from ntk_monitor.estimators.spread import tall_qr
from ntk_monitor.ranks import ALONE, Ranks

LEADING_ROWS = (48, 128)
"""Leading directions that may be kept as they are: the fewest that suffice."""
SKETCHED_ROWS = 64
"""Rows for the sketch of all other directions."""
MAX_REMAINDER = 0.01
"""Largest share of the samples' energy that may be left to the sketch."""


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

    Where the ``k`` rows are spread over processes, each gives its own rows of ``Y`` and has its own
    columns of ``W``; what is kept is the sum over processes, the same in each.

    Attributes:
        W: This process's columns, shape ``(d, k_r)``, or None where all rows are kept.
        leading: How many rows of ``W`` are orthonormal leading directions, or all rows there are.
        ranks: The processes.
        own: Which of all rows are this process's; used where all are kept.

    References:
        Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 53 (2011).
    """

    W: Tensor | None
    leading: int
    ranks: Ranks = ALONE
    own: slice = field(default_factory=lambda: slice(None))

    def keep(self, Y: Tensor) -> Tensor:
        """What is kept of tensors on all rows.

        Args:
            Y: This process's rows, shape ``(..., k_r, n)``.

        Returns:
            Shape ``(..., d, n)``.
        """
        return self.ranks.join(Y, -2) if self.W is None else self.ranks.sum(self.W @ Y)

    def lead(self, kept: Tensor) -> Tensor:
        """Coordinates in the leading directions.

        Args:
            kept: Shape ``(..., d, n)``.

        Returns:
            Shape ``(..., leading, n)``.
        """
        return kept[..., : self.leading, :]

    def lift(self, X: Tensor) -> Tensor:
        """From coordinates in the leading directions to all rows; ``lead(keep(lift(X)))`` is ``X``.

        Args:
            X: Shape ``(..., leading, n)``.

        Returns:
            This process's rows, shape ``(..., k_r, n)``.
        """
        return X[..., self.own, :] if self.W is None else self.W[: self.leading].T @ X


def choose_rows(Y: Tensor, ranks: Ranks = ALONE) -> Rows:
    """Rows for samples like these.

    Args:
        Y: The first samples, this process's rows of them, shape ``(s, k_r, n)``.
        ranks: The processes.

    Returns:
        As few as leave at most `MAX_REMAINDER` of the energy to the sketch, or all where the
        rows are too few for compression to pay.
    """
    counts, own = ranks.counts(Y.shape[1]), ranks.own(Y.shape[1])
    k, energy = sum(counts), ranks.sum(squared_norms(Y).sum())
    choices = [count for count in LEADING_ROWS if k > 2 * (count + SKETCHED_ROWS)]
    if not choices or not bool(torch.isfinite(energy)):
        return Rows(None, k, ranks, own)
    generator = torch.Generator(device=Y.device).manual_seed(0)
    most = choices[-1]
    noise = torch.randn(k, most + SKETCHED_ROWS, generator=generator, device=Y.device)[own]
    U, O = torch.split(noise.to(Y), [most, SKETCHED_ROWS], dim=1)  # noqa: E741
    for _ in range(2):
        images = ranks.sum(torch.stack([y.T @ U for y in Y]))
        U = tall_qr(sum(y @ image for y, image in zip(Y, images, strict=True)), ranks)
    # Ritz vectors, so that the first of them lead.
    images = ranks.sum(torch.stack([U.T @ y for y in Y]))
    shares = torch.linalg.svd(torch.cat([*images], dim=1), full_matrices=False)
    U, captured = U @ ranks.first(shares.U), ranks.first(shares.S).double().square().cumsum(0).cpu()
    for count in choices:
        if bool(energy - captured[min(count, len(captured)) - 1] <= MAX_REMAINDER * energy):
            U = U[:, :count]
            remainder = O - U @ ranks.sum(U.T @ O)
            W = torch.cat([U, remainder / math.sqrt(SKETCHED_ROWS)], dim=1).T
            return Rows(W, count, ranks, own)
    return Rows(None, k, ranks, own)
