"""Moving a model's own parameters along a direction, and back to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ntk_monitor.model.ledger import Entry, Ledger
from ntk_monitor.model.shards import Direction, Portion, piece_size, portions

ATTEMPTS = 100
"""How often putting back is tried again after an interruption."""
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes as floating types."""
WORD = 4
"""Bytes of the integers that are summed up."""


class _Lost(NamedTuple):
    """What moving a portion there and back would lose: some entries, or all of them."""

    ledger: Ledger
    places: Entry | None
    values: Entry


class Displacement:
    r"""Moves parameters in place to :math:`\theta \pm \epsilon g` and back, without a copy of them.

    After ``s = fl(p + d)``, ``d = fl(eps g)``, the way back ``fl(s - d)`` gives almost every ``p``
    again, as the direction is drawn or read again. Where it would not, in some entries that pass a
    power of two, ``p`` is kept: a few per thousand. Each portion knows whether it is moved, so that
    an interruption at any moment can be undone. A sum over the bits of each, taken before and
    after, proves that they are what they were.
    """

    def __init__(
        self, parameters: Sequence[Tensor], untrained: Mapping[int, slice] | None = None
    ) -> None:
        """Keep the parameters.

        Args:
            parameters: Those that are moved, in order; their memory must not overlap.
            untrained: Entries, by the parameter, that are never moved.
        """
        self._parameters, self._untrained = tuple(parameters), dict(untrained or {})
        self._direction: Direction | None = None
        self._epsilon = 0.0
        self._signs: list[int] = []
        self._lost: list[_Lost | None] = []
        self._sums = torch.zeros(2, 0, dtype=torch.int64, device="cpu")
        self._pending: tuple[int, Tensor] | None = None
        self._ledger: Ledger | None = None

    def difference(
        self,
        direction: Direction,
        epsilon: float,
        value: Callable[[], Tensor],
        base: Tensor | None = None,
    ) -> Tensor:
        """By how much a function of the parameters differs ahead of where they are.

        Args:
            direction: Along which they are moved.
            epsilon: How far.
            value: The function.
            base: Its value where they are; None for that on the other side.

        Returns:
            Its value at ``theta + epsilon g`` less the base, or that at ``theta - epsilon g``.

        Raises:
            RuntimeError: If something else wrote to the parameters meanwhile.
        """
        every = self._portions()
        self._direction, self._epsilon = direction, epsilon
        self._lost, self._signs = [None] * len(every), [0] * len(every)
        device = every[0].pieces[0].numbers.device
        self._sums = torch.zeros(2, len(every), dtype=torch.int64, device=device)
        try:
            try:
                self._move(1)
                difference = value().clone()  # it may be a view of the parameters
                if base is None:
                    self._move(-1)
                difference -= value() if base is None else base
            finally:
                self._put_back()
        except BaseException as error:
            self._put_back()  # does nothing, unless the first time was interrupted before its start
            damage = self._damage()
            if damage is not None:
                error.add_note(damage)
            raise
        damage = self._damage()
        if damage is not None:
            raise RuntimeError(damage)
        return difference

    def _damage(self) -> str | None:
        """What is wrong with the parameters now that they are back, if anything is."""
        differing = int((self._sums[0] != self._sums[1]).sum())
        if not differing:
            return None
        return (
            f"{differing} portions of the parameters are not what they were before a product "
            "in place: forward(), or another thread, wrote to them meanwhile. Load them from a "
            "checkpoint, and take another method than 'in-place'"
        )

    def _portions(self) -> list[Portion]:
        return list(portions(self._parameters))

    def _put_back(self) -> None:
        """Move everything back, however often that is interrupted."""
        interrupted: BaseException | None = None
        for _ in range(ATTEMPTS):
            try:
                self._move(0)
            except BaseException as error:
                interrupted = error
            else:
                break
        if interrupted is not None:
            raise interrupted

    def _move(self, sign: int) -> None:
        """Bring every portion to one side, or back."""
        assert self._direction is not None
        every = self._portions()
        if self._pending is not None:
            i, original = self._pending
            every[i].write(original)
            self._sums[1, i] = _bit_sum(original)
            self._signs[i], self._pending = 0, None
        if all(s == sign for s in self._signs):
            return
        self._ledger = Ledger(self._sums.device) if sign else None
        read = self._direction.reader()
        for i, portion in enumerate(every):
            g = read(portion.pieces)  # in order, needed or not
            if self._signs[i] != sign:
                self._move_portion(i, portion, g, sign)

    def _move_portion(self, i: int, portion: Portion, g: Tensor, sign: int) -> None:
        original = portion.read()
        delta = self._delta(g, portion, original.dtype)
        if self._signs[i] == 0:
            self._sums[:, i] = _bit_sum(original)
        else:
            original = _moved(original, delta, -self._signs[i])
            _give_back(original, self._lost[i])
            if sign == 0:
                self._sums[1, i] = _bit_sum(original)
        there = _moved(original, delta, sign) if sign else original
        # From here on an interruption leads back to the original.
        self._pending = (i, original)
        portion.write(there)
        self._lost[i] = self._find_lost(original, there, delta, sign) if sign else None
        self._signs[i] = sign
        self._pending = None

    def _find_lost(self, original: Tensor, there: Tensor, delta: Tensor, sign: int) -> _Lost | None:
        """What the way back does not give again."""
        assert self._ledger is not None
        back = _moved(there, delta, -sign)
        places = torch.nonzero(_bits(back) != _bits(original)).view(-1)
        if not len(places):
            return None
        size = original.element_size()
        if len(places) * (4 + size) >= original.numel() * size:
            return _Lost(self._ledger, None, self._ledger.keep(original))
        values = original[places]
        return _Lost(self._ledger, self._ledger.keep(places.int()), self._ledger.keep(values))

    def _delta(self, g: Tensor, portion: Portion, dtype: torch.dtype) -> Tensor:
        """``fl(eps g)`` in the arithmetic of the parameters."""
        delta = (g.to(torch.promote_types(g.dtype, dtype)) * self._epsilon).to(dtype)
        for piece, part in zip(portion.pieces, torch.split(delta, portion.sizes), strict=True):
            still = self._untrained.get(piece.parameter)
            if still is not None:
                begin, end = (max(0, at - piece.start) for at in (still.start, still.stop))
                part[begin:end] = 0
        return delta


def _moved(numbers: Tensor, delta: Tensor, sign: int) -> Tensor:
    """``fl(p + d)`` or ``fl(p - d)`` in a tensor of its own."""
    return numbers + delta if sign > 0 else numbers - delta


def _give_back(numbers: Tensor, lost: _Lost | None) -> None:
    if lost is None:
        return
    values = lost.ledger.read(lost.values)
    if lost.places is None:
        numbers.copy_(values)
    else:
        numbers[lost.ledger.read(lost.places).long()] = values


def _bits(numbers: Tensor) -> Tensor:
    return numbers.view(BITS[numbers.element_size()])


def _bit_sum(numbers: Tensor) -> Tensor:
    """A sum over all bits in which every entry counts with its place."""
    bits = _bits(numbers)
    bits = bits.int() if bits.element_size() < WORD else bits.view(torch.int32)
    weights = _weights(bits.device, piece_size(bits.device) * 8 // WORD)[: len(bits)]
    return (bits * weights).sum(dtype=torch.int64)  # products wrap around, the same always


@cache
def _weights(device: torch.device, words: int) -> Tensor:
    """Odd numbers, one for each word of a portion."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    drawn = torch.randint(2**31, (words,), generator=generator, dtype=torch.int32, device="cpu")
    return (drawn | 1).to(device)
