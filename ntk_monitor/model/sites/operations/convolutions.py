"""Convolutions: products with patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from ntk_monitor.model.sites.operations.use import Use

Sizes = int | Sequence[int]
"""One number for all axes, or one for each."""


class Axis(NamedTuple):
    """How a convolution goes along one of the last axes.

    Attributes:
        kernel: The size of the kernel.
        margins: Before and after the input.
        stride: From one window to the next.
        dilation: From one entry of a window to the next.
    """

    kernel: int
    margins: tuple[int, int]
    stride: int
    dilation: int

    @property
    def span(self) -> int:
        """How many entries a window reaches over."""
        return self.dilation * (self.kernel - 1) + 1


def convolution_of(given: Sequence[Any]) -> tuple[Tensor, list[Axis]]:
    """What a convolution looks at.

    Args:
        given: Its arguments by position.

    Returns:
        Its input, (B, C, ...) or (C, ...), and how it goes along each of the last axes.
    """
    x, weight = given[:2]
    return x, _axes(weight, *given[3:6])


def _axes(
    weight: Tensor, stride: Sizes = 1, padding: Sizes | str = 0, dilation: Sizes = 1
) -> list[Axis]:
    """How a convolution goes along each of the last axes."""
    kernel, count = weight.shape[2:], weight.ndim - 2
    stride, dilation = _each(stride, count), _each(dilation, count)
    if isinstance(padding, str):  # "same" or "valid"
        total = [(k - 1) * d * (padding == "same") for k, d in zip(kernel, dilation, strict=True)]
        margins = [(n // 2, n - n // 2) for n in total]
    else:
        margins = [(n, n) for n in _each(padding, count)]
    return [Axis(*each) for each in zip(kernel, margins, stride, dilation, strict=True)]


def read_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> list[Use]:
    """``F.conv1d``, ``F.conv2d``, ``F.conv3d``: patches, with output positions as rows."""
    if groups > 1 and weight.shape[1] == 1:
        return []  # depthwise: every channel is scaled by itself
    return [_patches(x, weight, bias, _axes(weight, stride, padding, dilation), groups)]


def read_transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> list[Use]:
    """``F.conv_transpose1d`` to ``3d``: patches of the input with zeros put in between."""
    count = weight.ndim - 2
    if groups > 1 and weight.shape[0] == groups:
        return []
    stride = _each(stride, count)
    sizes = ((n - 1) * s + 1 for n, s in zip(x.shape[-count:], stride, strict=True))
    spread = x.new_zeros(*x.shape[:-count], *sizes)
    spread[_thinned(stride)] = x.detach()
    each = (_each(given, count) for given in (dilation, padding, output_padding))
    axes = [
        Axis(k, (d * (k - 1) - p, d * (k - 1) - p + o), 1, d)
        for k, d, p, o in zip(weight.shape[2:], *each, strict=True)
    ]
    by_group = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return [replace(_patches(spread, by_group, bias, axes, groups), weight=weight)]


def _patches(
    x: Tensor, weight: Tensor, bias: Tensor | None, axes: Sequence[Axis], groups: int
) -> Use:
    """A weight ``(out, in / groups, *kernel)`` on the patches of an input."""
    batched = x.ndim == len(axes) + 2
    x = (x if batched else x.unsqueeze(0)).detach()
    sizes = [
        (n + sum(axis.margins) - axis.span) // axis.stride + 1
        for n, axis in zip(x.shape[2:], axes, strict=True)
    ]

    def read() -> Tensor:
        windows = pad(x, [n for axis in reversed(axes) for n in axis.margins])
        for i, axis in enumerate(axes, start=2):
            windows = windows.unfold(i, axis.span, axis.stride)
        windows = windows[_thinned([axis.dilation for axis in axes])]
        V = windows.reshape(len(x), groups, -1, *windows.shape[2:]).movedim(1, 0)
        return V.movedim(2, 2 + len(axes)).flatten(2 + len(axes))

    def write(u: Tensor) -> Tensor:
        out = u.movedim(-1, 2).movedim(0, 1).flatten(1, 2)
        return out if batched else out[0]

    return Use(weight, bias, read, write, (len(x), *sizes), weight.shape[0] // groups, groups)


def _thinned(steps: Sequence[int]) -> Any:  # noqa: ANN401
    """An index that takes every so many entries along each of the last axes."""
    return (..., *(slice(None, None, step) for step in steps))


def _each(value: Sizes, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) * (axes if len(value) == 1 else 1)
