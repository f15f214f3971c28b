"""Additions, in which a trained bias may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ntk_monitor.model.sites.operations.use import Use, first_group


def read_add(a: Any, b: Any, *, alpha: float = 1, signs: tuple[int, int] = (1, 1)) -> list[Use]:  # noqa: ANN401
    """``a + alpha * b``, either operand being a bias; with signs of their own ``a - alpha * b``."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return []
    out: Sequence[int] = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    scaled = ((b, signs[1] * float(alpha)), (a, float(signs[0])))
    return [
        replace(_bias(bias, out), bias_scale=scale, scale=scale)
        for bias, scale in scaled
        if bias.ndim and bias.shape[-1] == out[-1]
    ]


def read_reversed_subtract(a: Any, b: Any, *, alpha: float = 1) -> list[Use]:  # noqa: ANN401
    """``b - alpha * a``."""
    return read_add(b, a, alpha=alpha, signs=(1, -1))


def _bias(bias: Tensor, out: Sequence[int]) -> Use:
    # A bias over the last axis multiplies ones. One that also differs along other axes, a learned
    # position for each step, multiplies the one-hot vector of the place.
    own = [1 if step == 0 else n for n, step in zip(bias.shape, bias.stride(), strict=True)]
    sizes = [1] * (len(out) - bias.ndim) + own
    rows, places = tuple(out[:-1]), sizes[:-1]

    def read() -> Tensor:
        count = prod(places)
        onehot = torch.eye(count, dtype=bias.dtype, device=bias.device)
        return onehot.reshape(1, *places, count).expand(1, *rows, count)

    first = first_row(bias)
    if prod(places) == 1 and first is None:
        return Use(None, bias, read, first_group, rows, out[-1])
    use = Use(bias, None, read, first_group, rows, out[-1])
    if first is None:
        return use
    entries = torch.arange(first, first + prod(places), device=bias.device)
    return replace(use, entries=lambda: entries, whole=bias._base)


def first_row(bias: Tensor) -> int | None:
    """Of a bias that is some rows of a tensor, one after the other, the number of the first.

    Args:
        bias: The bias.

    Returns:
        The number; None where the bias is all of its tensor, or other entries of it.
    """
    whole = bias._base
    if whole is None or whole.ndim < 2 or whole.shape[-1] != bias.shape[-1]:
        return None
    if whole.numel() == bias.numel() or not (bias.is_contiguous() and whole.is_contiguous()):
        return None
    begin = bias.storage_offset() - whole.storage_offset()
    return None if begin % bias.shape[-1] else begin // bias.shape[-1]
