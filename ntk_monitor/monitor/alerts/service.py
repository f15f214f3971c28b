"""The judgement of an alert: a part of the target that gradient descent will not reach in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from ntk_monitor.checks import require
from ntk_monitor.descent.forecast import WAITS
from ntk_monitor.estimators import Estimate
from ntk_monitor.keywords import with_keywords
from ntk_monitor.monitor.alerts.delivery import Alert, Delivery
from ntk_monitor.monitor.alerts.reasons import (
    find_reason,
    in_steps,
    is_explained,
    stall_message,
    unpredictable_message,
)
from ntk_monitor.monitor.alerts.rule import ModeState, ModeWatch, Reading, StallRule
from ntk_monitor.monitor.alerts.trends import FEWEST_PROBES
from ntk_monitor.monitor.alerts.watch import StallWatch
from ntk_monitor.monitor.base import BaseMonitor
from ntk_monitor.monitor.failures import read_state
from ntk_monitor.monitor.host import Host
from ntk_monitor.notices import say
from ntk_monitor.snapshot import Snapshot
from ntk_monitor.views.record import CHANGES_TAG

Action = Literal["warn", "stop"]
STATE_VERSION = 5
MOST = 100
"""The latest alerts, and changes of a mode's state, that a record holds."""


class StallWarning(UserWarning):
    """A target mode is stalled."""


