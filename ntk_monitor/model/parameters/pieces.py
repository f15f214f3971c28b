"""The numbers of a model's own parameters, piece by piece, and directions that are read so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ntk_monitor.estimators.kernel.tangents import OTHER_BLOCK, Drawing, Tangent
from ntk_monitor.model.parameters.sharding import Place, Sharding, place_of

PIECE = 2**16
"""Most entries of a parameter that are looked at together."""


def local(parameter: Tensor) -> Tensor:
    """This process's numbers of a parameter.

    Args:
        parameter: The parameter.

    Returns:
        The numbers themselves, not a copy.
    """
    numbers = parameter.detach()
    return numbers.to_local() if isinstance(numbers, DTensor) else numbers


class Piece(NamedTuple):
    """Some successive entries of a parameter.

    Attributes:
        numbers: The entries themselves.
        parameter: Which parameter.
        start: Where they begin in this process's part of it, read row by row.
        part: The shape of that part.
    """

    numbers: Tensor
    parameter: int
    start: int
    part: torch.Size


def piece_size(device: torch.device) -> int:
    """Most entries of a parameter that are looked at together.

    Args:
        device: Where they are.

    Returns:
        `PIECE`, or on a GPU, where many small steps cost more, as many as are drawn together.
    """
    return PIECE if device.type == "cpu" else OTHER_BLOCK


def pieces(tensors: Sequence[Tensor]) -> Iterator[Piece]:
    """Cut this process's parts of tensors into views of few entries.

    Args:
        tensors: Any tensors, whatever their layout.

    Yields:
        The pieces, each tensor's row by row; the same for all tensors of the same shapes.
    """
    for i, tensor in enumerate(map(local, tensors)):
        start = 0
        for numbers in _cut(tensor):
            yield Piece(numbers, i, start, tensor.shape)
            start += numbers.numel()


def _cut(tensor: Tensor) -> Iterator[Tensor]:
    most = piece_size(tensor.device)
    if tensor.numel() <= most:
        if tensor.numel():
            yield tensor
        return
    rows = most * len(tensor) // tensor.numel()
    if rows:
        yield from torch.split(tensor, rows)
        return
    for row in tensor:
        yield from _cut(row)


Reader = Callable[[int, int], Tensor]
"""Gives successive entries of a direction at one parameter, by the first of them and how many, read
row by row over the part of it that an operation, or this process, has."""


class Direction(Protocol):
    """A direction in parameter space."""

    @property
    def length(self) -> float:
        """Its norm, or about that."""

    def reader(self, number: int, seen: Tensor) -> Reader:
        """Begin to read it at one parameter.

        Args:
            number: Which parameter.
            seen: The parameter, or what is in its place: another part of it, or all of it.

        Returns:
            Reads it.
        """


@dataclass(frozen=True)
class Gaussian:
    """A random direction, drawn whenever it is read; its entries are those of `draw_tangents`.

    Attributes:
        seed: Names the family of directions.
        index: Which of them.
        spread: How the parameters are spread.
        device: Where to draw.
        family: Sets directions apart from others of the same seed; see ``Tangent``.
    """

    seed: int
    index: int
    spread: Sharding
    device: torch.device
    family: tuple[int, ...] = ()

    @property
    def tangent(self) -> Tangent:
        """The direction over the whole of all parameters."""
        size = self.spread.offsets[-1]
        return Tangent(size, self.index, self.seed, self.device, self.family)

    @cached_property
    def _drawing(self) -> Drawing:
        """Draws for all parameters: small ones that follow one another share a block."""
        return Drawing(self.tangent)

    @property
    def length(self) -> float:
        """The root of the expected squared norm."""
        return math.sqrt(self.spread.offsets[-1])

    def reader(self, number: int, seen: Tensor) -> Reader:
        """Begin to draw; see `Direction.reader`."""
        drawing, offset = self._drawing, self.spread.offsets[number]
        place, part = place_of(seen), local(seen).shape

        def read(start: int, count: int) -> Tensor:
            drawn = [drawing.draw(b, n) for b, n in _stretches(place, part, offset, start, count)]
            return drawn[0] if len(drawn) == 1 else torch.cat(drawn)

        return read


def _stretches(
    place: Place, part: Sequence[int], offset: int, start: int, count: int
) -> list[tuple[int, int]]:
    """Where entries of a part are in the flat vector of all parameters: beginnings and lengths."""
    found: list[tuple[int, int]] = []
    for begin, length in place.stretches(part, start, count):
        if found and sum(found[-1]) == offset + begin:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((offset + begin, length))
    return found


class Given:
    """A direction that is held in memory, as a gradient is."""

    def __init__(self, tensors: Sequence[Tensor], spread: Sharding) -> None:
        """Keep it.

        Args:
            tensors: For each parameter, a tensor of its shape.
            spread: How they are spread.
        """
        self.tensors, self._spread = tuple(tensors), spread

    @cached_property
    def length(self) -> float:
        """Its norm."""
        return norm(self.tensors, self._spread)

    def reader(self, number: int, seen: Tensor) -> Reader:
        """Begin to read it; see `Direction.reader`. All processes take part where it is sharded."""
        tensor, part = self.tensors[number], local(seen)
        own = local(tensor)
        if isinstance(tensor, DTensor) and own.shape != part.shape:
            own = tensor.full_tensor().detach()
            ranges = zip(place_of(seen).offsets, part.shape, strict=True)
            own = own[tuple(slice(begin, begin + length) for begin, length in ranges)]
        flat = own.reshape(-1)
        return lambda start, count: flat[start : start + count]


def norm(tensors: Sequence[Tensor], spread: Sharding) -> float:
    """The norm of several tensors together.

    Args:
        tensors: The tensors.
        spread: How they are spread.

    Returns:
        The root of the sum of all squares, taken in float64.
    """
    return math.sqrt(spread.total(dots(tensors, tensors)))


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[float]:
    """The inner products of this process's parts of pairs of tensors.

    Args:
        a: Some tensors.
        b: As many, of the same shapes.

    Returns:
        The sums of all products, taken in float64.
    """
    found = [0.0] * len(a)
    for one, two in zip(pieces(a), pieces(b), strict=True):
        found[one.parameter] += float((one.numbers.double() * two.numbers.double()).sum())
    return found


def inner(direction: Direction, tensors: Sequence[Tensor], spread: Sharding) -> float:
    """The inner product of a direction with tensors.

    Args:
        direction: The direction.
        tensors: One for each parameter.
        spread: How they are spread.

    Returns:
        The sum of all products, taken in float64.
    """
    products = []
    for number, tensor in enumerate(tensors):
        read, total = direction.reader(number, tensor), 0.0
        for piece in pieces([tensor]):
            g = read(piece.start, piece.numbers.numel()).double()
            total += float((g * piece.numbers.flatten().double()).sum())
        products.append(total)
    return spread.total(products)


def require_separate(parameters: Mapping[str, Tensor]) -> None:
    """Refuse parameters that cannot be moved one by one.

    Args:
        parameters: By their names.

    Raises:
        ValueError: If two of them, or two entries of one, are in the same memory.
    """
    shared = _shared(parameters)
    if shared is not None:
        raise ValueError(
            f"the parameters {shared[0]!r} and {shared[1]!r} share memory, so that "
            "method='in-place' cannot move one without the other: take another method"
        )


def share_memory(parameters: Mapping[str, Tensor]) -> bool:
    """Whether two parameters, or two entries of one, are in the same memory.

    Args:
        parameters: By their names, a tied one once.

    Returns:
        True if they are.
    """
    try:
        return _shared(parameters) is not None
    except (RuntimeError, NotImplementedError, ValueError):  # of a kind without memory of its own
        return True


def _shared(parameters: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of two parameters in the same memory, or twice that of one."""
    spans = []
    for name, parameter in parameters.items():
        own = local(parameter)
        reach = sum((n - 1) * step for n, step in zip(own.shape, own.stride(), strict=True))
        if reach + 1 < own.numel():
            return name, name
        if own.numel():
            begin = own.data_ptr()
            spans.append((begin, begin + (reach + 1) * own.element_size(), name))
    found = pairwise(sorted(spans))
    return next(((a, b) for (_, end, a), (begin, _, b) in found if begin < end), None)
