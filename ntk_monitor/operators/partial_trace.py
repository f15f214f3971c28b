"""Partial traces of operators, by products."""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

from ntk_monitor.operators.base import LinearOperator, Shape

EXACT_LIMIT = 1024
"""Most entries of the traced axes that are summed exactly."""
BLOCK = 16
"""How many of them are carried at once."""


class PartialTrace(LinearOperator):
    r"""The partial trace of an operator over some axes of its space.

    .. math:: \mathrm{tr}_n A = \sum_j (I \otimes e_j^*)\, A\, (I \otimes e_j)

    This is the trace: only the diagonal of the traced axes enters. Summing ``A`` over a traced
    axis, :math:`(I \otimes 1^*) A (I \otimes 1)`, adds every cross term as well and is a different
    operator. With random signs ``z`` in place of the unit vectors ``e_j`` the cross terms vanish
    on average, and the mean over several of them is unbiased.

    References:
        Chen et al., Faster randomized partial trace estimation, arXiv:2310.12364 (2023).
    """

    def __init__(
        self,
        operator: LinearOperator,
        axes: int | tuple[int, ...],
        *,
        probes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Trace ``operator`` over ``axes``; see `LinearOperator.partial_trace`."""
        traced = traced_axes(operator, axes)
        ndim = len(operator.shape_in)
        kept = tuple(axis for axis in range(ndim) if axis not in traced)
        shape = tuple(operator.shape_in[axis] for axis in kept)
        super().__init__(shape, shape, operator.dtype, operator.device, is_psd=operator.is_psd)
        self.operator = operator
        self.axes = traced
        self._order = traced + kept
        self._inverse = tuple(self._order.index(axis) for axis in range(ndim))
        self._traced_shape = tuple(operator.shape_in[axis] for axis in traced)
        self.vectors = self._vectors(prod(self._traced_shape), probes, generator)

    def _vectors(
        self, size: int, probes: int | None, generator: torch.Generator | None
    ) -> Tensor | None:
        """Random signs divided by the root of their number; None for an exact sum."""
        if probes is not None and probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        if probes is None and size > EXACT_LIMIT:
            raise ValueError(
                f"the exact trace of {self.operator} over axes {self.axes} takes {size} products "
                f"for each of its own, more than {EXACT_LIMIT}: sample it, with probes=64 and "
                "generator=torch.Generator().manual_seed(0), say"
            )
        if probes is None or probes >= size:
            return None
        if generator is None:
            raise ValueError("probes need a generator=torch.Generator(...) to draw them from")
        signs = torch.randint(0, 2, (probes, size), generator=generator, device=generator.device)
        vectors: Tensor = (2 * signs - 1).to(self.device, self.dtype) / math.sqrt(probes)
        return vectors

    def _matmat(self, X: Tensor) -> Tensor:
        return self._apply(self.operator, X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._apply(self.operator.T, Y)

    def _apply(self, operator: LinearOperator, X: Tensor) -> Tensor:
        size = prod(self._traced_shape)
        count = size if self.vectors is None else len(self.vectors)
        total = torch.zeros_like(X).reshape(len(X), -1)
        for start in range(0, count, BLOCK):
            Z = self._block(size, start, min(BLOCK, count - start), X)
            padded = torch.einsum("bx,cz->cbzx", X.reshape(len(X), -1), Z)
            padded = padded.reshape(-1, *self._traced_shape, *self.shape_in)
            padded = padded.permute(0, *(1 + axis for axis in self._inverse))
            image = operator._matmat(padded).permute(0, *(1 + axis for axis in self._order))
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

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        if self.vectors is not None:
            return None
        kept = self._order[len(self.axes) :]
        return self.operator.partial_trace(self.axes + tuple(kept[axis] for axis in axes))

    def __str__(self) -> str:
        sampled = "" if self.vectors is None else f"[{len(self.vectors)} probes]"
        return f"tr_{','.join(map(str, self.axes))}{sampled}({self.operator})"


def traced_axes(operator: LinearOperator, axes: int | tuple[int, ...]) -> tuple[int, ...]:
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
