"""Numbers, pictures and text to whatever loggers a training has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ntk_monitor.monitor.failures import Failures, OnError
from ntk_monitor.monitor.host import Logs
from ntk_monitor.monitor.reporting.sinks import Severity, Sink, sink_of
from ntk_monitor.views import own_style
from ntk_monitor.views.record import write_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Reporter:
    """Sends what was measured to every logger of a training that works.

    A logger that fails is tried again at the next probe, and left out after three failures without
    a success in logging numbers between them; so is, at once, one that takes longer than the time
    limit. Others get what they can take.

    Attributes:
        on_error: See `Failures`.
        who: Reports, for messages.
        time_limit: Seconds that one call may take, or None; it is not interrupted, but is the last.
    """

    def __init__(
        self, on_error: OnError, time_limit: float | None, who: str = "NTKMonitor"
    ) -> None:
        """Begin with all loggers."""
        self.on_error = on_error
        self.who = who
        self.time_limit = time_limit
        self._failures: dict[int, Failures] = {}
        self._sinks: dict[int, Sink] = {}

    def scalars(self, logs: Logs, scalars: Mapping[str, float], step: int) -> None:
        """Send numbers, also to ``callback_metrics`` for other callbacks.

        ``LightningModule.log`` would drop numbers that arrive between two multiples of
        ``log_every_n_steps``, so the loggers are called directly.

        Args:
            logs: Where to.
            scalars: Numbers by tag.
            step: Where on the x-axis.
        """
        logs.callback_metrics.update({
            tag: torch.tensor(v, device="cpu") for tag, v in scalars.items()
        })

        def send(logger: Any) -> None:  # noqa: ANN401
            name_of = self._sink(logger).name_of
            logger.log_metrics({name_of(tag): v for tag, v in scalars.items()}, step=step)
            self._of(logger).succeeded()  # pictures may be nothing that a logger takes: no success

        self._send(logs, send)

    def figures(self, logs: Logs, figures: Mapping[str, Figure], step: int) -> None:
        """Send pictures to the loggers that take them.

        Args:
            logs: Where to.
            figures: Matplotlib figures by tag.
            step: Where on the x-axis.
        """

        def draw(logger: Any, sink: Sink) -> None:  # noqa: ANN401
            with own_style():
                sink.figures(logger, figures, step)

        self._to_sinks(logs, draw)

    def text(
        self, logs: Logs, tag: str, text: str, step: int, severity: Severity = "warning"
    ) -> None:
        """Send Markdown to the loggers that take it.

        Args:
            logs: Where to.
            tag: Under which tag.
            text: Markdown.
            step: Where on the x-axis.
            severity: How much it matters, for loggers that have alerts.
        """
        self._to_sinks(logs, lambda logger, sink: sink.text(logger, tag, text, step, severity))

    def takes_figures(self, logs: Logs) -> bool:
        """Whether some logger keeps figures, so that drawing them is worth while.

        Args:
            logs: Where to.

        Returns:
            True in the first process, if one does.
        """
        found: list[bool] = []
        self._to_sinks(logs, lambda logger, sink: found.append(sink.takes_figures(logger)))
        return any(found)

    def write(self, logs: Logs, method: str, use: Callable[[Any], object]) -> None:
        """Use the summary writers of the loggers that have one with some method.

        Args:
            logs: Where to.
            method: Name of the ``SummaryWriter`` method that is needed.
            use: What to do with each.
        """

        def send(logger: Any) -> None:  # noqa: ANN401
            writer = getattr(logger, "experiment", None)
            if callable(getattr(writer, method, None)):
                use(writer)

        self._send(logs, send)

    def record(self, logs: Logs, tag: str, make: Callable[[], dict[str, Any]], step: int) -> None:
        """Write a record for the NTK tab, where a logger has event files.

        Args:
            logs: Where to.
            tag: Under which tag.
            make: Makes the record.
            step: Where on the x-axis.
        """
        self.write(logs, "_get_file_writer", lambda writer: write_record(writer, tag, make(), step))

    def _of(self, logger: Any) -> Failures:  # noqa: ANN401
        what = f"logging to {type(logger).__name__}"
        return self._failures.setdefault(id(logger), Failures(what, self.on_error, self.who))

    def _sink(self, logger: Any) -> Sink:  # noqa: ANN401
        return self._sinks.setdefault(id(logger), sink_of(logger))

    def _to_sinks(self, logs: Logs, use: Callable[[Any, Sink], object]) -> None:
        """Use the sink of every logger, in the first process: only there a logger has its own."""

        def send(logger: Any) -> None:  # noqa: ANN401
            use(logger, self._sink(logger))

        if logs.is_global_zero:
            self._send(logs, send)

    def _send(self, logs: Logs, send: Callable[[Any], object]) -> None:
        for logger in logs.loggers:
            failures = self._of(logger)
            if not failures.enabled:
                continue
            started = time.perf_counter()
            try:
                send(logger)
            except Exception as error:
                failures.failed(error)
            seconds = time.perf_counter() - started
            if failures.enabled and self.time_limit is not None and seconds > self.time_limit:
                failures.give_up(f"took {seconds:.0f} s (time_limit={self.time_limit:g})")
