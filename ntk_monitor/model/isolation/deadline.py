"""How long a measurement may take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Deadline:
    """A moment after which no forward pass begins.

    Attributes:
        limit: Seconds from now until then; None for no end.
    """

    limit: float | None
    _started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since this was made."""
        return time.perf_counter() - self._started

    def left(self, pieces: int, share: float = 1.0) -> float:
        """How many more pieces of work fit in, at the pace of those done.

        Args:
            pieces: How many were done since this was made.
            share: How much of the limit to use.

        Returns:
            Their number; infinite without a limit.
        """
        if self.limit is None or not pieces:
            return math.inf
        return max(0.0, (share * self.limit - self.elapsed) * pieces / max(self.elapsed, 1e-9))

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Have forward passes in scope look at this.

        Yields:
            Nothing.
        """
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Deadline | None] = ContextVar("_current", default=None)


def require_time() -> None:
    """Go on only if there is time.

    Raises:
        TimeoutError: If the deadline in scope has passed.
    """
    deadline = _current.get()
    if deadline is None or deadline.limit is None or deadline.elapsed <= deadline.limit:
        return
    raise TimeoutError(
        f"a probe took longer than time_limit={deadline.limit:g} s: probe a smaller batch, or give "
        "it more time"
    )
