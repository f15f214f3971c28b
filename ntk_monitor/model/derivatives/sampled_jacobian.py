"""The Jacobian of a model as the estimators use it: with random tangents of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from ntk_monitor.model.derivatives.jacobian import ParameterJacobian
from ntk_monitor.model.parameters.pieces import Gaussian, Given, inner
from ntk_monitor.processes import Processes


class SampledJacobian:
    """``J`` with tangents from a seed, which are drawn as they are needed.

    Every process draws the same tangents, of sharded parameters its own part, and computes its own
    rows of their images; what is pulled back is the sum over processes. Directions are a tensor for
    each parameter. An `ntk_monitor.estimators.kernel.sampling.JacobianSampler`.

    Attributes:
        shape_out: ``(B, T, n)`` of this process's rows.
        dtype: Of images.
        device: Of images.
    """

    def __init__(self, jacobian: ParameterJacobian, processes: Processes, seed: int) -> None:
        """Keep what makes it up.

        Args:
            jacobian: This process's rows.
            processes: The processes.
            seed: Names the tangents.
        """
        self.shape_out = jacobian.shape_out
        self.dtype: torch.dtype = jacobian.dtype
        self.device: torch.device = jacobian.device
        self._jacobian, self._processes, self._seed = jacobian, processes, seed

    @cached_property
    def at_once(self) -> int:
        """Tangents that are best carried at once, in all processes."""
        return int(self._processes.least(self._jacobian.at_once))

    def sample(self, indices: range) -> Tensor:
        """``J g_i``, shape ``(len, B, T, n)``; a product each."""
        return self._jacobian.along([self._tangent(i) for i in indices], sampled=True)

    def pull(self, u: Tensor) -> list[Tensor]:
        """``J* u``, a tensor for each parameter; one product."""
        return next(self.pulls([u]))

    def pulls(self, several: Iterable[Tensor], *, here: bool = False) -> Iterator[list[Tensor]]:
        """``J* u`` for several ``u``; a product each. See `ParameterJacobian.pulls_apart`."""
        return self._jacobian.pulls_apart(several, here=here)

    def push(self, x: list[Tensor]) -> Tensor:
        """``J x``; one product."""
        return self._jacobian.along([Given(x, self._jacobian.spread)])[0]

    def inner(self, index: int, x: list[Tensor]) -> float:
        """``<g_i, x>``."""
        return inner(self._tangent(index), x, self._jacobian.spread)

    @property
    def fingerprint(self) -> int:
        """A number that tells whether processes have the same tangents."""
        return self._tangent(0).tangent.fingerprint

    def _tangent(self, index: int) -> Gaussian:
        return Gaussian(self._seed, index, self._jacobian.spread, self.device)
