"""Adjoint products: backward passes from a recorded evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ntk_monitor.compat import only_batched
from ntk_monitor.model.derivatives.products import Function
from ntk_monitor.model.isolation.kernels import Kernels
from ntk_monitor.model.state.graph import extent

logger = logging.getLogger(__name__)

MOST_TOGETHER = 2**24
"""Bytes of all that an evaluation computes, times products that are taken at once."""
MOST_OPERATIONS = 10_000
"""Of an evaluation whose products may be taken at once."""
Quiet = Callable[[Kernels], AbstractContextManager[None]]
"""Makes the context to compute in, with the kernels that may be used."""


class Recorded(NamedTuple):
    """A recorded evaluation.

    Attributes:
        value: What was computed.
        back: Goes backward from there; once or several times.
    """

    value: Tensor
    back: Callable[[Tensor], Tensor]


Evaluate = Callable[[], Recorded]
"""Records an evaluation."""


class AdjointProducts:
    """``J* y`` for several ``y``; those of a small model many at once."""

    def __init__(self, evaluate: Evaluate, quiet: Quiet, *, alone: bool) -> None:
        """Keep how they are taken.

        Args:
            evaluate: Records an evaluation.
            quiet: Makes the context to compute in.
            alone: Whether no other process has a part in them.
        """
        self._evaluate, self._quiet = evaluate, quiet
        self._together = alone
        self._most: int | None = None

    def __call__(self, Y: Iterable[Tensor]) -> Iterator[Tensor]:
        """Take products, from one evaluation.

        Args:
            Y: Each of the shape of the outputs.

        Yields:
            Each of the shape of the inputs.
        """
        rest = iter(Y)
        first = list(islice(rest, 2))
        with self._quiet("reversible"):
            recorded = self._evaluate()
        at_once = self._at_once(recorded.value) if len(first) > 1 else 1
        rest = chain(first, rest)
        while several := list(islice(rest, at_once)):
            together = self._by_one_pass(recorded, several)
            if together is not None:
                yield from together
                continue
            for y in several:
                with self._quiet("reversible"):
                    pulled = recorded.back(y)
                yield pulled

    def _at_once(self, value: Tensor) -> int:
        """How many are taken by one backward pass from a value."""
        if self._most is None:
            operations, size = extent(value, MOST_OPERATIONS)
            fits = operations <= MOST_OPERATIONS
            self._most = max(MOST_TOGETHER // max(size, 1), 1) if fits else 1
        return self._most if self._together else 1

    def _by_one_pass(self, recorded: Recorded, several: Sequence[Tensor]) -> Tensor | None:
        """Products one below the other; None where operations or memory do not allow it."""
        if len(several) == 1 or not self._together:
            return None
        try:
            with self._quiet("reversible"), only_batched():
                found: Tensor = vmap(recorded.back)(torch.stack(list(several)))
        except (RuntimeError, NotImplementedError) as error:
            logger.info("adjoint products are taken one by one: %s", error)
            self._together = False
            return None
        return found


def evaluating(function: Function, at: Tensor) -> Evaluate:
    """The adjoint products with the derivative of a function.

    Args:
        function: What is differentiated.
        at: The point at which.

    Returns:
        Records an evaluation.
    """

    def evaluate() -> Recorded:
        leaf = at.detach().requires_grad_()
        value = function(leaf)

        def backward(y: Tensor) -> Tensor:
            (pulled,) = torch.autograd.grad(
                value, leaf, y, retain_graph=True, materialize_grads=True
            )
            return pulled

        return Recorded(value, backward)

    return evaluate
