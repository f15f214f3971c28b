"""How good forecasts are, from what `forecast.py` recorded.

*Time*: steps until a mode is learned (0.9, and above 0.85 for the next 2 % of the training). Right
is a factor of 5 either way, or more steps than remain where the mode is not learned in them; modes
that are learned already are left out. Trainings go on beyond their end as far as it takes to tell
the factor. *Loss*: within 25 %, so many steps ahead; with mini-batches
what happened is a median over a tenth of these steps either way. *Rates*, with full batches only:
the rate of the next step against the optimizer's own step in float64, within 1 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

HORIZONS = (1, 10, 30, 100)
FACTOR, BAND, EXACT = 5.0, math.log(1.25), 0.01
"""What counts as right: of times, of the logarithm of losses, and of rates."""
TARGETS = {"MSE": 0.85, "CE": 0.75, 10: 0.9, 30: 0.7}
"""Shares that should be right, of times by loss and of losses by steps ahead."""
STAYS = 0.02
"""Share of the training for which a mode that is learned must stay so, nearly."""
FLAT = 1e-7
"""Rates below this are compared with it: they are zero to rounding."""
AT = ("0 %", "5 %", "30 %")
Case = dict[str, Any]


def window(ahead: int) -> range:
    """The steps over which a median is taken."""
    return range(ahead - ahead // 10, ahead + ahead // 10 + 1)


def horizons_around() -> Iterator[int]:
    """Steps after a forecast at which the loss must be known."""
    for ahead in HORIZONS:
        yield from window(ahead)


def interpolated(steps: Sequence[float], losses: Sequence[float], ahead: float) -> float:
    """A curve of losses between its points, straight in the logarithm; nan beyond its end."""
    if not steps or ahead > steps[-1]:
        return math.nan
    logarithms = np.log(np.maximum(np.asarray(losses, dtype=float), 1e-30))
    return float(np.exp(np.interp(ahead, steps, logarithms)))


def slopes(run: Case, step: int) -> tuple[float, float, list[float]]:
    """What the tenth of the training before a step would make one extrapolate.

    Returns:
        The exponent of a power law of the loss, its slope, and the slopes of the learned fractions;
        all zero where there is no such time.
    """
    points = [i for i, s in enumerate(run["steps"]) if step - 0.1 * run["planned"] <= s <= step]
    if len(points) < 3:
        return 0.0, 0.0, [0.0] * len(run["sigma"])
    steps = np.asarray([run["steps"][i] for i in points], dtype=float)
    loss = np.asarray([run["loss"][i] for i in points])
    learned = np.asarray([run["learned"][i] for i in points])
    exponent = np.polyfit(np.log(steps + 1), np.log(np.maximum(loss, 1e-30)), 1)[0]
    return (
        float(exponent),
        float(np.polyfit(steps, loss, 1)[0]),
        np.polyfit(steps, learned, 1)[0].tolist(),
    )


def matched(said: Sequence[Case], sigma: Sequence[float], learned: Sequence[float]) -> list[int]:
    """Which of the target's modes each mode of a forecast is, where sizes are equal by the rest.

    Args:
        said: The forecast's modes.
        sigma: The target's singular values.
        learned: Learned fractions now.

    Returns:
        Numbers of modes; those of a forecast that are none of them are left out, as -1.
    """
    free, found = set(range(len(sigma))), []
    for i, mode in enumerate(said):
        alike = [j for j in free if math.isclose(sigma[j], mode["sigma"], rel_tol=0.02)]
        distances = {j: abs(learned[j] - mode["learned"]) for j in alike}
        if i in distances and distances[i] < 1e-3:
            best = i
        else:
            best = min(alike, key=distances.__getitem__, default=-1)
        free.discard(best)
        found.append(best)
    return found


def happened(run: Case, mode: int, step: int) -> float:
    """Steps after a step until a mode is learned; infinite where it is not, as far as is known."""
    steps, learned = run["steps"] + run["later"], run["learned"] + run["later learned"]
    after = [(s, row[mode]) for s, row in zip(steps, learned, strict=True)]
    for s, value in after:
        if s > step and value >= 0.9:
            following = [v for t, v in after if s <= t <= s + STAYS * run["planned"]]
            if min(following) >= 0.85:
                return s - step
    return math.inf


def soon(steps: float) -> float:
    """A time, of one step at least."""
    return steps if math.isnan(steps) else max(steps, 1.0)


def verdict(said: float, true: float, remaining: float) -> str:
    """Whether a time was right, and how not."""
    if true > remaining and said > remaining:
        return "rightly not"
    if math.isinf(true):
        return "never came"
    if math.isnan(said) or said > FACTOR * true:
        return "too late"
    return "too early" if said < true / FACTOR else "right"


def cases_of(run: Case) -> dict[str, list[Case]]:
    """All cases of a training: times, losses, rates, and what was said of the present."""
    found: dict[str, list[Case]] = {"time": [], "loss": [], "rate": [], "now": []}
    for at, forecast in zip(AT, run["forecasts"], strict=True):
        step, said = forecast["step"], forecast["said"]
        whose = {key: run[key] for key in ("name", "half", "loss_kind", "family")} | {"at": at}
        position = run["steps"].index(step)
        now, learned = run["loss"][position], run["learned"][position]
        exponent, slope, rising = slopes(run, step)
        remaining = run["planned"] - step
        for ahead in HORIZONS:
            true = loss_at(run, step, ahead)
            if math.isnan(true):
                continue
            power = now * ((step + ahead + 1) / (step + 1)) ** exponent
            found["loss"].append(
                whose
                | {
                    "ahead": ahead,
                    "said": interpolated(said["steps"], said["losses"], ahead),
                    "true": true,
                    "same": now,
                    "power": power,
                    "line": max(now + slope * ahead, 0.01 * now),
                    "valid": ahead <= said["valid_for"],
                }
            )
        numbers = matched(said["modes"], run["sigma"], learned)
        if "failed" in said:
            continue
        for i, (number, mode) in enumerate(zip(numbers, said["modes"], strict=True)):
            off = math.inf if number < 0 else abs(learned[number] - mode["learned"])
            found["now"].append(
                whose
                | {
                    "mode": i + 1,
                    "learned": off,
                    "loss": abs(said["loss"] / now - 1) if now else math.inf,
                    "seconds": said["seconds"] / (run["seconds"] / run["planned"]),
                }
            )
            if number < 0:
                continue
            here = whose | {"mode": i + 1}
            if forecast["real"] is not None:
                along, whole = forecast["real"][number]
                size = max(abs(along), FLAT)
                found["rate"].append(
                    here
                    | {
                        "said": mode["rate"],
                        "true": along,
                        "whole": whole,
                        "error": abs(mode["rate"] - along) / size,
                        "error of the whole": abs(mode["rate"] - whole) / max(abs(whole), FLAT),
                    }
                )
            if learned[number] >= 0.9:
                continue
            true = happened(run, number, step)
            line = (0.9 - learned[number]) / rising[number] if rising[number] > 0 else math.inf
            low, high = mode["band"]
            inside = high > remaining if true > remaining else low <= true <= high
            found["time"].append(
                here
                | {
                    "learned": learned[number],
                    "said": soon(mode["steps"]),
                    "true": true,
                    "remaining": remaining,
                    "verdict": verdict(soon(mode["steps"]), true, remaining),
                    "inside": inside,
                    "never": verdict(math.inf, true, remaining),
                    "line": verdict(soon(line), true, remaining),
                }
            )
    return found


def loss_at(run: Case, step: int, ahead: int) -> float:
    """What the loss was so many steps after a step; nan after the end of the training."""
    if step + ahead > run["planned"]:
        return math.nan
    at = dict(zip(run["steps"], run["loss"], strict=True))
    steps = (ahead,) if run["data"] == "full" else window(ahead)
    values = [at[step + a] for a in steps if step + a in at]
    return statistics.median(values)


def error(case: Case, what: str = "said") -> float:
    """``|ln|`` of a loss over what it was."""
    if not case[what] > 0 or not case["true"] > 0:
        return math.inf
    return abs(math.log(case[what] / case["true"]))


def share(cases: Sequence[Case], right: Callable[[Case], bool]) -> float | None:
    """How many are right."""
    return sum(map(right, cases)) / len(cases) if cases else None


def correct(what: str) -> Callable[[Case], bool]:
    """Whether a verdict is right."""
    return lambda case: case[what] in {"right", "rightly not"}


def time_row(cases: Sequence[Case]) -> dict[str, Any]:
    """How times did."""
    came = [case for case in cases if case["true"] <= case["remaining"]]
    never = [case for case in cases if case["true"] > case["remaining"]]
    return {
        "trainings": len({case["name"] for case in cases}),
        "cases": len(cases),
        "right": share(cases, correct("verdict")),
        "learned": len(came),
        "right of these": share(came, correct("verdict")),
        "too early": share(came, lambda case: case["verdict"] == "too early"),
        "too late": share(came, lambda case: case["verdict"] == "too late"),
        "not learned": len(never),
        "rightly not": share(never, correct("verdict")),
        "in the band": share(cases, lambda case: case["inside"]),
        "'never'": share(cases, correct("never")),
        "line": share(cases, correct("line")),
    }


def loss_row(cases: Sequence[Case]) -> dict[str, Any]:
    """How losses did."""
    row: dict[str, Any] = {}
    for ahead in HORIZONS:
        here = [case for case in cases if case["ahead"] == ahead]
        row[f"{ahead}: n"] = len(here)
        row[f"{ahead}: within"] = share(here, lambda case: error(case) <= BAND)
        row[f"{ahead}: |ln|"] = statistics.median(map(error, here)) if here else None
        row[f"{ahead}: above"] = share(here, lambda case: case["said"] >= case["true"])
        valid = [case for case in here if case["valid"]]
        row[f"{ahead}: valid"] = len(valid) / len(here) if here else None
        row[f"{ahead}: of valid"] = share(valid, lambda case: error(case) <= BAND)
        for what in ("same", "power", "line"):
            row[f"{ahead}: {what}"] = share(here, lambda case, w=what: error(case, w) <= BAND)
    return row


def rate_row(cases: Sequence[Case]) -> dict[str, Any]:
    """How rates did."""
    errors = [case["error"] for case in cases]
    return {
        "cases": len(cases),
        "within 1 %": share(cases, lambda case: case["error"] <= EXACT),
        "median error": statistics.median(errors) if errors else None,
        "whole step within 1 %": share(cases, lambda case: case["error of the whole"] <= EXACT),
        "within 10 %": share(cases, lambda case: case["error of the whole"] <= 10 * EXACT),
    }


ROWS = {"time": time_row, "loss": loss_row, "rate": rate_row}


def tables(cases: dict[str, list[Case]]) -> dict[str, list[dict[str, Any]]]:
    """Rows for every half, loss, kind of optimizer and checkpoint, and for all of each."""
    found: dict[str, list[dict[str, Any]]] = {}
    groups = product(
        ("choice", "report", "all"), ("MSE", "CE", "all"), ("SGD", "Adam", "all"), (*AT, "all")
    )
    for group in groups:
        keys = dict(zip(("half", "loss_kind", "family", "at"), group, strict=True))
        for kind, row in ROWS.items():
            chosen = [
                case
                for case in cases[kind]
                if all(value in {"all", case[key]} for key, value in keys.items())
            ]
            if chosen:
                found.setdefault(kind, []).append(keys | row(chosen))
    return found


def printed(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print a table: those rows that are not of one optimizer and one checkpoint at once."""
    print(f"\n{title}\n{'half':7}{'loss':5}{'optim.':7}{'at':5}", end="")
    print("".join(f"{column:>{max(len(column) + 2, 7)}}" for column in columns))
    for row in rows:
        single = [row[key] != "all" for key in ("loss_kind", "family", "at")]
        if sum(single[1:]) > (1 if single[0] and row["half"] != "all" else 0):
            continue
        print(f"{row['half']:7}{row['loss_kind']:5}{row['family']:7}{row['at']:5}", end="")
        for column in columns:
            print(f"{_cell(column, row[column]):>{max(len(column) + 2, 7)}}", end="")
        print()


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if "|ln|" in column or "error" in column else f"{100 * value:.0f} %"


