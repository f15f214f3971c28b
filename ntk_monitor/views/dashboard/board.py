"""What is known of every target mode, and one plain sentence about a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LEARNED = 0.9
"""Learned fraction from which a mode counts as learned, as in StallAlert."""
UNSEEN = frozenset({"stalled", "insufficient data", "warming up"})
ORDER = ("stalled", "insufficient data", "recovered", "learning", "warming up", "learned")
"""From what needs a look most to what needs it least."""
ADVICE = {
    "core": "Initialise with activity there, use Shampoo, or a curriculum.",
    "propagator": "Look at the spatial effective rank, the recurrent gain and the learning rate.",
    "learning rate": "Raise the learning rate, or train longer.",
    "gradient noise": "Use larger batches, or a lower learning rate towards the end.",
}

Point = tuple[int, float]


@dataclass
class ModeRow:
    """A target mode of a run.

    Attributes:
        index: Which, from 1.
        state: ``"learned"``, ``"learning"``, ``"stalled"``, ``"recovered"``, ``"warming up"`` or
            ``"insufficient data"``.
        since: The step since when, if known.
        history: Every change: a step, and the state since then.
        numbers: The last values by name; None where unknown.
        output: The module whose output it belongs to, where there are several.
    """

    index: int
    state: str = "learning"
    since: int | None = None
    history: list[tuple[int, str]] = field(default_factory=list)
    numbers: dict[str, float | None] = field(default_factory=dict)
    output: str = ""

    @property
    def steps(self) -> float | None:
        """Steps to learn, as the optimizer scales them, where that is known."""
        scaled = self.numbers.get("preconditioned_steps_to_learn")
        return self.numbers.get("steps_to_learn") if scaled is None else scaled

    def plain(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        row = asdict(self)
        numbers: dict[str, float | None] = row.pop("numbers")
        return row | numbers


def history_of(
    learned: Sequence[Point], stalled: Sequence[Point], changes: Sequence[tuple[int, str]]
) -> list[tuple[int, str]]:
    """The states of a mode over time.

    Args:
        learned: Learned fractions, by step.
        stalled: ``alert/mode_<i>``, by step.
        changes: States that the alert itself has recorded, by step; they go before the rest.

    Returns:
        Each step at which the state changed, with the state from then on.
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
            states.append((step, "recovered" if fallen else "learning"))
    return _changes(states)


