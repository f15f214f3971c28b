"""How many products a probe may still take."""

from __future__ import annotations

from ntk_monitor.model.derivatives.derivative import Derivative
from ntk_monitor.model.isolation.deadline import Deadline
from ntk_monitor.processes import Processes

SAMPLING_SHARE = 0.8
"""Share of the time limit after which a probe makes do with the samples that it has."""


class ProductBudget:
    """Products that are left, of those that are allowed and of those that the time is enough for.

    All processes hear the same number, as they must take the same products.

    Attributes:
        kept_back: Products for what comes after sampling.
    """

    def __init__(self, J: Derivative, most: int, deadline: Deadline, processes: Processes) -> None:
        """Begin with what was not spent yet.

        Args:
            J: Counts its products.
            most: How many are allowed.
            deadline: When the probe has to end.
            processes: The processes that measure together.
        """
        self._J = J
        self._most = most
        self._deadline = deadline
        self._processes = processes
        self.kept_back = 0
        self._in_time, self._asked, self._begun = 0.0, J.products, 0

    def begin_anew(self) -> None:
        """Sampling begins again: what was spent on samples that do not count is forgiven."""
        self._in_time = 0.0
        self._asked = self._begun = self._J.products

    def left(self) -> int:
        """Products that sampling may still take."""
        return self.left_in_all() - self.kept_back

    def left_in_all(self) -> int:
        """Products that may still be taken, those that are kept back among them."""
        J, processes = self._J, self._processes
        spent = J.products - self._asked  # the same in all processes
        # Several meet for it anew when a part of what was left is spent.
        if processes.size == 1 or 8 * spent >= self._in_time:
            in_time = self._deadline.left(J.products, SAMPLING_SHARE)
            self._in_time = processes.everyone.least(in_time)
            self._asked, spent = J.products, 0
        allowed = self._most + self._begun - J.products - J.most_extra
        return int(min(allowed, self._in_time - spent))
