"""How good the alert is: its rule and others, on recorded trainings and on simulated series.

The trainings are those of `alert_runs.py`. A mode was *stalled* if at the end its learned fraction
was below a half although there was something to learn, and *healthy* if it came above the
threshold; what lies between is not counted as either. A run is healthy if none of its modes was
stalled. Rules only differ in when they speak; what they look at is the same.

The simulation is a logarithm that grows straight, with AR(1) noise: at twice and at 1.25 times the
slope that is needed (an alarm is false), at 0.3 times (it is right), and at twice for a hundred
probes and then not at all (the delay).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from alert_runs import RUNS, SCENARIOS
from numpy.typing import NDArray
from results import save
from scipy.stats import kendalltau

from ntk_monitor.monitor.stall import Reading, StallRule, StallWatch, growth

Series = NDArray[np.float64]
NEEDED = 0.01
"""Slope per probe that the simulated series need."""


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


def ours(run: dict[str, Any]) -> dict[int, int]:
    """The probe at which each mode was called stalled by the alert's own rule."""
    watch, found = StallWatch(StallRule()), {}
    for i, (step, modes) in enumerate(zip(run["steps"], run["modes"], strict=True)):
        readings = [
            Reading(j + 1, learned, *((plain, False) if math.isnan(scaled) else (scaled, True)))
            for j, (learned, plain, scaled, *_) in enumerate(modes)
            if not math.isnan(plain)
        ]
        remaining = run["planned"] - step
        early, last = step < 0.1 * run["planned"], i == len(run["steps"]) - 1
        for mode in watch.update(step, readings, remaining, early=early, last=last):
            if watch.states[mode] == "stalled":
                found.setdefault(mode - 1, i)
    return found


def in_a_row(count: int, speaks: Callable[[Replay], bool]) -> Callable[[dict[str, Any]], Any]:
    """A rule that wants a condition at so many probes in a row, of each mode by itself."""

    def rule(run: dict[str, Any]) -> dict[int, int]:
        found: dict[int, int] = {}
        for j in range(len(run["modes"][0])):
            seen, row = Replay([], [], [], 0), 0
            for i, step in enumerate(run["steps"][:-1]):
                learned, plain, scaled, *_ = run["modes"][i][j]
                steps = plain if math.isnan(scaled) else scaled
                seen.steps.append(step)
                seen.learned.append(learned)
                seen.log_rates.append(-min(math.log(steps), 700.0) if steps > 0 else -700.0)
                row = row + 1 if speaks(seen._replace(remaining=run["planned"] - step)) else 0
                if row >= count:
                    found[j] = i
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


RULES: dict[str, Callable[[dict[str, Any]], dict[int, int]]] = {
    "ours": ours,
    "patience 3 on the learned fraction": in_a_row(1, patience(3, "learned")),
    "patience 10 on the learned fraction": in_a_row(1, patience(10, "learned")),
    "patience 10 on the rate": in_a_row(1, patience(10, "log_rates")),
    "Mann-Kendall on the rate": in_a_row(3, mann_kendall),
}


def outcome(run: dict[str, Any], mode: int) -> str:
    """What became of a mode."""
    if run["noise"]:
        return "between"
    best = max(probe[mode][0] for probe in run["modes"][-5:])
    return "healthy" if best >= 0.9 else "stalled" if best < 0.5 else "between"


def judge(runs: Sequence[dict[str, Any]], rule: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Counts over some runs."""
    found: dict[str, Any] = dict.fromkeys(("stalled", "caught", "healthy runs", "alarmed"), 0)
    delays = []
    for run in runs:
        alarms = rule(run)
        outcomes = [outcome(run, j) for j in range(len(run["modes"][0]))]
        begin = next(i for i, step in enumerate(run["steps"]) if step >= run["since"])
        for j, what in enumerate(outcomes):
            if what == "stalled":
                found["stalled"] += 1
                found["caught"] += j in alarms
                delays += [alarms[j] - begin] if j in alarms else []
        if "stalled" not in outcomes:
            found["healthy runs"] += 1
            found["alarmed"] += bool(alarms)
    return found | {"delay": statistics.median(delays) if delays else None}


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
    arguments = parser.parse_args()
    runs = json.loads(gzip.decompress(RUNS.read_bytes()))
    table = []
    for name, rule in RULES.items():
        for scenario in (*SCENARIOS, None):
            chosen = [run for run in runs if scenario in {None, run["scenario"]}]
            if chosen:
                table.append({"rule": name, "scenario": scenario, **judge(chosen, rule)})
                print(table[-1], flush=True)
    save("alerts", {"runs": len(runs), "rules": table, "simulated": simulate(arguments.repeats)})


if __name__ == "__main__":
    main()
