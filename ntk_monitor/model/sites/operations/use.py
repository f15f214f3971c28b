"""One use of a weight in an operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import Tensor


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
        whole: What the entries are numbered of, where the weight is some of them.
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
    whole: Tensor | None = None

    @property
    def part(self) -> tuple[object, ...]:
        """Which part of its memory the weight is, and which the bias, by their layouts."""
        weight = self.weight if self.whole is None else self.whole
        return tuple(None if t is None else layout(t) for t in (weight, self.bias))

    def activity_bytes(self, itemsize: int) -> int:
        """What the activity takes at most."""
        rows = prod(self.rows)
        columns = 1 if self.weight is None else self.weight.numel() // (self.units * self.groups)
        if self.entries is not None:  # over the entries that occur
            columns = min(columns, rows)
        return self.groups * rows * columns * itemsize

    def laid_out(self, rows: Tensor) -> Tensor:
        """What is known of each row, in the layout of the operation's output."""
        wide = rows.reshape(1, *self.rows, 1).expand(self.groups, *self.rows, self.units)
        return self.write(wide)


def layout(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor's entries are in its memory.

    Args:
        tensor: The tensor.

    Returns:
        The first, the sizes, and the steps along axes of more than one entry.
    """
    sizes = tuple(tensor.shape)
    steps = zip(sizes, tensor.stride(), strict=True)
    return tensor.storage_offset(), sizes, tuple(step for size, step in steps if size > 1)


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
    return Use(weight, bias, read, first_group, rows, len(weight), place=place)


def first_group(u: Tensor) -> Tensor:
    """What is added to the only group."""
    return u[0]
