"""Many small tensors in few large blocks of memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**20
"""Bytes of a block."""
ALIGNMENT = 8


class Entry(NamedTuple):
    """Where a tensor is in a `Ledger`: which block, its first byte, and how many."""

    block: int
    start: int
    size: int
    dtype: torch.dtype


class Ledger:
    """Keeps tensors with nothing allocated for each.

    Small tensors that stay while large ones come and go around them would keep the allocator from
    using the large ones' places again.
    """

    def __init__(self, device: torch.device) -> None:
        """Start empty.

        Args:
            device: Where to keep the tensors.
        """
        self._device = device
        self._blocks: list[Tensor] = []
        self._used = BLOCK

    def keep(self, tensor: Tensor) -> Entry:
        """Keep a copy.

        Args:
            tensor: A contiguous tensor.

        Returns:
            Where it is.
        """
        raw = tensor.view(-1).view(torch.uint8)
        size = len(raw)
        if not self._blocks or self._used + size > len(self._blocks[-1]):
            block = torch.empty(max(BLOCK, size), dtype=torch.uint8, device=self._device)
            self._blocks.append(block)
            self._used = 0
        entry = Entry(len(self._blocks) - 1, self._used, size, tensor.dtype)
        self._blocks[-1][self._used : self._used + size] = raw
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return entry

    def read(self, entry: Entry) -> Tensor:
        """What was kept.

        Args:
            entry: Where it is.

        Returns:
            The tensor, flat, in the ledger's memory.
        """
        block = self._blocks[entry.block]
        return block[entry.start : entry.start + entry.size].view(entry.dtype)
