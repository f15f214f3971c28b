"""Partial traces by products."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ntk_monitor.operators.contract import Products, Shape

EXACT_LIMIT = 1024
"""Most entries of the traced axes that are summed exactly."""
BLOCK = 16
"""How many of them are carried at once."""


class Tracing:
    """The products of a partial trace, from those of what is traced.

    Attributes:
        axes: The axes that are traced, ascending.
        left: Those that are not.
        shape: Their sizes.
        vectors: Random signs, one row a probe, over the root of their number; None where the trace
            is summed exactly.
    """

    def __init__(
        self,
        operator: Products,
        axes: int | tuple[int, ...],
        probes: int | None,
        generator: torch.Generator | None,
    ) -> None:
        """Check the axes, and draw the signs."""
        self.axes = traced_axes(operator, axes)
        space, ndim = operator.shape_in, len(operator.shape_in)
        self.left = tuple(axis for axis in range(ndim) if axis not in self.axes)
        self.shape: Shape = tuple(space[axis] for axis in self.left)
        self._order = self.axes + self.left
        self._inverse = tuple(self._order.index(axis) for axis in range(ndim))
        self._traced_shape = tuple(space[axis] for axis in self.axes)
        self.vectors = self._vectors(operator, prod(self._traced_shape), probes, generator)

    def _vectors(
        self,
        operator: Products,
        size: int,
        probes: int | None,
        generator: torch.Generator | None,
    ) -> Tensor | None:
        """Random signs divided by the root of their number; None for an exact sum."""
        if probes is not None and probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        if probes is None and size > EXACT_LIMIT:
            raise ValueError(
                f"the exact trace of {operator} over axes {self.axes} takes {size} products "
                f"for each of its own, more than {EXACT_LIMIT}: sample it, with probes=64 and "
                "generator=torch.Generator().manual_seed(0), say"
            )
        if probes is None or probes >= size:
            return None
        if generator is None:
            raise ValueError("probes need a generator=torch.Generator(...) to draw them from")
        signs = torch.randint(0, 2, (probes, size), generator=generator, device=generator.device)
        vectors: Tensor = (2 * signs - 1).to(operator.device, operator.dtype) / math.sqrt(probes)
        return vectors

    def __call__(self, products: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
        """The partial trace times every ``X[b]``.

        Args:
            products: Of what is traced, for a batch.
            X: Shape ``(b, *shape)``.

        Returns:
            The products, in the same shape.
        """
        size = prod(self._traced_shape)
        count = size if self.vectors is None else len(self.vectors)
        total = torch.zeros_like(X).reshape(len(X), -1)
        for start in range(0, count, BLOCK):
            Z = self._block(size, start, min(BLOCK, count - start), X)
            padded = torch.einsum("bx,cz->cbzx", X.reshape(len(X), -1), Z)
            padded = padded.reshape(-1, *self._traced_shape, *self.shape)
            padded = padded.permute(0, *(1 + axis for axis in self._inverse))
            image = products(padded).permute(0, *(1 + axis for axis in self._order))
            image = image.reshape(len(Z), len(X), size, -1)
            total += torch.einsum("cbzx,cz->bx", image, Z)
        return total.reshape(X.shape)

    def _block(self, size: int, start: int, count: int, like: Tensor) -> Tensor:
        if self.vectors is not None:
            return self.vectors[start : start + count]
        block = like.new_zeros(count, size)
        places = torch.arange(count, device=like.device)
        block[places, start + places] = 1.0
        return block


def traced_axes(operator: Products, axes: int | tuple[int, ...]) -> tuple[int, ...]:
    """Check the axes of a partial trace.

    Args:
        operator: What is traced.
        axes: One axis or several; negative ones count from the end.

    Returns:
        The axes in ascending order, none of them negative.

    Raises:
        ValueError: If the operator does not map a space to itself, or an axis does not exist or
            is named twice.
    """
    if operator.shape_in != operator.shape_out:
        raise ValueError(
            f"a partial trace needs an operator from a space to itself, got {operator}: "
            f"{operator.shape_in} -> {operator.shape_out}"
        )
    shape: Shape = operator.shape_in
    named = (axes,) if isinstance(axes, int) else tuple(axes)
    ndim = len(shape)
    traced = tuple(axis % ndim if -ndim <= axis < ndim else axis for axis in named)
    if not set(traced) <= set(range(ndim)) or len(set(traced)) != len(traced):
        raise ValueError(f"axes must be different axes of the space {shape}, got {axes}")
    return tuple(sorted(traced))
