"""Leading eigenpairs of positive semidefinite operators, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import eigsh
from torch import Tensor

from ntk_monitor.estimators.budget import (
    dense_matrix,
    dimension,
    gaussian,
    images,
    require_budget,
    require_psd,
)
from ntk_monitor.estimators.subspace import fix_signs
from ntk_monitor.operators import LinearOperator
from ntk_monitor.uncertainty import Estimate, mean_estimate

EigenMethod = Literal["auto", "dense", "block-krylov", "eigsh"]
SPARE = 4
"""Columns of a Krylov block beyond the wanted ones."""
KRYLOV_TOLERANCE = 1e-8
"""Relative residual below which Lanczos with restarts is the cheaper method."""


@dataclass(frozen=True)
class Eigenpairs:
    """Leading eigenpairs with the errors they may have.

    Attributes:
        values: Eigenvalues, descending, shape ``(r,)``.
        vectors: Orthonormal eigenvectors in the shape of the space, ``(r, *shape)``.
        residuals: ``||A v - lambda v||`` of each, an upper bound on the distance from ``lambda`` to
            the nearest eigenvalue of ``A``.
        method: How they were computed.
        products: Products spent.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    method: str
    products: int


@dataclass(frozen=True)
class CumulativeVariance:
    """Which share of the trace the leading eigenvalues hold.

    Attributes:
        shares: Cumulative shares, shape ``(r,)``.
        stderr: Their standard errors, from that of the trace.
    """

    shares: Tensor
    stderr: Tensor

    def count_to(self, share: float) -> int | None:
        """How many leading modes hold a share of the trace.

        Args:
            share: For example 0.95, for the number known as k95.

        Returns:
            The number, or None where it is more than are known.
        """
        reached = (self.shares >= share - 1e-12).nonzero()
        return int(reached[0]) + 1 if len(reached) else None


def leading_eigenpairs(
    A: LinearOperator,
    count: int,
    generator: torch.Generator,
    *,
    tolerance: float = 1e-4,
    products: int | None = None,
    method: EigenMethod = "auto",
) -> Eigenpairs:
    """Leading eigenpairs of a positive semidefinite operator.

    ``"dense"`` forms all entries, ``N`` products; ``"block-krylov"`` spends ``count + 4`` products
    a step, in one batch, and finds eigenvalues that repeat up to so often; ``"eigsh"`` is SciPy's
    Lanczos with restarts, one product at a time. ``"auto"`` takes ``"dense"`` where the dimension
    is at most ``6 (count + 4)``, the cost of some six Krylov steps; else ``"eigsh"`` where
    ``tolerance`` is below 1e-8, to which its restarts are the cheaper way; else
    ``"block-krylov"``.

    Args:
        A: A positive semidefinite operator.
        count: How many pairs; no more than the dimension are returned.
        generator: Source of the starting block.
        tolerance: Wanted residual relative to the largest eigenvalue.
        products: Most products to spend; by default as many as there are dimensions. ``"eigsh"``
            and ``"dense"`` know no such limit.
        method: See above.

    Returns:
        The pairs; where the budget ended the iteration, the residuals say how far it came.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Musco and Musco, arXiv:1504.05477 (2015); Tropp, arXiv:2110.00649 (2021); Lehoucq, Sorensen
        and Yang, ARPACK users' guide (1998).
    """
    require_psd(A)
    N = dimension(A)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if method not in {"auto", "dense", "block-krylov", "eigsh"}:
        raise ValueError(f"method must be auto, dense, block-krylov or eigsh, got {method!r}")
    count = min(count, N)
    block = min(N, count + SPARE)
    if method == "auto":
        method = "eigsh" if tolerance < KRYLOV_TOLERANCE else "block-krylov"
        method = "dense" if 6 * block >= N else method
    if method == "dense" or (method == "eigsh" and count >= N - 1):
        values, vectors = torch.linalg.eigh(dense_matrix(A))
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
        return _pairs(A, values, vectors, torch.zeros_like(values), "dense", N)
    if method == "eigsh":
        return _lanczos(A, count, generator, tolerance)
    limit = N if products is None else products
    require_budget(limit, 2 * block)
    return _block_krylov(A, count, block, generator, tolerance, limit)


def operator_norm(
    A: LinearOperator, generator: torch.Generator, *, tolerance: float = 1e-4
) -> Estimate:
    r"""The largest singular value :math:`\|A\|_{op}`, from below.

    Args:
        A: Any operator.
        generator: Source of the starting block.
        tolerance: Wanted relative residual.

    Returns:
        The norm; in place of a standard error, the residual, which bounds the distance to the
        nearest singular value.
    """
    if A.is_psd:
        pairs = leading_eigenpairs(A, 1, generator, tolerance=tolerance)
        return Estimate(float(pairs.values[0]), float(pairs.residuals[0]))
    gram = A @ A.T if A.output_size <= A.input_size else A.T @ A
    pairs = leading_eigenpairs(gram, 1, generator, tolerance=tolerance)
    norm = sqrt(float(pairs.values[0]))
    return Estimate(norm, float(pairs.residuals[0]) / norm if norm else 0.0)


