"""Central finite differences along a line, with a step that is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    the same steps; those of several directions are summed at once.

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

    def __call__(self, directions: Sequence[Direction]) -> list[Tensor]:
        """The products with some directions."""
        images: list[Tensor] = []
        while self._step is None and len(images) < len(directions):
            step, image, change = self._choose_step(directions[len(images)])
            images.append(image)
            if change > 0:  # a direction that moves nothing is no check
                self._step, self._checked = step, max(change, self._blurred())
        return images + self._within_reach(directions, range(len(images), len(directions)))

    def _blurred(self) -> float:
        """The change of the function that rounding makes uncertain to ``sqrt(u)``."""
        return self._norms(self._value())[0] * math.sqrt(self._rounding)

    def _norms(self, *values: Tensor) -> list[float]:
        """The norms of function values, whose parts all processes have."""
        norms = [torch.linalg.vector_norm(v, dtype=torch.float64) for v in values]
        return self._ranks.sum(torch.stack(norms).square()).sqrt().tolist()

    def _within_reach(self, directions: Sequence[Direction], which: range) -> list[Tensor]:
        """Products, with steps that change the function about as much as the checked one."""
        steps = dict.fromkeys(which, self._step or 0.0)
        images: dict[int, Tensor] = {}
        far = list(which)
        for attempt in range(SHORTENED + 1):
            if not far:
                break
            self.extra += len(far) if attempt else 0
            epsilons = []
            for i in far:
                images.pop(i, None)
                images[i], epsilon = self._product(directions[i], steps[i])
                epsilons.append(epsilon)
            norms = self._norms(*(images[i] for i in far))
            changes = {i: e * n for i, e, n in zip(far, epsilons, norms, strict=True)}
            far = [i for i, change in changes.items() if REACH * self._checked < change < math.inf]
            for i in far:
                steps[i] *= max(self._checked / changes[i], SHORTEST)
        return [images[i] for i in which]

    def _product(self, g: Direction, step: float) -> tuple[Tensor, float]:
        """The product, and how far the point was moved for it."""
        difference, epsilon = self._difference(g, step)
        return difference.div_(2 * epsilon), epsilon

    def _choose_step(self, g: Direction) -> tuple[float, Tensor, float]:
        """The step, the product with it, and the change that it made."""
        step: float = 0.6 * self._rounding ** (1 / 3)
        coarse, epsilon = self._product(g, step)
        gaps = []
        for _ in range(3):
            fine, smaller = self._product(g, step / 10)
            self.extra += 1
            gap, size, coarse_size = self._norms(coarse - fine, fine, coarse)
            if not gap > self._accuracy * size:  # also passes what is zero or not finite
                return step, coarse, epsilon * coarse_size
            gaps.append(f"{gap / size if size else math.inf:.2g}")
            step, coarse, epsilon = step / 10, fine, smaller
        raise FloatingPointError(
            f"finite differences do not settle: a step ten times smaller changes the product by "
            f"{', '.join(gaps)} in turn (wanted at most {self._accuracy:.2g}); use "
            "method='forward-ad', or dtype=torch.float64"
        )
