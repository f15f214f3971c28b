"""Products of a model's Jacobian in the memory of plain calls of the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ntk_monitor.model.derivative import Derivative, Quiet
from ntk_monitor.model.finite_difference import FiniteDifference
from ntk_monitor.model.parameters import ParameterSpace
from ntk_monitor.model.products import IN_PLACE
from ntk_monitor.model.real import RealForward
from ntk_monitor.model.shards import Direction, Gaussian, Given, inner
from ntk_monitor.model.state import State
from ntk_monitor.ranks import ALONE, Ranks


class InPlaceJacobian(Derivative):
    """The Jacobian over a model's own parameters, with products in place.

    Products with flat vectors are for small models. The others take and give a tensor for each
    parameter: `along`, `pull`.
    """

    def __init__(
        self,
        forward: RealForward,
        names: Sequence[str],
        where: State,
        value: Tensor,
        quiet: Quiet,
        untrained: Mapping[str, int],
        accuracy: float,
        ranks: Ranks = ALONE,
        used: Collection[str] | None = None,
    ) -> None:
        """Make the operator.

        Args:
            forward: The model.
            names: The studied parameters.
            where: Where the state is.
            value: The state.
            quiet: Makes the context to compute in.
            untrained: Rows of parameters whose derivative is taken as zero.
            accuracy: The relative agreement of two steps.
            ranks: The processes over which the state is spread.
            used: Those that move the state in this process; None for all.
        """
        self.parameters = forward.leaves(names)
        self.spread = forward.spread(self.parameters.values())
        self._forward = forward
        # Functions that do not refer to this operator, so that its memory is free with it.
        self._gradients = _gradients(forward, where, self.parameters)
        in_place = FiniteDifference(
            self.parameters,
            lambda moving: forward.run_with(moving, where),
            untrained,
            accuracy,
            self.spread,
            ranks,
            used,
        )
        self._in_place = in_place
        size, pull = self.spread.offsets[-1], _flat(self._gradients, self.parameters)
        super().__init__(
            "J", (size,), value, {IN_PLACE: in_place}, quiet, lambda: pull, ranks=ranks
        )

    def along(self, directions: Sequence[Direction], *, sampled: bool = False) -> Tensor:
        """``J g`` for directions in any form; a product each.

        Args:
            directions: The directions.
            sampled: Whether they are samples.

        Returns:
            Shape ``(b, B, T, n)``.
        """
        return self._products(
            lambda _: self._in_place.along(directions, sampled=sampled), len(directions)
        )

    def pull(self, u: Tensor) -> list[Tensor]:
        """``J* u``, a tensor for each parameter, summed over processes; one product.

        Args:
            u: Shape ``(B, T, n)``.

        Returns:
            The gradients of ``<u, h>``, in the order of the parameters.
        """
        self.products += 1
        with self.quiet("reversible"):
            summed = self._forward.summed(self._gradients(u), self._ranks)
        return [
            summed[name] if name in summed else torch.zeros_like(p)
            for name, p in self.parameters.items()
        ]


Gradients = Callable[[Tensor], dict[str, Tensor | None]]
"""From ``u`` to the gradients of ``<u, h>``, by the parameters' names."""


def _gradients(forward: RealForward, where: State, parameters: Mapping[str, Tensor]) -> Gradients:
    """A backward pass from the state of a run of its own."""
    return lambda u: forward.gradients(forward.run({}, where), parameters, u)


def _flat(gradients: Gradients, parameters: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The same in one vector."""
    space = ParameterSpace({name: p.shape for name, p in parameters.items()})

    def pull(u: Tensor) -> Tensor:
        found = gradients(u).items()
        return space.join([torch.zeros_like(parameters[n]) if g is None else g for n, g in found])

    return pull


class SampledInPlace:
    """``J`` over a model's own parameters, with tangents that are drawn as they are needed.

    An `ntk_monitor.estimators.sampling.Factor` whose directions are a tensor for each parameter.

    Attributes:
        shape_out: ``(B, T, n)`` of this process's rows.
        dtype: Of images.
        device: Of images.
        at_once: One tangent at a time.
    """

    at_once = 1

    def __init__(self, jacobian: InPlaceJacobian, seed: int) -> None:
        """Keep what makes it up.

        Args:
            jacobian: This process's rows.
            seed: Names the tangents.
        """
        self.shape_out = jacobian.shape_out
        self.dtype: torch.dtype = jacobian.dtype
        self.device: torch.device = jacobian.device
        self._jacobian, self._spread, self._seed = jacobian, jacobian.spread, seed

    def sample(self, indices: range) -> Tensor:
        """``J g_i``, shape ``(len, B, T, n)``; a product each."""
        return self._jacobian.along([self._tangent(i) for i in indices], sampled=True)

    def pull(self, u: Tensor) -> list[Tensor]:
        """``J* u``, a tensor for each parameter; one product."""
        return self._jacobian.pull(u)

    def pulls(self, several: Iterable[Tensor]) -> Iterator[list[Tensor]]:
        """``J* u`` for several ``u``, an evaluation and a product each."""
        return map(self.pull, several)

    def push(self, x: list[Tensor]) -> Tensor:
        """``J x``; one product."""
        return self._jacobian.along([Given(x, self._spread)])[0]

    def inner(self, index: int, x: list[Tensor]) -> float:
        """``<g_i, x>``."""
        return inner(self._tangent(index), x, self._spread)

    @property
    def fingerprint(self) -> int:
        """A number that tells whether processes have the same tangents."""
        return self._tangent(0).tangent.fingerprint

    def _tangent(self, index: int) -> Gaussian:
        return Gaussian(self._seed, index, self._spread, self.device)