def cumulative_variance(
    A: LinearOperator, count: int, products: int, generator: torch.Generator
) -> CumulativeVariance:
    r"""Cumulative share of the trace in the leading eigenvalues.

    .. math:: \sum_{i \le r} \lambda_i / \mathrm{tr} A

    Two thirds of the products go to the eigenpairs; the trace is exact on them and sampled on
    their complement with the rest.

    Args:
        A: A positive semidefinite operator.
        count: How many eigenvalues.
        products: Products to spend in all; with as many as dimensions the result is exact.
        generator: Source of the vectors.

    Returns:
        The shares.

    Raises:
        ValueError: If the operator is zero.
    """
    N = dimension(A)
    require_budget(products, min(N, 3 * (count + SPARE) + 3))
    exact = products >= N
    method: EigenMethod = "dense" if exact else "block-krylov"
    pairs = leading_eigenpairs(
        A, N if exact else count, generator, method=method, products=2 * products // 3
    )
    rest = Estimate(0.0)
    if not exact:
        left = products - pairs.products
        Q = pairs.vectors.reshape(len(pairs.vectors), -1).double()
        X = gaussian(A, left, generator).reshape(left, -1).double()
        X = X - (X @ Q.T) @ Q
        rest = mean_estimate((X * images(A, X)).sum(1))
    trace = float(pairs.values.sum()) + max(rest.value, 0.0)
    if trace <= 0:
        raise ValueError(f"{A} is zero: shares of its trace are undefined")
    shares = pairs.values[:count].cumsum(0) / trace
    return CumulativeVariance(shares, shares * rest.stderr / trace)


def _block_krylov(
    A: LinearOperator,
    count: int,
    block: int,
    generator: torch.Generator,
    tolerance: float,
    limit: int,
) -> Eigenpairs:
    """Rayleigh-Ritz on the block Krylov space, each new block made orthogonal to all before."""
    N = dimension(A)
    Q = torch.linalg.qr(gaussian(A, block, generator).reshape(block, N).double().T).Q
    AQ = images(A, Q.T).T
    while True:
        H = Q.T @ AQ
        values, rotation = torch.linalg.eigh((H + H.T) / 2)
        values, rotation = values.flip(0)[:count], rotation.flip(1)[:, :count]
        residuals = torch.linalg.vector_norm(AQ @ rotation - Q @ rotation * values, dim=0)
        spent = Q.shape[1]
        done = bool((residuals <= tolerance * values[0].clamp(min=0)).all())
        if done or spent + block > min(limit, N):
            return _pairs(A, values, Q @ rotation, residuals, "block-krylov", spent)
        new = AQ[:, -block:]
        for _ in range(2):
            new = torch.linalg.qr(new - Q @ (Q.T @ new)).Q
        new = torch.linalg.qr(new - Q @ (Q.T @ new)).Q
        Q = torch.cat([Q, new], dim=1)
        AQ = torch.cat([AQ, images(A, new.T).T], dim=1)


def _lanczos(
    A: LinearOperator, count: int, generator: torch.Generator, tolerance: float
) -> Eigenpairs:
    """SciPy's ``eigsh``, with its products counted."""
    N, spent = dimension(A), 0
    flat = A.to_scipy()

    def product(x: Any) -> Any:  # noqa: ANN401
        nonlocal spent
        spent += 1
        return flat.matvec(x)

    start = gaussian(A, 1, generator).flatten().cpu().numpy()
    if not images(A, torch.from_numpy(start).to(A.device)[None]).any():
        zero = torch.zeros(count, dtype=torch.float64, device="cpu")
        return _pairs(
            A, zero, torch.eye(N, count, dtype=torch.float64, device="cpu"), zero, "eigsh", 1
        )
    counted = ScipyOperator(shape=flat.shape, matvec=product, dtype=flat.dtype)
    values, vectors = eigsh(counted, k=count, which="LA", v0=start, tol=tolerance)
    order = np.argsort(values)[::-1]
    found = torch.from_numpy(values[order].copy()).double()
    V = torch.from_numpy(vectors[:, order].copy()).double()
    residuals = torch.linalg.vector_norm(images(A, V.T.to(A.device)).T.cpu() - V * found, dim=0)
    return _pairs(A, found, V, residuals, "eigsh", spent + 1 + count)


def _pairs(
    A: LinearOperator,
    values: Tensor,
    vectors: Tensor,
    residuals: Tensor,
    method: str,
    products: int,
) -> Eigenpairs:
    """What was found, on the operator's device."""
    values, vectors, residuals = (x.to(A.device) for x in (values, vectors, residuals))
    shaped = fix_signs(vectors).T.reshape(-1, *A.shape_in)
    return Eigenpairs(values.clamp(min=0), shaped, residuals, method, products)
