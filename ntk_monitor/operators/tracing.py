"""Partial traces by products."""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

from ntk_monitor.operators.contract import Mapped, Shape

EXACT_LIMIT = 1024
"""Most entries of the traced axes that are summed exactly."""
BLOCK = 16
"""How many of them, or of samples, are carried at once."""


def random_signs(
    operator: Mapped, axes: tuple[int, ...], probes: int | None, generator: torch.Generator | None
) -> Tensor | None:
    """What a partial trace is sampled with.

    Args:
        operator: What is traced.
        axes: The axes that are traced.
        probes: How many samples; None to sum exactly.
        generator: Source of the signs.

    Returns:
        Random signs, one row a probe, over the root of their number; None where the trace is summed
        exactly.

    Raises:
        ValueError: If an exact sum is too long, or random signs have no source.
    """
    size = prod(operator.shape_in[axis] for axis in axes)
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if probes is None and size > EXACT_LIMIT:
        raise ValueError(
            f"the exact trace of {operator} over axes {axes} takes {size} products "
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


def traced_axes(operator: Mapped, axes: int | tuple[int, ...]) -> tuple[int, ...]:
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
