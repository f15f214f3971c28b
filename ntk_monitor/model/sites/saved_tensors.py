"""Forward passes that keep the graph's shape and none of its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ntk_monitor.model.batch.structure import first_tensor
from ntk_monitor.model.state.calls import RECURRENT, Call


class GraphNeededError(RuntimeError):
    """Something can only be told from a graph with its tensors."""


class TooLargeError(RuntimeError):
    """What a pass keeps takes more memory than it may."""


@contextmanager
def without_saved_tensors() -> Iterator[None]:
    """Record graphs that tell what depends on what, and cannot go backward.

    Yields:
        Nothing.
    """
    with torch.autograd.graph.saved_tensors_hooks(lambda _: None, _miss):
        yield


def _miss(_: None) -> Tensor:
    raise GraphNeededError("this graph was recorded without its tensors")


class Sketch:
    """Stands in for what submodules return: same shapes, same graph, no memory."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._known: Any = WeakIdKeyDictionary()

    def of(self, call: Call) -> Call:
        """A call without its tensors.

        Args:
            call: The call.

        Returns:
            A call whose output is a stand-in for the first tensor of the output (packed sequences
            are kept), and whose only argument, if any, one for the input of a recurrent layer.
        """
        inputs = call.argument("input") if isinstance(call.module, RECURRENT) else None
        args = () if inputs is None else (self._stand_in(inputs),)
        output = self._stand_in(first_tensor(call.output))
        return replace(call, args=args, kwargs={}, output=output)

    def _stand_in(self, value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Tensor):
            return value
        if value not in self._known:
            self._known[value] = _StandIn.apply(value)  # type: ignore[no-untyped-call]
        return self._known[value]


class _StandIn(torch.autograd.Function):
    """Zeros in one number of memory, where a tensor is in the graph."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        return tensor.new_zeros(()).expand(tensor.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        del ctx, gradient
        raise GraphNeededError("a stand-in has no derivative")
