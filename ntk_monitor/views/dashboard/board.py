"""What is known of the states of target modes, and the advice that alerts gave."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from ntk_monitor.views.verdict import LEARNED, ModeRow

ADVICE = {
    "clipping": "Clip at a larger norm, or not at all.",
    "decay": "Use a smaller weight decay.",
    "saturated": "Start from smaller weights, or normalise before the nonlinearity.",
    "readout": "Look at what lies between the state and the outputs.",
    "core": "Initialise with activity there, use Shampoo, or a curriculum.",
    "propagator": "Look at the spatial effective rank, the recurrent gain and the learning rate.",
    "learning rate": "Raise the learning rate, or train longer.",
    "gradient noise": "Use larger batches, or a lower learning rate towards the end.",
}

Point = tuple[int, float]


def history_of(
    learned: Sequence[Point], stalled: Sequence[Point], changes: Sequence[tuple[int, str]]
) -> list[tuple[int, str]]:
    """The states of a mode over time.

    Args:
        learned: Learned fractions, by step.
        stalled: ``alert/mode_<i>``, by step.
        changes: States that the alert itself has recorded, by step; they go before the rest.

    Returns:
        Each step at which the state changed, with the state from then on. Without recorded states
        a mode that is neither stalled nor learned is not judged.
    """
    if changes:
        return _changes(sorted(changes, key=lambda change: change[0]))
    alerts, fractions = dict(stalled), dict(learned)
    states: list[tuple[int, str]] = []
    fraction = 0.0
    down = fallen = False
    for step in sorted(alerts.keys() | fractions.keys()):  # either may be thinned
        fraction = fractions.get(step, fraction)
        was, down = down, alerts.get(step, float(down)) >= 0.5
        fallen = (fallen or was) and not down
        if down:
            states.append((step, "stalled"))
        elif not math.isfinite(fraction):
            states.append((step, "insufficient data"))
        elif fraction >= LEARNED:
            states.append((step, "learned"))
            fallen = False
        else:
            states.append((step, "recovered" if fallen else "not judged"))
    return _changes(states)


def _changes(states: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Only the entries that differ from the one before."""
    return [next(same) for _, same in groupby(states, key=itemgetter(1))]


_STALL = re.compile(r"Target mode (\d+) (is stalled|has recovered|is unpredictable|[^.]*)")
_HELPS = re.compile(r"What helps: (.+?)(?= Steps to learn with one thing changed|$)", re.DOTALL)
_REASON = re.compile(r"Reason: ([a-z ]+) \(")


def alert_of_text(text: str, step: int) -> dict[str, Any]:
    """An alert of a run whose alerts were only logged as text.

    Args:
        text: The message.
        step: When it was given.

    Returns:
        The alert, as ``alert/changes`` has it.
    """
    found, reason = _STALL.search(text), _REASON.search(text)
    words = "" if found is None else found[2]
    kind = {"has recovered": "recovered", "is unpredictable": "unpredictable"}.get(words, "stalled")
    return {
        "step": step,
        "mode": int(found[1]) if found else None,
        "kind": kind,
        "severity": "warning" if kind == "stalled" else "info",
        "reason": None if kind != "stalled" else reason[1] if reason else "propagator",
        "message": text,
    }


def with_replacements(alerts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Alerts of a run, the newest first, each with the step of the next one of its mode.

    Args:
        alerts: The alerts in any order.

    Returns:
        The same, with ``replaced``: a step, or None.
    """
    newest: dict[Any, int] = {}
    found = []
    for alert in sorted(alerts, key=lambda each: each["step"], reverse=True):
        found.append({**alert, "replaced": newest.get(alert["mode"])})
        newest[alert["mode"]] = alert["step"]
    return found


def advice(alerts: Sequence[Mapping[str, Any]], rows: Sequence[ModeRow]) -> str:
    """What helps the modes that are stalled now.

    Args:
        alerts: All alerts of the run, the newest first.
        rows: Its target modes.

    Returns:
        A sentence for each reason, or nothing.
    """
    stalled = {row.index for row in rows if row.state == "stalled"}
    latest: dict[int, Mapping[str, Any]] = {}
    for alert in alerts:
        if alert["mode"] in stalled and alert.get("kind", "stalled") == "stalled":
            latest.setdefault(alert["mode"], alert)
    texts = []
    for alert in latest.values():
        found = _HELPS.search(str(alert["message"]))
        own = found[1].strip() if found else ADVICE.get(str(alert["reason"]), "")
        texts.append(own[:1].upper() + own[1:])
    return " ".join(dict.fromkeys(filter(None, texts)))
