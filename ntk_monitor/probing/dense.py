"""The dense Jacobian of a small model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntk_monitor.estimators.formulas import at_least_float32
from ntk_monitor.model import Linearization

DENSE_LIMIT = 2**28
"""Most entries that a dense Jacobian may have."""


def dense_jacobian(lin: Linearization, values: float) -> Tensor:
    """This process's entries of the Jacobian by columns.

    Args:
        lin: The model.
        values: How many entries the state has in all processes.

    Returns:
        Shape ``(p, k, n)``.

    Raises:
        ValueError: If there are too many.
    """
    J = lin.jacobian
    entries = math.prod(J.shape_in) * values
    if entries > DENSE_LIMIT:
        raise ValueError(
            f"method='exact' needs a dense Jacobian of {values:.0f} x "
            f"{math.prod(J.shape_in)} entries, more than the {DENSE_LIMIT} that fit: use "
            "method='auto', a smaller batch, or fewer parameters"
        )
    size_in, size_out = math.prod(J.shape_in), math.prod(J.shape_out)
    if size_in <= values:  # of all processes: all must go the same way
        basis = torch.eye(size_in, dtype=J.dtype, device=J.device)
        columns = J.matmat(basis.reshape(size_in, *J.shape_in)).flatten(1, 2)
    else:
        basis = torch.eye(size_out, dtype=J.dtype, device=J.device)
        rows = J.rmatmat(basis.reshape(size_out, *J.shape_out)).flatten(1)
        columns = rows.T.reshape(size_in, lin.rows, -1)
    return at_least_float32(columns).contiguous()
