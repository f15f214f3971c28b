"""One verdict on a run, for the NTK tab, the report and the terminal alike."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ntk_monitor.views.losses import Point, motion_of

LEARNED = 0.9
"""Learned fraction from which a mode counts as learned, as in StallAlert."""
GRAVEST = (
    "stalled",
    "not moving",
    "unpredictable",
    "insufficient data",
    "not judged",
    "warming up",
    "recovered",
    "learning",
    "learned",
)
"""From what needs a look most to what needs it least."""
PARTS = (
    ("learned", ("learned",)),
    ("on its way", ("learning", "recovered")),
    ("out of reach", ("stalled",)),
    ("unpredictable", ("unpredictable",)),
    ("undecided", ("insufficient data",)),
    ("too early", ("warming up",)),
    ("not judged", ("not judged",)),
)
"""What becomes of a part of the target, and the states that say so; any other state comes last."""
UNFOLLOWED = "not followed"
SMALLEST = 0.005
"""Share of the target below which a rest is not spoken of."""


@dataclass
class ModeRow:
    """A target mode of a run.

    Attributes:
        index: Which, from 1.
        state: What `StallAlert` says of it, or ``"not judged"``.
        since: The step since when, if known.
        history: Every change: a step, and the state since then.
        numbers: The last values by name; None where unknown. `steps_to_learn` are those of the
            optimizer in use; `steps_low` and `steps_high` are the band about them.
        output: The module whose output it belongs to, where there are several.
        by_site: The weights that most of it can be learned in, each with its share.
    """

    index: int
    state: str = "not judged"
    since: int | None = None
    history: list[tuple[int, str]] = field(default_factory=list)
    numbers: dict[str, float | None] = field(default_factory=dict)
    output: str = ""
    by_site: list[tuple[str, float]] = field(default_factory=list)

    @property
    def steps(self) -> float | None:
        """Steps to learn; None where no optimizer is known."""
        return self.numbers.get("steps_to_learn")

    @property
    def steps_text(self) -> str:
        """The same in words, with the band."""
        ends = (self.numbers.get("steps_low"), self.numbers.get("steps_high"))
        return steps_in_words(self.steps, ends)

    @property
    def where(self) -> str:
        """The weights that most of it can be learned in, in words; empty where unknown."""
        return ", ".join(f"{share:.2f} in {name}" for name, share in self.by_site)

    def plain(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        row = asdict(self)
        numbers: dict[str, float | None] = row.pop("numbers")
        del row["by_site"]
        return row | numbers | {"steps_text": self.steps_text, "where": self.where}


class Judge(NamedTuple):
    """What is known of the alert that judges the target modes.

    Attributes:
        present: Whether there is one.
        whole: Whether all its states are known, not only what is stalled.
        level: Probability that a verdict of it is wrong.
        planned: Steps of the whole training, where they are known.
        endless: Whether it does not know how many steps remain, and so judges nothing.
        unsure: Modes that it calls because they stand still, without being certain.
    """

    present: bool = False
    whole: bool = True
    level: float = 0.05
    planned: float | None = None
    endless: bool = False
    unsure: frozenset[int] = frozenset()

    def surely(self, rows: Sequence[ModeRow]) -> str:
        """How sure its verdicts on some modes are; nothing where one of them is not certain."""
        if any(row.index in self.unsure for row in rows):
            return ""
        return f" ({100 * (1 - self.level):.3g} % sure)"


class Part(NamedTuple):
    """A part of the target of which the same is said.

    Attributes:
        fate: What becomes of it, one of `PARTS`, or ``"not followed"``.
        share: Its share of the target; None where that is unknown.
        text: A sentence.
    """

    fate: str
    share: float | None
    text: str


class Verdict(NamedTuple):
    """What is to be said of a run.

    Attributes:
        state: The gravest of its states.
        loss: What the loss does; nothing where that is not known.
        flat: Whether it stands still.
        parts: What becomes of which part of the target.
        note: What else there is to know of the judgement, and what would judge more.
        when: The step of the last probe, and of how many.
    """

    state: str
    loss: str
    flat: bool
    parts: tuple[Part, ...]
    note: str
    when: str

    @property
    def text(self) -> str:
        """All of it in sentences."""
        said = [*(part.text for part in self.parts), self.note]
        said.insert(0 if self.flat else len(said), self.loss)
        return " ".join(filter(None, said))

    def plain(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        parts = [part._asdict() for part in self.parts]
        return self._asdict() | {"parts": parts, "text": self.text}


def verdict_of(
    rows: Sequence[ModeRow],
    losses: Sequence[Point] = (),
    judge: Judge | None = None,
    step: int | None = None,
) -> Verdict:
    """The verdict on a run.

    Args:
        rows: Its target modes, as they are at the last probe.
        losses: Steps and losses of all probes.
        judge: What is known of the alert; without one, nothing is judged.
        step: The step of the last probe.

    Returns:
        What a flat loss says first; then which share of the target is learned, on its way, out of
        reach, unpredictable or not judged, and how sure that is.
    """
    judge = judge or Judge()
    motion = motion_of(losses)
    flat, when = motion.state == "flat", _when(step, judge.planned)
    if not rows:
        text = "No target modes are followed: only the kernel's numbers are known."
        state = "not moving" if flat else "kernel only"
        return Verdict(state, motion.text, flat, (), text, when)
    parts, note = tuple(_parts(rows, judge)), _note(rows, judge)
    return Verdict(_gravest(rows, flat=flat), motion.text, flat, parts, note, when)


def steps_in_words(
    steps: float | None, band: tuple[float | None, float | None] = (None, None)
) -> str:
    """Steps to learn, as tables have them.

    Args:
        steps: How many; inf for never, None where no optimizer is known.
        band: The least and the most.

    Returns:
        ``340 (250 to 410)``, or why there is no number.
    """
    if steps is None:
        return "no optimizer known"
    if math.isnan(steps):
        return "NaN"
    low, high = band
    if math.isinf(steps):
        early = "" if low is None or not math.isfinite(low) else f" (not before {about(low)})"
        return f"never, by the forecast{early}"
    text = about(steps)
    if low is None or high is None or math.isnan(low + high) or about(low) == about(high):
        return text
    return f"{text} ({_band_in_words(low, high)})"


def _band_in_words(low: float, high: float) -> str:
    if math.isinf(high):
        return f"at least {about(low)}"
    return " to ".join(dict.fromkeys((about(low), about(high))))


def about(value: float) -> str:
    """A number of steps in two digits or so.

    Args:
        value: Of steps, finite.

    Returns:
        ``3e10``, ``1300``, ``340``, ``7.2``, or ``0``.
    """
    if value >= 1e5:
        return re.sub(r"e\+0*", "e", f"{value:.2g}")
    return f"{float(f'{value:.2g}'):.10g}"


def _when(step: int | None, planned: float | None) -> str:
    if step is None:
        return ""
    of = "" if planned is None or not math.isfinite(planned) else f" of {planned:.0f}"
    return f"step {step}{of}"


def _gravest(rows: Sequence[ModeRow], *, flat: bool) -> str:
    states = {row.state for row in rows}
    if flat and states != {"learned"}:
        states.add("not moving")
    return next((name for name in GRAVEST if name in states), "not judged")


def _parts(rows: Sequence[ModeRow], judge: Judge) -> list[Part]:
    """The parts of the target by what becomes of them, and what is not followed."""
    outputs = len({row.output for row in rows})
    fates = {state: fate for fate, states in PARTS for state in states}
    groups: dict[str, list[ModeRow]] = {fate: [] for fate, _ in PARTS}
    for row in rows:
        groups[fates.get(row.state, "not judged")].append(row)
    parts = []
    for fate, group in groups.items():
        if not group:
            continue
        share = _share(group, outputs)
        subject = _subject(group, share)
        parts.append(Part(fate, share, f"{subject} {_said(fate, group, judge)}."))
    whole = _share(rows, outputs)
    if whole is not None and 1 - whole >= SMALLEST:
        rest = f"{_percent(1 - whole)} is in further modes, which are not followed."
        parts.append(Part(UNFOLLOWED, 1 - whole, rest))
    return parts


def _share(rows: Sequence[ModeRow], outputs: int) -> float | None:
    """Of the target, or of several targets together, each counting as much; None if unknown."""
    shares = [row.numbers.get("share") for row in rows]
    known = [share for share in shares if share is not None and math.isfinite(share)]
    return min(sum(known) / outputs, 1.0) if len(known) == len(rows) else None


def _subject(rows: Sequence[ModeRow], share: float | None) -> str:
    modes = _modes(rows)
    if share is None:
        return f"{modes[0].upper()}{modes[1:]} {'is' if len(rows) == 1 else 'are'}"
    return f"{_percent(share)} of the target ({modes}) is"


def _said(fate: str, rows: Sequence[ModeRow], judge: Judge) -> str:
    """What is said of the modes of one fate, after "is" or "are"."""
    steps = _span(rows)
    never = steps.startswith("never")
    sure = judge.surely(rows)
    again = " again" if all(row.state == "recovered" for row in rows) else ""
    unknown = any(row.steps is None and "steps_to_learn" in row.numbers for row in rows)
    soon = f": learned in {steps} steps" if steps and not never else ""
    late = f": needs {steps} more steps" if steps else ""
    late = f": {steps.replace('never', 'never learned', 1)}" if never else late
    return {
        "learned": "learned",
        "on its way": f"on its way{again}{sure}{soon}",
        "out of reach": f"out of reach{_since(rows)}{sure}{late}",
        "unpredictable": f"unpredictable{_since(rows)}{sure}: a step on one batch does not "
        "teach it to another",
        "undecided": "undecided: noise hides whether it comes within reach in time"
        + (f", which by the forecast takes {steps} steps" if steps and not never else ""),
        "too early": "not judged yet: the alert is warming up",
        "not judged": "not judged"
        + (": no optimizer is known, so neither are steps to learn" if unknown else ""),
    }[fate]


def _since(rows: Sequence[ModeRow]) -> str:
    """Since when, where that is one step or two."""
    steps = sorted({row.since for row in rows if row.since is not None})
    if not steps:
        return ""
    return f" since step {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "")


def _span(rows: Sequence[ModeRow]) -> str:
    """Steps to learn of some modes: of one with its band, of several from the least to the most."""
    steps = sorted(s for s in (row.steps for row in rows) if s is not None and not math.isnan(s))
    if not steps:
        return ""
    if len(rows) == 1:
        return rows[0].steps_text
    if math.isinf(steps[0]):
        return "never, by the forecast"
    return _band_in_words(steps[0], steps[-1])


def _note(rows: Sequence[ModeRow], judge: Judge) -> str:
    if all(row.state == "learned" for row in rows):
        return ""
    if not judge.present:
        return "Adding StallAlert() would judge what is not learned."
    if judge.endless:
        return (
            "StallAlert does not know how many steps remain: StallAlert(horizon=...) would judge "
            "what is not learned."
        )
    if not judge.whole and any(row.state == "not judged" for row in rows):
        return "Of the alert only what is stalled was logged."
    return ""


def _modes(rows: Sequence[ModeRow]) -> str:
    names = [str(row.index) for row in rows]
    if len(names) > 3 and [row.index for row in rows] == list(
        range(rows[0].index, rows[-1].index + 1)
    ):
        return f"modes {names[0]} to {names[-1]}"
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"mode{'s' * (len(names) > 1)} {listed}"


def _percent(share: float) -> str:
    percent = 100 * share
    return "less than 1 %" if 0 < percent < 0.5 else f"{percent:.0f} %"
