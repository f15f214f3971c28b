"""What all monitors have in common: when to probe, and what becomes of it."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack, get_args

from torch import nn
from torchmetrics import MetricCollection

from ntk_monitor.checks import imported, require
from ntk_monitor.descent import Ahead
from ntk_monitor.keywords import with_keywords
from ntk_monitor.model.isolation.quiet import random_states
from ntk_monitor.model.parameters.selection import NothingTrainedError
from ntk_monitor.model.parameters.unwrapping import plain_name
from ntk_monitor.model.step import SkippedBatchError
from ntk_monitor.monitor.failures import Failures, OnError, read_state
from ntk_monitor.monitor.host import Host
from ntk_monitor.monitor.measurement import measure
from ntk_monitor.monitor.plan_messages import intentions, shortcomings
from ntk_monitor.monitor.probe_batch import ProbeBatch
from ntk_monitor.monitor.reporting.publisher import Publisher
from ntk_monitor.monitor.reporting.reporter import Reporter
from ntk_monitor.monitor.schedule import CHEAP, NONE, Schedule, require_plan
from ntk_monitor.monitor.score import Score
from ntk_monitor.monitor.settings import MonitorKeywords, PlanSettings, separated
from ntk_monitor.monitor.tracked_state import (
    NamedStates,
    TrackedState,
    metrics_by_tag,
    named_states,
    paths_of,
)
from ntk_monitor.probe import Probe
from ntk_monitor.probing.settings import ProbeSettings
from ntk_monitor.snapshot import Snapshot

STATE_VERSION = 3


class BaseMonitor:
    """Probes a training whenever that is due; knows a training only as a `Host`.

    Attributes:
        states: The states that are followed, each with its latest ``snapshot`` and its ``metrics``;
            ``metrics.compute()`` pools all snapshots since training began or was resumed.
        failures: How many probes failed, and whether there will be more.
        probe_batch: What to probe on.
    """

    who: ClassVar[str] = "NTKMonitor"
    """Its name in messages."""
    batches: ClassVar[tuple[str, ...]] = ("train", "val")
    """Batches of the training's own that it can keep."""
    maker: ClassVar[str] = "(trainer, module) -> batch"
    """What a function that makes the probe batch takes."""

    @with_keywords(PlanSettings, ProbeSettings, dtype="float32")
    def __init__(
        self,
        every_n_steps: int | None = None,
        max_overhead: float | None = 0.02,
        probe_batch: Any = "train",  # noqa: ANN401
        on_error: OnError = "warn",
        figures: bool = True,
        *,
        state: NamedStates = "auto",
        **settings: Unpack[MonitorKeywords],
    ) -> None:
        """Check and keep the settings; one that is out of its range raises a ValueError.

        Args:
            every_n_steps: Optimizer steps from probe to probe; by default 60 probes are spread over
                the training. The last one is at its end.
            max_overhead: Largest share of wall time to spend in probes, with logging and figures;
                what the planned ones would cost beyond that is saved evenly over the training: by
                fewer probes, and by cheap ones, which go as far as ``tier="modes"``. None for no
                limit.
            probe_batch: What to probe on: ``"train"`` or ``"val"`` for the first batch that the
                Trainer draws there (cloned and kept), a batch, or ``(trainer, module) -> batch``.
            on_error: What to do when a probe fails: ``"warn"`` once and go on (after three
                failures in a row, stop probing), ``"disable"`` probing at the first failure, or
                ``"raise"``. Likewise for each logger.
            figures: Draw figures for loggers that take them.
            state: Of one state, as in `probe`. Several states by name,
                ``{"encoder": "encoder.rnn", "decoder": "decoder.rnn"}``, are measured one after the
                other, each under tags that begin with its name; alerts look at the first.
            **settings: Those of `PlanSettings` and `ProbeSettings`.
        """
        planned, measured = separated(settings)
        seconds, draws = planned.max_overhead_seconds, planned.redraw_every_n_epochs
        require_plan(every_n_steps, max_overhead, seconds, planned.plan)
        probe_batch = imported(probe_batch)
        known = not isinstance(probe_batch, str) or probe_batch in self.batches
        names = ", ".join(map(repr, self.batches))
        choices = f"{names}, a batch, or a function {self.maker} (in YAML its import path)"
        require(known, "probe_batch", choices, probe_batch)
        good = draws is None or draws >= 1
        require(good, "redraw_every_n_epochs", "at least 1, or None", draws)
        require(on_error in get_args(OnError), "on_error", "'warn', 'raise' or 'disable'", on_error)
        paths = named_states(state)
        probes = {name: Probe(state=path, **measured) for name, path in paths.items()}
        self.states = [
            TrackedState(name, probe, metrics_by_tag(probe.modes, probe.tier))
            for name, probe in probes.items()
        ]
        self.schedule = Schedule(
            every_n_steps,
            max_overhead,
            planned.plan,
            max_overhead_seconds=seconds,
            two_kinds=self.probe.tier == "kernel",
        )
        self.redraw_every_n_epochs = draws
        self.probe_batch = probe_batch
        self.on_error = on_error
        self.figures = figures
        self._wanted_state = state
        self._begin()

    def _begin(self) -> None:
        """A training begins: nothing is known of it yet."""
        self.failures = Failures("a probe", self.on_error, self.who)
        self._publisher = Publisher(
            self.schedule, self.on_error, self.probe.time_limit, figures=self.figures, who=self.who
        )
        self.schedule.reset()
        for state in self.states:
            state.reset()
        self.kept = ProbeBatch(self.probe_batch)
        self._begun = self._skipped = False
        self._ahead = Ahead()
        self._score = Score()

    @property
    def probe(self) -> Probe:
        """The measurement of the (first) state."""
        return self.states[0].probe

    @property
    def snapshot(self) -> Snapshot | None:
        """The latest snapshot of the (first) state, or None."""
        return self.states[0].snapshot

    @property
    def history(self) -> list[dict[str, float]]:
        """What was logged, a row for each probe since training began or was resumed.

        ``pandas.DataFrame(monitor.history).set_index("step")`` makes a table of it.
        """
        return list(self._publisher.history)

    @property
    def metrics(self) -> MetricCollection:
        """The torchmetrics of the (first) state."""
        return self.states[0].metrics

    @property
    def reporter(self) -> Reporter:
        """Sends numbers, pictures and words to the loggers."""
        return self._publisher.reporter

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state in plain types and tensors."""
        return {
            "version": STATE_VERSION,
            "schedule": self.schedule.state_dict(),
            "methods": [list(state.probe.order) for state in self.states],
            "score": self._score.state_dict(),
            **self.kept.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; what cannot be read is warned of and begins anew.

        A monitor that had switched itself off tries again.

        Args:
            state_dict: What `state_dict` gave.
        """
        read_state(self.who, state_dict, STATE_VERSION, self._restore, self._begin)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, or raise an error."""
        self.schedule.load_state_dict(state_dict["schedule"])
        for state, order in zip(self.states, state_dict["methods"], strict=False):
            state.probe.prefer(order)
        self._score.load_state_dict(state_dict["score"])
        self.kept.load_state_dict(state_dict)

    def _require_states(self, module: nn.Module) -> None:
        """Refuse a state that is not a module of the model.

        Raises:
            ValueError: If one is not.
        """
        paths = [plain_name(path) for path, _ in module.named_modules()]
        wanted = [path for state in self.states for path in paths_of(state.probe.state)]
        unknown = [path for path in wanted if plain_name(path) not in {"auto", *paths}]
        if unknown:
            raise ValueError(
                f"{self.who}(state=...): {', '.join(map(repr, unknown))} is not a module of "
                f"{type(module).__name__}; its modules are {', '.join(filter(None, paths))}"
            )

    def _wants(self, kind: str) -> bool:
        return self.kept.wants(kind) and self.failures.enabled

    def _see(self, batch: Any) -> None:  # noqa: ANN401
        """Keep what is wanted of the training's batches."""
        if self._wants("train"):
            self.kept.keep(batch)
        elif self.failures.enabled:
            self.kept.keep_second(batch)

    def _visit(self, host: Host, step: int, *, first: bool = False, final: bool = False) -> None:
        """A planned probe: all processes do what the first one finds affordable."""
        self._begun = True
        started = self.schedule.clock()
        try:
            # Which processes have given up, or would have to wait, is not known to the others.
            with host.processes.together():
                choice = int(host.processes.everyone.least(self._choice(host, final=final)))
            if choice == NONE:
                self.schedule.skipped += not first
                return
            every = self.redraw_every_n_epochs
            snapshots = measure(
                host,
                self.states,
                self.kept,
                redraws=host.current_epoch // every if every else 0,
                most=choice,
                tier="modes" if choice == CHEAP else None,
                ahead=self._ahead,
            )
            self.kept.renew_second()
        except Exception as error:
            self.schedule.record(self.schedule.clock() - started)
            if isinstance(error, (NothingTrainedError, SkippedBatchError)):
                self._wait(host, error)
            else:
                self.failures.failed(error)
            return
        if snapshots:
            scored = self._score.kept(snapshots[0], host.global_step)
            snapshots = (scored, *snapshots[1:])
            self._publish(host, snapshots, step, started, choice, final=final)
        else:
            self._publisher.remark(host, self.kept.missing)

    def _choice(self, host: Host, *, final: bool) -> int:
        """What this process would do: nothing if it has given up; else the first one decides."""
        if not self.failures.enabled:
            return NONE
        if not host.is_global_zero:
            return self._most
        return self.schedule.choose(host.global_step, host.current_epoch, self._most, final=final)

    @property
    def _most(self) -> int:
        """Most products of a whole probe; those that need none are whole, too."""
        return max(self.probe.max_products, CHEAP + 1)

    def _wait(self, host: Host, error: Exception) -> None:
        """Say why there is no probe yet; no failure, and tried again when the next one is due."""
        if isinstance(error, SkippedBatchError):
            self.kept.discard()
            self._begun, self._skipped = False, True
        self._publisher.remark(host, f"not yet: {error}")

    def _end(self, host: Host, step: int, *, changed: bool = False) -> None:
        """A training has ended: a last probe, if it is missing, and a word on what was missed.

        Args:
            host: The training.
            step: Where on the loggers' x-axis.
            changed: Whether the model is no longer the one of the last step.
        """
        begun = self._begun or self.schedule.probes
        if begun and not changed and self.schedule.lacks_end(host.global_step):
            self._visit(host, step, final=True)
        if self.snapshot is None and not self.failures.count:
            self._publisher.remark(host, "no probe was taken in this training")
        elif self.snapshot is not None and self.snapshot.target_modes:
            for words in shortcomings(self.schedule, host.global_step):
                host.inform(f"{self.who}: {words}")

    def _announce(self, host: Host) -> None:
        """Say once what is planned, when the time of a step is known."""
        if host.global_step > self.schedule.base and not self.schedule.announced:
            self.schedule.announced = True
            words = intentions(self.schedule, host.global_step, host.current_epoch, self._most)
            if words:
                host.inform(f"{self.who}: {words}")

    def _publish(
        self,
        host: Host,
        snapshots: tuple[Snapshot, ...],
        step: int,
        started: float,
        choice: int,
        *,
        final: bool,
    ) -> None:
        """Everything that becomes of snapshots; loggers and listeners may draw random numbers."""
        try:
            with random_states(host.module):
                self._publisher.publish(host, self.states, snapshots, step, started, final=final)
        except Exception as error:
            self.failures.failed(error)
        else:
            self.failures.succeeded()
        finally:
            seconds = self.schedule.clock() - started
            products = sum(snapshot.products for snapshot in snapshots) / len(snapshots)
            done, epoch = host.global_step, host.current_epoch
            self.schedule.record_probe(seconds, done, epoch, choice, products)
            self._announce(host)
