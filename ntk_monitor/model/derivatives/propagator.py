"""The propagator: how a change of the state at one step spreads to all later ones."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ntk_monitor.operators import LinearOperator

GREEN_LIMIT = 2**26
"""Most entries that an explicit Green's form may have."""


class Propagator(LinearOperator):
    r"""The propagator :math:`P = (D_h F)^{-1}` of the constraint :math:`F = h - f(T_\downarrow h)`.

    .. math:: (P q)_j(t) = \sum_{s \le t} \Phi_j(t, s)\, q_j(s), \quad
        \Phi_j(t, s) = \partial h_j(t) / \partial h_j(s)

    A forward product is one forward sweep through time of the perturbed model, an adjoint product
    one sweep back; the inverse needs no solve, since it is the derivative of the constraint
    itself. For a state without recurrence ``P`` is the identity.

    Attributes:
        inverse: The linearised constraint ``D_h F = I - D_h f T_down``.

    References:
        Paper, Proposition 1 and Corollary 1.
    """

    def __init__(self, sweep: LinearOperator, inverse: LinearOperator) -> None:
        """Join the two directions.

        Args:
            sweep: Products with ``P`` and ``P*``.
            inverse: Products with ``D_h F`` and its adjoint.
        """
        super().__init__(sweep.shape_in, sweep.shape_out, sweep.dtype, sweep.device)
        self._sweep = sweep
        self.inverse = inverse

    def _matmat(self, X: Tensor) -> Tensor:
        return self._sweep._matmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._sweep._rmatmat(Y)

    def state_transition(self, s: int) -> Tensor:
        r"""The explicit :math:`\Phi_j(t, s)` for all trials ``j`` and times ``t``.

        Args:
            s: The time at which the state is changed, from 0.

        Returns:
            Shape ``(B, T, n, n)``: output unit, then input unit; zero before ``s``, the identity
            at ``s``. The cost is ``n`` products, as trials do not act on each other.

        Raises:
            ValueError: If there is no such time.
        """
        B, T, n = self.shape_in
        if not 0 <= s < T:
            raise ValueError(f"s must be a time step from 0 to {T - 1}, got {s}")
        impulses = torch.zeros(n, B, T, n, dtype=self.dtype, device=self.device)
        units = torch.arange(n, device=self.device)
        impulses[units, :, s, units] = 1.0
        return self._matmat(impulses).movedim(0, -1)

    def green(self) -> Tensor:
        """All state transitions, for small cases.

        Returns:
            Shape ``(B, T, T, n, n)``: trial, time of the effect, time of the cause, output unit,
            input unit. The cost is ``T n`` products.

        Raises:
            ValueError: If there are too many.
        """
        B, T, n = self.shape_in
        entries = prod((B, T, T, n, n))
        if entries > GREEN_LIMIT:
            raise ValueError(
                f"the Green's form of a state of shape {self.shape_in} has {entries} entries, "
                f"more than {GREEN_LIMIT}: take state_transition(s) of single times, or products"
            )
        return torch.stack([self.state_transition(s) for s in range(T)], dim=2)

    def __str__(self) -> str:
        return "P"
