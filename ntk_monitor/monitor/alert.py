"""The alert: a part of the target that gradient descent will not reach in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ntk_monitor.monitor.callback import NTKMonitor
from ntk_monitor.monitor.failures import reading_state, say
from ntk_monitor.monitor.trainers import planned_steps
from ntk_monitor.snapshot import Snapshot, TargetMode

Action = Literal["warn", "stop"]
STATE_VERSION = 2
LOW_OVERLAP = 0.01
"""Core overlap below which the activity is said to lack a mode."""


class StallWarning(UserWarning):
    """A target mode is stalled."""


@dataclass
class ModeWatch:
    """The recent past of one target mode.

    Attributes:
        learned: Learned fractions at the latest probes.
        excess: ``log(steps to learn / steps that remain)`` there: positive when out of reach.
        stalled: Whether the mode is stalled.
        warned: Whether this has been said.
    """

    learned: list[float] = field(default_factory=list)
    excess: list[float] = field(default_factory=list)
    stalled: bool = False
    warned: bool = False

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ModeWatch:
        """Read what ``vars`` of a watch gave, checking it.

        Args:
            state: The fields.

        Returns:
            The watch; fields of another version are left aside.
        """
        return cls(
            learned=[float(x) for x in state["learned"]],
            excess=[float(x) for x in state["excess"]],
            stalled=bool(state["stalled"]),
            warned=bool(state["warned"]),
        )

    def add(self, learned: float, excess: float, patience: int) -> None:
        """Add a probe, keeping one more than ``patience``."""
        self.learned = [*self.learned, learned][-patience - 1 :]
        self.excess = [*self.excess, excess][-patience - 1 :]

    def is_stalled(
        self, patience: int, learned_threshold: float, min_improvement: float, probes_left: float
    ) -> bool:
        """Whether the mode is unlearned, out of reach throughout, and not getting nearer in time.

        Args:
            patience: Probes over which it must not have improved.
            learned_threshold: Learned fraction from which a mode counts as learned.
            min_improvement: Rise of the learned fraction that counts as improvement.
            probes_left: Probes to come, at the present spacing.

        Returns:
            The verdict; False until ``patience + 1`` probes have been seen.
        """
        if len(self.learned) <= patience or not all(map(math.isfinite, self.learned)):
            return False
        if self.learned[-1] >= learned_threshold or min(self.excess) <= 0:
            return False
        if self.learned[-1] - self.learned[0] >= min_improvement:
            return False
        # A falling excess may still reach zero by the end: compare with the rate that needs.
        fall = (self.excess[0] - self.excess[-1]) / patience
        needed = self.excess[-1] / max(probes_left, 1.0)
        return not fall >= needed


class StallAlert(Callback):
    """Say when a target mode is stalled: visible in the loss, invisible to gradient descent.

    A mode is stalled when, over ``patience`` probes, it was not learned, needed more steps than
    remain, did not improve, and its steps to learn did not fall fast enough to come within reach
    by the end. Each stall is warned of once, while there is a probe to come; when the mode moves
    again, that is said too. The verdicts are logged as ``alert/mode_<i>`` (1 while stalled, else
    0).

    Attributes:
        stalled: The modes that are stalled now, from 1.
        messages: Every alert given, in order.
    """

    def __init__(
        self,
        patience: int = 3,
        learned_threshold: float = 0.9,
        min_improvement: float = 0.01,
        horizon: int | None = None,
        actions: Sequence[Action] = ("warn",),
    ) -> None:
        """Check and keep the settings.

        Args:
            patience: Probes over which a mode must not have improved.
            learned_threshold: Learned fraction from which a mode counts as learned.
            min_improvement: Rise of the learned fraction, over ``patience`` probes, that counts
                as improvement.
            horizon: Optimizer steps within which a mode should be learned; by default those that
                remain in this training.
            actions: ``"warn"`` gives a Python warning and a text to the loggers; ``"stop"`` also
                ends the training.

        Raises:
            ValueError: If a value is out of its range.
        """
        if patience < 1:
            raise ValueError(f"patience must be at least 1 probe, got {patience}")
        if not 0 < learned_threshold <= 1:
            raise ValueError(f"learned_threshold must lie in (0, 1], got {learned_threshold}")
        if not min_improvement >= 0:
            raise ValueError(f"min_improvement must be 0 or more, got {min_improvement}")
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, or None, got {horizon}")
        if isinstance(actions, str) or not set(actions) <= {"warn", "stop"}:
            raise ValueError(f"actions must be a sequence of 'warn' and 'stop', got {actions!r}")
        self.patience = patience
        self.learned_threshold = learned_threshold
        self.min_improvement = min_improvement
        self.horizon = horizon
        self.actions = tuple(actions)
        self._begin()

    def _begin(self) -> None:
        """A training begins: nothing is known of it yet."""
        self.messages: list[str] = []
        self._watches: dict[int, ModeWatch] = {}
        self._last_step: int | None = None
        self._asked = False

    @property
    def stalled(self) -> tuple[int, ...]:
        """The modes that are stalled now, from 1."""
        return tuple(i for i, watch in sorted(self._watches.items()) if watch.stalled)

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

    def on_probe(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot, step: int
    ) -> None:
        """Judge every target mode after a probe."""
        del pl_module
        monitor = _watched(trainer)
        if monitor is None or snapshot is not monitor.snapshot:
            return
        to_come = planned_steps(trainer) - step
        remaining = self.horizon or to_come
        if math.isinf(remaining):
            if not self._asked:
                self._asked = True
                say(
                    "StallAlert compares steps to learn with the steps that remain, and the length "
                    "of this data is not known: give StallAlert(horizon=...), in optimizer steps; "
                    "without it there are no alerts"
                )
            return
        spacing = step - self._last_step if self._last_step is not None else 1
        self._last_step = step
        scalars = {}
        for mode in snapshot.target_modes:
            watch = self._watches.setdefault(mode.index, ModeWatch())
            probes_left = remaining / max(spacing, 1)
            self._judge(trainer, mode, watch, remaining, probes_left, step, last=to_come < spacing)
            scalars[f"alert/mode_{mode.index}"] = float(watch.stalled)
        monitor.reporter.scalars(trainer, scalars, step)

    def state_dict(self) -> dict[str, Any]:
        """The watches in plain types."""
        watches = {str(i): dict(vars(watch)) for i, watch in self._watches.items()}
        return {
            "version": STATE_VERSION,
            "watches": watches,
            "last_step": self._last_step,
            "messages": list(self.messages),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; what cannot be read is warned of and begins anew.

        Args:
            state_dict: What `state_dict` gave, now or in another version.
        """
        with reading_state("StallAlert", state_dict, STATE_VERSION, self._begin):
            watches = {
                int(i): ModeWatch.from_state(watch)
                for i, watch in state_dict.get("watches", {}).items()
            }
            last, messages = state_dict.get("last_step"), state_dict.get("messages", [])
            self._last_step = None if last is None else int(last)
            self._watches, self.messages = watches, [str(message) for message in messages]

    def _judge(
        self,
        trainer: Trainer,
        mode: TargetMode,
        watch: ModeWatch,
        remaining: float,
        probes_left: float,
        step: int,
        *,
        last: bool,
    ) -> None:
        steps = mode.steps_to_learn
        if steps is None or not steps > 0:
            return
        watch.add(mode.learned, math.log(steps / max(remaining, 1.0)), self.patience)
        was = watch.stalled
        stalled = watch.is_stalled(
            self.patience, self.learned_threshold, self.min_improvement, probes_left
        )
        # With no probe to come, whatever is not learned yet would be out of reach.
        watch.stalled = stalled and (was or not last)
        if watch.stalled and not watch.warned:
            watch.warned = True
            self._alert(trainer, _stall_message(mode, remaining, self.patience, step), step)
        elif was and not watch.stalled:
            watch.warned = False
            message = (
                f"Target mode {mode.index} has recovered at step {step}: learned "
                f"{mode.learned:z.3f}, steps to learn {steps:.3g}."
            )
            self.messages.append(message)
            rank_zero_info(message)
            self._log(trainer, message, step)

    def _alert(self, trainer: Trainer, message: str, step: int) -> None:
        self.messages.append(message)
        if "stop" in self.actions:
            trainer.should_stop = True
        self._log(trainer, message, step)
        if "warn" in self.actions and trainer.is_global_zero:
            say(message, StallWarning)

    def _log(self, trainer: Trainer, message: str, step: int) -> None:
        monitor = _watched(trainer)
        if monitor is not None:
            monitor.reporter.text(trainer, "alert", message, step)


