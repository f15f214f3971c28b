"""Convolutions: products with patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from ntk_monitor.model.sites.operations.signatures import in_order
from ntk_monitor.model.sites.operations.use import Use


class Window(NamedTuple):
    """What a convolution looks at.

    Attributes:
        x: Its input, (B, C, ...).
        axes: For each of the last axes the size of the kernel, the margins before and after, the
            stride, and the dilation.
    """

    x: Tensor
    axes: tuple[tuple[int, tuple[int, int], int, int], ...]


def convolution_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Window | None:
    """What a convolution looks at.

    Args:
        name: Of the operation.
        args: Its positional arguments.
        kwargs: Its arguments by name.

    Returns:
        Its windows; None for other operations, and of a single sequence or image.
    """
    if name not in {"conv1d", "conv2d", "conv3d"}:
        return None
    given = in_order(name, args, kwargs)
    x, weight = given[:2]
    if x.ndim != weight.ndim:
        return None
    stride, margins, dilation = _windows(weight, *given[3:6])
    each = zip(weight.shape[2:], margins, stride, dilation, strict=True)
    return Window(x, tuple(each))


def _windows(
    weight: Tensor,
    stride: Any = 1,  # noqa: ANN401
    padding: Any = 0,  # noqa: ANN401
    dilation: Any = 1,  # noqa: ANN401
) -> tuple[tuple[int, ...], list[tuple[int, int]], tuple[int, ...]]:
    """Stride, margins and dilation of a convolution along each of the last axes."""
    axes = weight.ndim - 2
    stride, dilation = _each(stride, axes), _each(dilation, axes)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return stride, [(n // 2, n - n // 2) for n in total], dilation
    return stride, [(n, n) for n in _each(padding, axes)], dilation


def read_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,  # noqa: ANN401
    padding: Any = 0,  # noqa: ANN401
    dilation: Any = 1,  # noqa: ANN401
    groups: int = 1,
) -> list[Use]:
    """``F.conv1d``, ``F.conv2d``, ``F.conv3d``: patches, with output positions as rows."""
    if groups > 1 and weight.shape[1] == 1:
        return []  # depthwise: every channel is scaled by itself
    stride, margins, dilation = _windows(weight, stride, padding, dilation)
    kernel = tuple(weight.shape[2:])
    return [_patches(x, weight, bias, kernel, margins, stride, dilation, groups)]


def read_transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,  # noqa: ANN401
    padding: Any = 0,  # noqa: ANN401
    output_padding: Any = 0,  # noqa: ANN401
    groups: int = 1,
    dilation: Any = 1,  # noqa: ANN401
) -> list[Use]:
    """``F.conv_transpose1d`` to ``3d``: patches of the input with zeros put in between."""
    axes = weight.ndim - 2
    if groups > 1 and weight.shape[0] == groups:
        return []
    stride, dilation = _each(stride, axes), _each(dilation, axes)
    kernel = tuple(weight.shape[2:])
    spread = x.new_zeros(
        *x.shape[:-axes], *((n - 1) * s + 1 for n, s in zip(x.shape[-axes:], stride, strict=True))
    )
    spread[_thinned(stride)] = x.detach()
    margins = [
        (d * (k - 1) - p, d * (k - 1) - p + o)
        for d, k, p, o in zip(
            dilation, kernel, _each(padding, axes), _each(output_padding, axes), strict=True
        )
    ]
    by_group = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    use = _patches(spread, by_group, bias, kernel, margins, (1,) * axes, dilation, groups)
    return [Use(weight, bias, use.read, use.write, use.rows, use.units, use.groups)]


def _patches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: tuple[int, ...],
    margins: Sequence[tuple[int, int]],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Use:
    """A weight ``(out, in / groups, *kernel)`` on the patches of an input."""
    axes = len(kernel)
    batched = x.ndim == axes + 2
    x = (x if batched else x.unsqueeze(0)).detach()
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sizes = [
        (n + sum(m) - span) // s + 1
        for n, m, span, s in zip(x.shape[2:], margins, spans, stride, strict=True)
    ]

    def read() -> Tensor:
        windows = pad(x, [n for margin in reversed(margins) for n in margin])
        for axis in range(axes):
            windows = windows.unfold(axis + 2, spans[axis], stride[axis])
        windows = windows[_thinned(dilation)]
        V = windows.reshape(len(x), groups, -1, *windows.shape[2:]).movedim(1, 0)
        return V.movedim(2, 2 + axes).flatten(2 + axes)

    def write(u: Tensor) -> Tensor:
        out = u.movedim(-1, 2).movedim(0, 1).flatten(1, 2)
        return out if batched else out[0]

    return Use(weight, bias, read, write, (len(x), *sizes), weight.shape[0] // groups, groups)


def _thinned(steps: Sequence[int]) -> Any:  # noqa: ANN401
    """An index that takes every so many entries along each of the last axes."""
    return (..., *(slice(None, None, step) for step in steps))


def _each(value: Any, axes: int) -> tuple[int, ...]:  # noqa: ANN401
    """One number for each axis."""
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) * (axes if len(value) == 1 else 1)