class StallDetector:
    """Judges the target modes after each probe; `StallAlert` without Lightning.

    Attributes:
        alerts: Every alert given, in order.
        planned: Steps of the whole training, as of the last probe; None where that is not known.
    """

    @with_keywords()
    def __init__(
        self,
        patience: int = 3,
        learned_threshold: float = 0.9,
        window: int = 20,
        warmup: float = 0.1,
        level: float = 0.05,
        cooldown: int = 10,
        horizon: int | None = None,
        actions: Sequence[Action] = ("warn",),
        on_alert: Callable[[Alert], object] | None = None,
        notify: Sequence[str] = (),
        notify_interval: float = 60.0,
    ) -> None:
        """Check and keep the settings; one that is out of its range raises a ValueError.

        Args:
            patience: Probes in a row that must agree before a mode's state changes.
            learned_threshold: Learned fraction from which a mode counts as learned.
            window: Probes over which trends are taken; where noise demands it, up to four times as
                many.
            warmup: Share of the training, at its beginning, that gives no verdict.
            level: Probability, at one probe, that any mode which grows just fast enough is found to
                be too slow.
            cooldown: Probes after a recovery in which no new stall is called.
            horizon: Optimizer steps within which a mode should be learned; by default those that
                remain in this training.
            actions: ``"warn"`` gives a Python warning of a stall; ``"stop"`` ends the training at
                one.
            on_alert: Called with each `Alert`, in the first process.
            notify: Where to send stalls and recoveries, as addresses of the apprise library:
                e-mail, Slack, Telegram and many more (``pip install "ntk-monitor[notify]"``).
            notify_interval: Least seconds between two notifications; what comes in between goes
                together. An address that cannot be used raises a ValueError here.
        """
        require(patience >= 1, "patience", "at least 1 probe", patience)
        require(0 < learned_threshold <= 1, "learned_threshold", "in (0, 1]", learned_threshold)
        require(window >= FEWEST_PROBES, "window", f"at least {FEWEST_PROBES} probes", window)
        require(0 <= warmup < 1, "warmup", "a share in [0, 1)", warmup)
        require(0 < level < 1, "level", "a probability in (0, 1)", level)
        require(cooldown >= 0, "cooldown", "0 probes or more", cooldown)
        require(horizon is None or horizon >= 1, "horizon", "at least 1 step, or None", horizon)
        known = not isinstance(actions, str) and set(actions) <= {"warn", "stop"}
        require(known, "actions", "a sequence of 'warn' and 'stop'", actions)
        require(on_alert is None or callable(on_alert), "on_alert", "a function", on_alert)
        require(not isinstance(notify, str), "notify", "a sequence of addresses", notify)
        require(notify_interval >= 0, "notify_interval", "0 seconds or more", notify_interval)
        self.rule = StallRule(patience, learned_threshold, window, level, cooldown)
        self.warmup = warmup
        self.horizon = horizon
        self.actions = tuple(actions)
        self._delivery = Delivery(on_alert, notify, notify_interval)
        self._begin()

    def _begin(self) -> None:
        self.alerts: list[Alert] = []
        self.planned: float | None = None
        self._watch = StallWatch(self.rule)
        self._last_step: int | None = None
        self._asked = False
        self._history: dict[int, list[tuple[int, str]]] = {}

    @property
    def states(self) -> dict[int, ModeState]:
        """The state of each target mode, from 1."""
        return self._watch.states

    @property
    def history(self) -> dict[int, list[tuple[int, str]]]:
        """For each target mode its states, each with the step since when."""
        return {i: list(past) for i, past in sorted(self._history.items())}

    @property
    def stalled(self) -> tuple[int, ...]:
        """The modes that are stalled now, from 1."""
        return tuple(i for i, state in self.states.items() if state == "stalled")

    @property
    def unsure(self) -> frozenset[int]:
        """The modes that are called stalled or unpredictable without certainty, from 1."""
        return self._watch.unsure

    @property
    def messages(self) -> list[str]:
        """The words of every alert given, in order."""
        return [alert.message for alert in self.alerts]

    def begin(self) -> None:
        """A training begins anew: nothing is known of it, and all channels are tried."""
        self._begin()
        self._delivery.begin()

    def open(self, host: Host) -> None:
        """A training begins, or goes on: find the folder of its files.

        Args:
            host: The training; all processes ask for the folder together.
        """
        self._delivery.folder = host.run_folder

    def close(self) -> None:
        """A training ends: wait a little for notifications that are on their way."""
        self._delivery.close()

    def judge(self, host: Host, monitor: BaseMonitor, snapshot: Snapshot, step: int) -> None:
        """Judge every target mode after a probe.

        Args:
            host: The training.
            monitor: Which took the probe.
            snapshot: Its result.
            step: Where on the loggers' x-axis.
        """
        planned = host.planned_batches(step)
        to_come = planned - step
        remaining = self.horizon or to_come
        self.planned = planned if math.isfinite(planned) else None
        if math.isinf(remaining):
            self._ask_for_horizon(host, monitor, step)
            return
        spacing = step - self._last_step if self._last_step is not None else 1
        self._last_step = step
        readings = readings_of(snapshot, max(remaining, 1.0))
        early = math.isfinite(planned) and step < self.warmup * planned
        early |= _waits(snapshot)
        changes = self._watch.update(step, readings, remaining, early=early, last=to_come < spacing)
        alerts = self._alerts_of(changes, snapshot, max(remaining, 1.0), step)
        self.alerts += alerts
        self._log(host, monitor, alerts, step)
        monitor.schedule.figures_due |= bool(alerts)
        for alert in alerts:
            self._act(host, alert)

    def _ask_for_horizon(self, host: Host, monitor: BaseMonitor, step: int) -> None:
        if not self._asked:
            self._asked = True
            self._record(host, monitor, step, endless=True)
            say(
                "StallAlert compares steps to learn with the steps that remain, and the length "
                "of this data is not known: give StallAlert(horizon=...), in optimizer steps; "
                "without it there are no alerts"
            )

    def _alerts_of(
        self, changes: dict[int, ModeState], snapshot: Snapshot, remaining: float, step: int
    ) -> list[Alert]:
        """What is to be told: modes that have stalled, move again, or cannot be predicted."""
        alerts = []
        for mode in snapshot.target_modes:
            before, now = changes.get(mode.index), self.states.get(mode.index)
            if before is None:
                continue
            if now == "stalled":
                found = find_reason(mode, snapshot, remaining)
                level = None if mode.index in self.unsure else self.rule.level
                text = stall_message(mode, found, remaining, step, level)
                alerts.append(Alert(step, mode.index, "stalled", "warning", found.reason, text))
            elif now == "unpredictable":
                watch = self._watch.watches[mode.index]
                realised = watch.realised(self.rule.window)
                text = unpredictable_message(mode, watch.transfer, realised, step)
                alerts.append(Alert(step, mode.index, "unpredictable", "info", None, text))
            elif before == "stalled" and now in {"recovered", "learned"}:
                text = (
                    f"Target mode {mode.index} has recovered at step {step}: learned "
                    f"{mode.learned:z.3f}, {in_steps(mode.steps_to_learn)}."
                )
                alerts.append(Alert(step, mode.index, "recovered", "info", None, text))
        return alerts

    def _log(self, host: Host, monitor: BaseMonitor, alerts: Sequence[Alert], step: int) -> None:
        """Numbers at every probe; a record and texts where something has changed."""
        states, reporter = self.states, monitor.reporter
        flags = {f"alert/mode_{i}": float(state == "stalled") for i, state in states.items()}
        reporter.scalars(host, flags, step)
        changed = [i for i, state in states.items() if self._last_state(i) != state]
        for i in changed:
            self._history.setdefault(i, []).append((step, states[i]))
        if alerts or changed:
            self._record(host, monitor, step)
        for alert in alerts:
            reporter.text(host, "alert", alert.message, step, alert.severity)

    def _record(
        self, host: Host, monitor: BaseMonitor, step: int, *, endless: bool = False
    ) -> None:
        """For the NTK tab; readers may keep a few records only, and always the last: it has all."""
        record = {
            "state": monitor.states[0].name,
            "states": {str(i): state for i, state in self.states.items()},
            "history": {str(i): past[-MOST:] for i, past in self._history.items()},
            "alerts": [vars(alert) for alert in self.alerts[-MOST:]],
            "planned": self.planned,
            "level": self.rule.level,
            "endless": endless,
            "unsure": sorted(self.unsure),
        }
        monitor.reporter.record(host, CHANGES_TAG, lambda: record, step)

    def _last_state(self, mode: int) -> str | None:
        past = self._history.get(mode)
        return past[-1][1] if past else None

    def _act(self, host: Host, alert: Alert) -> None:
        """Deliver an alert, and do what was asked for."""
        warning = alert.severity == "warning"
        if warning and "stop" in self.actions:
            host.stop()
        if not host.is_global_zero:
            return
        if not warning:
            host.inform(alert.message)
        elif "warn" in self.actions:
            say(alert.message, StallWarning)
        self._delivery.send(alert, loudly=warning or alert.kind == "recovered")

    def state_dict(self) -> dict[str, Any]:
        """The watches in plain types."""
        return {
            "version": STATE_VERSION,
            "watches": {str(i): dict(vars(watch)) for i, watch in self._watch.watches.items()},
            "history": {str(i): [list(item) for item in past] for i, past in self._history.items()},
            "last_step": self._last_step,
            "alerts": [dict(vars(alert)) for alert in self.alerts],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; what cannot be read is warned of and begins anew.

        Args:
            state_dict: What `state_dict` gave.
        """
        read_state("StallAlert", state_dict, STATE_VERSION, self._restore, self._begin)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, or raise an error."""
        watches = {
            int(i): ModeWatch.from_state(watch) for i, watch in state_dict["watches"].items()
        }
        pasts = dict[int, list[tuple[int, str]]]
        history = msgspec.convert(state_dict["history"], pasts, str_keys=True)
        last = state_dict["last_step"]
        alerts = [Alert(**alert) for alert in state_dict["alerts"]]
        self._last_step = None if last is None else int(last)
        self._watch.watches, self.alerts, self._history = watches, alerts, history


def _waits(snapshot: Snapshot) -> bool:
    """Whether the schedule holds the learning rate far below what is to come."""
    found = snapshot.instruments
    return found is not None and found.rate_ahead > WAITS


def readings_of(snapshot: Snapshot, remaining: float) -> list[Reading]:
    """What the rule of the alert looks at of a probe.

    Args:
        snapshot: The probe's result.
        remaining: Steps that remain.

    Returns:
        A reading of each target mode.
    """
    return [
        Reading(
            mode.index,
            mode.learned,
            math.nan if mode.steps_to_learn is None else mode.steps_to_learn,
            _pair(mode.transfer),
            _pair(snapshot.transfer),
            is_explained(mode, snapshot, remaining),
            mode.rate,
        )
        for mode in snapshot.target_modes
    ]


def _pair(transfer: Estimate | None) -> tuple[float, float] | None:
    return None if transfer is None else (transfer.value, transfer.stderr)
