"""What to do about something that failed, so that training goes on."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ntk_monitor.notices import say

OnError = Literal["warn", "raise", "disable"]
FAILURES_IN_A_ROW = 3
"""Failures in a row after which ``on_error="warn"`` switches off what fails."""

logger = logging.getLogger(__name__)


@dataclass
class Failures:
    """The failures of one thing that may fail, and whether it is still tried.

    Attributes:
        what: What it is, for messages.
        who: Whose it is, likewise.
        on_error: ``"warn"`` of the first failure, and give up after three in a row; ``"disable"``,
            give up at the first; or ``"raise"``.
        count: Failures so far.
        in_a_row: Failures since the last success.
        enabled: Whether it is still tried.
    """

    what: str
    on_error: OnError
    who: str = "NTKMonitor"
    count: int = 0
    in_a_row: int = 0
    enabled: bool = True

    def succeeded(self) -> None:
        """It worked."""
        self.in_a_row = 0

    def failed(self, error: Exception) -> None:
        """It raised an error, which is raised again if that is wanted, and else told of.

        Args:
            error: The error.
        """
        self.count += 1
        self.in_a_row += 1
        if self.on_error == "raise":
            raise error
        off = self.on_error == "disable" or self.in_a_row >= FAILURES_IN_A_ROW
        if off:
            self.enabled = False
        if self.count == 1 or off:
            where = "".join(traceback.format_exception(error, limit=-3))
            self._tell("failed", where)
        else:
            logger.info("%s failed again: %s", self.what, error)

    def give_up(self, reason: str) -> None:
        """Do not try again.

        Args:
            reason: Why, after the subject.
        """
        self.enabled = False
        self._tell(reason, "")

    def _tell(self, how: str, where: str) -> None:
        consequence = "it will be tried again" if self.enabled else "it is now switched off"
        say(
            f"{self.who}: {self.what} {how}; training goes on, and {consequence}. "
            f"{self.who}(on_error='raise') would stop here.\n{where}".rstrip()
        )


def read_state(
    who: str,
    state: Any,  # noqa: ANN401
    version: int,
    restore: Callable[[Any], None],
    begin: Callable[[], None],
) -> None:
    """Take over a state from a checkpoint; of another version, or damaged, it is told of instead.

    Args:
        who: Whose state.
        state: The state.
        version: The present version.
        restore: Takes it over.
        begin: Begins anew.
    """
    # What is no mapping at all is damaged, whatever its version: restoring it says how.
    found = state.get("version") if isinstance(state, Mapping) else version
    if not (isinstance(found, int) and found == version):
        begin()
        say(
            f"{who}: the checkpoint holds a state of version {found}, and this is version "
            f"{version}: it begins anew"
        )
        return
    try:
        restore(state)
    except Exception as error:
        begin()
        say(f"{who}: its state in the checkpoint cannot be read ({error!r}): it begins anew")
