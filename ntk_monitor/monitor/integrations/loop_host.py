"""A training of which the monitor keeps count itself."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn
from torch.optim import Optimizer

from ntk_monitor.checks import require
from ntk_monitor.descent import NO_CLIPPING, Clipping, Scheduled, plain_optimizer
from ntk_monitor.keywords import with_keywords
from ntk_monitor.model.isolation.exchange import exchanged
from ntk_monitor.model.parameters.sharding import of_batches
from ntk_monitor.model.parameters.unwrapping import plain_module
from ntk_monitor.model.step import LossFn
from ntk_monitor.monitor.alerts.service import StallDetector
from ntk_monitor.monitor.base import BaseMonitor
from ntk_monitor.monitor.host import Host, world
from ntk_monitor.monitor.reporting.user_loggers import SummaryWriterLogger
from ntk_monitor.monitor.settings import LoopKeywords
from ntk_monitor.probe import Probe
from ntk_monitor.processes import ALONE, Processes
from ntk_monitor.snapshot import Snapshot

OnProbe = Callable[[Snapshot, int], object]


class LoopMonitorKeywords(LoopKeywords, total=False):
    """All settings of a `LoopMonitor` as keywords, but for when it probes."""

    alert: StallDetector | None
    on_probe: OnProbe | None


class LoopMonitor(BaseMonitor):
    """A monitor that keeps count of a training itself, and tells its alert and one function.

    Attributes:
        alert: Judges the target modes after each probe, or None.
        on_probe: Called with each snapshot and its step, or None.
        steps: Optimizer steps so far.
        epoch: The epoch, from 0.
        total_steps: Optimizer steps of the whole training; infinite where that is not known.
        should_stop: Whether the alert asks for the end of the training.
    """

    batches: ClassVar[tuple[str, ...]] = ("train",)
    maker: ClassVar[str] = "module -> batch"
    alert: StallDetector | None = None
    _host: LoopHost | None = None
    _own: SummaryWriterLogger | None = None
    """The event files that it opened itself."""

    @with_keywords(BaseMonitor.__init__)
    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        alert: StallDetector | None = None,
        on_probe: OnProbe | None = None,
        **settings: Unpack[LoopKeywords],
    ) -> None:
        """Check and keep the settings; one that is out of its range raises a ValueError.

        A function for ``probe_batch`` is one of the module alone here, ``module -> batch``, and
        ``"train"`` is the only batch by name.

        Args:
            every_n_steps: Optimizer steps from probe to probe; by default 60 probes are spread over
                the training, if its end is known, or else there is one every 100 steps.
            alert: A `StallAlert`, to be told when a part of the target is out of reach.
            on_probe: Called with each snapshot and its step.
            **settings: Those of `NTKMonitor`.
        """
        super().__init__(every_n_steps, **settings)
        known = alert is None or isinstance(alert, StallDetector)
        require(known, "alert", "a StallAlert, or None", alert)
        require(on_probe is None or callable(on_probe), "on_probe", "a function, or None", on_probe)
        watched = alert is None or self.probe.modes > 0
        require(watched, "modes", "at least 1 for an alert to watch", self.probe.modes)
        self.alert = alert
        self.on_probe = on_probe

    def _begin(self) -> None:
        super()._begin()
        self.steps = self.epoch = 0
        self.total_steps = math.inf
        self.should_stop = False
        self.latest: dict[str, Tensor] = {}
        if self.alert is not None:
            self.alert.begin()

    @property
    def numbers(self) -> dict[str, float]:
        """The latest numbers by tag, as they were logged."""
        return {tag: float(value) for tag, value in self.latest.items()}

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, with that of its alert, in plain types and tensors."""
        alert = None if self.alert is None else self.alert.state_dict()
        return {**super().state_dict(), "steps": self.steps, "alert": alert}

    def _restore(self, state_dict: dict[str, Any]) -> None:
        super()._restore(state_dict)
        self.steps = int(state_dict["steps"])
        self._begun = self.steps > 0
        if self.alert is not None and state_dict.get("alert") is not None:
            self.alert.load_state_dict(state_dict["alert"])

    def _open(self, host: LoopHost) -> None:
        """A training begins, or goes on: the clock runs."""
        if self.alert is not None:
            self.alert.open(host)
        self.schedule.start(self.steps, self.epoch, self.total_steps)

    def _minimising(
        self, loss_fn: LossFn | None, probes: Sequence[Probe]
    ) -> AbstractContextManager[None]:
        """For a while, the step function of some probes is this one, if it is one."""
        given = probes if loss_fn is not None else ()
        return exchanged((probe, "loss_fn", loss_fn) for probe in given)

    def _close(self) -> None:
        """A training has ended: event files are closed, and alerts on their way."""
        self._host = None
        if self._own is not None:
            self._own.experiment.close()
            self._own = None
        if self.alert is not None:
            self.alert.close()

    def _require_end(self, name: str) -> None:
        """Refuse an alert that could not know how many steps remain with a ValueError."""
        known = self.alert is None or self.alert.horizon or math.isfinite(self.total_steps)
        remedy = "the number of optimizer steps, since the alert compares steps to learn with those"
        remedy += " that remain (or give StallAlert(horizon=...))"
        require(bool(known), name, remedy, None)


