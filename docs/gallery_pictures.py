"""The pictures of the gallery, all in one style, large enough to be read on a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_monitor.views.figures import COLORS, GREY, own_style
from ntk_monitor.views.verdict import LEARNED

BLUE, RED, GREEN, PURPLE = COLORS[0], COLORS[1], COLORS[2], COLORS[3]
"""The run, what is stalled, the run with a remedy, what is unpredictable."""
DASHES = ("-", "--", ":")
"""Of modes 1 to 3."""
SIZE, DOTS = (6.4, 5.8), 110
FEW = 8
"""Probes up to which each is marked."""
WIDE = 26
"""Letters of a remedy's name from which it has a line of the legend for itself."""
CALLED = {"stalled": ("stalled", RED), "unpredictable": ("unpredictable", PURPLE)}
LIGHT = {"text": "#1f2328", "paper": "white", "quiet": "0.55"}
DARK = {"text": "#e6edf3", "paper": "#0d1117", "quiet": "0.6"}
"""Colours of text and ground, as GitHub has them."""
Curves = Mapping[str, Any]
Points = tuple[list[float], list[float]]


def picture(run: Curves, cured: Curves | None, path: Path) -> None:
    """The loss with a forecast above, and what is learned of each target mode below.

    Args:
        run: Curves of a run, its alerts, and its planned steps.
        cured: The same training with a remedy, and the remedy's ``name``; None without one.
        path: Where to write the PNG.
    """
    with own_style(), rc_context({"font.size": 12}):
        figure = Figure(figsize=SIZE, layout="constrained", dpi=DOTS)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.1))
        _losses(above, run, cured)
        _fractions(below, run, cured)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            for step, (_, color) in called(run).items():
                axes.axvline(step, color=color, lw=1.2)
        _tell(above, run)
        columns = 1 if cured is not None and len(cured["name"]) > WIDE else 2
        figure.legend(*above.get_legend_handles_labels(), loc="outside upper left", fontsize=12,
                      ncols=columns, frameon=False)  # fmt: skip
        figure.savefig(path, pil_kwargs={"optimize": True})


def called(run: Curves) -> dict[int, tuple[str, str]]:
    """When the alert first said that a mode is stalled, or unpredictable: word and colour by step.

    Args:
        run: With its alerts.

    Returns:
        At most one of each.
    """
    first: dict[str, int] = {}
    for alert in sorted(run["alerts"], key=lambda each: each["step"]):
        if alert["kind"] in CALLED:
            first.setdefault(alert["kind"], alert["step"])
    return {step: CALLED[kind] for kind, step in first.items()}


def forecast_at(run: Curves) -> tuple[int, Mapping[str, Any]] | None:
    """The forecast that is drawn: at the first alert, or at the end of the alert's warm-up.

    Args:
        run: With forecasts by step.

    Returns:
        The step and the forecast; None where there was none.
    """
    steps = sorted(map(int, run["forecasts"]))
    wanted = min(called(run), default=0.1 * run["planned"])
    there = [step for step in steps if step >= wanted] or steps
    return (there[0], run["forecasts"][str(there[0])]) if there else None


def _losses(axes: Axes, run: Curves, cured: Curves | None) -> None:
    marker = "o" if len(run["steps"]) <= FEW else None
    axes.plot(run["steps"], run["loss"], color=BLUE, lw=2.4, label="the run", marker=marker)
    if cured is not None:
        label = f"with {cured['name']}"
        axes.plot(cured["steps"], cured["loss"], color=GREEN, lw=2, label=label)
    found = forecast_at(run)
    if found is not None:
        start, ahead = found
        (holds,) = ahead["holds_for"]
        far = run["planned"] - start if holds is None else min(holds, run["planned"] - start)
        steps, losses = cut(ahead["steps"], ahead["loss"], far)
        axes.plot([start + step for step in steps], losses, color="black", lw=2.4,
                  ls=(0, (1.6, 1)), label=f"forecast of step {start}")  # fmt: skip
    known = [x for x in run["loss"] if x is not None]
    axes.set_ylim(0, 1.12 * max(*known[: len(known) // 4 + 1], known[-1]))
    axes.set_ylabel("loss")


def cut(steps: Sequence[float], losses: Sequence[float | None], far: float) -> Points:
    """A forecast as far as it holds.

    Args:
        steps: Steps ahead.
        losses: After them; what is not known is left out.
        far: For how many steps.

    Returns:
        Steps and losses, the last at that many steps, between known ones by a straight line.
    """
    known = [(s, x) for s, x in zip(steps, losses, strict=True) if x is not None]
    end = min(far, known[-1][0])
    there = [float(s) for s, _ in known if s < end] + [float(end)]
    return there, np.interp(there, *zip(*known, strict=True)).tolist()


def _fractions(axes: Axes, run: Curves, cured: Curves | None) -> None:
    axes.axhline(LEARNED, color=GREY, lw=1)
    for each, color, width in ((cured, GREEN, 1.7), (run, BLUE, 2.4)):
        modes = 0 if each is None else len(each["learned"][0])
        for mode in range(modes):
            assert each is not None
            values = [row[mode] for row in each["learned"]]
            axes.plot(each["steps"], values, color=color, lw=width, ls=DASHES[mode % 3],
                      label=f"mode {mode + 1}" if each is run else None)  # fmt: skip
    axes.set(ylim=(-0.15, 1.4), xlabel="optimizer step", xlim=(0, run["planned"]))
    axes.set_yticks([0, 0.5, LEARNED], ["absent 0", "0.5", "learned 0.9"])
    axes.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1,
                fontsize=12, ncols=3, borderaxespad=0.1)  # fmt: skip


def _tell(axes: Axes, run: Curves) -> None:
    """Write at the top what each line of the alert is."""
    for row, (step, (word, color)) in enumerate(called(run).items()):
        right = step > 0.45 * run["planned"]
        axes.annotate(
            f"alert at step {step}: {word}", (step, 1.0), xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 16 * row), textcoords="offset points", fontsize=12,
            ha="right" if right else "left", va="bottom", color=color, weight="bold",
        )  # fmt: skip


def finite(values: Sequence[float]) -> list[float | None]:
    """Numbers as JSON can hold them, in five digits.

    Args:
        values: The numbers.

    Returns:
        The same; None for what is not finite.
    """
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
