"""Finite differences along a line, with a step that is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ntk_monitor.processes import ALONE, Processes

REACH = 3.0
"""How many times the checked change of the function a finite difference may make."""
SHORTENED, SHORTEST = 3, 1e-3
"""How often a step is shortened at most, and to which part of it at once."""
SMALLEST_POINT = 1e-3
"""Norm that a point of smaller norm counts as having: one that is all zero needs a step, too."""
COARSER = 4.0
"""Of a one-sided difference, how much longer the step is that it is checked with: there curvature,
which is a bias, is as much larger, and rounding, which is none, smaller."""
STRICTER = 0.25
"""Share of the accuracy that one-sided differences must agree to, so that programs of one function,
which round differently, have samples that differ by no more."""

Direction = TypeVar("Direction")


class Way(NamedTuple):
    """How a difference is taken.

    Attributes:
        step: ``eta``, the step over the size of the point.
        base: The function's value at the point, for one-sided differences; None for central ones.
        change: By how much the checked difference changed the function.
    """

    step: float
    base: Tensor | None
    change: float


class Differences(Generic[Direction]):
    r"""Two evaluations a product, or one, whatever a direction is and however the point is moved.

    .. math:: J g \approx (f(\theta + \epsilon g) - f(\theta - \epsilon g)) / (2 \epsilon)

    with ``theta`` the point and ``epsilon = eta ||theta|| / ||g||``. The first product chooses
    ``eta``: starting from ``0.6 u^(1/3)`` (``u`` the rounding unit), steps ``eta`` and ``eta / 10``
    must agree to the given accuracy, or the step is divided by ten, twice at most.

    For samples, whose own errors are far larger, there are one-sided differences,

    .. math:: J g \approx (f(\theta + \epsilon g) - f(\theta)) / \epsilon,

    with ``f(theta)`` computed once: half the evaluations, and an error of curvature ``eta`` beside
    that of rounding ``u / eta``, so ``eta`` is ``0.6 u^(1/2)``. The first product checks it: with a
    step four times as long it must agree to a quarter of the accuracy, so that its own curvature is
    below a third of that; where it does not, samples are taken by central differences. So they are
    in float64, which one asks for to be exact.

    That is good for directions that change the function about as much. One that changes it more
    than `REACH` times as much, ``epsilon ||J g||``, as leading directions do, is done again with a
    smaller step, though not for a change below ``sqrt(u) ||f||`` (of central differences), which
    rounding would blur. Where the function's values are spread over processes, sizes and changes
    are those of all together, so that all take the same steps; those of several directions are
    summed at once.

    Attributes:
        extra: Products spent on the step check, and on those that had to be done again.
    """

    def __init__(
        self,
        difference: Callable[[Direction, float, Tensor | None], tuple[Tensor, float]],
        value: Callable[[], Tensor],
        dtype: torch.dtype,
        accuracy: float,
        processes: Processes = ALONE,
    ) -> None:
        """Keep what is differentiated.

        Args:
            difference: From a direction, ``eta``, and the function's value at the point to the
                difference between its value ahead and that one, or, for None, the one behind: a
                tensor of its own; and ``epsilon``.
            value: The function's value at the point itself.
            dtype: Arithmetic in which the point is moved.
            accuracy: The relative agreement of two steps.
            processes: The processes over which the function's values are spread.
        """
        self._difference, self._value = difference, value
        self._rounding = torch.finfo(dtype).eps
        self._accuracy, self._processes = accuracy, processes
        self._ways: dict[bool, Way] = {}
        self._one_sided = self._rounding >= torch.finfo(torch.float32).eps
        self.extra = 0

    def __call__(self, directions: Sequence[Direction], *, sampled: bool = False) -> list[Tensor]:
        """The products with some directions.

        Args:
            directions: The directions.
            sampled: Whether they are samples, all of a kind.

        Returns:
            The products.
        """
        sampled &= self._one_sided
        images: list[Tensor] = []
        while sampled not in self._ways and len(images) < len(directions):
            g = directions[len(images)]
            way, image = self._choose_one_sided(g) if sampled else self._choose_central(g)
            images.append(image)
            if way.change > 0:  # a direction that moves nothing is no check
                self._ways[sampled] = way
        which = range(len(images), len(directions))
        return images + (
            self._within_reach(directions, which, self._ways[sampled]) if which else []
        )

    def _blurred(self) -> float:
        """The change of the function that rounding makes uncertain to ``sqrt(u)``."""
        return self._norms(self._value())[0] * math.sqrt(self._rounding)

    def _norms(self, *values: Tensor) -> list[float]:
        """The norms of function values, whose parts all processes have."""
        norms = [torch.linalg.vector_norm(v, dtype=torch.float64) for v in values]
        return self._processes.sum(torch.stack(norms).square()).sqrt().tolist()

    def _within_reach(
        self, directions: Sequence[Direction], which: range, way: Way
    ) -> list[Tensor]:
        """Products, with steps that change the function about as much as the checked one."""
        steps = dict.fromkeys(which, way.step)
        images: dict[int, Tensor] = {}
        far = list(which)
        for attempt in range(SHORTENED + 1):
            if not far:
                break
            self.extra += len(far) if attempt else 0
            epsilons = []
            for i in far:
                images.pop(i, None)
                images[i], epsilon = self._product(directions[i], steps[i], way.base)
                epsilons.append(epsilon)
            norms = self._norms(*(images[i] for i in far))
            changes = {i: e * n for i, e, n in zip(far, epsilons, norms, strict=True)}
            far = [i for i, change in changes.items() if REACH * way.change < change < math.inf]
            for i in far:
                steps[i] *= max(way.change / changes[i], SHORTEST)
        return [images[i] for i in which]

    def _product(self, g: Direction, step: float, base: Tensor | None) -> tuple[Tensor, float]:
        """The product, and how far the point was moved for it."""
        difference, epsilon = self._difference(g, step, base)
        return difference.div_(epsilon if base is not None else 2 * epsilon), epsilon

    def _choose_one_sided(self, g: Direction) -> tuple[Way, Tensor]:
        """How samples are taken, and the product with the first."""
        base = self._value().clone()  # a state may be a view of the parameters
        step = 0.6 * math.sqrt(self._rounding)
        image, epsilon = self._product(g, step, base)
        coarse, _ = self._product(g, COARSER * step, base)  # as dear as the other side: no extra
        gap, size = self._norms(coarse - image, image)
        if gap <= STRICTER * self._accuracy * size or not math.isfinite(size):
            return Way(step, base, epsilon * size), image
        self.extra += 1
        return self._choose_central(g)

    def _choose_central(self, g: Direction) -> tuple[Way, Tensor]:
        """The step of central differences, and the product with a direction."""
        if False in self._ways:
            way = self._ways[False]
            (image,) = self._within_reach([g], range(1), way)
            return way, image
        step, usual = 0.6 * self._rounding ** (1 / 3), math.inf
        if True in self._ways:  # a sample has told how much a direction usually changes
            usual = self._ways[True].change * step / self._ways[True].step
        coarse, epsilon = self._product(g, step, None)
        size = epsilon * self._norms(coarse)[0]
        nearer = max(usual / size, SHORTEST) if REACH * usual < size < math.inf else 1.0
        if nearer < 1:
            self.extra += 1
            coarse, epsilon = self._product(g, nearer * step, None)
        gaps = []
        for _ in range(3):
            fine, smaller = self._product(g, nearer * step / 10, None)
            self.extra += 1
            gap, size, coarse_size = self._norms(coarse - fine, fine, coarse)
            if not gap > self._accuracy * size:
                change = min(epsilon * coarse_size, usual)
                change = max(change, self._blurred()) if change > 0 else 0.0
                return Way(step, None, change), coarse
            gaps.append(f"{gap / size if size else math.inf:.2g}")
            coarse, epsilon, step, usual = fine, smaller, step / 10, usual / 10
        raise FloatingPointError(
            f"finite differences do not settle: a step ten times smaller changes the product by "
            f"{', '.join(gaps)} in turn (wanted at most {self._accuracy:.2g}); use "
            "method='forward-ad', or dtype=torch.float64"
        )
