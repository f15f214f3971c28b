"""A report as Markdown, to paste into an issue, and as JSON, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from ntk_monitor.views.facts import PACKAGES, versions
from ntk_monitor.views.glossary import GLOSSARY, IN_RECORDS
from ntk_monitor.views.rows import HEAD, NUMBERS, cells, number_rows, printable, value_of

NAMED = 3
"""How many runs a title names."""

Found = Mapping[str, Mapping[str, Any]]


def markdown(runs: Found) -> str:
    """Every run: its verdict, its target modes and its numbers, each with its meaning.

    Args:
        runs: What is known of each, as `DashboardData.series` gives it.

    Returns:
        The document.
    """
    parts = [f"# {_cell(title_of(runs))}\n\n{made()}\n"]
    parts += [line for name, run in runs.items() for line in _section(name, run)]
    return "\n".join(parts) + "\n"


def title_of(runs: Found) -> str:
    """What a report is called.

    Args:
        runs: As in `markdown`.

    Returns:
        A line without an end.
    """
    parts = [name.split("/") for name in runs]
    for end in (0, -1):  # folders that all share say nothing
        while len(parts) > 1 and all(len(p) > 1 and p[end] == parts[0][end] for p in parts):
            for part in parts:
                part.pop(end)
    few = ", ".join(printable("/".join(part)) for part in parts)
    return f"NTK report: {few if len(parts) <= NAMED else f'{len(parts)} runs'}"


def made() -> str:
    """When a report was made, and with what.

    Returns:
        A line.
    """
    known = versions()
    with_ = ", ".join(f"{name} {known[name]}" for name in known if name in PACKAGES)
    return f"Made on {datetime.now():%Y-%m-%d %H:%M} with {with_}."


def _section(name: str, run: Mapping[str, Any]) -> Iterator[str]:
    verdict = run["verdict"]
    yield f"## {_cell(name)}\n"
    when = f"At {verdict['when']}: " if verdict["when"] else ""
    yield f"**{_cell(when + verdict['text'])}**\n"
    if verdict["advice"]:
        yield f"What helps: {_cell(verdict['advice'])}\n"
    yield from _table(("run", *(name for name, _ in run["about"])),
                      [[name, *(text for _, text in run["about"])]])  # fmt: skip
    if run["modes"]:
        yield from _table(HEAD, [cells(mode) for mode in run["modes"]])
    if rows := number_rows(run):
        yield from _table(NUMBERS, rows)
    for alert in run["alerts"]:
        later = alert.get("replaced")
        yield f"- {_cell(alert['message'])}" + (f" *(Replaced at step {later}.)*" if later else "")
    yield ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"
    yield ""


def _cell(text: str) -> str:
    """Text that neither ends a cell nor begins a tag."""
    plain = " ".join(printable(text).split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def as_json(runs: Found) -> str:
    """The same for programs: numbers as numbers, what is infinite or missing as text or null.

    Args:
        runs: As in `markdown`.

    Returns:
        An object with ``title`` and ``made``, a line each, ``versions``, and ``runs``, a list.
    """
    found = [_plain(name, run) for name, run in runs.items()]
    whole = {"title": title_of(runs), "made": made(), "versions": versions(), "runs": found}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _plain(name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    numbers = [
        {
            "tag": term.tag, "name": term.name, "value": found["value"], "stderr": found["error"],
            "step": run["step"] if found["step"] is None else found["step"],
            "range": term.range, "meaning": term.meaning, "bad": term.bad,
        }
        for term in GLOSSARY + IN_RECORDS
        if (found := value_of(run, term)) is not None
    ]  # fmt: skip
    return {
        "name": name,
        "facts": run["facts"],
        "step": run["step"],
        "verdict": {key: run["verdict"].get(key) for key in ("state", "when", "text", "advice")},
        "modes": run["modes"],
        "numbers": numbers,
        "alerts": run["alerts"],
    }
