r"""Operations in which a weight multiplies activity, and what that activity is.

Every one of them is brought to one form. With groups ``g`` (1 for most), output rows ``r``, and
units ``q``,

.. math:: Q_{g, r, q} = \sum_m V_{g, r, m} W_{g, q, m}.

A dense product is a contraction of indices, and its ``V`` is the contraction without the weight; a
convolution multiplies patches, an embedding one-hot vectors.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, one_hot, pad

from ntk_monitor.model import unroll as cells

Reader = Callable[..., "list[Use]"]
LETTERS = string.ascii_letters


@dataclass(frozen=True)
class Use:
    """One use of a weight.

    Attributes:
        weight: The weight as it enters, possibly a view of a parameter; None for a bias alone.
        bias: What is added to the product, likewise.
        read: Computes ``V``, shape ``(g, *rows, m)``.
        write: From what is added to ``Q``, shape ``(g, *rows, q)``, to what is thereby added to
            the operation's output.
        rows: Sizes of the row axes.
        units: ``q``.
        groups: ``g``.
        place: Which of the operation's uses it is.
        untrained: A row of the weight that gets no gradient, though the output depends on it: that
            of an embedding's padding.
        entries: Where the activity has a column for each entry of the weight that occurs, gives
            these entries, ascending; else None.
        scale: What the product is multiplied with; it belongs to the activity.
        bias_scale: What the bias is multiplied with.
    """

    weight: Tensor | None
    bias: Tensor | None
    read: Callable[[], Tensor]
    write: Callable[[Tensor], Tensor]
    rows: tuple[int, ...]
    units: int
    groups: int = 1
    place: int = 0
    untrained: int | None = None
    entries: Callable[[], Tensor] | None = None
    scale: float = 1.0
    bias_scale: float = 1.0


def product(activity: Tensor, weight: Tensor, bias: Tensor | None, place: int = 0) -> Use:
    """A use of a weight of shape (q, ...) that multiplies activity as it is.

    Args:
        activity: Shape ``(*rows, m)``.
        weight: The weight.
        bias: What is added.
        place: Which of the operation's uses it is.

    Returns:
        The use.
    """
    read = partial(activity.detach().unsqueeze, 0)
    rows = tuple(activity.shape[:-1])
    return Use(weight, bias, read, _first, rows, len(weight), place=place)


def contraction(
    equation: str, operands: Sequence[Tensor], which: int, bias: Tensor | None = None
) -> Use:
    """A use of a weight in a product of tensors.

    Args:
        equation: As of ``torch.einsum``, without an ellipsis, and without repeated or lonely
            indices in the weight.
        operands: The tensors, the weight among them.
        which: The position of the weight.
        bias: What is added.

    Returns:
        The use.
    """
    inputs, out = equation.split("->")
    indices = inputs.split(",")
    names, single = _without_copies(indices, which, operands[which])
    operands = [single if i == which else t for i, t in enumerate(operands)]
    indices[which] = names
    inputs = ",".join(indices)
    weight = indices.pop(which)
    others = [t.detach() for i, t in enumerate(operands) if i != which]  # and so no graph
    sizes = {
        i: size
        for name, tensor in zip(inputs.split(","), operands, strict=True)
        for i, size in zip(name, tensor.shape, strict=True)
    }
    elsewhere = set("".join(indices))
    groups = [i for i in weight if i in out and i in elsewhere]
    units = [i for i in weight if i in out and i not in elsewhere]
    summed = [i for i in weight if i not in out]
    rows = [i for i in out if i not in weight]
    activity = "".join([*groups, *rows, *summed])

    def count(names: Sequence[str]) -> int:
        return prod(sizes[i] for i in names)

    def read() -> Tensor:
        V = torch.einsum(f"{','.join(indices)}->{activity}", *others)
        return V.reshape(count(groups), *(sizes[i] for i in rows), count(summed))

    def write(u: Tensor) -> Tensor:
        order = [*groups, *rows, *units]
        full = u.reshape([sizes[i] for i in order])
        return full.permute([order.index(i) for i in out])

    return Use(
        weight=operands[which],
        bias=bias,
        read=read,
        write=write,
        rows=tuple(sizes[i] for i in rows),
        units=count(units),
        groups=count(groups),
    )


BROADCAST = "?"
"""Stands for an axis of size one that is repeated to fit another operand."""


class Contraction(NamedTuple):
    """A product of tensors, whichever operation it is.

    Attributes:
        equation: As of ``torch.einsum``, without an ellipsis, with `BROADCAST` for axes that are
            repeated.
        operands: The tensors.
        addend: What is added to the product, or None.
    """

    equation: str
    operands: tuple[Any, ...]
    addend: Any = None


def contraction_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction:
    """Which axes of its operands a product sums over, and which it keeps.

    Args:
        name: Of the operation.
        args: Its positional arguments.
        kwargs: Its arguments by name.

    Returns:
        The product.
    """
    given = in_order(name, args, kwargs)
    if name == "einsum":
        operands = given[1:]
        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = list(operands[0])
        explicit = _explicit(given[0].replace(" ", ""), operands)
        return Contraction(explicit, tuple(operands))
    if name == "linear":
        x, weight, *bias = given
        rows = LETTERS[: x.ndim - 1]
        units = "y" if weight.ndim > 1 else ""
        addend = bias[0] if bias else None
        return Contraction(f"{rows}z,{units}z->{rows}{units}", (x, weight), addend)
    if name == "bilinear":
        x, z, weight, *bias = given
        rows = LETTERS[: x.ndim - 1]
        addend = bias[0] if bias else None
        return Contraction(f"{rows}w,{rows}x,ywx->{rows}y", (x, z, weight), addend)
    if name in {"addmm", "addmv", "baddbmm"}:
        return contraction_of("matmul", given[1:], {})._replace(addend=given[0])
    if name == "__rmatmul__":
        given = given[::-1]
    a, b = given[:2]
    batch = LETTERS[: max(a.ndim, b.ndim, 2) - 2]
    left = "z" if a.ndim == 1 else batch[len(batch) - a.ndim + 2 :] + "yz"
    right = "z" if b.ndim == 1 else batch[len(batch) - b.ndim + 2 :] + "zx"
    out = batch + ("" if a.ndim == 1 else "y") + ("" if b.ndim == 1 else "x")
    left, right = _marked(left, a, right, b), _marked(right, b, left, a)
    return Contraction(f"{left},{right}->{out}", (a, b))


def _marked(names: str, t: Tensor, others: str, other: Tensor) -> str:
    """Names of axes, with a mark for those of size one that are repeated."""
    found = ""
    for i, letter in enumerate(names):
        at = others.find(letter)
        repeated = t.shape[i] == 1 and at >= 0 and other.shape[at] > 1
        found += BROADCAST if repeated else letter
    return found


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


def _without_copies(indices: Sequence[str], which: int, weight: Tensor) -> tuple[str, Tensor]:
    """A weight without the axes along which it is the same, where another operand has them."""
    names = indices[which]
    elsewhere = set("".join(n for i, n in enumerate(indices) if i != which))
    for i in reversed(range(weight.ndim)):
        if weight.shape[i] > 1 and weight.stride(i) == 0 and names[i] in elsewhere:
            names, weight = names[:i] + names[i + 1 :], weight.select(i, 0)
    return names, weight


def read_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Use]:
    """``F.linear``."""
    rows = LETTERS[: x.ndim - 1]
    if weight.ndim == 1:
        return [contraction(f"{rows}z,z->{rows}", (x, weight), 1, bias)]
    return [contraction(f"{rows}z,yz->{rows}y", (x, weight), 1, bias)]


def read_bilinear(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Use]:
    """``F.bilinear``."""
    rows = LETTERS[: x.ndim - 1]
    return [contraction(f"{rows}w,{rows}x,ywx->{rows}y", (x, z, weight), 2, bias)]


def read_matmul(a: Tensor, b: Tensor, *, bias: Tensor | None = None) -> list[Use]:
    """``a @ b`` and its relatives, either operand being the weight."""
    batch = LETTERS[: max(a.ndim, b.ndim, 2) - 2]
    left = "z" if a.ndim == 1 else batch[len(batch) - a.ndim + 2 :] + "yz"
    right = "z" if b.ndim == 1 else batch[len(batch) - b.ndim + 2 :] + "zx"
    out = batch + ("" if a.ndim == 1 else "y") + ("" if b.ndim == 1 else "x")
    left, a = _without_broadcast(left, a, right, b)
    right, b = _without_broadcast(right, b, left, a)
    return [contraction(f"{left},{right}->{out}", (a, b), which, bias) for which in (1, 0)]


def _without_broadcast(names: str, t: Tensor, others: str, other: Tensor) -> tuple[str, Tensor]:
    """Drop the axes of size one that are repeated to fit the other operand."""
    for i in reversed(range(t.ndim)):
        at = others.find(names[i])
        if t.shape[i] == 1 and at >= 0 and other.shape[at] > 1:
            names, t = names[:i] + names[i + 1 :], t.squeeze(i)
    return names, t


def read_addmm(
    bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> list[Use]:
    """``bias + a @ b``."""
    is_bias = bias.ndim == 1 and b.ndim > 1 and len(bias) == b.shape[-1]
    uses = read_matmul(a, b, bias=bias if is_bias else None)
    scaled = [replace(use, scale=float(alpha), bias_scale=float(beta)) for use in uses]
    if is_bias:
        return scaled
    added = read_add(bias, uses[0].write(_zero(uses[0], a)))
    return [*scaled, *(replace(use, bias_scale=float(beta)) for use in added)]


def read_einsum(equation: str, *operands: Any) -> list[Use]:  # noqa: ANN401
    """``torch.einsum`` with an equation."""
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    explicit = _explicit(equation.replace(" ", ""), operands)
    names, _, out = explicit.partition("->")
    split = names.split(",")
    uses = []
    for which, name in enumerate(split):
        elsewhere = {*out, *"".join(split[:which] + split[which + 1 :])}
        if len(set(name)) == len(name) and elsewhere.issuperset(name):
            uses.append(contraction(explicit, operands, which))
    return uses


def _explicit(equation: str, operands: Sequence[Tensor]) -> str:
    """An equation with an output, and with letters in place of an ellipsis."""
    inputs, arrow, out = equation.partition("->")
    free = [i for i in LETTERS if i not in equation]
    most = max(
        t.ndim - len(name.replace("...", ""))
        for name, t in zip(inputs.split(","), operands, strict=True)
    )
    dots = "".join(free[:most])
    names = []
    for name, tensor in zip(inputs.split(","), operands, strict=True):
        count = tensor.ndim - len(name.replace("...", ""))
        names.append(name.replace("...", dots[len(dots) - count :]))
    if not arrow:
        letters = "".join(names)
        out = "..." + "".join(i for i in sorted(set(letters) - set(dots)) if letters.count(i) == 1)
    return f"{','.join(names)}->{out.replace('...', dots)}"


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


def read_subtract(a: Any, b: Any, *, alpha: float = 1) -> list[Use]:  # noqa: ANN401
    """``a - alpha * b``."""
    return read_add(a, b, alpha=alpha, signs=(1, -1))


def read_reversed_subtract(a: Any, b: Any, *, alpha: float = 1) -> list[Use]:  # noqa: ANN401
    """``b - alpha * a``."""
    return read_subtract(b, a, alpha=alpha)


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

    varies = prod(places) > 1
    return Use(bias if varies else None, None if varies else bias, read, _first, rows, out[-1])


def _first(u: Tensor) -> Tensor:
    """What is added to the only group."""
    return u[0]


def _zero(use: Use, like: Tensor) -> Tensor:
    return like.new_zeros(()).expand(use.groups, *use.rows, use.units)


def read_embedding(
    index: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    *_: Any,  # noqa: ANN401
    **__: Any,  # noqa: ANN401
) -> list[Use]:
    """``F.embedding``: one-hot vectors over the entries that occur."""
    untrained = None if padding_idx is None else padding_idx % len(weight)

    def read() -> Tensor:
        present, inverse = torch.unique(index, return_inverse=True)
        V = one_hot(inverse, len(present)).to(weight.dtype)
        if untrained is not None:
            V = V * (index != untrained).unsqueeze(-1)
        return V.unsqueeze(0)

    rows, units = tuple(index.shape), weight.shape[1]
    entries = partial(torch.unique, index)
    return [Use(weight, None, read, _first, rows, units, untrained=untrained, entries=entries)]


def read_index(weight: Tensor, index: Any) -> list[Use]:  # noqa: ANN401
    """``weight[index]`` with a tensor of indices."""
    is_index = isinstance(index, Tensor) and not index.is_floating_point()
    if not is_index or index.dtype == torch.bool or weight.ndim != 2:
        return []
    return read_embedding(index % len(weight), weight)


def read_index_select(weight: Tensor, dim: int, index: Tensor) -> list[Use]:
    """``weight.index_select(0, index)``."""
    return read_embedding(index, weight) if dim == 0 and weight.ndim == 2 else []


def read_embedding_bag(index: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> list[Use]:  # noqa: ANN401
    """``F.embedding_bag`` of the modes ``"sum"`` and ``"mean"``: how often each entry occurs."""
    bags = bags_of(index, weight, *args, **kwargs)
    if bags is None:
        return []

    def read() -> Tensor:
        present, inverse = torch.unique(bags.entries, return_inverse=True)
        V = weight.new_zeros(bags.bags, len(present))
        return V.index_put((bags.bag, inverse), bags.scale.detach(), accumulate=True).unsqueeze(0)

    rows, units = (bags.bags,), weight.shape[1]
    untrained, entries = bags.untrained, partial(torch.unique, bags.entries)
    return [Use(weight, None, read, _first, rows, units, untrained=untrained, entries=entries)]


def plain_embedding_bag(index: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:  # noqa: ANN401
    """``F.embedding_bag`` of the modes ``"sum"`` and ``"mean"`` in operations with all derivatives.

    Args:
        index: The entries.
        weight: The embedding.
        *args: The operation's other arguments.
        **kwargs: Likewise.

    Returns:
        Its output; None for other modes.
    """
    bags = bags_of(index, weight, *args, **kwargs)
    if bags is None:
        return None
    rows = embedding(bags.entries, weight) * bags.scale.unsqueeze(1)
    return rows.new_zeros(bags.bags, weight.shape[1]).index_add(0, bags.bag, rows)


class Bags(NamedTuple):
    """Which entries a bag adds up: entry ``entries[i]`` is in ``bag[i]``, times ``scale[i]``."""

    entries: Tensor
    bag: Tensor
    scale: Tensor
    bags: int
    untrained: int | None


def bags_of(
    index: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Bags | None:
    """Read the arguments of ``F.embedding_bag``; None where a bag is not a weighted sum."""
    del norm_type, scale_grad_by_freq, sparse
    if mode == "max" or max_norm is not None:
        return None
    if index.ndim == 2:
        count = len(index)
        bag = torch.arange(count, device=index.device).repeat_interleave(index.shape[1])
    else:
        assert offsets is not None
        starts = offsets[:-1] if include_last_offset else offsets
        count = len(starts)
        places = torch.arange(len(index), device=index.device)
        bag = torch.searchsorted(starts, places, right=True) - 1
    entries = index.flatten()
    untrained = None if padding_idx is None else padding_idx % len(weight)
    scale = torch.ones_like(entries, dtype=weight.dtype)
    if untrained is not None:
        scale = (entries != untrained).to(weight.dtype)
    if per_sample_weights is not None:
        scale = scale * per_sample_weights.flatten()
    elif mode == "mean":
        sizes = scale.new_zeros(count).index_add(0, bag, scale).clamp(min=1)
        scale = scale / sizes[bag]
    return Bags(entries, bag, scale, count, untrained)


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


def read_cell(
    x: Tensor,
    hidden: Any,  # noqa: ANN401
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> list[Use]:
    """A recurrent cell: the weighted input, and the weighted hidden state."""
    h = hidden if isinstance(hidden, Tensor) else hidden[0]
    parts = ((x, w_ih, b_ih), (h, w_hh, b_hh))
    return [product(*part, place) for place, part in enumerate(parts)]


READERS: dict[str, Reader] = {
    "linear": read_linear,
    "bilinear": read_bilinear,
    "matmul": read_matmul,
    "mm": read_matmul,
    "bmm": read_matmul,
    "mv": read_matmul,
    "dot": read_matmul,
    "addmm": read_addmm,
    "addmm_": read_addmm,
    "addmv": read_addmm,
    "baddbmm": read_addmm,
    "einsum": read_einsum,
    "add": read_add,
    "add_": read_add,
    "sub": read_subtract,
    "sub_": read_subtract,
    "subtract": read_subtract,
    "rsub": read_reversed_subtract,
    "embedding": read_embedding,
    "embedding_bag": read_embedding_bag,
    "__getitem__": read_index,
    "index_select": read_index_select,
    **{f"conv{n}d": read_convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": read_transposed_convolution for n in (1, 2, 3)},
    **dict.fromkeys(cells.CELL_STEPS, read_cell),
}
"""How to read an operation, by its name."""
_CONVOLUTION = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_CELL = "input hx w_ih w_hh b_ih b_hh"
SIGNATURES: dict[str, tuple[str, ...]] = {
    name: tuple(signature.split())
    for name, signature in {
        "linear": "input weight bias",
        "bilinear": "input1 input2 weight bias",
        "matmul": "input other",
        "mm": "input mat2",
        "bmm": "input mat2",
        "mv": "input vec",
        "dot": "input tensor",
        **dict.fromkeys(("addmm", "addmm_"), "input mat1 mat2"),
        "addmv": "input mat vec",
        "baddbmm": "input batch1 batch2",
        **dict.fromkeys(("add", "add_", "sub", "sub_", "subtract", "rsub"), "input other"),
        "embedding": "input weight padding_idx",
        "embedding_bag": "input weight",
        "index_select": "input dim index",
        **{f"conv{n}d": _CONVOLUTION for n in (1, 2, 3)},
        **{f"conv_transpose{n}d": _TRANSPOSED for n in (1, 2, 3)},
        **dict.fromkeys(cells.CELL_STEPS, _CELL),
    }.items()
}
"""The names of torch's own arguments, in order; those after them go by name."""


