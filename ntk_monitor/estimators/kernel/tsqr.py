"""Linear algebra of tall matrices whose rows are spread over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from ntk_monitor.processes import Processes


def tall_qr(X: Tensor, processes: Processes) -> Tensor:
    """An orthonormal basis of the columns of a matrix.

    Each process takes the QR decomposition of its own rows, and all take that of the triangles,
    which is as accurate as that of the whole matrix.

    Args:
        X: This process's rows, shape ``(k_r, d)``.
        processes: The processes.

    Returns:
        This process's rows of the basis, shape ``(k_r, min(k, d))``.

    References:
        Demmel, Grigori, Hoemmen and Langou, Communication-optimal parallel and sequential QR and
        LU factorizations, SIAM J. Sci. Comput. 34 (2012).
    """
    return _tall_qr(X, processes)[0]


def tall_svd(X: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """The singular triples of a matrix.

    Args:
        X: This process's rows, shape ``(k_r, d)``.
        processes: The processes.

    Returns:
        This process's rows of ``U``, the singular values, descending, and ``V*``; with
        ``r = min(k, d)`` of shapes ``(k_r, r)``, ``(r,)`` and ``(r, d)``.
    """
    if processes.size == 1:
        U, sigma, Vh = torch.linalg.svd(X, full_matrices=False)
        return U, sigma, Vh
    Q, R = _tall_qr(X, processes)
    U, sigma, Vh = processes.first(*torch.linalg.svd(R, full_matrices=False))
    return Q @ U, sigma, Vh


def _tall_qr(X: Tensor, processes: Processes) -> tuple[Tensor, Tensor]:
    """This process's rows of ``Q``, and ``R``."""
    Q, R = torch.linalg.qr(X)
    if processes.size == 1:
        return Q, R
    counts = processes.counts(len(R))
    # The decomposition of one process: others might come to other signs.
    outer, R = processes.first(*torch.linalg.qr(processes.join(R, counts=counts)))
    return Q @ outer[processes.own(counts)], R
