"""The alert: a part of the target that gradient descent will not reach in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ntk_monitor.checks import require
from ntk_monitor.monitor.callback import NTKMonitor
from ntk_monitor.monitor.delivery import Alert, Delivery, Reason, run_folder
from ntk_monitor.monitor.failures import reading_state, say
from ntk_monitor.monitor.stall import (
    FEWEST_PROBES,
    ModeState,
    ModeWatch,
    Reading,
    StallRule,
    StallWatch,
)
from ntk_monitor.monitor.trainers import planned_batches
from ntk_monitor.snapshot import Snapshot, TargetMode
from ntk_monitor.views.record import CHANGES_TAG, write_record

Action = Literal["warn", "stop"]
STATE_VERSION = 3
MOST = 100
"""The latest alerts, and changes of a mode's state, that a record holds."""
LOW_OVERLAP = 0.01
"""Core overlap below which the activity is said to lack a mode."""
LOW_ALIGNMENT = 0.01
"""Alignment below which the kernel is said not to see a mode."""
LOST = 0.1
"""Share of what a mode's core overlap promises, against the best mode, below which the propagator
is said to suppress it."""


class StallWarning(UserWarning):
    """A target mode is stalled."""


class StallAlert(Callback):
    """Say when a target mode is stalled: visible in the loss, invisible to gradient descent.

    After each probe every mode has a state: ``"warming up"``, ``"insufficient data"`` (it needs
    more steps than remain, and whether it comes within reach cannot be told yet), ``"learning"``,
    ``"learned"``, ``"stalled"`` or ``"recovered"``. A mode is stalled if it is not learned, needs
    more steps than remain, and neither its rate nor its learned fraction grows as fast as the
    remaining steps need, with 95 % certainty and at ``patience`` probes in a row; see `StallWatch`.
    Each stall is told of once, with what holds the mode back and what helps, while there is a probe
    to come; so is its recovery, and, as information, a mode that stands still although it is within
    reach. Under Adam, AdamW, NAdam, RMSprop, Adagrad and Shampoo the steps to learn are those of
    the preconditioned kernel ``J D J*``.

    Alerts go to the loggers as text, to ``alerts.jsonl`` in the log directory, to ``on_alert``, and
    (stalls and recoveries) to ``notify``. The verdicts are logged as ``alert/mode_<i>`` (1 while
    stalled, else 0), also to ``callback_metrics``. A channel that fails harms no other one.

    Attributes:
        alerts: Every alert given, in order.
    """

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
        """A training begins: nothing is known of it yet."""
        self.alerts: list[Alert] = []
        self._watch = StallWatch(self.rule)
        self._last_step: int | None = None
        self._asked = False
        self._history: dict[int, list[tuple[int, str]]] = {}

    @property
    def states(self) -> dict[int, ModeState]:
        """The state of each target mode, from 1."""
        return self._watch.states

    @property
    def stalled(self) -> tuple[int, ...]:
        """The modes that are stalled now, from 1."""
        return tuple(i for i, state in self.states.items() if state == "stalled")

    @property
    def messages(self) -> list[str]:
        """The words of every alert given, in order."""
        return [alert.message for alert in self.alerts]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is something to watch.

        Raises:
            MisconfigurationException: If the Trainer has no NTKMonitor that follows target modes,
                or no end and no ``horizon`` is given.
        """
        del pl_module
        if stage != "fit":
            return
        if _watched(trainer) is None:
            raise MisconfigurationException(
                "StallAlert watches the target modes of an NTKMonitor, and the Trainer has none: "
                "add NTKMonitor(modes=3) to its callbacks"
            )
        if self.horizon is None and trainer.max_steps == -1 and trainer.max_epochs == -1:
            raise MisconfigurationException(
                "StallAlert compares steps to learn with the steps that remain, and this training "
                "has no end: give StallAlert(horizon=...), in optimizer steps"
            )

        if trainer.global_step == 0:
            self._begin()
            self._delivery.begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the log directory, which all processes must ask for together."""
        del pl_module
        folder = trainer.log_dir
        if trainer.is_global_zero:
            first = next(iter(trainer.loggers), None)
            self._delivery.folder = None if first is None else run_folder(first, folder)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait a little for notifications that are on their way."""
        del trainer, pl_module, stage
        self._delivery.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Likewise, where training ends otherwise."""
        del trainer, pl_module, exception
        self._delivery.close()

    def on_probe(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot, step: int
    ) -> None:
        """Judge every target mode after a probe."""
        del pl_module
        monitor = _watched(trainer)
        if monitor is None or snapshot is not monitor.snapshot:
            return
        planned = planned_batches(trainer, step)
        to_come = planned - step
        remaining = self.horizon or to_come
        if math.isinf(remaining):
            self._ask_for_horizon()
            return
        spacing = step - self._last_step if self._last_step is not None else 1
        self._last_step = step
        readings = [
            Reading(mode.index, mode.learned, steps, mode.preconditioned_steps_to_learn is not None)
            for mode in snapshot.target_modes
            if (steps := steps_to_learn(mode)) is not None
        ]
        early = math.isfinite(planned) and step < self.warmup * planned
        changes = self._watch.update(step, readings, remaining, early=early, last=to_come < spacing)
        alerts = self._alerts_of(changes, snapshot.target_modes, max(remaining, 1.0), step)
        self.alerts += alerts
        self._log(trainer, monitor, alerts, step)
        for alert in alerts:
            self._act(trainer, alert)

    def _ask_for_horizon(self) -> None:
        if not self._asked:
            self._asked = True
            say(
                "StallAlert compares steps to learn with the steps that remain, and the length "
                "of this data is not known: give StallAlert(horizon=...), in optimizer steps; "
                "without it there are no alerts"
            )

    def _alerts_of(
        self,
        changes: dict[int, ModeState],
        modes: Sequence[TargetMode],
        remaining: float,
        step: int,
    ) -> list[Alert]:
        """What is to be told: modes that have stalled, moved again, or stand still."""
        alerts = []
        for mode in modes:
            before, now = changes.get(mode.index), self.states.get(mode.index)
            if before is not None and now == "stalled":
                reason = reason_of(mode, modes)
                text = stall_message(mode, reason, remaining, step, self.rule.level)
                alerts.append(Alert(step, mode.index, "stalled", "warning", reason, text))
            if before == "stalled" and now in {"recovered", "learned"}:
                text = (
                    f"Target mode {mode.index} has recovered at step {step}: learned "
                    f"{mode.learned:z.3f}, steps to learn {steps_to_learn(mode):.3g}."
                )
                alerts.append(Alert(step, mode.index, "recovered", "info", None, text))
            if mode.index in self._watch.halted:
                times = self._watch.watches[mode.index].stood_still
                text = (
                    f"Target mode {mode.index} does not move, at step {step}: learned "
                    f"{mode.learned:z.3f}, hardly more than {times:.2g} times its steps to learn "
                    f"({steps_to_learn(mode):.3g}) ago. Gradient descent sees it, so that "
                    "something else holds it: noise in the gradient (larger batches, a smaller "
                    "learning rate, averaged weights), a loss that does not ask for it, or a part "
                    "of this batch's target that cannot be predicted."
                )
                alerts.append(Alert(step, mode.index, "not moving", "info", "gradient noise", text))
        return alerts

    def _log(
        self,
        trainer: Trainer,
        monitor: NTKMonitor,
        alerts: Sequence[Alert],
        step: int,
    ) -> None:
        """Numbers at every probe; a record and texts where something has changed."""
        states, reporter = self.states, monitor.reporter
        flags = {f"alert/mode_{i}": float(state == "stalled") for i, state in states.items()}
        reporter.scalars(trainer, flags, step)
        changed = [i for i, state in states.items() if self._last_state(i) != state]
        for i in changed:
            self._history.setdefault(i, []).append((step, states[i]))
        if alerts or changed:
            # Readers may keep a few records only, and always the last: it holds all.
            record = {
                "state": monitor.states[0].name,
                "states": {str(i): state for i, state in states.items()},
                "history": {str(i): past[-MOST:] for i, past in self._history.items()},
                "alerts": [vars(alert) for alert in self.alerts[-MOST:]],
            }
            reporter.write(
                trainer,
                "_get_file_writer",
                lambda writer: write_record(writer, CHANGES_TAG, record, step),
            )
        for alert in alerts:
            reporter.text(trainer, "alert", alert.message, step, alert.severity)

    def _last_state(self, mode: int) -> str | None:
        past = self._history.get(mode)
        return past[-1][1] if past else None

    def _act(self, trainer: Trainer, alert: Alert) -> None:
        """Deliver an alert, and do what was asked for."""
        warning = alert.severity == "warning"
        if warning and "stop" in self.actions:
            trainer.should_stop = True
        if not trainer.is_global_zero:
            return
        if not warning:
            rank_zero_info(alert.message)
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
            state_dict: What `state_dict` gave, now or in another version.
        """
        with reading_state("StallAlert", state_dict, STATE_VERSION, self._begin):
            if state_dict.get("version", 0) < STATE_VERSION:
                return  # its watches knew another rule's numbers
            watches = {
                int(i): ModeWatch.from_state(watch)
                for i, watch in state_dict.get("watches", {}).items()
            }
            history = {
                int(i): [(int(step), str(state)) for step, state in past]
                for i, past in state_dict.get("history", {}).items()
            }
            last = state_dict.get("last_step")
            alerts = [Alert(**alert) for alert in state_dict.get("alerts", [])]
            self._last_step = None if last is None else int(last)
            self._watch.watches, self.alerts, self._history = watches, alerts, history


def steps_to_learn(mode: TargetMode) -> float | None:
    """Steps to learn under the optimizer in use.

    Args:
        mode: A target mode.

    Returns:
        Those of the preconditioned kernel, if there is one, else plain gradient descent's.
    """
    preconditioned = mode.preconditioned_steps_to_learn
    return mode.steps_to_learn if preconditioned is None else preconditioned


def reason_of(mode: TargetMode, modes: Sequence[TargetMode]) -> Reason:
    """What holds a stalled mode back, as far as its numbers tell.

    Args:
        mode: The mode.
        modes: All modes of the target.

    Returns:
        ``"core"`` if the activity hardly has its time course; ``"propagator"`` if the kernel
        hardly sees it, by its alignment or against what its core overlap promises beside the best
        mode; else ``"learning rate"``.
    """
    if mode.core_overlap < LOW_OVERLAP:
        return "core"
    best = max(modes, key=lambda other: other.gain if math.isfinite(other.gain) else -1.0)
    promised = mode.core_overlap / best.core_overlap if best.core_overlap else math.nan
    share = 1.0 if math.isnan(promised) else min(promised, 1.0)
    suppressed = mode.gain < LOST * share * best.gain
    return "propagator" if suppressed or mode.alignment.value < LOW_ALIGNMENT else "learning rate"


def stall_message(
    mode: TargetMode, reason: Reason, remaining: float, step: int, level: float
) -> str:
    """What is known of a stalled mode, and what helps.

    Args:
        mode: The mode.
        reason: What holds it back.
        remaining: Steps that remain.
        step: Now.
        level: Of the test.

    Returns:
        A few sentences.
    """
    steps = steps_to_learn(mode) or math.nan
    plain = mode.preconditioned_steps_to_learn is None
    why, advice = {
        "core": (
            "the activity that the weights multiply hardly has this mode's time course (core "
            f"overlap {mode.core_overlap:.2g})",
            "start from an initialisation whose activity is alive where this part of the target "
            "lives (the paper's Network 2), or train it in with a curriculum"
            + ", or use a preconditioned optimizer such as Shampoo"
            * plain,
        ),
        "propagator": (
            f"the activity has this mode's time course (core overlap {mode.core_overlap:.2g}), but "
            f"the propagator does not let the state follow (alignment {mode.alignment})",
            "look at spatial_effective_rank and the recurrent gain"
            + "; a preconditioned optimizer such as Shampoo amplifies what the kernel hardly has"
            * plain,
        ),
        "learning rate": (
            "the kernel sees this mode as well as any, and only the steps are too small",
            f"a learning rate {steps / remaining:.2g} times as large, where that is stable, or as "
            "many times more steps",
        ),
    }.get(reason, ("unknown", "look at the other numbers"))
    return (
        f"Target mode {mode.index} is stalled at step {step}: learned {mode.learned:z.3f}, needs "
        f"{steps:.3g} steps where {remaining:.0f} remain, and does not grow fast enough "
        f"({1 - level:.0%} sure). Reason: {reason}; {why}. What helps: {advice}."
    )


def _watched(trainer: Trainer) -> NTKMonitor | None:
    """The first monitor that follows target modes."""
    monitors = [c for c in trainer.callbacks if isinstance(c, NTKMonitor)]  # type: ignore[attr-defined]
    return next((monitor for monitor in monitors if monitor.probe.modes), None)
