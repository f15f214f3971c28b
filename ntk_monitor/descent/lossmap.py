"""The loss that training minimises, as a function of outputs, and these of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntk_monitor.model import Linearization, quiet
from ntk_monitor.model.derivatives.adjoint import Recorded
from ntk_monitor.model.derivatives.derivative import Derivative, Products
from ntk_monitor.model.derivatives.finite_difference import FiniteDifference
from ntk_monitor.model.derivatives.products import (
    EXACT,
    RecordedDoubleBackward,
    TangentProducts,
    make_products,
)
from ntk_monitor.model.derivatives.substitution import Substitution
from ntk_monitor.model.parameters.selection import ParameterSpace
from ntk_monitor.model.parameters.sharding import Sharding, place_of
from ntk_monitor.model.second_pass import counts_of
from ntk_monitor.model.state.graph import extent
from ntk_monitor.model.step import Comparison
from ntk_monitor.model.step.comparison import Seen, compared
from ntk_monitor.model.step.tape import Tape
from ntk_monitor.processes import Processes

Vector = NDArray[np.float64]
NEGLIGIBLE = 1e-3
"""Share of the gradient's size below which the loss counts as a function of the outputs alone."""
AGREES = 1e-3
"""Relative difference up to which a loss computed anew is the one that was computed."""
ACCURACY = 0.002
"""Relative agreement that finite differences must show."""
FEW, SMALL = 512, 2**24
"""Operations of a graph, and bytes of what they computed, up to which products go through one that
is recorded once: with few operations that is faster than calling the model again."""
SEES_ALL = 0.01
"""Relative difference from finite differences up to which such products see all that moves the
outputs."""


class NoLossError(ValueError):
    """There is no loss that could be computed anew from other outputs; says why."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One recorded pass of the step.

    Attributes:
        seen: The comparisons by number, with their outputs as the loss gets them.
        loss: The loss; carries the graph.
        again: The loss from other outputs, by number.
    """

    seen: Mapping[int, Seen]
    loss: Tensor
    again: Callable[[Mapping[int, Tensor]], Tensor | None]


