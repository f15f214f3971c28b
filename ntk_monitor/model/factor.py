"""The Jacobian of a model as the estimators use it: with random tangents of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from ntk_monitor.estimators import draw_tangents
from ntk_monitor.estimators.tangents import Tangent
from ntk_monitor.model.derivative import Derivative
from ntk_monitor.model.parameters import ParameterSpace
from ntk_monitor.model.shards import Gaussian, inner
from ntk_monitor.model.spread import Spread, place_of
from ntk_monitor.ranks import Ranks


class SampledJacobian:
    """``J`` over parameters that every process has, with tangents from a seed.

    Every process draws the same tangents and computes its own rows of their images; what is pulled
    back is the sum over processes. An `ntk_monitor.estimators.sampling.Factor`.

    Attributes:
        shape_out: ``(B, T, n)`` of this process's rows.
        dtype: Of images and tangents.
        device: Of images and tangents.
    """

    def __init__(
        self, jacobian: Derivative, parameters: Mapping[str, Tensor], ranks: Ranks, seed: int
    ) -> None:
        """Keep what makes it up.

        Args:
            jacobian: This process's rows.
            parameters: The studied parameters, by name.
            ranks: The processes.
            seed: Names the tangents.
        """
        self.shape_out = jacobian.shape_out
        self.dtype: torch.dtype = jacobian.dtype
        self.device: torch.device = jacobian.device
        self._jacobian, self._ranks, self._seed = jacobian, ranks, seed
        self._spread = Spread([place_of(p) for p in parameters.values()])
        self._space = ParameterSpace({name: p.shape for name, p in parameters.items()})

    @cached_property
    def at_once(self) -> int:
        """Tangents that are best carried at once, in all processes."""
        return int(self._ranks.least(self._jacobian.at_once))

    def sample(self, indices: range) -> Tensor:
        """``J g_i``, shape ``(len, B, T, n)``; a product each."""
        directions = [self._direction(i) for i in indices]
        return self._jacobian.products_with(directions, lambda: self._tangents(indices))

    def pull(self, u: Tensor) -> Tensor:
        """``J* u``, shape ``(p,)``; one product."""
        return next(self.pulls([u]))

    def pulls(self, several: Iterable[Tensor]) -> Iterator[Tensor]:
        """``J* u`` for several ``u``, from one evaluation; a product each.

        Args:
            several: Each of shape ``(B, T, n)``.

        Yields:
            Vectors of shape ``(p,)``.
        """
        for pulled in self._jacobian.pulls(several):
            yield self._ranks.sum(pulled)

    def push(self, x: Tensor) -> Tensor:
        """``J x``; one product."""
        return self._jacobian.matvec(x)

    def inner(self, index: int, x: Tensor) -> float:
        """``<g_i, x>``."""
        parts = list(self._space.split(x).values())
        return inner(self._direction(index), parts, self._spread)

    def _direction(self, index: int) -> Gaussian:
        return Gaussian(self._seed, index, self._spread, self.device)

    def _tangents(self, indices: range) -> Tensor:
        """``g_i``, shape ``(len, p)``."""
        size, dtype = self._jacobian.input_size, self.dtype
        return draw_tangents(size, indices, self._seed, dtype=dtype, device=self.device)

    @property
    def fingerprint(self) -> int:
        """A number that tells whether processes have the same tangents."""
        return Tangent(self._jacobian.input_size, 0, self._seed, self.device).fingerprint
