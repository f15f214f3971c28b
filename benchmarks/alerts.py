"""How good the alert is: its rule and others, on recorded trainings and on simulated series.

The trainings are those of `alert_runs.py`; settings were chosen on the kinds of the half "choice"
and are reported on those of the half "report". A mode was *learned* if at the end its learned
fraction was above the threshold, *unlearned* if it was below a half although there was something to
learn, and *limited* if a part of it, or all, is noise that nothing could learn. Rules only differ
in when they speak; what they look at is the same.

The simulation is a logarithm that grows straight, with AR(1) noise: at twice and at 1.25 times the
slope that is needed (an alarm is false), at 0.3 times (it is right), and at twice for a hundred
probes and then not at all (the delay).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from alert_runs import kept
from numpy.typing import NDArray
from results import save
from scipy.stats import kendalltau

from ntk_monitor.estimators import Estimate
from ntk_monitor.monitor.alerts.reasons import find_reason
from ntk_monitor.monitor.alerts.rule import StallRule
from ntk_monitor.monitor.alerts.service import readings_of
from ntk_monitor.monitor.alerts.trends import growth
from ntk_monitor.monitor.alerts.watch import StallWatch
from ntk_monitor.snapshot import TargetMode

Series = NDArray[np.float64]
NEEDED = 0.01
"""Slope per probe that the simulated series need."""
REASONS = {
    "learning rate": {"learning rate"},
    "clipping": {"clipping"},
    "decay": {"decay"},
    "saturated": {"saturated"},
    "blind readout": {"readout"},
    "core": {"core", "propagator"},
    "propagator": {"propagator", "core"},
}
"""Reasons that are right, by the cause; of others (imbalance, a frozen body) none is judged."""


class Alarm(NamedTuple):
    """What a rule says of a mode: at which probe, what, and why."""

    probe: int
    kind: str
    reason: str


class Replay(NamedTuple):
    """What a rule may see of one mode: probes so far."""

    steps: list[int]
    learned: list[float]
    log_rates: list[float]
    remaining: float

    @property
    def out_of_reach(self) -> bool:
        """Whether it is unlearned, and needs more steps than remain."""
        return self.learned[-1] < 0.9 and -self.log_rates[-1] > math.log(max(self.remaining, 1))


def mode_of(index: int, said: dict[str, Any]) -> TargetMode:
    """A target mode from what was kept of it."""
    return TargetMode(
        index=index,
        singular_value=1.0,
        alignment=Estimate(math.nan, math.nan),
        gain=said["gain"],
        learned=said["learned"],
        core_overlap=said["core_overlap"],
        steps_to_learn=said["steps"],
        rate=said["rate"],
        transfer=estimate(said["transfer"]),
        readout=said["readout"],
        steps_if=tuple((what, steps) for what, steps in said["steps_if"]),
        rate_if=tuple((what, rate) for what, rate in said["rate_if"]),
    )


def estimate(kept: Sequence[float] | None) -> Estimate | None:
    """A transfer with its standard error, from what was kept."""
    return None if kept is None else Estimate(*kept)


def ours(run: dict[str, Any]) -> dict[int, Alarm]:
    """What the alert's own rule calls stalled or unpredictable, the first time."""
    watch, found = StallWatch(StallRule()), {}
    for i, (step, modes) in enumerate(zip(run["steps"], run["modes"], strict=True)):
        remaining = max(run["planned"] - step, 1)
        early, last = step < 0.1 * run["planned"], i == len(run["steps"]) - 1
        dead, saturated = run["idle"][i]
        all_modes = tuple(mode_of(j, said) for j, said in enumerate(modes))
        seen: Any = SimpleNamespace(
            dead_units=dead,
            saturated_units=saturated,
            target_modes=all_modes,
            transfer=estimate(run["transfer"][i]),
            instruments=SimpleNamespace(headroom=run["headroom"][i]),
        )
        readings = readings_of(seen, remaining)
        for mode in watch.update(step, readings, remaining, early=early, last=last):
            state = watch.states[mode]
            if state == "stalled":
                reason = find_reason(all_modes[mode], seen, remaining).reason
                found.setdefault(mode, Alarm(i, state, reason))
            elif state == "unpredictable":
                found.setdefault(mode, Alarm(i, state, ""))
    return found


def in_a_row(count: int, speaks: Callable[[Replay], bool]) -> Callable[[dict[str, Any]], Any]:
    """A rule that wants a condition at so many probes in a row, of each mode by itself."""

    def rule(run: dict[str, Any]) -> dict[int, Alarm]:
        found: dict[int, Alarm] = {}
        for j in range(len(run["modes"][0])):
            seen, row = Replay([], [], [], 0), 0
            for i, step in enumerate(run["steps"][:-1]):
                said = run["modes"][i][j]
                steps = said["steps"]
                seen.steps.append(step)
                seen.learned.append(said["learned"])
                seen.log_rates.append(-min(math.log(max(steps, 0.1)), 700.0))
                row = row + 1 if speaks(seen._replace(remaining=run["planned"] - step)) else 0
                if row >= count:
                    found[j] = Alarm(i, "stalled", "")
                    break
        return found

    return rule


def patience(probes: int, what: str) -> Callable[[Replay], bool]:
    """No new best in so many probes, as `EarlyStopping` asks, with a least improvement of 0.01."""

    def speaks(seen: Replay) -> bool:
        series = getattr(seen, what)
        if seen.learned[-1] >= 0.9 or len(series) <= probes:
            return False
        return max(series[-probes:]) < max(series[:-probes]) + 0.01

    return speaks


