"""How much memory there is, whether an error says that it ran out, and where numbers are."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

SHARE = 0.5
"""Share of the free memory that something may take where the user sets no limit."""
UNKNOWN = 2**30
"""Bytes assumed to be free where the system does not say."""


def free_memory(device: torch.device) -> int:
    """Bytes that a device can still give.

    Args:
        device: The device.

    Returns:
        On CUDA what the driver and torch's own cache hold free; else the free memory of the
        system, or 1 GiB where it is not known.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return UNKNOWN


def room(max_memory: int | None, device: torch.device) -> float:
    """Bytes that something may take.

    Args:
        max_memory: What the user allows, or None.
        device: Where it will be.

    Returns:
        What is allowed, by default half of the free memory.
    """
    return SHARE * free_memory(device) if max_memory is None else max_memory


def release_memory(device: torch.device) -> None:
    """Give back what torch holds in reserve on a device.

    Args:
        device: The device.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out.

    Args:
        error: The error; on the CPU torch raises a plain RuntimeError.

    Returns:
        True if it does.
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def address_of(tensor: Tensor) -> int | None:
    """Where a tensor's numbers are; 0 if it has none, None if it has no storage of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return None


def kept_by_graph(value: Tensor, most: int) -> tuple[int, int]:
    """What a recorded graph is made of.

    Args:
        value: What was computed.
        most: Operations after which to stop.

    Returns:
        How many operations there are, or one more than ``most``; and the bytes that they keep to go
        backward, those that several keep counted as often.
    """
    seen, size, waiting = set[Any](), 0, [value.grad_fn]
    while waiting and len(seen) <= most:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names = [name for name in dir(node) if name.startswith(("_saved_", "saved_tensors"))]
        try:
            saved = [getattr(node, name) for name in names]
        except RuntimeError:  # it was written to since, and cannot go backward
            return most + 1, size
        for kept in tree_leaves(saved):
            size += kept.numel() * kept.element_size() if isinstance(kept, Tensor) else 0
        waiting += [following for following, _ in node.next_functions]
    return len(seen), size