def uses_in(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Use]:
    """The uses of weights in an operation, whichever way its arguments are given.

    Args:
        name: Of the operation, one of `READERS`.
        args: Its positional arguments.
        kwargs: Its arguments by name.

    Returns:
        The uses, of everything that could be a weight; none where it is called in an unknown way.
    """
    try:
        return READERS[name](*in_order(name, args, kwargs), **by_name(name, kwargs))
    except (TypeError, ValueError, AttributeError, IndexError):
        return []


def in_order(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """An operation's arguments by position, those among them that were given by name included.

    Args:
        name: Of the operation.
        args: Its positional arguments.
        kwargs: Its arguments by name.

    Returns:
        The arguments as far as they are given without a gap, defaults in gaps that there are.
    """
    order = SIGNATURES.get(name, ())
    rest = list(order[len(args) :])
    while rest and rest[-1] not in kwargs:
        rest.pop()
    return [*args, *(kwargs.get(each, _DEFAULTS.get(each)) for each in rest)]


_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}


def by_name(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operation's other arguments.

    Args:
        name: Of the operation.
        kwargs: Its arguments by name.

    Returns:
        Those that have no place.
    """
    order = SIGNATURES.get(name, ())
    return {key: value for key, value in kwargs.items() if key not in order}


def perturbed(name: str, args: Any, kwargs: Any, output: Any, added: dict[int, Tensor]) -> Any:  # noqa: ANN401
    """An operation's output when something is added to the outputs of its weights.

    Args:
        name: The operation's name.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned.
        added: What is added, by the place of the use, each in the layout of the output (for a
            cell, of its weighted sum).

    Returns:
        The output to go on with.
    """
    if name in cells.CELL_STEPS:
        return cells.run_cell(name, *args, **kwargs, added=added)
    for u in added.values():
        output = output + u
    return output
