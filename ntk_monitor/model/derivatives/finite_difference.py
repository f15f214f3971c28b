"""Products of a model by finite differences, in the memory of plain calls of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ntk_monitor.model.derivatives.differences import SHORTENED, SMALLEST_POINT, Differences
from ntk_monitor.model.derivatives.products import TangentProducts, Tangents
from ntk_monitor.model.derivatives.substitution import MovedPasses, Substitution
from ntk_monitor.model.parameters.pieces import Direction, Given, norm, require_separate
from ntk_monitor.model.parameters.selection import ParameterSpace
from ntk_monitor.model.parameters.sharding import Sharding
from ntk_monitor.processes import ALONE, Processes


class FiniteDifference(TangentProducts):
    """Finite differences of a model: a plain call a product, or two.

    Each operation is given moved parameters (`Substitution`); none is written to, and no vector as
    long as all of them is made. Works with any kernel. The step is chosen and checked by
    `Differences`.
    """

    kernels = "any"
    most_extra = SHORTENED

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        value: Callable[[Substitution], Tensor],
        untrained: Mapping[str, int],
        accuracy: float,
        spread: Sharding,
        processes: Processes = ALONE,
        used: Collection[str] | None = None,
    ) -> None:
        """Keep what the method needs.

        Args:
            parameters: The parameters by name, all of one floating type.
            value: Computes the function by a call of the model, with moved parameters.
            untrained: Rows whose derivative is taken as zero, by the parameter's name.
            accuracy: The relative agreement of two steps.
            spread: How the parameters are spread.
            processes: The processes over which the function's values are spread.
            used: Names of those on which the function depends; None for all.
        """
        require_separate(parameters)
        self.chunk_size = 1
        self._parameters = tuple(parameters.values())
        self._versions = [p._version for p in self._parameters]
        self._space = ParameterSpace({name: p.shape for name, p in parameters.items()})
        self._spread = spread
        size = max(norm(self._parameters, spread), SMALLEST_POINT)
        evaluated = MovedPasses(parameters, untrained, used)

        def difference(
            direction: Direction, step: float, base: Tensor | None
        ) -> tuple[Tensor, float]:
            epsilon = step * size / (direction.length or 1.0)
            ahead = evaluated(value, direction, epsilon)
            behind = evaluated(value, direction, -epsilon) if base is None else base
            return ahead - behind, epsilon

        dtype = self._parameters[0].dtype
        self._differences = Differences[Direction](
            difference, lambda: evaluated(value, None, 0.0), dtype, accuracy, processes
        )

    @property
    def extra_products(self) -> int:
        """Products spent on the step check, and on those that had to be done again."""
        return self._differences.extra

    def __call__(self, G: Tangents) -> Tensor:
        """Return ``J G[b]``."""
        return self.along([Given(list(self._space.split(g).values()), self._spread) for g in G])

    def along(self, directions: Sequence[Direction], *, sampled: bool = False) -> Tensor:
        """Products with directions in any form.

        Args:
            directions: The directions.
            sampled: Whether they are random, so that each product may be less precise.

        Returns:
            Shape ``(b, *shape_out)``.

        Raises:
            RuntimeError: If the parameters have been changed since this was made.
        """
        if [p._version for p in self._parameters] != self._versions:
            raise RuntimeError(
                "the parameters have been changed since the model was linearised, and no copy of "
                "them was kept: linearize again"
            )
        with torch.no_grad():
            images = self._differences(directions, sampled=sampled)
            return images[0][None] if len(images) == 1 else torch.stack(images)
