"""How much memory there is, whether an error says that it ran out, and where numbers are."""

from __future__ import annotations

import os

import torch
from torch import Tensor

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
