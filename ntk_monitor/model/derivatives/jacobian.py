"""The derivative of a model's state in its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ntk_monitor.model.derivatives.adjoint import Evaluate, Quiet, Recorded
from ntk_monitor.model.derivatives.derivative import Derivative, Products
from ntk_monitor.model.derivatives.finite_difference import FiniteDifference
from ntk_monitor.model.derivatives.forward_map import ForwardMap
from ntk_monitor.model.derivatives.products import TangentProducts
from ntk_monitor.model.parameters.pieces import Direction
from ntk_monitor.model.parameters.selection import ParameterSpace
from ntk_monitor.model.state.finding import State
from ntk_monitor.processes import ALONE, Processes

MOST_FLAT = 2**20
"""Parameters that are put into one vector for adjoint products, so that several go together."""


class ParameterJacobian(Derivative):
    r""":math:`J = dh / d\theta`, with directions in parameter space in any form.

    Products with flat vectors (`matvec`, `rmatvec`) are for small models, and for methods that need
    them. `along` and `pulls_apart` take and give a tensor for each parameter, or less.

    Attributes:
        parameters: The studied parameters by name.
        spread: How they are spread over processes.
    """

    def __init__(
        self,
        forward: ForwardMap,
        names: Sequence[str],
        where: State,
        value: Tensor,
        methods: Mapping[str, Products],
        quiet: Quiet,
        untrained: Mapping[str, int],
        processes: Processes = ALONE,
    ) -> None:
        """Make the operator.

        Args:
            forward: The model.
            names: The studied parameters.
            where: Where the state is.
            value: The state.
            methods: Tangent products by the name of their method; see `Derivative`.
            quiet: Makes the context to compute in.
            untrained: Rows of parameters whose derivative is taken as zero.
            processes: The processes over which the state is spread.
        """
        self.parameters = {name: forward.tensors[name] for name in names}
        self.spread = forward.spread(self.parameters.values())
        self._forward = forward
        # A function that does not refer to this operator, so that its memory is free with it.
        self._record = _recorder(forward, tuple(names), where, value)
        space = ParameterSpace({name: p.shape for name, p in self.parameters.items()})
        self._space = space
        rows = [] if forward.is_sharded else space.rows(untrained)
        evaluate = _flat(self._record, self.parameters, space)
        size = self.spread.offsets[-1]
        super().__init__("J", (size,), value, methods, quiet, evaluate, rows, processes)

    def along(self, directions: Sequence[Direction], *, sampled: bool = False) -> Tensor:
        """``J g`` for directions in any form; a product each.

        Args:
            directions: The directions.
            sampled: Whether they are random, so that each product may be less precise.

        Returns:
            Shape ``(b, B, T, n)``.
        """

        def compute(products: TangentProducts) -> Tensor:
            if isinstance(products, FiniteDifference):
                return products.along(directions, sampled=sampled)
            return products(self._trained(self._flattened(directions)))

        return self._products(compute, len(directions))

    def _flattened(self, directions: Sequence[Direction]) -> Tensor:
        flat = torch.empty(len(directions), *self.shape_in, dtype=self.dtype, device=self.device)
        for row, direction in zip(flat, directions, strict=True):
            for i, entries in enumerate(self._space.split(row).values()):
                drawn = direction.reader(i, entries)(0, entries.numel())
                entries.copy_(drawn.view(entries.shape))
        return flat

    def apart(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector, parameter by parameter.

        Args:
            flat: Shape ``(p,)``.

        Returns:
            Views of it, by name.
        """
        return self._space.split(flat)

    def pulls_apart(
        self, several: Iterable[Tensor], *, here: bool = False
    ) -> Iterator[list[Tensor]]:
        """``J* u`` for several ``u``, from one evaluation where that can be; a product each.

        Args:
            several: Each of shape ``(B, T, n)``.
            here: Whether to leave the gradients of this process's rows as they are, where it has
                all parameters.

        Yields:
            The gradients of ``<u, h>``, summed over processes, in the order of the parameters.
        """
        alone = self._processes.size == 1 and self._forward.keeps_graph
        if alone and self.input_size <= MOST_FLAT:
            for pulled in self.pulls(several):
                yield list(self._space.split(pulled).values())
            return
        processes = ALONE if here and not self._forward.is_sharded else self._processes
        go_back: Callable[[Tensor], dict[str, Tensor | None]] | None = None
        for u in several:
            self.products += 1
            with self.quiet("reversible"):
                if go_back is None or not self._forward.keeps_graph:
                    _, go_back = self._record()
                summed = self._forward.summed(go_back(u), processes)
            yield [
                summed.pop(name) if name in summed else torch.zeros_like(p)
                for name, p in self.parameters.items()
            ]


Gradients = Callable[[Tensor], dict[str, Tensor | None]]
"""From ``u`` to the gradients of ``<u, h>``, by the parameters' names."""


def _recorder(
    forward: ForwardMap, names: tuple[str, ...], where: State, value: Tensor
) -> Callable[[], tuple[Tensor, Gradients]]:
    """Records an evaluation: the state, and what goes backward from there."""

    def record() -> tuple[Tensor, Gradients]:
        leaves = forward.leaves(names)
        state = forward.run(leaves, where) if leaves else value
        return state, lambda u: forward.gradients(state, leaves, u) if leaves else {}

    return record


def _flat(
    record: Callable[[], tuple[Tensor, Gradients]],
    parameters: Mapping[str, Tensor],
    space: ParameterSpace,
) -> Evaluate:
    """The same in one vector."""

    def evaluate() -> Recorded:
        state, gradients = record()

        def backward(u: Tensor) -> Tensor:
            if not parameters:
                return u.new_zeros(0)
            found = gradients(u).items()
            return space.join([
                torch.zeros_like(parameters[n]) if g is None else g for n, g in found
            ])

        return Recorded(state, backward)

    return evaluate
