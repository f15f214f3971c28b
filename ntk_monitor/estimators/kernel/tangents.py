"""Random directions in parameter space, reproducible one by one and piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ntk_monitor.processes import checksum

CPU_BLOCK, OTHER_BLOCK = 2**16, 2**22
"""Entries with a generator of their own, whose seeding takes as long as some thousand of them; a
GPU draws few numbers no faster than many."""
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = 2**64 - 1


@dataclass(frozen=True)
class Tangent:
    """One random direction, any stretch of which can be drawn by itself (`Drawing`).

    Its entries depend on the seed, the index and their place alone, so that processes which hold
    parts of the parameters draw parts of the same direction, however many there are.

    Attributes:
        size: Number of entries.
        index: Which direction of its family.
        seed: Of its family.
        device: Device on which to draw; a GPU draws other numbers than a CPU.
        family: A spawn key of numpy's: directions of other families have nothing to do with it.
    """

    size: int
    index: int
    seed: int
    device: torch.device | str = "cpu"
    family: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> int:
        """A number that tells whether processes draw the same direction."""
        return checksum(Drawing(self).draw(0, min(self.size, CPU_BLOCK)))


class Drawing:
    """Draws one stretch of a tangent after another.

    Of a block of which a stretch takes a part, all is drawn; it is kept for the next stretch.
    """

    def __init__(self, tangent: Tangent) -> None:
        """Begin.

        Args:
            tangent: What to draw from.
        """
        words = np.random.SeedSequence((tangent.seed, tangent.index), spawn_key=tangent.family)
        self._base = int(words.generate_state(1, np.uint64)[0])
        self._generator = torch.Generator(device=tangent.device)
        self._tangent, self._kept = tangent, (-1, torch.empty(0, device=tangent.device))

    def draw(self, start: int, count: int) -> Tensor:
        """Successive entries.

        Args:
            start: The first of them.
            count: How many.

        Returns:
            Shape ``(count,)``, in float32.
        """
        device, size = self._generator.device, self._tangent.size
        length = CPU_BLOCK if device.type == "cpu" else OTHER_BLOCK
        entries = torch.empty(count, device=device, dtype=torch.float32)
        for block in range(start // length, -(-(start + count) // length)):
            begin, end = block * length, min((block + 1) * length, size)
            first, last = max(begin, start), min(end, start + count)
            into = entries[first - start : last - start]
            if len(into) == end - begin:
                self._fill(into, block)
            else:
                into.copy_(self._block(block, end - begin)[first - begin : last - begin])
        return entries

    def _block(self, number: int, size: int) -> Tensor:
        if self._kept[0] != number:
            block = torch.empty(size, device=self._generator.device, dtype=torch.float32)
            self._kept = number, self._fill(block, number)
        return self._kept[1]

    def _fill(self, entries: Tensor, block: int) -> Tensor:
        self._generator.manual_seed(_mixed(self._base + block * GOLDEN))
        return entries.normal_(generator=self._generator)


def draw_tangents(
    size: int,
    indices: range,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    family: tuple[int, ...] = (),
) -> Tensor:
    """Draw standard normal tangents; see ``Tangent``.

    Tangent ``i`` depends on ``(seed, i)`` alone: a later probe that draws the same indices sees
    the same directions, whatever the chunk size or the number of samples. These common random
    numbers cut the noise between successive probes by a factor of 30 to 100. The draw is made in
    float32, so that probes in different precisions share their directions.

    Args:
        size: Number of entries of a tangent.
        indices: Which tangents to draw.
        seed: Names the family of tangents.
        dtype: Floating type of the result.
        device: Device on which to draw.
        family: See ``Tangent``.

    Returns:
        A tensor of shape ``(len(indices), size)``.

    Example:
        >>> both = draw_tangents(3, range(0, 2), seed=7)
        >>> bool((both[1] == draw_tangents(3, range(1, 2), seed=7)[0]).all())
        True
    """
    tangents = torch.empty(len(indices), size, device=device, dtype=dtype)
    for row, index in zip(tangents, indices, strict=True):
        row.copy_(Drawing(Tangent(size, index, seed, device, family)).draw(0, size))
    return tangents


def _mixed(word: int) -> int:
    """A seed whose every bit depends on every bit of a word; Steele, Lea and Flood (2014)."""
    word &= WORD
    word = (word ^ (word >> 30)) * MIX_1 & WORD
    word = (word ^ (word >> 27)) * MIX_2 & WORD
    return (word ^ (word >> 31)) >> 1
