"""Operators for SciPy."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor

from ntk_monitor.operators.contract import Products, Shape

DTYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


def to_scipy(operator: Products) -> ScipyOperator:
    """Wrap an operator; see `LinearOperator.to_scipy`.

    Args:
        operator: The operator.

    Returns:
        It, on flat numpy vectors.

    Raises:
        ValueError: If numpy has no such dtype.
    """
    if operator.dtype not in DTYPES:
        raise ValueError(
            f"numpy has no {operator.dtype}, which {operator} works in: use an operator in "
            f"{', '.join(map(str, DTYPES))}"
        )
    A = _columns(operator, operator.matmat, operator.shape_in)
    adjoint = _columns(operator, operator.rmatmat, operator.shape_out)
    return ScipyOperator(
        (prod(operator.shape_out), prod(operator.shape_in)),
        dtype=np.dtype(DTYPES[operator.dtype]),
        matvec=A, matmat=A, rmatvec=adjoint, rmatmat=adjoint,
    )  # fmt: skip


def _columns(
    operator: Products, products: Callable[[Tensor], Tensor], shape: Shape
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Products of a batch of tensors as those of columns, or of one vector."""

    def apply(X: NDArray[Any]) -> NDArray[Any]:
        rows = torch.from_numpy(np.ascontiguousarray(X.T))
        Y = products(rows.to(operator.device, operator.dtype).reshape(-1, *shape))
        columns: NDArray[Any] = Y.reshape(len(Y), -1).detach().cpu().numpy().T
        return columns

    return apply
