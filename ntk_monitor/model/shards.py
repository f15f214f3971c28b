"""The numbers of a model's own parameters, piece by piece, and directions that are read so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ntk_monitor.estimators.tangents import tangent_generator

PIECE = 2**16
"""Most entries of a parameter that are looked at together."""
BLOCK = 2**16
"""Random numbers that are drawn together."""
LEAST = 16
"""Fewest numbers that torch draws in the way of many."""


def local(parameter: Tensor) -> Tensor:
    """This process's numbers of a parameter.

    Writing to them is not counted as a change of the parameter, so that a graph in which training
    has saved it stays valid: whoever writes must put back what was there.

    Args:
        parameter: The parameter.

    Returns:
        The numbers themselves, not a copy.
    """
    return parameter.data


class Piece(NamedTuple):
    """Some successive entries of a parameter.

    Attributes:
        numbers: The entries themselves.
        parameter: Which parameter.
        start: Where they begin in it, read row by row.
    """

    numbers: Tensor
    parameter: int
    start: int


def pieces(tensors: Sequence[Tensor]) -> Iterator[Piece]:
    """Cut tensors into views of at most `PIECE` entries.

    Args:
        tensors: Any tensors, whatever their layout.

    Yields:
        The pieces, each tensor's row by row; the same for all tensors of the same shapes.
    """
    for i, tensor in enumerate(tensors):
        start = 0
        for numbers in _cut(tensor):
            yield Piece(numbers, i, start)
            start += numbers.numel()


def _cut(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.numel() <= PIECE:
        if tensor.numel():
            yield tensor
        return
    rows = PIECE * len(tensor) // tensor.numel()
    if rows:
        yield from torch.split(tensor, rows)
        return
    for row in tensor:
        yield from _cut(row)


Reader = Callable[[Piece], Tensor]
"""Gives a direction's entries at a piece, in the piece's shape. It is asked for every piece in
order."""


class Direction(Protocol):
    """A direction in parameter space."""

    @property
    def length(self) -> float:
        """Its norm, or about that."""

    def reader(self) -> Reader:
        """Begin to read it."""


@dataclass(frozen=True)
class Gaussian:
    """A random direction, drawn whenever it is read.

    On the CPU its entries are those of `draw_tangents`; on a GPU, which draws many numbers in
    another way than few, they are others with the same law.

    Attributes:
        seed: Names the family of directions.
        index: Which of them.
        size: How many entries it has.
        device: Where to draw.
    """

    seed: int
    index: int
    size: int
    device: torch.device

    @property
    def length(self) -> float:
        """The root of the expected squared norm."""
        return math.sqrt(self.size)

    def reader(self) -> Reader:
        """Begin to draw."""
        generator = tangent_generator(self.seed, self.index, self.device)
        stream = _Stream(generator, self.size)
        return lambda piece: stream.take(piece.numbers.numel()).reshape(piece.numbers.shape)


class _Stream:
    """Successive random numbers, the same however few are taken at a time."""

    def __init__(self, generator: torch.Generator, size: int) -> None:
        self._generator, self._left = generator, size
        self._ready = torch.empty(0, device=generator.device)

    def take(self, count: int) -> Tensor:
        parts = []
        while count > len(self._ready):
            parts.append(self._ready)
            count -= len(self._ready)
            # Torch draws the last few numbers of a tensor anew, so they must be the last of all.
            size = BLOCK if self._left >= BLOCK + LEAST else self._left
            self._ready = self._ready.new_empty(size).normal_(generator=self._generator)
            self._left -= size
        parts.append(self._ready[:count])
        self._ready = self._ready[count:]
        return torch.cat(parts)


class Given:
    """A direction that is held in memory, as a gradient is."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Keep it.

        Args:
            tensors: For each parameter, a tensor of its shape.
        """
        self.tensors = tuple(local(t) for t in tensors)

    @property
    def length(self) -> float:
        """Its norm."""
        return norm(self.tensors)

    def reader(self) -> Reader:
        """Begin to read it."""
        own = pieces(self.tensors)
        return lambda _: next(own).numbers


def norm(tensors: Sequence[Tensor]) -> float:
    """The norm of several tensors together.

    Args:
        tensors: The tensors.

    Returns:
        The root of the sum of all squares, taken in float64.
    """
    squares = (
        torch.linalg.vector_norm(piece.numbers, dtype=torch.float64).square()
        for piece in pieces([local(t) for t in tensors])
    )
    return math.sqrt(sum(squares))


def inner(direction: Direction, tensors: Sequence[Tensor]) -> float:
    """The inner product of a direction with tensors.

    Args:
        direction: The direction.
        tensors: One for each parameter.

    Returns:
        The sum of all products, taken in float64.
    """
    read, total = direction.reader(), 0.0
    for piece in pieces([local(t) for t in tensors]):
        total += float((read(piece).double() * piece.numbers.double()).sum())
    return total


def require_separate(parameters: Mapping[str, Tensor]) -> None:
    """Refuse parameters that cannot be moved one by one.

    Args:
        parameters: By their names.

    Raises:
        ValueError: If two of them, or two entries of one, are in the same memory.
    """
    shared = _shared({name: local(parameter) for name, parameter in parameters.items()})
    if shared is not None:
        raise ValueError(
            f"the parameters {shared[0]!r} and {shared[1]!r} share memory, so that "
            "method='in-place' cannot move one without the other: take another method"
        )


def _shared(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of two tensors in the same memory, or twice that of one."""
    spans = []
    for name, own in tensors.items():
        reach = sum((n - 1) * step for n, step in zip(own.shape, own.stride(), strict=True))
        if reach + 1 < own.numel():
            return name, name
        if own.numel():
            begin = own.data_ptr()
            spans.append((begin, begin + (reach + 1) * own.element_size(), name))
    found = pairwise(sorted(spans))
    return next(((a, b) for (_, end, a), (begin, _, b) in found if begin < end), None)
