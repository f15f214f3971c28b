"""Warnings that are given once for all processes, and are never errors."""

from __future__ import annotations

import logging
import os
import warnings

import torch.distributed as dist

logger = logging.getLogger(__name__)
NOT_FINITE = "ntk_monitor: nan or infinite {} in this probe; its snapshot is marked non-finite"
"""What is said of a probe that has numbers which are not finite."""


def say(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn from the first process; where warnings are errors, into the log instead.

    Args:
        message: What to say.
        category: Of the warning.
    """
    if not _is_first_process():
        logger.info(message)
        return
    try:
        warnings.warn(message, category, stacklevel=4)
    except Warning:
        logger.warning(message)


def _is_first_process() -> bool:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return not int(os.environ.get("RANK", "0"))  # as torchrun has it
