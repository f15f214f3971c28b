"""Warnings of a probe, given once for all processes, and never an error."""

from __future__ import annotations

import logging
import warnings

from ntk_monitor.processes import Processes

logger = logging.getLogger(__name__)


def warn_non_finite(what: str, processes: Processes) -> None:
    """Say what was not finite in a probe."""
    warn(f"nan or infinite {what} in this probe; its snapshot is marked non-finite", processes)


def warn(what: str, processes: Processes) -> None:
    """Give a RuntimeWarning, or a line in the log where warnings are errors."""
    if processes.everyone.index:
        return
    message = f"ntk_monitor: {what}"
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    except RuntimeWarning:  # where warnings are errors: the numbers are not lost for it
        logger.warning(message)
