"""Traces by exchangeable estimators: every vector both deflates and samples."""

from __future__ import annotations

import torch

from ntk_monitor.estimators.budget import (
    dense_matrix,
    dimension,
    gaussian,
    images,
    require_budget,
    require_psd,
)
from ntk_monitor.operators import LinearOperator
from ntk_monitor.uncertainty import Estimate, mean_estimate


def xtrace(A: LinearOperator, products: int, generator: torch.Generator) -> Estimate:
    r"""The trace of a symmetric operator by XTrace.

    With ``k = products / 2`` vectors, ``Q_i`` an orthonormal basis of ``A Omega`` without its
    ``i``-th column, and ``v_i = (I - Q_i Q_i^*) omega_i``, the mean over ``i`` of

    .. math:: \mathrm{tr}(Q_i^* A Q_i) + (N - k + 1)\, \frac{\langle v_i, A v_i\rangle}{\|v_i\|^2}

    All leave-one-out bases come from one QR: ``Q_i Q_i^* = Q (I - s_i s_i^*) Q^*`` with ``s_i``
    the normalised columns of ``R^{-*}``. Unbiased, since ``omega_i`` is independent of ``Q_i`` and
    Gaussian vectors have no preferred direction.

    Args:
        A: A symmetric operator from a space to itself.
        products: Products to spend, at least 4 and even; with as many as dimensions the result is
            exact.
        generator: Source of the vectors.

    Returns:
        The trace; the standard error is the spread of the ``k`` values over ``sqrt(k)``. Exact
        where the rank of ``A`` is below ``k``.

    References:
        Epperly, Tropp and Webber, XTrace, arXiv:2301.07825 (2024), section 2.
    """
    require_budget(products, 4, multiple=2)
    N, k = dimension(A), products // 2
    if products >= N:
        return Estimate(float(dense_matrix(A).trace()))
    Omega = gaussian(A, k, generator).reshape(k, N).double().T
    Q, R = torch.linalg.qr(images(A, Omega.T).T)
    H = Q.T @ images(A, Q.T).T
    diagonal = R.diagonal().abs()
    if bool(diagonal.min() <= torch.finfo(A.dtype).eps * N * diagonal.max()):
        return Estimate(float(H.trace()))
    S = torch.linalg.inv(R).T
    S = S / torch.linalg.vector_norm(S, dim=0)
    W = Q.T @ Omega
    X = W - S * (S * W).sum(0)
    vAv = (W * R).sum(0) - 2 * (X * R).sum(0) + (X * (H @ X)).sum(0)
    sizes = Omega.square().sum(0) - X.square().sum(0)
    values = H.trace() - (S * (H @ S)).sum(0) + (N - k + 1) * vAv / sizes
    return mean_estimate(values)


def xnystrace(A: LinearOperator, products: int, generator: torch.Generator) -> Estimate:
    r"""The trace of a positive semidefinite operator by XNysTrace.

    With ``m = products`` vectors and the Nystrom approximation on all of them but one,

    .. math:: A_i = A \Omega_{-i} (\Omega_{-i}^* A \Omega_{-i})^{-1} \Omega_{-i}^* A,

    it is the mean over ``i`` of

    .. math:: \mathrm{tr} A_i + c_i \langle\omega_i, (A - A_i)\,\omega_i\rangle, \quad
        c_i = (N - m + 1)\, ((\Omega^*\Omega)^{-1})_{ii}

    Leaving one vector out is a rank-one change, ``A_i = A_\Omega - y_i y_i^* / d_i`` with
    ``y_i = A \Omega H^{-1} e_i``, ``d_i = (H^{-1})_{ii}`` and ``H = \Omega^* A \Omega``, after
    which the second term is ``c_i / d_i``. The best single method for low effective rank.

    Args:
        A: A positive semidefinite operator.
        products: Products to spend, at least 3; with as many as dimensions the result is exact.
        generator: Source of the vectors.

    Returns:
        The trace; the standard error is the spread of the ``m`` values over ``sqrt(m)``. Exact up
        to rounding where ``H`` is singular, that is where the rank of ``A`` is below ``m``.

    References:
        Epperly, Tropp and Webber, XTrace, arXiv:2301.07825 (2024), section 2.3.
    """
    require_budget(products, 3)
    require_psd(A)
    N, m = dimension(A), products
    if m >= N:
        return Estimate(float(dense_matrix(A).trace()))
    Omega = gaussian(A, m, generator).reshape(m, N).double().T
    Y = images(A, Omega.T).T
    H = Omega.T @ Y
    values, vectors = torch.linalg.eigh((H + H.T) / 2)
    cutoff = torch.finfo(A.dtype).eps * m * values[-1]
    kept = values > cutoff
    if not bool(kept.all()):
        roots = Y @ vectors[:, kept] / values[kept].sqrt()
        return Estimate(float(roots.square().sum()))
    inverse = vectors / values @ vectors.T
    columns = Y @ inverse
    d = inverse.diagonal()
    c = (N - m + 1) * torch.linalg.inv(Omega.T @ Omega).diagonal()
    whole = (Y * columns).sum()
    return mean_estimate(whole - columns.square().sum(0) / d + c / d)
