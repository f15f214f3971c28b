"""One run for the tab: its curves by column, its target modes, its verdict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ntk_monitor.views.dashboard.board import ModeRow, advice, history_of, sentence
from ntk_monitor.views.record import plain

_MODE = re.compile(r"target/mode_(\d+)/(\w+)")

Changes = tuple[list[dict[str, Any]], dict[int, list[tuple[int, str]]]]
"""Alerts of a run, and for each of its target modes the states that were recorded, with steps."""


class Curve(NamedTuple):
    """A curve by columns, ascending in the step."""

    steps: list[int]
    times: list[float]
    values: list[float]


def curve_of(data: Sequence[Any]) -> Curve:
    """A curve in ascending steps.

    Args:
        data: Points as a data provider has them.

    Returns:
        The columns; of a step that comes twice, as after a training was resumed, the last point.
    """
    steps = [datum.step for datum in data]
    if any(after <= before for before, after in pairwise(steps)):
        last = {datum.step: datum for datum in data}
        steps = sorted(last)
        data = [last[step] for step in steps]
    return Curve(steps, [datum.wall_time for datum in data], [datum.value for datum in data])


def summary_of(
    curves: Mapping[str, Curve],
    changes: Changes,
    record: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything of one run.

    Args:
        curves: Its curves by tag, without the state's name.
        changes: Its alerts, and the recorded states of its target modes.
        record: The record of its last snapshot, if there is one.

    Returns:
        Curves by column, each with the number of its axis; target modes, verdict, alerts, and the
        last step.
    """
    alerts = sorted(changes[0], key=lambda alert: alert["step"], reverse=True)
    rows = _rows(curves, changes[1], record)
    numbers = {tag: curve.values[-1] for tag, curve in curves.items() if not _MODE.match(tag)}
    verdict = sentence(rows, numbers) | {"advice": advice(alerts, rows)}
    axes: list[dict[str, Any]] = []
    columns = {}
    places: dict[tuple[int, ...], int] = {}
    for tag, curve in curves.items():
        steps = tuple(curve.steps)
        if steps not in places:
            places[steps] = len(axes)
            axes.append({"steps": steps, "times": [round(time, 3) for time in curve.times]})
        columns[tag] = {
            "axis": places[steps],
            "values": [plain(float(f"{value:.6g}")) for value in curve.values],
        }
    return {
        "axes": axes,
        "series": columns,
        "modes": plain([row.plain() for row in rows]),
        "verdict": verdict,
        "alerts": alerts,
        "step": max((axis["steps"][-1] for axis in axes if axis["steps"]), default=None),
    }


def without_state(state: str, own: Iterable[str]) -> dict[str, Any]:
    """What is said of a run that does not follow a state.

    Args:
        state: What the tags of the state begin with.
        own: The same of the states that it follows.

    Returns:
        As `summary_of`, with nothing but a verdict.
    """
    names = " and ".join(sorted(name.rstrip("/") or "the default state" for name in own))
    lacks = f"state of the name {state.rstrip('/')}" if state else "default state"
    text = f"This run has no {lacks}: it follows {names}."
    verdict = {"state": "no such state", "text": text, "detail": "", "advice": ""}
    return {"axes": [], "series": {}, "modes": [], "verdict": verdict, "alerts": [], "step": None}


def _rows(
    curves: Mapping[str, Curve],
    states: Mapping[int, list[tuple[int, str]]],
    record: Mapping[str, Any] | None,
) -> list[ModeRow]:
    """The target modes of a run, by number."""
    found: dict[int, dict[str, Curve]] = {}
    for tag, curve in curves.items():
        if match := _MODE.fullmatch(tag):
            found.setdefault(int(match[1]), {})[match[2]] = curve
    recorded = {mode["index"]: mode for mode in (record or {}).get("target_modes", ())}
    rows = []
    for index, numbers in sorted(found.items()):
        learned, stalled = (
            [] if curve is None else list(zip(curve.steps, curve.values, strict=True))
            for curve in (numbers.get("learned"), curves.get(f"alert/mode_{index}"))
        )
        history = history_of(learned, stalled, states.get(index, ()))
        row = ModeRow(index, history=history)
        if history:
            row.since, row.state = history[-1]
        row.numbers = {name: curve.values[-1] for name, curve in numbers.items()}
        mode = recorded.get(index, {})
        row.output = str(mode.get("output", ""))
        for name in ("gain", "core_overlap", "singular_value"):
            row.numbers[name] = float(mode[name]) if name in mode else None
        rows.append(row)
    return rows