def worst(cases: dict[str, list[Case]], count: int) -> dict[str, list[str]]:
    """The cases that are furthest off, in words."""

    def where(case: Case) -> str:
        mode = f", mode {case['mode']}" if "mode" in case else ""
        return f"[{case['half']}] {case['name']}, at {case['at']}{mode}"

    def distance(case: Case) -> float:
        ends = [min(max(case[key], 0.1), 4 * case["remaining"]) for key in ("said", "true")]
        return abs(math.log(ends[0] / ends[1]))

    wrong = [case for case in cases["time"] if not correct("verdict")(case)]
    found = {
        "time": [
            f"{where(case)}: learned {case['learned']:.2f}, said {case['said']:.3g}, happened "
            f"{case['true']:.3g} (of {case['remaining']}): {case['verdict']}"
            for case in sorted(wrong, key=distance, reverse=True)[:count]
        ]
    }
    for ahead in HORIZONS:
        missed = [case for case in cases["loss"] if case["ahead"] == ahead and error(case) > BAND]
        found[f"loss, {ahead} ahead"] = [
            f"{where(case)}: {case['same']:.3g}, said {case['said']:.3g}, was {case['true']:.3g}"
            for case in sorted(missed, key=error, reverse=True)[:count]
        ]
    off = [case for case in cases["rate"] if not case["error"] <= EXACT]
    found["rate"] = [
        f"{where(case)}: said {case['said']:.4g}, along the step {case['true']:.4g}, "
        f"by the step {case['whole']:.4g}"
        for case in sorted(off, key=lambda case: -case["error"])[:count]
    ]
    present = [case for case in cases["now"] if not max(case["learned"], case["loss"]) <= 0.01]
    found["present"] = [
        f"{where(case)}: learned off by {case['learned']:.3g}, loss by {100 * case['loss']:.3g} %"
        for case in sorted(present, key=lambda case: -max(case["learned"], case["loss"]))[:count]
    ]
    return found


