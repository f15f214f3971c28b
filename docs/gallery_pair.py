"""The first picture of README and gallery: two losses that look alike, and what is said of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gallery_pictures import DARK, LIGHT
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_monitor.views.figures import own_style
from ntk_monitor.views.verdict import LEARNED, about

LEARNS, STUCK = "network1-adam", "core"
"""The runs of the gallery that are shown."""
SEEN = 0.5
"""Share of the training that is drawn."""
MANY = 1e6
"""Steps that are said to be so many millions."""
ALIKE = 0.1
"""Difference of two losses, relative to the larger one, up to which they look alike."""
COLOURS = {
    LEARNS: {"light": "#0072B2", "dark": "#56B4E9"},
    STUCK: {"light": "#D55E00", "dark": "#F28E4B"},
}
Curves = Mapping[str, Any]


def pair_of(runs: Mapping[str, Curves]) -> dict[str, Any] | None:
    """The last probe at which the two losses look alike, and what was known there.

    Args:
        runs: Curves by key.

    Returns:
        The step, the losses, the learned fractions, and the steps to learn of each mode of which
        not half is learned there, of both runs, and of the first one probe earlier; None where one
        of them was not made.
    """
    if not {LEARNS, STUCK} <= set(runs):
        return None
    both = (runs[LEARNS], runs[STUCK])
    losses = [dict(zip(run["steps"], run["loss"], strict=True)) for run in both]
    alike = [
        step for step in losses[0]
        if step in losses[1]
        and abs(losses[0][step] - losses[1][step]) <= ALIKE * max(losses[0][step], losses[1][step])
        and str(step) in both[0]["forecasts"]
    ]  # fmt: skip
    step = max(alike)
    earlier = max((s for s in alike if s < step), default=None)
    at = [run["steps"].index(step) for run in both]
    learned = [run["learned"][i] for run, i in zip(both, at, strict=True)]
    calls = [a["step"] for a in both[1]["alerts"] if a["kind"] == "stalled"]
    return {
        "learns": LEARNS, "stuck": STUCK, "step": step, "planned": both[0]["planned"],
        "losses": [each[step] for each in losses],
        "learned": [[round(c, 3) for c in known] for known in learned],
        "steps_to_learn": [_open(run, step) for run in both], "earlier": earlier,
        "earlier_steps": None if earlier is None else _open(both[0], earlier),
        "alert": min(calls, default=None),
    }  # fmt: skip


def _open(run: Curves, step: int) -> list[float | None]:
    """Steps to learn of the modes of which not half is learned."""
    learned = run["learned"][run["steps"].index(step)]
    ahead = run["forecasts"][str(step)]["to_learn"]
    return [steps for steps, c in zip(ahead, learned, strict=True) if c < LEARNED / 2]


def draw_pair(pair: Mapping[str, Any], kept: Mapping[str, Any], folder: Path) -> None:
    """Draw the picture, light and dark.

    Args:
        pair: What `pair_of` gave.
        kept: The records of all runs.
        folder: Where to write.
    """
    for theme, tones in (("light", LIGHT), ("dark", DARK)):
        with own_style(), rc_context(_settings(tones)):
            figure = Figure(figsize=(8.4, 4.5), layout="constrained", dpi=110)
            axes = figure.subplots()
            for key in (STUCK, LEARNS):
                curves = kept[key]["curves"]["run"]
                axes.plot(curves["steps"], curves["loss"], color=COLOURS[key][theme], lw=3)
            _words(axes, pair, kept, theme)
            name = "healthy_and_stalled" + ("_dark" if theme == "dark" else "")
            figure.savefig(folder / f"{name}.png")


def _settings(tones: Mapping[str, str]) -> dict[str, Any]:
    text, paper = tones["text"], tones["paper"]
    return {
        "font.size": 13, "text.color": text, "axes.labelcolor": text, "xtick.color": text,
        "ytick.color": text, "axes.edgecolor": tones["quiet"], "axes.facecolor": paper,
        "figure.facecolor": paper, "savefig.facecolor": paper,
    }  # fmt: skip


def _words(axes: Axes, pair: Mapping[str, Any], kept: Mapping[str, Any], theme: str) -> None:
    """What is said, at the step at which it is said, and how it ends."""
    step, last, top = pair["step"], SEEN * pair["planned"], 2.6 * max(pair["losses"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvspan(0, step, color="0.5", alpha=0.13, lw=0)
    axes.axvline(step, color="0.5", lw=1.2)
    axes.set(xlim=(0, last), ylim=(0, top), xlabel="training step", ylabel="loss")
    axes.set_title(
        "Two trainings, one flat loss. Which one should you stop?", fontsize=16, weight="bold",
        loc="left", pad=12,
    )  # fmt: skip
    axes.text(0.5 * step, 0.03 * top, "they look alike", ha="center", fontsize=13)
    axes.text(step + 8, 0.97 * top, f"ntk_monitor at step {step}:", va="top", fontsize=14)
    good, bad = pair["steps_to_learn"]
    said = {LEARNS: f"will learn the rest in {span(good)}", STUCK: f"would take {span(bad)}"}
    for i, (key, words) in enumerate(said.items()):
        axes.text(step + 8, (0.87 - 0.1 * i) * top, words, color=COLOURS[key][theme], va="top",
                  fontsize=16, weight="bold")  # fmt: skip
    for key in said:
        run = kept[key]["curves"]["run"]
        ends, seen = run["learned"][-1], [s for s in run["steps"] if s <= last]
        text = f"in the end: {sum(c >= LEARNED for c in ends)} of {len(ends)} parts learned"
        axes.text(last - 4, run["loss"][len(seen) - 1] + 0.03 * top, text, fontsize=14,
                  color=COLOURS[key][theme], ha="right", va="bottom")  # fmt: skip


def span(steps: Sequence[float | None]) -> str:
    """Steps to learn in words.

    Args:
        steps: Of some modes; None for never.

    Returns:
        From the least to the most.
    """
    known = sorted(s for s in steps if s is not None and math.isfinite(s))
    if not known:
        return "for ever"
    if len(known) < len(steps) or known[0] >= MANY:
        return f"{_in_words(known[0])} steps or more"
    return " to ".join(dict.fromkeys(map(_in_words, (known[0], known[-1])))) + " steps"


def _in_words(steps: float) -> str:
    return f"{about(steps / 1e6)} million" if steps >= MANY else about(steps)
