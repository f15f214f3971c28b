"""What becomes of a snapshot: all that loggers take, and word to those who listen."""

from __future__ import annotations

from typing import Any

from ntk_monitor.monitor.failures import OnError
from ntk_monitor.monitor.host import Host
from ntk_monitor.monitor.reporting.reporter import Reporter
from ntk_monitor.monitor.schedule import Schedule
from ntk_monitor.monitor.tracked_state import TrackedState
from ntk_monitor.snapshot import Snapshot
from ntk_monitor.views import band_scalars, custom_scalars_layout, introduction, snapshot_figures
from ntk_monitor.views.facts import FACTS_TAG, facts_of
from ntk_monitor.views.record import SNAPSHOT_TAG, snapshot_record

FIGURE_SECONDS = 0.3
"""What drawing the figures takes, until it has been measured."""


class Publisher:
    """Publishes the snapshots of one training.

    Attributes:
        reporter: The loggers.
        schedule: Says what figures may cost.
    """

    def __init__(
        self,
        schedule: Schedule,
        on_error: OnError,
        time_limit: float | None,
        *,
        figures: bool,
        who: str,
    ) -> None:
        """Begin a training."""
        self.schedule = schedule
        self.reporter = Reporter(on_error, time_limit, who)
        self._figures = figures
        self._laid_out = False
        self._who = who
        self._remarks: set[str] = set()
        self.history: list[dict[str, float]] = []

    def remark(self, host: Host, message: str) -> None:
        """Say something once in a training.

        Args:
            host: The training.
            message: What was not found or not measured, and what to do about it.
        """
        if message not in self._remarks:
            self._remarks.add(message)
            host.remark(f"{self._who}: {message}")

    def publish(
        self,
        host: Host,
        states: list[TrackedState],
        snapshots: tuple[Snapshot, ...],
        step: int,
        started: float,
        *,
        final: bool = False,
    ) -> None:
        """Publish the snapshots of one probe, and tell those who listen of the first.

        Args:
            host: The training.
            states: What was measured.
            snapshots: The results, in the same order.
            step: Where on the loggers' x-axis.
            started: When the probe began, by the schedule's clock.
            final: Whether there will be no other probe.
        """
        overhead = self.schedule.overhead
        row: dict[str, float] = {"step": step}
        self.history.append(row)
        whole = any(snapshot.trace.is_finite for snapshot in snapshots)
        drawing = self._may_draw(host, started, final=final) and whole
        self.schedule.figures_due &= not whole  # who is told now may ask for the next
        for state, snapshot in zip(states, snapshots, strict=True):
            if state.snapshot is None or state.snapshot.coverage != snapshot.coverage:
                host.inform(introduction(snapshot, self._who))
            state.note(snapshot, step)
            for remark in snapshot.remarks:
                self.remark(host, f"{state.prefix}{remark}")
            scalars = {f"{state.prefix}{tag}": v for tag, v in state.scalars(snapshot).items()}
            scalars["ntk/overhead"] = overhead
            row |= scalars
            self.reporter.scalars(host, scalars, step)
            self._lay_out(host, states, step)
            self._write(host, state, snapshot, step)
            if drawing and snapshot.trace.is_finite:
                self.schedule.drew(self._draw(host, state, snapshot, step))
            if state is states[0]:
                host.tell(snapshot, step)

    def _may_draw(self, host: Host, started: float, *, final: bool) -> bool:
        """Whether figures are wanted, possible and affordable now."""
        if not (self._figures and self.reporter.takes_figures(host)):
            return False
        schedule = self.schedule
        schedule.figure_seconds = schedule.figure_seconds or FIGURE_SECONDS
        step, epoch = host.global_step, host.current_epoch
        return schedule.wants_figures(step, epoch, started, final=final)

    def _lay_out(self, host: Host, states: list[TrackedState], step: int) -> None:
        """TensorBoard's layout with error bands, and what trains, once."""
        if self._laid_out:
            return
        layout = custom_scalars_layout(states[0].probe.modes, [state.prefix for state in states])
        self.reporter.write(
            host, "add_custom_scalars", lambda writer: writer.add_custom_scalars(layout)
        )
        self._laid_out = True
        self.reporter.record(
            host,
            FACTS_TAG,
            lambda: facts_of(host.module, host.optimizers, host.planned_steps),
            step,
        )

    def _write(self, host: Host, state: TrackedState, snapshot: Snapshot, step: int) -> None:
        """Error bands, and the record for the NTK tab."""
        bands = {f"{state.prefix}{tag}": v for tag, v in band_scalars(snapshot).items()}

        def add_bands(writer: Any) -> None:  # noqa: ANN401
            for tag, value in bands.items():
                writer.add_scalar(tag, value, global_step=step)

        self.reporter.write(host, "add_custom_scalars", add_bands)
        tag = f"{state.prefix}{SNAPSHOT_TAG}"
        self.reporter.record(host, tag, lambda: snapshot_record(snapshot), step)

    def _draw(self, host: Host, state: TrackedState, snapshot: Snapshot, step: int) -> float:
        now = self.schedule.clock()
        figures = snapshot_figures(snapshot)
        named = {f"{state.prefix}{tag}": figure for tag, figure in figures.items()}
        self.reporter.figures(host, named, step)
        return self.schedule.clock() - now
