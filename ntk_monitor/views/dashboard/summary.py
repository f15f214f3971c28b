"""One run for the tab: its curves by column, its target modes, its verdict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ntk_monitor.views.dashboard.board import advice, history_of, with_replacements
from ntk_monitor.views.dashboard.checks import Changed
from ntk_monitor.views.dashboard.courses import in_data
from ntk_monitor.views.facts import lines
from ntk_monitor.views.glossary import GLOSSARY, NAMES, NOW, OPTIONAL, tags_like
from ntk_monitor.views.losses import Point
from ntk_monitor.views.record import plain
from ntk_monitor.views.rows import number
from ntk_monitor.views.verdict import Judge, ModeRow, Verdict, verdict_of

_MODE = re.compile(r"target/mode_(\d+)/(\w+)")
_PROBED = re.compile(
    tags_like(term for term in GLOSSARY + OPTIONAL if not term.tag.startswith("alert/"))
)
"""Tags that are written at every probe, or at some, and at no other time."""
DETAIL = ("ntk/core_cosine", "ntk/temporal_effective_rank", "core/effective_rank")
"""Numbers of the kernel that stand below a verdict."""


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
    changes: Changed,
    latest: tuple[int, Mapping[str, Any]] | None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything of one run.

    Args:
        curves: Its curves by tag, without the state's name.
        changes: What its alert has recorded.
        latest: The step and the record of its last snapshot, if there is one.
        facts: What trains, if that was recorded.

    Returns:
        Curves by column, each with the number of its axis; target modes, verdict, alerts, what the
        last probe says of the loss and the next step, the step of the last probe, and what trains.
    """
    alerts = with_replacements(changes.alerts)
    probed = [curve.steps[-1] for tag, curve in curves.items()
              if _PROBED.fullmatch(tag) and curve.steps]  # fmt: skip
    last, shown = latest or (None, {})
    step = max([*probed, *([] if last is None else [last])], default=None)
    record = shown if last == step else {}
    rows = _rows(curves, changes.history, shown, now=bool(record))
    found = verdict_of(rows, _points(curves.get("loss/now")), _judge(curves, changes), step)
    verdict = found.plain() | {"detail": _detail(curves, step), "advice": advice(alerts, rows)}
    facts = {"planned": changes.planned} | dict(facts or {})
    modes = [row.plain() | in_data(shown, row.index, facts.get("outputs", ())) for row in rows]
    axes, columns = _columns(curves)
    return {
        "axes": axes,
        "series": columns,
        "modes": plain(modes),
        "verdict": plain(verdict),
        "alerts": alerts,
        "now": plain(_now(curves, record)),
        "step": step,
        "facts": facts,
        "about": lines(facts),
    }


def _columns(curves: Mapping[str, Curve]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Curves that share their steps share an axis; the axes, and the values by tag."""
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
    return axes, columns


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
    verdict = Verdict("no such state", "", False, (), text, "").plain()
    verdict |= {"detail": "", "advice": ""}
    return {"axes": [], "series": {}, "modes": [], "verdict": verdict, "alerts": [], "now": [],
            "step": None, "facts": {}, "about": lines({})}  # fmt: skip


def _points(curve: Curve | None) -> list[Point]:
    return [] if curve is None else list(zip(curve.steps, curve.values, strict=True))


def _judge(curves: Mapping[str, Curve], changes: Changed) -> Judge:
    """What is known of the alert."""
    present = bool(changes.history) or any(tag.startswith("alert/mode_") for tag in curves)
    level = 0.05 if changes.level is None else changes.level
    return Judge(
        present, bool(changes.history), level, changes.planned, changes.endless, changes.unsure
    )


def _detail(curves: Mapping[str, Curve], step: int | None) -> str:
    """Some of the kernel's numbers as they were last known, with where that was."""
    said = []
    for tag in DETAIL:
        curve = curves.get(tag)
        if curve is None:
            continue
        when = "" if curve.steps[-1] == step else f" (at step {curve.steps[-1]})"
        said.append(f"{NAMES[tag]} {number(curve.values[-1], _error_of(curves, tag))}{when}")
    return ", ".join(said)


def _error_of(curves: Mapping[str, Curve], tag: str) -> float | None:
    """The standard error of the last value."""
    curve, twin = curves[tag], curves.get(f"{tag}_stderr")
    known = twin is not None and twin.steps[-1:] == curve.steps[-1:]
    return twin.values[-1] if twin is not None and known else None


def _now(curves: Mapping[str, Curve], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The loss, its forecast, and what a flat loss asks for, as they were last known."""
    found = []
    for tag in NOW:
        name = tag.removeprefix("record/")
        curve = curves.get(tag)
        if tag != name and record.get(name, "NaN") != "NaN":
            found.append({"tag": tag, "value": record[name], "error": None, "step": None})
        elif curve is not None and curve.steps:
            value, error = curve.values[-1], _error_of(curves, tag)
            found.append({"tag": tag, "value": value, "error": error, "step": curve.steps[-1]})
    return found


def _rows(
    curves: Mapping[str, Curve],
    states: Mapping[int, list[tuple[int, str]]],
    record: Mapping[str, Any],
    *,
    now: bool,
) -> list[ModeRow]:
    """The target modes of a run, by number; ``now`` says whether the record is the last probe's."""
    found: dict[int, dict[str, Curve]] = {}
    for tag, curve in curves.items():
        if match := _MODE.fullmatch(tag):
            found.setdefault(int(match[1]), {})[match[2]] = curve
    recorded = {mode["index"]: mode for mode in record.get("target_modes", ())}
    rows = []
    for index, numbers in sorted(found.items()):
        learned, stalled = numbers.get("learned"), curves.get(f"alert/mode_{index}")
        history = history_of(_points(learned), _points(stalled), states.get(index, ()))
        row = ModeRow(index, history=history)
        if history:
            since, row.state = history[-1]
            row.since = None if row.state == "not judged" else since
        mode = recorded.get(index, {})
        row.numbers = _numbers(numbers, mode, now=now)
        row.output = str(mode.get("output", ""))
        sites = mode.get("by_site", ())
        row.by_site = [(name, share) for name, share in sites if isinstance(share, float)]
        rows.append(row)
    return rows


def _numbers(
    curves: Mapping[str, Curve], mode: Mapping[str, Any], *, now: bool
) -> dict[str, float | None]:
    """The numbers of a target mode as they were last known; steps are the optimizer's own."""
    numbers: dict[str, float | None] = {name: c.values[-1] for name, c in curves.items()}
    for name in ("gain", "core_overlap", "singular_value", "share"):
        numbers[name] = _number(mode.get(name))
    scaled = numbers.pop("preconditioned_steps_to_learn", None)  # of versions before this one
    if scaled is not None:
        numbers["steps_to_learn"] = scaled
    if now and "steps_band" in mode:
        numbers["steps_to_learn"] = _number(mode["steps_to_learn"])
        low, high = mode["steps_band"] or (None, None)
        numbers |= {"steps_low": _number(low), "steps_high": _number(high)}
    numbers.setdefault("steps_to_learn", None)
    alignment = curves.get("alignment")
    numbers["alignment_step"] = None if alignment is None else float(alignment.steps[-1])
    return numbers


def _number(value: float | str | None) -> float | None:
    """A number of a record, in which one that is not finite is text."""
    return None if value is None else float(value)