def mann_kendall(seen: Replay) -> bool:
    """No significant trend of the rate over 20 probes, of a mode that is out of reach."""
    if len(seen.steps) < 20 or not seen.out_of_reach:
        return False
    tau, p = kendalltau(seen.steps[-20:], seen.log_rates[-20:])
    return not (p < 0.05 and tau > 0)


RULES: dict[str, Callable[[dict[str, Any]], dict[int, Alarm]]] = {
    "ours": ours,
    "patience 3 on the learned fraction": in_a_row(1, patience(3, "learned")),
    "patience 10 on the learned fraction": in_a_row(1, patience(10, "learned")),
    "patience 10 on the rate": in_a_row(1, patience(10, "log_rates")),
    "Mann-Kendall on the rate": in_a_row(3, mann_kendall),
}


def outcome(run: dict[str, Any], mode: int) -> str:
    """What became of a mode."""
    if mode in run["unpredictable"]:
        return "limited"
    end = run["end"][mode]
    if run["group"] == "limited":
        return "limited" if end < 0.9 else "learned"
    return "learned" if end >= 0.9 else "unlearned" if end < 0.5 else "between"


def judge(runs: Sequence[dict[str, Any]], rule: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Counts over some runs."""
    counts = ("unlearned", "called", "learned", "falsely", "limited", "unpredictable", "spoken of")
    found: dict[str, Any] = dict.fromkeys((*counts, "reasons", "right"), 0)
    delays, misses = [], []
    for run in runs:
        alarms = rule(run)
        begin = next(i for i, step in enumerate(run["steps"]) if step >= run["since"])
        begin = max(begin, math.ceil(0.1 * len(run["steps"])))
        for j in range(len(run["modes"][0])):
            what, alarm = outcome(run, j), alarms.get(j)
            if what == "unlearned":
                found["unlearned"] += 1
                found["called"] += alarm is not None
                if alarm is None:
                    misses.append(f"missed: {run['scenario']}, mode {j + 1}")
                    continue
                delays.append((alarm.probe - begin) / len(run["steps"]))
                if run["cause"] in REASONS and alarm.kind == "stalled":
                    found["reasons"] += 1
                    right = alarm.reason in REASONS[run["cause"]]
                    found["right"] += right
                    if not right:
                        misses.append(f"{alarm.reason} for {run['cause']}: {run['scenario']}")
                elif alarm.kind != "stalled":
                    misses.append(f"{alarm.kind}: {run['scenario']}, mode {j + 1}")
            elif what == "learned":
                found["learned"] += 1
                found["falsely"] += alarm is not None
                if alarm is not None:
                    misses.append(f"falsely {alarm.kind}: {run['scenario']}, mode {j + 1}")
            elif what == "limited":
                found["limited"] += 1
                found["spoken of"] += alarm is not None
                found["unpredictable"] += alarm is not None and alarm.kind == "unpredictable"
                if alarm is None or alarm.kind != "unpredictable":
                    said = "nothing" if alarm is None else alarm.kind
                    misses.append(f"{said} for limited: {run['scenario']}, mode {j + 1}")
    return found | {"delay": statistics.median(delays) if delays else None, "misses": misses}


def noise(generator: np.random.Generator, count: int, phi: float, sd: float) -> Series:
    """A stationary AR(1) series."""
    steps = generator.standard_normal(count) * sd
    for i in range(1, count):
        steps[i] = phi * steps[i - 1] + math.sqrt(1 - phi**2) * steps[i]
    return steps


def first_alarm(series: Sequence[float], window: int) -> int | None:
    """Probes until the growth was certainly too slow three times in a row."""
    row = 0
    for i in range(1, len(series) + 1):
        line = growth(range(i), series[:i], NEEDED, window)
        sure = line is not None and line.probability_of(NEEDED, at_least=True) < 0.05
        row = row + 1 if sure else 0
        if row == StallRule().patience:
            return i
    return None


def simulate(repeats: int) -> list[dict[str, Any]]:
    """The table of the simulation."""
    rows = []
    for window, phi, sd in ((20, 0.6, 0.02), (40, 0.6, 0.02), (20, 0.9, 0.06), (10, 0.9, 0.06)):
        generator = np.random.default_rng(0)
        row: dict[str, Any] = {"window": window, "phi": phi, "sd": sd}
        grown = np.arange(200.0)
        for times in (2.0, 1.25, 0.3):
            firsts = [
                first_alarm(
                    (times * NEEDED * grown + noise(generator, 200, phi, sd)).tolist(), window
                )
                for _ in range(repeats)
            ]
            hits = [first for first in firsts if first is not None]
            row[f"{times:g}x"] = len(hits) / repeats
            if times < 1:
                row["probes"] = statistics.median(hits)
        until = 2 * NEEDED * np.minimum(grown, 100)
        firsts = [
            first_alarm(list(until + noise(generator, 200, phi, sd)), window)
            for _ in range(repeats)
        ]
        row["delay"] = statistics.median(f - 100 for f in firsts if f is not None and f > 100)
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    """Print and keep both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--half", choices=("choice", "report"), help="print this half alone")
    arguments = parser.parse_args()
    table = []
    for name, rule in RULES.items():
        for half in ("choice", "report"):
            if arguments.half in {None, half}:
                runs = [run for run in kept() if run["half"] == half]
                row = judge(runs, rule)
                misses = row.pop("misses")
                table.append({"rule": name, "half": half, "runs": len(runs), **row})
                print(table[-1], flush=True)
                if name == "ours":
                    print(*misses, sep="\n", flush=True)
    if arguments.half is None:
        save("alerts", {"rules": table, "simulated": simulate(arguments.repeats)})


if __name__ == "__main__":
    main()
