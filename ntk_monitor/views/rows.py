"""What is known of a run, as the rows and cells of tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ntk_monitor.views.glossary import GLOSSARY, IN_RECORDS, Term

HEAD = (
    "mode",
    "outputs",
    "share",
    "learned",
    "steps to learn",
    "alignment",
    "core overlap",
    "state",
)
"""Columns of a table of target modes."""
NUMBERS = ("number", "value", "range", "meaning", "looks bad")
"""Columns of a table of numbers."""


def printable(text: str) -> str:
    """Text that no terminal takes for a command.

    Args:
        text: Of an event file or a file's name, say.

    Returns:
        The same without control characters.
    """
    return "".join(c if c.isprintable() else " " * c.isspace() for c in text)


def cells(mode: Mapping[str, Any]) -> list[str]:
    """A target mode as text.

    Args:
        mode: What is known of it.

    Returns:
        A cell for each of `HEAD`.
    """
    since = "" if mode["since"] is None else f" since step {mode['since']}"
    alignment = number(mode.get("alignment"), mode.get("alignment_stderr"))
    share = mode.get("share")
    name = printable(f"{mode['index']} {mode.get('output', '')}".strip())
    made_of = mode.get("outputs", ())
    parts = [f"{one} {part:.2g}" if len(made_of) > 1 else one for one, part in made_of]
    outputs = printable(", ".join(parts)) or "-"
    return [name, outputs, f"{share:.0%}" if isinstance(share, float) else "-",
            number(mode.get("learned")), mode["steps_text"], alignment,
            number(mode.get("core_overlap")), f"{mode['state']}{since}"]  # fmt: skip


def number(value: float | str | None, stderr: float | str | None = None) -> str:
    """A number with its standard error.

    Args:
        value: The number; text stands for itself.
        stderr: Its error, or nothing that can be shown.

    Returns:
        Text.
    """
    if value is None or isinstance(value, str):
        return value or "-"
    error = f" ± {stderr:.1g}" if isinstance(stderr, (int, float)) else ""
    return f"{value:z.3g}{error}"


def number_rows(run: Mapping[str, Any]) -> list[list[str]]:
    """The numbers of a run as they were last known, and where, if not at the last probe.

    Args:
        run: What is known of the run.

    Returns:
        A row for each that is known, with a cell for each of `NUMBERS`.
    """
    rows = []
    for term in GLOSSARY + IN_RECORDS:
        found = value_of(run, term)
        if found is not None:
            value = number(found["value"], found["error"])
            if found["step"] not in {None, run["step"]}:
                value += f" (at step {found['step']})"
            rows.append([term.name, value, term.range, term.meaning, term.bad])
    return rows


def value_of(run: Mapping[str, Any], term: Term) -> dict[str, Any] | None:
    """A number of a run as it was last known.

    Args:
        run: What is known of the run.
        term: The number.

    Returns:
        Its ``value``, ``error`` and ``step``; None where it is not known.
    """
    for one in run["now"]:
        if one["tag"] == term.tag:
            return dict(one)
    steps, values = points(run, term.tag)
    if not values:
        return None
    _, errors = points(run, f"{term.tag}_stderr")
    error = errors[-1] if errors and math.isfinite(errors[-1]) else None
    value = run["series"][term.tag]["values"][-1]
    return {"value": value, "error": error, "step": steps[-1]}


def points(run: Mapping[str, Any], tag: str) -> tuple[list[int], list[float]]:
    """A curve of a run.

    Args:
        run: What is known of the run.
        tag: Of the curve.

    Returns:
        Steps and values; none where it has no such curve.
    """
    series = run["series"].get(tag)
    if series is None:
        return [], []
    return run["axes"][series["axis"]]["steps"], [float(value) for value in series["values"]]
