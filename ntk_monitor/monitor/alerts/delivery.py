"""How an alert reaches people: a file, a function of theirs, notifications."""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

from ntk_monitor.monitor.failures import Failures
from ntk_monitor.monitor.reporting.sinks import Severity, file_system
from ntk_monitor.reason import Reason

Kind = Literal["stalled", "recovered", "unpredictable"]
FILE = "alerts.jsonl"
FAREWELL = 10.0
"""Seconds that the end of a training waits for notifications that are on their way."""


@dataclass(frozen=True)
class Alert:
    """What is to be told of a target mode.

    Attributes:
        step: Where on the loggers' x-axis.
        mode: Which target mode, from 1.
        kind: ``"stalled"``; ``"recovered"``, after that; or ``"unpredictable"``, where a step on
            one batch does nothing for others.
        severity: ``"warning"`` for a stall, else ``"info"``.
        reason: What holds the mode back, as far as the numbers tell; see ``find_reason``. None but
            for a stall.
        message: All of it in words, with what helps.
    """

    step: int
    mode: int
    kind: Kind
    severity: Severity
    reason: Reason | None
    message: str


class Delivery:
    """Sends alerts through channels of which none can harm another, or the training.

    Attributes:
        folder: Where ``alerts.jsonl`` is written, on any file system that fsspec knows, or None.
    """

    def __init__(
        self, on_alert: Callable[[Alert], object] | None, notify: Sequence[str], interval: float
    ) -> None:
        """Check the addresses: one that cannot be used raises a ValueError.

        Args:
            on_alert: Called with each alert.
            notify: Addresses of the apprise library, to which warnings and recoveries go.
            interval: Least seconds between two notifications; what comes in between goes together.
        """
        self.folder: str | None = None
        self._on_alert = on_alert
        self._notifier = Notifier(notify, interval) if notify else None
        self.begin()

    def begin(self) -> None:
        """A training begins: all channels are tried."""
        self._file_failures = Failures(f"writing {FILE}", "warn")
        self._call_failures = Failures("on_alert", "warn")
        if self._notifier is not None:
            self._notifier.begin()

    def send(self, alert: Alert, *, loudly: bool) -> None:
        """Deliver an alert.

        Args:
            alert: The alert.
            loudly: Whether to notify of it, too.
        """
        if self.folder is not None:
            _guarded(self._file_failures, self._append, alert)
        if self._on_alert is not None:
            _guarded(self._call_failures, self._on_alert, alert)
        if self._notifier is not None and loudly:
            self._notifier.send(alert.message)

    def close(self) -> None:
        """Wait a little for notifications that are on their way."""
        if self._notifier is not None:
            self._notifier.close()

    def _append(self, alert: Alert) -> None:
        assert self.folder is not None
        line = json.dumps({"time": time.time(), **asdict(alert)}) + "\n"
        files = file_system(self.folder)
        files.makedirs(self.folder, exist_ok=True)
        path = f"{self.folder}/{FILE}"
        try:
            with files.open(path, "a") as file:
                file.write(line)
        except (NotImplementedError, ValueError, FileNotFoundError):  # stores that cannot append
            before = files.cat_file(path).decode() if files.exists(path) else ""
            with files.open(path, "w") as file:
                file.write(before + line)


class Notifier:
    """Sends notifications from a thread of its own, so that nothing waits for a receiver.

    The thread lives from the first message to `close`.
    """

    def __init__(self, urls: Sequence[str], interval: float) -> None:
        """Check the addresses; see `Delivery`."""
        self.urls = tuple(urls)
        self.interval = interval
        self._receivers = _receivers(self.urls)  # a wrong one is told of now, not during a run
        self.begin()
        self._reset()

    def begin(self) -> None:
        """A training begins: the receivers are tried."""
        self._failures = Failures("a notification", "warn")

    def _reset(self) -> None:
        """No thread, and nothing to send."""
        self._messages: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        """Without the thread, for a process that is spawned."""
        left_out = {"_messages", "_thread", "_closing"}
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without a thread."""
        vars(self).update(state)
        self._reset()

    def send(self, message: str) -> None:
        """Have a message sent; returns at once."""
        if not self._failures.enabled:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ntk-alerts", daemon=True)
            self._thread.start()
        self._messages.put(message)

    def close(self) -> None:
        """Send what is left, and wait for it, but not for long."""
        if self._thread is None:
            return
        self._closing.set()
        self._messages.put(None)
        self._thread.join(FAREWELL)
        if self._thread.is_alive():
            self._failures.give_up(f"was not through after {FAREWELL:g} s at the end of training")
        self._reset()

    def _work(self) -> None:
        """Send what has come, then be silent for the interval."""
        messages, closing = self._messages, self._closing
        ended = False
        while not ended:
            waiting = [messages.get()]
            while not messages.empty():
                waiting.append(messages.get())
            ended = None in waiting
            texts = [text for text in waiting if text is not None]
            if texts:
                _guarded(self._failures, self._notify, "\n\n".join(texts))
            if not self._failures.enabled:
                return
            closing.wait(self.interval)

    def _notify(self, body: str) -> None:
        with _apprise().LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
            delivered = self._receivers.notify(body=body, title="ntk_monitor")
            reason = said.getvalue()
        if not delivered:
            raise RuntimeError(f"it was not delivered: {_in_a_line(reason)}")


def _apprise() -> Any:  # noqa: ANN401
    try:
        return import_module("apprise")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'notifications need the package apprise: pip install "ntk-monitor[notify]"'
        ) from error


def _receivers(urls: Sequence[str]) -> Any:  # noqa: ANN401
    """The addresses as apprise knows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports modules that are deprecated
        apprise = _apprise()
        receivers = apprise.Apprise()
        for url in urls:
            with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
                good = receivers.add(url)
                reason = _without_secrets(said.getvalue(), url)
            if not good:
                raise ValueError(
                    "notify must hold addresses that apprise knows, such as "
                    "'slack://tokens/#channel' or 'mailto://user:password@host'; got one that "
                    f"begins with {url[: url.find(':') + 1]!r}: {_in_a_line(reason)}"
                )
    return receivers


def _without_secrets(text: str, url: str) -> str:
    """A text without any part of an address behind its scheme."""
    _, _, rest = url.partition(":")
    for part in sorted({url, *re.findall(r"[^/:@?&=#]{3,}", rest)}, key=len, reverse=True):
        text = text.replace(part, "***")
    return text


def _in_a_line(text: str) -> str:
    return "; ".join(text.split("\n")).rstrip("; ") or "no reason was given"


def _guarded(failures: Failures, send: Callable[[Any], object], what: Any) -> None:  # noqa: ANN401
    """Send, unless that has failed too often; a failure is told of, and harms nothing else."""
    if not failures.enabled:
        return
    try:
        send(what)
    except Exception as error:
        failures.failed(error)
    else:
        failures.succeeded()