def report(runs: Sequence[Case], count: int) -> dict[str, Any]:
    """Print tables and the worst cases.

    Args:
        runs: What was recorded.
        count: How many of the worst to list of each kind.

    Returns:
        Both, and what forecasts cost.
    """
    cases: dict[str, list[Case]] = {}
    for run in runs:
        for kind, found in cases_of(run).items():
            cases.setdefault(kind, []).extend(found)
    rows = tables(cases)
    title = f"Time until learned within a factor {FACTOR:g}; wanted: MSE 85 %, CE 75 %"
    printed(title, rows.get("time", []), list(time_row([])))
    every = list(loss_row([]))
    own = [column for column in every if column.endswith((": n", "within", "|ln|", "above"))]
    printed("Loss within 25 %; wanted: 10 ahead 90 %, 30 ahead 70 %", rows.get("loss", []), own)
    others = [column for column in every if column not in own]
    title = "Loss within 25 %, others: held valid, right of those; no change, power law, line"
    printed(title, rows.get("loss", []), others)
    printed("Rates of full batches; wanted: all", rows.get("rate", []), list(rate_row([])))
    names = worst(cases, count)
    names["failed"] = [
        f"[{run['half']}] {run['name']}, at {at}: {forecast['said']['failed']}"
        for run in runs
        for at, forecast in zip(AT, run["forecasts"], strict=True)
        if "failed" in forecast["said"]
    ]
    for kind, lines in names.items():
        print(f"\nWorst, {kind}:", *(lines or ["none"]), sep="\n  ")
    missed = [
        f"{row['half']}, {what}: {100 * value:.0f} %"
        for what, row, value, target in _wanted(rows)
        if value is not None and value < target
    ]
    costs = [case["seconds"] for case in cases.get("now", []) if case["mode"] == 1]
    cost = statistics.median(costs) if costs else None
    print(f"\nA forecast costs as much as {cost or math.nan:.0f} steps (median).")
    print("Below what is wanted:", *(missed or ["nothing"]), sep="\n  ")
    return {"steps a forecast": cost, "missed": missed, "worst": names, "tables": rows}


def _wanted(
    rows: dict[str, list[dict[str, Any]]],
) -> Iterator[tuple[str, dict[str, Any], float | None, float]]:
    """What is wanted of each half, with what came of it."""
    for kind, every in rows.items():
        for row in every:
            if row["half"] == "all" or row["family"] != "all" or row["at"] != "all":
                continue
            if kind == "time" and row["loss_kind"] in TARGETS:
                yield f"time, {row['loss_kind']}", row, row["right"], TARGETS[row["loss_kind"]]
            elif kind == "loss" and row["loss_kind"] == "all":
                for ahead in (10, 30):
                    yield f"loss {ahead} ahead", row, row[f"{ahead}: within"], TARGETS[ahead]
            elif kind == "rate" and row["loss_kind"] == "all":
                yield "rates", row, row["within 1 %"], 1.0
