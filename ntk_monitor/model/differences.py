"""Central finite differences along a line, with a step that is checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ntk_monitor.ranks import ALONE, Ranks

REACH = 3.0
"""How many times the checked change of the function a finite difference may make."""
SHORTENED, SHORTEST = 3, 1e-3
"""How often a step is shortened at most, and to which part of it at once."""
SMALLEST_POINT = 1e-3
"""Norm that a point of smaller norm counts as having: one that is all zero needs a step, too."""

Direction = TypeVar("Direction")


class CentralDifferences(Generic[Direction]):
    r"""Two evaluations a product, whatever a direction is and however the point is moved along it.

    .. math:: J g \approx (f(\theta + \epsilon g) - f(\theta - \epsilon g)) / (2 \epsilon)

    with ``theta`` the point and ``epsilon = eta ||theta|| / ||g||``. The first product chooses
    ``eta``: starting from ``0.6 u^(1/3)`` (``u`` the rounding unit), steps ``eta`` and ``eta / 10``
    must agree to the given accuracy, or the step is divided by ten, twice at most. That is good for
    directions that change the function about as much. One that changes it more than `REACH` times
    as much, ``epsilon ||J g||``, as leading directions do, is done again with a smaller step,
    though not for a change below ``sqrt(u) ||f||``, which rounding would blur. Where the function's
    values are spread over processes, sizes and changes are those of all together, so that all take
    the same steps.

    Attributes:
        extra: Products spent on the step check, and on those that had to be done again.
    """

    def __init__(
        self,
        difference: Callable[[Direction, float], tuple[Tensor, float]],
        value: Callable[[], Tensor],
        dtype: torch.dtype,
        accuracy: float,
        ranks: Ranks = ALONE,
    ) -> None:
        """Keep what is differentiated.

        Args:
            difference: From a direction and ``eta`` to the difference between the function's
                values ahead and behind, a tensor of its own, and ``epsilon``.
            value: The function's value at the point itself.
            dtype: Arithmetic in which the point is moved.
            accuracy: The relative agreement of two steps.
            ranks: The processes over which the function's values are spread.
        """
        self._difference, self._value = difference, value
        self._rounding = torch.finfo(dtype).eps
        self._accuracy, self._ranks = accuracy, ranks
        self._step: float | None = None
        self._checked = 0.0
        self.extra = 0

    def __call__(self, g: Direction) -> Tensor:
        """The product with one direction."""
        if self._step is not None:
            return self._within_reach(g, self._step)
        step, image, change = self._choose_step(g)
        if change > 0:  # a direction that moves nothing is no check
            self._step, self._checked = step, max(change, self._blurred())
        return image

    def _blurred(self) -> float:
        """The change of the function that rounding makes uncertain to ``sqrt(u)``."""
        return self._norm(self._value()) * math.sqrt(self._rounding)

    def _norm(self, values: Tensor) -> float:
        """The norm of a function value, whose parts all processes have."""
        norm = torch.linalg.vector_norm(values, dtype=torch.float64)
        return math.sqrt(self._ranks.sum(norm.square()))

    def _within_reach(self, g: Direction, step: float) -> Tensor:
        """The product, with a step that changes the function about as much as the checked one."""
        image, change = self._product(g, step)
        for _ in range(SHORTENED):
            if not REACH * self._checked < change < math.inf:
                break
            step *= max(self._checked / change, SHORTEST)
            image, change = self._product(g, step)
            self.extra += 1
        return image

    def _product(self, g: Direction, step: float) -> tuple[Tensor, float]:
        """The product, and by how much the function changed for it."""
        difference, epsilon = self._difference(g, step)
        image = difference.div_(2 * epsilon)
        return image, epsilon * self._norm(image)

    def _choose_step(self, g: Direction) -> tuple[float, Tensor, float]:
        """The step, the product with it, and the change that it made."""
        step: float = 0.6 * self._rounding ** (1 / 3)
        coarse, change = self._product(g, step)
        gaps = []
        for _ in range(3):
            fine, smaller = self._product(g, step / 10)
            self.extra += 1
            gap, size = self._norm(coarse - fine), self._norm(fine)
            if not gap > self._accuracy * size:  # also passes what is zero or not finite
                return step, coarse, change
            gaps.append(f"{gap / size if size else math.inf:.2g}")
            step, coarse, change = step / 10, fine, smaller
        raise FloatingPointError(
            f"finite differences do not settle: a step ten times smaller changes the product by "
            f"{', '.join(gaps)} in turn (wanted at most {self._accuracy:.2g}); use "
            "method='forward-ad', or dtype=torch.float64"
        )
