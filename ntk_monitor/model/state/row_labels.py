"""Numbers of rows: which entry of the data each entry of a tensor comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

NONE = -1
"""The number of an entry that comes from no data."""


class Label(NamedTuple):
    """The numbers of a tensor's entries, each of the tensor's shape, ``NONE`` where there is none.

    Where several entries are made one, the three differ: a recurrence goes on with the latest, or
    with the earliest, of the rows that it has seen, and all else keeps its place.

    Attributes:
        near: Of the entry in the same place.
        high: The highest.
        low: The lowest.
    """

    near: Tensor
    high: Tensor
    low: Tensor

    def each(self, change: Callable[[Tensor], Any]) -> Label:
        """The same changed, what is the same once."""
        near = change(self.near)
        high = near if self.high is self.near else change(self.high)
        low = near if self.low is self.near else change(self.low)
        return Label(near, high, low)

    @property
    def is_one(self) -> bool:
        """Whether all three are the same."""
        return self.high is self.near and self.low is self.near


Labels = Mapping[int, Label]
"""What is known of a tensor, by the source of the numbers."""
NOTHING: Labels = {}


def change_all(labels: Labels, change: Callable[[Tensor], Tensor]) -> Labels:
    """The numbers of all sources changed alike."""
    return {source: label.each(change) for source, label in labels.items()}


def made_of(
    several: Sequence[Labels],
    tensors: Sequence[Tensor],
    change: Callable[[Sequence[Tensor]], Tensor],
) -> Labels:
    """The numbers of what is made of several tensors.

    Args:
        several: Those of each, some of which may have none of a source.
        tensors: The tensors.
        change: From numbers of each to what becomes of them.

    Returns:
        By each source; where all have one number, so has what is made of them.
    """
    found: dict[int, Label] = {}
    for source in dict.fromkeys(s for labels in several for s in labels):
        pairs = [(labels.get(source), t) for labels, t in zip(several, tensors, strict=True)]
        one = all(label is None or label.is_one for label, _ in pairs)
        near, *others = (
            change([none_of(t) if label is None else label[kind] for label, t in pairs])
            for kind in range(1 if one else 3)
        )
        found[source] = Label(near, *(others or (near, near)))
    return found


def none_of(tensor: Tensor) -> Tensor:
    """No numbers, of a tensor's shape."""
    return torch.full((), NONE, dtype=torch.int32, device=tensor.device).expand(tensor.shape)


def is_still(numbers: Tensor, axis: int) -> bool:
    """Whether numbers are the same all along an axis, as far as their layout tells."""
    return numbers.shape[axis] == 1 or numbers.stride(axis) == 0


def _moving_axes(numbers: Tensor) -> int:
    """Along how many axes some numbers differ."""
    small = _compact(numbers)
    return sum(
        small.shape[axis] > 1 and bool((small != small.narrow(axis, 0, 1)).any())
        for axis in range(small.ndim)
    )


