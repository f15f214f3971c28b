"""What came of trials: the ranking, the winner, and the file that trains with it."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ntk_monitor.remedies.course import STAGES
from ntk_monitor.remedies.remedy import Remedy
from ntk_monitor.remedies.trial import Trial, mean_of
from ntk_monitor.uncertainty import Estimate

LEAST_GAIN = 0.05
"""Share of the baseline's loss by which a remedy must be below it to count as ahead."""
SURE = 3.0
"""Standard errors by which it must be."""
LASTS = 0.9
"""Share of a lead that a longer trial must still have: a lead that melts is one that the training
as it is makes up."""


@dataclass(frozen=True)
class Trials:
    """Trials of remedies, best first.

    Attributes:
        baseline: The trial in which nothing was changed.
        trials: The others, best first; after those with a result those that ended early, then those
            that failed, did not fit, or were not made.
        longer: A longer trial of the baseline, and one of the remedy that was ahead, where the
            baseline fell so fast that it might make up for that; None where neither was needed, or
            affordable.
    """

    baseline: Trial
    trials: tuple[Trial, ...]
    longer: tuple[Trial, Trial] | None = None

    def __iter__(self) -> Iterator[Trial]:
        """The trials, best first."""
        return iter(self.trials)

    def __len__(self) -> int:
        """How many remedies there were."""
        return len(self.trials)

    def gain(self, trial: Trial) -> Estimate | None:
        """By how much a trial's loss is below the baseline's, at the same step on the same batches.

        Args:
            trial: The trial.

        Returns:
            The mean over held-out batches, as a share of the baseline's loss, with the standard
            error over them; None where they cannot be compared.
        """
        return _gain(trial, self.baseline)

    def is_ahead(self, trial: Trial) -> bool:
        """Whether a remedy made the loss fall certainly and noticeably below the baseline's.

        Args:
            trial: Its trial.

        Returns:
            True if it did.
        """
        gain = self.gain(trial) if trial.is_whole else None
        if gain is None or not math.isfinite(gain.value):
            return False
        error = 0.0 if math.isnan(gain.stderr) else gain.stderr
        return gain.value >= LEAST_GAIN and gain.value > SURE * error

    def may_be_made_up(self, trial: Trial) -> bool:
        """Whether the training as it is may well come as far as a trial by itself.

        It may if it would with as much less loss at every doubling of its steps as at the last one,
        by the end of the training.

        Args:
            trial: A trial that is ahead.

        Returns:
            True if it may.
        """
        base, gain = self.baseline, self.gain(trial)
        if gain is None or not base.is_whole:
            return False
        half, now = (float(np.mean(base.losses[stage])) for stage in (STAGES - 1, STAGES))
        doublings = math.log2(max(base.left / base.steps, 1.0))
        falls = doublings * max(half - now, 0.0) / abs(now) if now else 0.0
        return bool(gain.value - falls < LEAST_GAIN)

    @property
    def ahead(self) -> Trial | None:
        """The first trial that is ahead, or None."""
        return next((trial for trial in self.trials if self.is_ahead(trial)), None)

    @property
    def best(self) -> Trial | None:
        """The first trial that is ahead and stays so, or None."""
        trial = self.ahead
        if trial is None or not self.may_be_made_up(trial):
            return trial
        before, after = self.gain(trial), self.gain_later
        if before is None or after is None or not math.isfinite(after.value):
            return None
        return trial if after.value >= max(LEAST_GAIN, LASTS * before.value) else None

    @property
    def gain_later(self) -> Estimate | None:
        """The gain in the longer trial, or None where there was none."""
        return None if self.longer is None else _gain(self.longer[1], self.longer[0])

    @property
    def cost(self) -> float:
        """What all trials cost, in whole trainings."""
        every = (self.baseline, *self.trials, *(self.longer or ()))
        return float(sum(trial.cost for trial in every if trial.steps))

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Names by reason, and the reason, of what did not fit, failed, or was not tried."""
        found: dict[str, list[str]] = {}
        for trial in self.trials:
            if not trial.losses:
                found.setdefault(trial.ended, []).append(trial.name)
        return tuple((", ".join(names), why) for why, names in found.items())

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be known of the comparison."""
        found = dict.fromkeys(self.baseline.remarks)
        if not self.baseline.apart:
            found["every trial trained on the data it is judged by, as there are no others"] = None
        others = [
            trial.name
            for trial in self.trials
            if trial.losses and not trial.remedy.changes_data and trial.remedy.cost == 1
            and not trial.saw_data_of(self.baseline)
        ]  # fmt: skip
        if others or None in self.baseline.data:
            found[
                "the data did not come in the same order in all trials, so that differences are "
                "also those of the data: draw them with torch, numpy or random, or with generators "
                "that model_factory makes"
            ] = None
        return tuple(found)

    @property
    def verdict(self) -> str:
        """What the trials say, in a sentence."""
        base, best = self.baseline, self.best
        if base.loss is None:
            return f"Nothing can be said: the training as it is {base.ended}."
        steps = f"{base.steps} of {base.planned:.0f} steps"
        if best is not None:
            gain = self.gain(best)
            assert gain is not None
            return (
                f"{best.name} helps: after {steps} its loss on held-out data is {gain.value:.0%} "
                "below that of the training as it is."
            )
        made = [trial for trial in self.trials if trial.losses]
        if not made:
            return "No remedy was tried to its end."
        ahead = self.ahead
        if ahead is not None:
            return f"{self._made_up(ahead)} None helps for certain."
        return (
            f"None helps: after {steps} no loss on held-out data is certainly {LEAST_GAIN:.0%} "
            f"below that of the training as it is, of {len(made)} remedies that were tried."
        )

    def _made_up(self, ahead: Trial) -> str:
        """What became of a lead, in a sentence."""
        gain, later = self.gain(ahead), self.gain_later
        assert gain is not None
        lead = f"{ahead.name} is {gain.value:.0%} ahead after {self.baseline.steps} steps"
        if later is None or self.longer is None:
            return (
                f"{lead}, which the training as it is may make up for: larger trials (share, "
                "max_cost) tell."
            )
        return f"{lead} and {later.value:.0%} after {self.longer[0].steps}: it makes up for that."

    def overlay(self, trial: Trial | None = None) -> dict[str, Any]:
        """What to add to a configuration of LightningCLI to train with a remedy.

        Args:
            trial: Of the remedy; the best one where left out.

        Returns:
            The addition, in plain types.

        Raises:
            ValueError: If none helped.
        """
        trial = trial or self.best
        if trial is None:
            raise ValueError(f"there is no remedy to train with. {self.verdict}")
        callback = {
            "class_path": "ntk_monitor.remedies.ApplyRemedy",
            "init_args": {"remedy": _plain(trial.remedy)},
        }
        return {"trainer": {"callbacks+": [callback]}}

    def save(self, path: str | os.PathLike[str], trial: Trial | None = None) -> Path:
        """Write the overlay as YAML, for ``ntk-monitor fit --config base.yaml --config FILE``.

        Args:
            path: The file.
            trial: Of the remedy; the best one where left out.

        Returns:
            The file.
        """
        file = Path(path)
        text = f"# {self.verdict}\n" + yaml.safe_dump(self.overlay(trial), sort_keys=False)
        file.write_text(text)
        return file

    def table(self) -> Table:
        """The ranking, as it is printed."""
        base, best = self.baseline, self.best
        table = Table(title=f"Trials of {base.steps} steps, judged on {base.held_out or '-'}")
        table.add_column("remedy")
        for name in ("loss", "below the baseline"):
            table.add_column(name, justify="right")
        table.add_column("modes, learned before -> after, steps to learn")
        for trial in (base, *(t for t in self.trials if t.losses)):
            gain = None if trial is base else self.gain(trial)
            modes = "; ".join(
                f"{m.number}: {m.before:z.2f} -> {m.after:z.2f}, {_steps(m.steps_to_learn)}"
                for m in trial.modes
            )
            table.add_row(
                trial.name,
                "" if trial.loss is None else f"{trial.loss.value:.4g}",
                "" if gain is None else _percent(gain),
                trial.ended or modes,
                style="green" if trial is best else "" if trial.is_whole else "dim",
            )
        return table

    def show(self, console: Console) -> None:
        """Print the ranking, what was left out and why, what is to be known, and the verdict.

        Args:
            console: Where to print.
        """
        console.print(self.table())
        for name, why in self.left_out:
            console.print(Text(f"{name}: {why}", style="dim"), soft_wrap=True)
        for remark in self.remarks:
            console.print(Text(remark, style="yellow"), soft_wrap=True)
        style = "bold yellow" if self.best is None else "bold green"
        console.print(Text(self.verdict, style=style), soft_wrap=True)

    def __str__(self) -> str:
        """The ranking and the verdict."""
        console = Console(width=120, record=True, file=io.StringIO())
        self.show(console)
        return console.export_text().rstrip("\n")


def _gain(trial: Trial, baseline: Trial) -> Estimate | None:
    stage = max(trial.losses, default=0)
    if not stage or stage not in baseline.losses:
        return None
    own, other = (np.asarray(t.losses[stage], float) for t in (trial, baseline))
    scale = abs(float(other.mean()))
    if len(own) != len(other) or not scale > 0:
        return None
    return mean_of((other - own) / scale)


def _percent(gain: Estimate) -> str:
    error = "" if math.isnan(gain.stderr) else f" ± {gain.stderr:.0%}"
    return f"{gain.value:.0%}{error}"


def _steps(steps: float) -> str:
    return "-" if math.isnan(steps) else "never" if math.isinf(steps) else f"{steps:.3g}"


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A remedy, or an argument of one, as a configuration has it."""
    if isinstance(value, Remedy):
        path = f"{type(value).__module__}.{type(value).__qualname__}"
        if type(value).__module__.startswith("ntk_monitor.remedies."):
            path = f"ntk_monitor.remedies.{type(value).__name__}"
        found: dict[str, Any] = {"class_path": path}
        arguments = {name: _plain(each) for name, each in value.arguments.items()}
        return {**found, "init_args": arguments} if arguments else found
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