def _changes(states: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Only the entries that differ from the one before."""
    return [
        entry for before, entry in zip([(0, ""), *states], states, strict=False)
        if before[1] != entry[1]
    ]  # fmt: skip


def sentence(rows: Sequence[ModeRow], numbers: Mapping[str, float]) -> dict[str, str]:
    """One plain sentence about a run, and what to do.

    Args:
        rows: Its target modes.
        numbers: The last values of the kernel's numbers by tag, with ``_stderr`` where sampled.

    Returns:
        ``state`` (the gravest of the modes), ``text``, and ``detail`` (how sure the numbers are).
    """
    detail = ", ".join(
        f"{name} {_pm(numbers, tag)}"
        for name, tag in (
            ("core cosine", "ntk/core_cosine"),
            ("temporal effective rank", "ntk/temporal_effective_rank"),
            ("core effective rank", "core/effective_rank"),
        )
        if tag in numbers
    )
    if not rows:
        text = "No target modes are followed: only the kernel's numbers are known."
        return {"state": "kernel only", "text": text, "detail": detail}
    states = {row.state for row in rows}
    state = next((name for name in ORDER if name in states), "learning")
    if states == {"warming up"}:
        text = f"Too early to say which of {_modes(rows, 'target mode')} can be learned."
        return {"state": state, "text": text, "detail": detail}
    seen = [row for row in rows if row.state not in UNSEEN]
    count = "its only" if len(rows) == 1 else f"{len(seen)} of {len(rows)}"
    sees = "sees" if seen or len(rows) > 1 else "does not see"
    parts = [f"Gradient descent {sees} {count} target mode{'s' * (len(rows) > 1)}."]
    for name in ORDER:
        group = [row for row in rows if row.state == name]
        parts += _group(name, group)
    return {"state": state, "text": " ".join(parts), "detail": detail}


def _group(state: str, rows: Sequence[ModeRow]) -> list[str]:
    """What is said of the modes in one state: of the stalled ones, by when they stalled."""
    if not rows:
        return []
    if state == "stalled":
        sentences = []
        for since in sorted({row.since for row in rows}, key=lambda step: step or 0):
            group = [row for row in rows if row.since == since]
            when = "" if since is None else f" since step {since}"
            need = _span([row.steps for row in group])
            needs = f": {'it needs' if len(group) == 1 else 'they need'} {need} steps" * bool(need)
            sentences.append(f"{_modes(group)} {_are(group)} stalled{when}{needs}.")
        return sentences
    need = _span([row.steps for row in rows])
    falls = "its error falls" if len(rows) == 1 else "their errors fall"
    pace = f": {falls} by e in {need} steps" if need else ""
    return [
        {
            "learned": f"{_modes(rows)} {_are(rows)} learned.",
            "learning": f"{_modes(rows)} {_are(rows)} being learned{pace}.",
            "recovered": f"{_modes(rows)} recovered and {_are(rows)} being learned{pace}.",
            "warming up": f"Of {_modes(rows, 'mode')} it is too early to say.",
            "insufficient data": f"Whether {_modes(rows, 'mode')} can be learned cannot be told "
            "from the data.",
        }.get(state, f"{_modes(rows)}: {state}.")
    ]


def _modes(rows: Sequence[ModeRow], word: str = "Mode") -> str:
    names = [str(row.index) for row in rows]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{word}{'s' * (len(names) > 1)} {listed}"


def _are(rows: Sequence[ModeRow]) -> str:
    return "is" if len(rows) == 1 else "are"


def _span(values: Sequence[float | None]) -> str:
    """``3e10``, or ``2e9 to 3e10`` where they differ."""
    finite = sorted(v for v in values if v is not None and math.isfinite(v))
    ends = list(dict.fromkeys(map(_about, finite)))
    return " to ".join([ends[0], ends[-1]] if len(ends) > 1 else ends)


def _about(value: float) -> str:
    """``3e10``, ``340``, or ``less than 1``."""
    if value < 1:
        return "less than 1"
    return re.sub(r"e\+0*", "e", f"{value:.1g}") if value >= 1000 else f"{value:.0f}"


def _pm(numbers: Mapping[str, float], tag: str) -> str:
    stderr = numbers.get(f"{tag}_stderr")
    return f"{numbers[tag]:.3g}" + ("" if stderr is None else f" ± {stderr:.1g}")


_STALL = re.compile(r"Target mode (\d+) (is stalled|has recovered|[^.]*)")


def alert_of_text(text: str, step: int) -> dict[str, Any]:
    """An alert of a run whose alerts were only logged as text.

    Args:
        text: The message.
        step: When it was given.

    Returns:
        The alert, as ``alert/changes`` has it.
    """
    found = _STALL.search(text)
    recovered = found is not None and found[2] == "has recovered"
    core = "hardly has this mode's time course" in text
    reason = None if recovered else "core" if core else "propagator"
    return {
        "step": step,
        "mode": int(found[1]) if found else None,
        "kind": "recovered" if recovered else "stalled",
        "severity": "info" if recovered else "warning",
        "reason": reason,
        "message": text,
    }


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
        if alert["mode"] in stalled:
            latest.setdefault(alert["mode"], alert)
    texts = []
    for alert in latest.values():
        found = re.search(r"What helps: (.+)", str(alert["message"]), re.DOTALL)
        own = found[1].strip() if found else ADVICE.get(str(alert["reason"]), "")
        texts.append(own[:1].upper() + own[1:])
    return " ".join(dict.fromkeys(filter(None, texts)))