def _compact(numbers: Tensor) -> Tensor:
    for axis in range(numbers.ndim):
        if numbers.shape[axis] > 1 and numbers.stride(axis) == 0:
            numbers = numbers.narrow(axis, 0, 1)
    return numbers


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two are equal, entry by entry, of the same shape."""
    if a is b:
        return True
    a, b = _compact(a), _compact(b)
    if a.shape != b.shape:
        return False
    same_memory = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return same_memory or bool(torch.equal(a, b))


def same_numbers(first: Labels, second: Labels) -> bool:
    """Whether two tensors have the same numbers of the same sources, entry by entry."""
    return first.keys() == second.keys() and all(
        _same(a, b) for s, label in first.items() for a, b in zip(label, second[s], strict=True)
    )


def common_shape(*shapes: Sequence[int]) -> torch.Size:
    """The shape to which tensors of some shapes are broadcast."""
    found: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return found


def fits(shape: Sequence[int], into: Sequence[int]) -> bool:
    """Whether a tensor of one shape can be broadcast to another."""
    if len(shape) > len(into):
        return False
    return all(a in {1, b} for a, b in zip(reversed(shape), reversed(into), strict=False))


def _expanded_alike(changed: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """Something entry by entry, once for what is the same along axes."""
    shape = common_shape(*(x.shape for x in numbers))
    return changed(*(_compact(x) for x in numbers)).expand(shape)


def _nearer(a: Tensor, b: Tensor) -> Tensor:
    """Of two numberings the one with more different numbers, else the first; the other fills it."""
    first, second = (a, b) if _moving_axes(a) >= _moving_axes(b) else (b, a)
    if bool((_compact(first) >= 0).all()):
        return first
    return _expanded_alike(lambda x, y: torch.where(x >= 0, x, y), first, second)


def _lower(a: Tensor, b: Tensor) -> Tensor:
    def least(x: Tensor, y: Tensor) -> Tensor:
        return torch.where((x < 0) | (y < 0), torch.maximum(x, y), torch.minimum(x, y))

    return _expanded_alike(least, a, b)


def together(several: Sequence[Labels]) -> Labels:
    """The numbers of entries that meet entry by entry."""
    found: dict[int, Label] = {}
    for labels in several:
        for source, label in labels.items():
            known = found.get(source)
            if known is None:
                found[source] = label
            elif not (known.is_one and label.is_one and _same(known.near, label.near)):
                found[source] = Label(
                    _nearer(known.near, label.near),
                    _expanded_alike(torch.maximum, known.high, label.high),
                    _lower(known.low, label.low),
                )
    return found


def either(first: Labels, second: Labels) -> Labels:
    """The numbers of a product of two that both have rows: those that tell most rows apart.

    Scores of queries and keys have rows of both; where they tell as much, the first goes before,
    and the second is kept beside it, until a sum leaves one of them alone.

    Args:
        first: Of one of them, laid out as the product is.
        second: Of the other.

    Returns:
        Those of the product.
    """
    found = dict(first)
    for source, label in second.items():
        known = found.get(source)
        if known is None:
            found[source] = label
            continue
        options = [known.near, label.near, known.high, label.high]
        apart = [_moving_axes(x) for x in options]
        best = [x for x, axes in zip(options, apart, strict=True) if axes == max(apart)]
        near = best[0]
        high = next((x for x in best if not _same(x, near)), near)
        found[source] = Label(near, high, near)
    return found


def one_of(label: Label, axes: Sequence[int], shape: Sequence[int]) -> Label:
    """One number for those along some axes, coordinate by coordinate of the data.

    Where the same coordinates come together in every row, they are features, and do not count;
    else the highest, the lowest, and the one in the middle. Some coordinates of an axis but the
    last may be those of a step and of the steps before it: of these the highest and lowest count.

    Args:
        label: The numbers.
        axes: Along which they become one.
        shape: Of the data that is numbered.

    Returns:
        Numbers without those axes.
    """
    low, high, dims = label.low, label.high, tuple(axes)
    most = torch.iinfo(low.dtype).max
    there = (low >= 0).amax(dim=dims)
    lows = highs = middles = torch.zeros_like(there, dtype=low.dtype)
    stride = 1
    for size in reversed(shape):
        a = torch.where(low >= 0, low // stride % size, most).amin(dim=dims)
        b = torch.where(high >= 0, high // stride % size, NONE).amax(dim=dims)
        features = _are_features(a[there], b[there])
        every = features and bool((a[there] == 0).all() and (b[there] == size - 1).all())
        a, b = a.clamp(0, size - 1), b.clamp(min=0)
        if not features or not (every or stride == 1):
            lows, highs = lows + stride * a, highs + stride * b
        if not features:
            middles = middles + stride * ((a + b) // 2)
        stride *= size
    near, high, low = (torch.where(there, x, NONE) for x in (middles, highs, lows))
    one = torch.equal(high, low) and torch.equal(near, low)
    return Label(near, near, near) if one else Label(near, high, low)


def _are_features(lowest: Tensor, highest: Tensor) -> bool:
    """Whether a coordinate runs over the same numbers in all rows, over more than one."""
    same = bool((lowest == lowest[:1]).all() and (highest == highest[:1]).all())
    return same and bool((lowest != highest).any())
