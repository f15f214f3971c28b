"""A measurement as a figure, for notebooks."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GOOD, SLOW, PLAIN = "#1b7837", "#b2182b", "#4d4d4d"
LEARNED = 0.9
"""Learned fraction from which a mode counts as learned."""


class ShownFigure(Figure):
    """A figure that a notebook shows, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        data = BytesIO()
        self.savefig(data, format="png", dpi=120)
        return data.getvalue()


def plot(snapshot: Any) -> Figure:  # noqa: ANN401
    """What of the target is learned, what the next steps do, and how rich the kernel is.

    Args:
        snapshot: The measurement.

    Returns:
        A figure of three panels; one whose numbers were not measured says so.
    """
    figure = ShownFigure(figsize=(10.5, 3.0), layout="constrained")
    for axes, draw in zip(figure.subplots(1, 3), (_modes, _forecast, _spectra), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        if not draw(snapshot, axes):
            axes.text(
                0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes,
                color=PLAIN,
            )  # fmt: skip
            axes.set(xticks=[], yticks=[])
    return figure


def _modes(snapshot: Any, axes: Axes) -> bool:  # noqa: ANN401
    """Bars of the learned fractions."""
    axes.set_title("target modes: learned", fontsize=10)
    modes = snapshot.target_modes
    if not modes:
        return False
    for place, mode in enumerate(modes):
        color = GOOD if mode.learned >= LEARNED else SLOW
        axes.barh(place, mode.learned, color=color, height=0.6)
        axes.annotate(
            _steps(mode), (max(mode.learned, 0.0), place), (4, 0), textcoords="offset points",
            va="center", fontsize=8, color=PLAIN,
        )  # fmt: skip
    names = [
        f"{mode.index}" if math.isnan(mode.share) else f"{mode.index} ({mode.share:.0%})"
        for mode in modes
    ]
    axes.set_yticks(range(len(modes)), names)
    axes.invert_yaxis()
    axes.axvline(LEARNED, color=PLAIN, lw=0.8, ls=":")
    axes.set_xlim(min(0.0, *(mode.learned for mode in modes)), 1.6)
    axes.set_xticks([0, 0.5, 1])
    axes.set_xlabel("0 absent, 1 solved")
    axes.set_ylabel("mode (share of the target)")
    return True


def _steps(mode: Any) -> str:  # noqa: ANN401
    if mode.learned >= LEARNED or mode.steps_to_learn is None:
        return ""
    never = math.isinf(mode.steps_to_learn)
    return "never, by the forecast" if never else f"{mode.steps_to_learn:.3g} steps to learn"


def _forecast(snapshot: Any, axes: Axes) -> bool:  # noqa: ANN401
    """The loss ahead."""
    axes.set_title("loss in the coming steps", fontsize=10)
    found = snapshot.forecast
    if found is None or not len(found.steps):
        return False
    steps, loss = found.steps.numpy(), found.loss.numpy()
    held = steps <= found.valid_for
    axes.plot(steps, loss, color=PLAIN, lw=1.2, ls=":")
    axes.plot(steps[held], loss[held], color=PLAIN, lw=1.6)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0 if np.nanmin(loss) >= 0 else None)
    axes.set_xlabel(f"steps (solid: {found.valid_for:.3g}, for which it was found to hold)")
    return True


def _spectra(snapshot: Any, axes: Axes) -> bool:  # noqa: ANN401
    """Eigenvalues of the core and of the temporal view, as shares of their sums."""
    axes.set_title("time courses: eigenvalues", fontsize=10)
    for name, values, style in (
        ("activity (core)", snapshot.core_spectrum, "--"),
        ("what a step can move", snapshot.temporal_spectrum, "-"),
    ):
        found = values.double().numpy()
        found = found[found > 0]
        if len(found):
            numbers = np.arange(1, len(found) + 1)
            axes.loglog(numbers, found / found.sum(), style, color=PLAIN, lw=1.4, label=name)
    if axes.lines:
        axes.set_ylim(bottom=1e-6)
        axes.legend(fontsize=8, frameon=False)
        axes.set_xlabel("number")
        axes.set_ylabel("share of the sum")
    return bool(axes.lines)