def _watched(trainer: Trainer) -> NTKMonitor | None:
    """The first monitor that follows target modes."""
    monitors = [c for c in trainer.callbacks if isinstance(c, NTKMonitor)]  # type: ignore[attr-defined]
    return next((monitor for monitor in monitors if monitor.probe.modes), None)


def _stall_message(mode: TargetMode, remaining: float, patience: int, step: int) -> str:
    """What is known of a stalled mode, and what the paper says helps."""
    if mode.core_overlap < LOW_OVERLAP:
        reason = (
            f"the activity that the weights multiply hardly has this mode's time course (core "
            f"overlap {mode.core_overlap:.2g})"
        )
        advice = (
            "start from an initialisation whose activity is alive where this part of the target "
            "lives (the paper's Network 2), train it in with a curriculum, or use a "
            "preconditioned optimizer such as Shampoo"
        )
    else:
        reason = (
            f"the activity has this mode's time course (core overlap {mode.core_overlap:.2g}), but "
            "the propagator or the learning rate suppresses it"
        )
        advice = "look at spatial_effective_rank, the recurrent gain and the learning rate"
    return (
        f"Target mode {mode.index} is stalled at step {step}: learned {mode.learned:z.3f}, needs "
        f"{mode.steps_to_learn:.3g} steps where {remaining:.0f} remain, no progress in {patience} "
        f"probe{'s' * (patience > 1)} (alignment {mode.alignment}). Reason: {reason}. "
        f"What helps: {advice}."
    )