class LoopHost(Host):
    """A training of which a monitor keeps count itself."""

    # What a host in general has to look up is known here when a training begins.
    optimizers: Sequence[Optimizer] = ()
    schedulers: Sequence[Scheduled] = ()
    clipping: Clipping = NO_CLIPPING
    loggers: Sequence[Any] = ()
    processes: Processes = ALONE

    def __init__(
        self,
        monitor: LoopMonitor,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        loggers: Sequence[Any],
        log_dir: str | None,
        device: Any = None,  # noqa: ANN401
        clip_norm: float | None = None,
        schedulers: Sequence[Any] = (),
    ) -> None:
        """Take the parts of a training; only the first process has loggers."""
        self.clipping = Clipping(norm=clip_norm)
        self.schedulers = [Scheduled(each) for each in schedulers]
        self._monitor = monitor
        self.module = plain_module(module)
        self.optimizers = [plain_optimizer(optimizer) for optimizer in optimizers]
        parameter = next(self.module.parameters(), None)
        own = "cpu" if parameter is None else parameter.device
        self.processes = of_batches(self.module, world(own if device is None else device))
        self.loggers = loggers if self.is_global_zero else ()
        self._log_dir = log_dir

    @property
    def global_step(self) -> int:  # noqa: D102
        return self._monitor.steps

    @property
    def current_epoch(self) -> int:  # noqa: D102
        return self._monitor.epoch

    @property
    def planned_steps(self) -> float:  # noqa: D102
        return self._monitor.total_steps

    @property
    def callback_metrics(self) -> MutableMapping[str, Tensor]:  # noqa: D102
        return self._monitor.latest

    @property
    def is_global_zero(self) -> bool:  # noqa: D102
        return self.processes.everyone.index == 0

    @property
    def run_folder(self) -> str | None:  # noqa: D102
        first = next(iter(self.loggers), None)
        found = self._log_dir or getattr(first, "log_dir", None) or getattr(first, "save_dir", None)
        return None if found is None else str(found)

    def stop(self) -> None:  # noqa: D102
        self._monitor.should_stop = True

    def tell(self, snapshot: Snapshot, step: int) -> None:  # noqa: D102
        monitor = self._monitor
        if monitor.alert is not None:
            monitor.alert.judge(self, monitor, snapshot, step)
        if monitor.on_probe is not None:
            monitor.on_probe(snapshot, step)

    def make_batch(self, make: Callable[..., Any]) -> Any:  # noqa: ANN401, D102
        return make(self.module)
