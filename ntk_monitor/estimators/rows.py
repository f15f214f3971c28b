"""Fewer rows for samples on a long temporal axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ntk_monitor.estimators.pairs import squared_norms

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

    Attributes:
        W: Shape ``(d, k)``, or None where all rows are kept.
        leading: How many rows of ``W`` are orthonormal leading directions, or all rows there are.

    References:
        Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 53 (2011).
    """

    W: Tensor | None
    leading: int

    def keep(self, Y: Tensor) -> Tensor:
        """What is kept of tensors on all rows.

        Args:
            Y: Shape ``(..., k, n)``.

        Returns:
            Shape ``(..., d, n)``.
        """
        return Y if self.W is None else self.W @ Y

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
            Shape ``(..., k, n)``.
        """
        return X if self.W is None else self.W[: self.leading].T @ X


def choose_rows(Y: Tensor) -> Rows:
    """Rows for samples like these.

    Args:
        Y: The first samples, shape ``(s, k, n)``.

    Returns:
        As few as leave at most `MAX_REMAINDER` of the energy to the sketch, or all where the
        rows are too few for compression to pay.
    """
    k, energy = Y.shape[1], squared_norms(Y).sum()
    choices = [count for count in LEADING_ROWS if k > 2 * (count + SKETCHED_ROWS)]
    if not choices or not bool(torch.isfinite(energy)):
        return Rows(None, k)
    generator = torch.Generator(device=Y.device).manual_seed(0)
    most = choices[-1]
    noise = torch.randn(k, most + SKETCHED_ROWS, generator=generator, device=Y.device)
    U, O = torch.split(noise.to(Y), [most, SKETCHED_ROWS], dim=1)  # noqa: E741
    for _ in range(2):
        U = torch.linalg.qr(sum(y @ (y.T @ U) for y in Y)).Q
    # Ritz vectors, so that the first of them lead.
    shares = torch.linalg.svd(torch.cat([U.T @ y for y in Y], dim=1), full_matrices=False)
    U, captured = U @ shares.U, shares.S.double().square().cumsum(0).cpu()
    for count in choices:
        if bool(energy - captured[min(count, len(captured)) - 1] <= MAX_REMAINDER * energy):
            U = U[:, :count]
            remainder = O - U @ (U.T @ O)
            return Rows(torch.cat([U, remainder / math.sqrt(SKETCHED_ROWS)], dim=1).T, count)
    return Rows(None, k)
