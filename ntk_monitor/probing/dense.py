"""The dense Jacobian of a small model."""

from __future__ import annotations

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
    if J.input_size * values > DENSE_LIMIT:
        raise ValueError(
            f"method='exact' needs a dense Jacobian of {values:.0f} x "
            f"{J.input_size} entries, more than the {DENSE_LIMIT} that fit: use "
            "method='auto', a smaller batch, or fewer parameters"
        )
    if J.input_size <= values:  # of all processes: all must go the same way
        columns = J.matmat(J._basis(J.shape_in)).flatten(1, 2)
    else:
        rows = J.rmatmat(J._basis(J.shape_out)).flatten(1)
        columns = rows.T.reshape(J.input_size, lin.rows, -1)
    return at_least_float32(columns).contiguous()
