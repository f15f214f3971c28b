"""Operators for SciPy."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor

from ntk_monitor.operators.contract import Products, Shape

DTYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


class _Flat(ScipyOperator):  # type: ignore[misc]
    """An operator on flat numpy vectors."""

    def __init__(self, operator: Products) -> None:
        self.operator = operator
        shape = (prod(operator.shape_out), prod(operator.shape_in))
        super().__init__(dtype=np.dtype(DTYPES[operator.dtype]), shape=shape)

    def _matmat(self, X: NDArray[Any]) -> NDArray[Any]:
        return _columns(self.operator.matmat(self._batch(X, self.operator.shape_in)))

    def _rmatmat(self, X: NDArray[Any]) -> NDArray[Any]:
        return _columns(self.operator.rmatmat(self._batch(X, self.operator.shape_out)))

    def _matvec(self, x: NDArray[Any]) -> NDArray[Any]:
        return self._matmat(x.reshape(-1, 1))[:, 0]

    def _rmatvec(self, x: NDArray[Any]) -> NDArray[Any]:
        return self._rmatmat(x.reshape(-1, 1))[:, 0]

    def _batch(self, X: NDArray[Any], shape: Shape) -> Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(X.T))
        return rows.to(self.operator.device, self.operator.dtype).reshape(-1, *shape)


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
    return _Flat(operator)


def _columns(Y: Tensor) -> NDArray[Any]:
    """A batch of tensors as columns."""
    return Y.reshape(len(Y), -1).detach().cpu().numpy().T