class LossMap:
    r"""The loss :math:`l(y(\theta))` at the present parameters, on one batch.

    Where several processes train together, each has the outputs of its own batch, and the loss is
    the mean over all. Batches are normalised as training normalises them, and nothing is dropped
    out.

    Attributes:
        outputs: The compared outputs ``y`` one after the other, shape ``(N,)``.
        loss: The loss.
        error: ``r = dl/dy``, shape ``(N,)``.
        gradient: ``dl/dtheta`` of all trained parameters, shape ``(p,)``.
        space: How the trained parameters form a flat vector.
        theta: Their values, flat.
        products: The derivative of the outputs in them.
        by_graph: Whether products through a recorded graph see all that moves the outputs; None
            where that is not known. What a step detaches they do not see.
    """

    def __init__(
        self,
        lin: Linearization,
        guess: Callable[[Tensor], Tensor] | None = None,
        theta: Tensor | None = None,
        by_graph: bool | None = None,
    ) -> None:
        """Record one pass.

        Args:
            lin: The model on the batch.
            guess: The loss of the outputs, where no step function tells it.
            theta: Values of the trained parameters; their own where left out.
            by_graph: See the attribute.

        Raises:
            NoLossError: If there is no loss that can be computed anew, or no output of it.
        """
        self._lin, self._guess, self.by_graph = lin, guess, by_graph
        self._forward = lin._forward
        self.processes: Processes = lin.processes
        names = lin._trained
        self.space = ParameterSpace({name: self._forward.tensors[name].shape for name in names})
        own = [self._forward.tensors[name].detach() for name in names]
        self.theta = self.space.join(own) if theta is None else theta
        split = self.space.split(self.theta)
        leaves = {name: split[name].detach().clone().requires_grad_() for name in names}
        self._leaves = leaves
        with self._quiet(), torch.enable_grad():
            found = self._pass(leaves)
        self._found = found
        self._numbers = [n for n, one in sorted(found.seen.items()) if one.output.requires_grad]
        if not self._numbers:
            raise NoLossError("the loss compares no output that training moves")
        self._graph = self._flat(found.seen)
        self.outputs = self._graph.detach()
        loss, self.error = self._once(self.outputs)
        self.loss = float(loss)
        self._require_agreement(found)
        self.gradient = self._total_gradient(found)
        self.products = self._derivative()

    @property
    def _is_small(self) -> bool:
        """Whether products go through one recorded graph faster than by calls, in little memory."""
        operations, size = extent(self._graph, FEW)
        return operations <= FEW and size <= SMALL

    def beside(self, through: Tensor) -> Tensor | None:
        """What of the gradient does not come through the outputs.

        Args:
            through: What does, `pull` of the error.

        Returns:
            Shape ``(p,)``; None where that is little.
        """
        rest = self.gradient - through
        sizes = [float(torch.linalg.vector_norm(x)) for x in (rest, self.gradient)]
        return rest if sizes[0] > NEGLIGIBLE * sizes[1] else None

    def close(self) -> None:
        """Let go of the derivative, which refers back to this map."""
        vars(self).pop("products", None)

    def moved(self, theta: Tensor) -> LossMap:
        """The same at other parameters.

        Args:
            theta: Their values, flat.

        Returns:
            Another loss map, to be closed by the caller.
        """
        return LossMap(self._lin, self._guess, theta, by_graph=self.by_graph)

    def outputs_at(self, theta: Tensor) -> Tensor:
        """The outputs at other parameters; one forward pass.

        Args:
            theta: Their values, flat.

        Returns:
            Shape ``(N,)``.
        """
        with self._quiet(), torch.no_grad():
            return self._outputs(self.space.split(theta))

    def _outputs(self, theta: Mapping[str, Tensor]) -> Tensor:
        return self._flat(self._run(theta)[2])

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        kept = quiet(self._forward.module, kernels="reversible")
        with kept, self._forward.as_training_normalises():
            yield

    def _pass(self, leaves: Mapping[str, Tensor]) -> Pass:
        tape, step, guess = Tape(), self._forward.step, self._guess
        try:
            returned, watch, seen = self._run(leaves, tape)
            if guess is not None:
                return Pass(seen, guess(seen[0].output), lambda raw: guess(raw[0]))
            loss = step.loss(returned, watch.meant)
        finally:
            tape.stop()
        if loss is None or not loss.requires_grad:
            raise NoLossError(f"{step.name} gives no loss that training could minimise")
        return Pass(seen, loss, lambda raw: tape.replay(raw, loss))

    def _run(
        self, theta: Mapping[str, Tensor], tape: Tape | None = None
    ) -> tuple[Any, Any, dict[int, Seen]]:
        """The step at some parameters: what it returned, who watched it, and what it compares."""
        lin = self._lin
        readings = lin._compares.readings if self._guess is None else {}
        _, returned, watch = self._forward.run_whole(theta, lin._state, readings, tape=tape)
        if self._guess is None:
            return returned, watch, dict(watch.seen)
        plain = self._forward.step.plain_output(returned, lin._batch)
        if plain is None or plain.output is None:
            raise NoLossError("there is no output")
        return returned, watch, {0: Seen(plain.output, None)}

    def _flat(self, seen: Mapping[int, Seen]) -> Tensor:
        """The outputs that training moves, one after the other."""
        return torch.cat([seen[n].output.reshape(-1) for n in self._numbers])

    def _once(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of all processes' outputs, and its derivative in this process's."""
        given = flat.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._found.again(self._raw(given))
            if loss is None or not loss.requires_grad:
                raise NoLossError("the loss does not depend on the outputs that it compares")
            (error,) = torch.autograd.grad(loss, given, materialize_grads=True)
        size = self.processes.size
        return loss.detach().double().reshape(()) / size, error / size

    def _raw(self, flat: Tensor) -> dict[int, Tensor]:
        """Outputs by number, in the shapes that the loss gets; those that nothing moves as well."""
        seen = self._found.seen
        raw = {n: one.output.detach() for n, one in seen.items() if n not in self._numbers}
        parts = torch.split(flat, [seen[n].output.numel() for n in self._numbers])
        for number, part in zip(self._numbers, parts, strict=True):
            raw[number] = part.view(seen[number].output.shape)
        return raw

    def _require_agreement(self, found: Pass) -> None:
        """Refuse a loss that is another when it is computed anew.

        Raises:
            NoLossError: If it is.
        """
        own = float(found.loss.detach().double()) / self.processes.size
        gap = abs(self.loss - own)
        if not self.processes.all(gap <= AGREES * abs(own) + 1e-12):
            raise NoLossError(
                f"the loss is {own:.4g} in the step and {self.loss:.4g} when it is computed anew "
                "from its outputs"
            )
        self.loss = float(self.processes.total(self.loss))

    def _total_gradient(self, found: Pass) -> Tensor:
        with self._quiet():
            grads = self._forward.gradients(
                found.loss.reshape(()), self._leaves, found.loss.new_ones(()) / self.processes.size
            )
        self._acting = [name for name, g in grads.items() if g is not None]
        return self.processes.sum(self.joined(grads))

    def joined(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """A flat vector of what some parameters have, zero for all others.

        Args:
            tensors: Of the parameters' shapes, by name; None for zero.

        Returns:
            Shape ``(p,)``.
        """
        own = ((tensors.get(name), shape) for name, shape in self.space.shapes.items())
        zero = self.theta.new_zeros
        return self.space.join([zero(shape) if x is None else x.to(self.theta) for x, shape in own])

    def evaluate(
        self, points: Iterable[Tensor], along: Tensor | None = None
    ) -> tuple[Vector, Vector]:
        """The loss of some outputs, and its derivatives along some directions.

        Args:
            points: This process's outputs, each of shape ``(N,)``; as many in every process.
            along: Directions, shape ``(m, N)``; None for none.

        Returns:
            The losses, shape ``(k,)``, and the derivatives, shape ``(k, m)``; losses are nan where
            they are not defined.
        """
        joined = self.processes.sum(torch.stack([self._of_one(point, along) for point in points]))
        found: Vector = joined.cpu().numpy()
        return found[:, 0], found[:, 1:]

    def _of_one(self, point: Tensor, along: Tensor | None) -> Tensor:
        """This process's part of both, shape ``(1 + m,)``."""
        try:
            loss, error = self._once(point)
        except RuntimeError:  # a linear model may leave what it is defined for
            error = torch.zeros_like(point)
            loss = error.new_full((), torch.nan, dtype=torch.float64)
        loss = loss.reshape(1)
        return loss if along is None else torch.cat([loss, (along @ error).double()])

    def pull(self, e: Tensor) -> Tensor:
        """``J_y* e``, summed over processes; one backward pass.

        Args:
            e: Of the outputs' shape.

        Returns:
            Shape ``(p,)``.
        """
        with self._quiet():
            return self._pulled(e)

    def pulls(self, errors: Sequence[Tensor]) -> list[Tensor]:
        """``J_y* e`` for several ``e``; those of a small model by one backward pass.

        Args:
            errors: Each of the outputs' shape.

        Returns:
            Each of shape ``(p,)``.
        """
        return list(self.products.pulls(errors))

    def _pulled(self, e: Tensor) -> Tensor:
        grads = self._forward.gradients(self._graph, self._leaves, e.to(self._graph.dtype))
        return self.processes.sum(self.joined(grads))

    def push(self, tangents: Sequence[Tensor]) -> Tensor:
        """``J_y w`` for some ``w``; one product each.

        Args:
            tangents: Each of shape ``(p,)``.

        Returns:
            This process's, shape ``(len(tangents), N)``.
        """
        if not tangents:
            return self.outputs.new_zeros(0, len(self.outputs))
        with self._quiet():
            return self.products.matmat(torch.stack(list(tangents)))

    def _derivative(self) -> Derivative:
        lin, theta = self._lin, self.space.split(self.theta)

        def outputs_at(theta: Mapping[str, Tensor]) -> Tensor:
            with self._forward.as_training_normalises():
                return self._outputs(theta)

        def outputs_with(moving: Substitution) -> Tensor:
            with moving:
                return outputs_at(theta)

        def by_differences() -> FiniteDifference:
            spread = Sharding([place_of(t) for t in theta.values()])
            return FiniteDifference(
                theta, outputs_with, {}, ACCURACY, spread, lin.processes, self._acting
            )

        def flat(theta: Tensor) -> Tensor:
            return outputs_at(self.space.split(theta))

        def record() -> tuple[Tensor, list[Tensor]]:
            leaves = {name: t.detach().clone().requires_grad_() for name, t in theta.items()}
            return outputs_at(leaves), list(leaves.values())

        def check(product: Callable[[Tensor], Tensor], g: Tensor) -> None:
            if self.by_graph is None:
                self.by_graph = self._sees_all(by_differences(), product, g)
            if not self.by_graph:
                raise RuntimeError("a step detaches what moves its outputs")

        methods: dict[str, Products] = {
            "finite-difference": by_differences,
            **{name: make_products(name, flat, self.theta, 1) for name in EXACT},
        }
        if self.by_graph is not False and lin.processes.size == 1 and self._is_small:
            recorded = RecordedDoubleBackward(
                record, lambda g: list(self.space.split(g).values()), check
            )
            methods = {"recorded": recorded, **methods}

        def context(kernels: Any) -> Any:  # noqa: ANN401
            return quiet(self._forward.module, kernels=kernels)

        p = (self.space.size,)
        return Derivative(
            "J_y",
            p,
            self.outputs,
            methods,
            context,
            lambda: Recorded(self._graph, self._pulled),
            (),
            lin.processes,
        )

    def _sees_all(
        self, differences: TangentProducts, product: Callable[[Tensor], Tensor], g: Tensor
    ) -> bool:
        """Whether products are those of finite differences, where these settle.

        That is asked along a tangent and as much of a random direction, which moves everything.

        Returns:
            False if they are not.
        """
        generator = torch.Generator(device=g.device).manual_seed(0)
        noise = torch.randn(g.shape, generator=generator, device=g.device, dtype=g.dtype)
        sizes = [float(torch.linalg.vector_norm(x)) for x in (g, noise)]
        along = g + (sizes[0] / sizes[1] if sizes[1] else 0.0) * noise
        image = product(along)
        try:
            with quiet(self._forward.module, kernels=differences.kernels):
                wanted = differences(along[None])[0]
        except (RuntimeError, FloatingPointError) as error:
            return isinstance(error, FloatingPointError)
        gap, size = (float(torch.linalg.vector_norm(x)) for x in (image - wanted, wanted))
        return gap <= SEES_ALL * size

    def placed(self, number: int, flat: Tensor) -> Tensor | None:
        """The outputs of one comparison as rows.

        Args:
            number: Which of the linearisation's comparisons.
            flat: All outputs, shape ``(N,)``.

        Returns:
            Shape ``(B, T, o)``, zero where the loss does not depend on them.
        """
        comparison = self._lin.comparisons[number]
        return self._lin.placed_output(comparison, self._laid_out(comparison, flat))

    def _laid_out(self, comparison: Comparison, flat: Tensor) -> Tensor | None:
        raw = self._raw(flat)
        if self._guess is not None:
            return raw[0]
        seen = {n: Seen(raw[n], one.target) for n, one in self._found.seen.items()}
        return compared(comparison.head, seen).output

    def counted(self, number: int) -> Comparison:
        """A comparison that knows of which entries of its outputs the loss depends, by its error.

        Args:
            number: Which.

        Returns:
            The comparison.
        """
        comparison, raw = self._lin.comparisons[number], self._raw(self.error)
        loss = comparison.head.loss
        if loss is None:
            return comparison
        seen = {
            n: Seen(one.output.detach(), one.target, counts_of(raw[n], loss))
            for n, one in self._found.seen.items()
        }
        return replace(comparison, counts=compared(comparison.head, seen).counts)

    def trials(self) -> Tensor:
        """Which trial of the batch each output belongs to.

        Returns:
            Shape ``(N,)``; -1 for those that are not placed.
        """
        found = torch.full_like(self.outputs, -1, dtype=torch.long)
        index = torch.arange(len(found), dtype=torch.float64, device=found.device)
        for comparison in self._lin.comparisons:
            laid_out = self._laid_out(comparison, index)
            if laid_out is None:
                continue
            placed = self._lin.in_rows(laid_out, comparison).long()
            rows = torch.arange(len(placed), device=found.device).view(-1, 1, 1)
            found[placed.reshape(-1)] = rows.expand_as(placed).reshape(-1)
        return found
