"""The paper's Figure 3 C, D and E, drawn from one snapshot."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ntk_monitor.snapshot import Snapshot
from ntk_monitor.views.reach import reached_patterns
from ntk_monitor.views.verdict import steps_in_words

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
CARD = 3.4
"""Width of a figure in inches: at 100 dots an inch it fits a card of TensorBoard's Images tab."""
GREY = "0.7"
SHOWN_MODES = 3
SHOWN_TRIALS = 20

Array = NDArray[Any]


def snapshot_figures(snapshot: Snapshot) -> dict[str, Figure]:
    """All figures of a snapshot.

    Args:
        snapshot: A finite measurement.

    Returns:
        Matplotlib figures by tag.
    """
    with own_style():
        figures = {
            "ntk/cumulative_variance": cumulative_variance(snapshot),
            "ntk/temporal_modes": temporal_modes(snapshot),
        }
        if snapshot.target_modes and len(snapshot.target_patterns):
            figures["target/modes"] = target_modes(snapshot)
    return figures


def own_style() -> AbstractContextManager[None]:
    """Draw in Matplotlib's default style, whatever the user or an imported package has set.

    Returns:
        The context in which figures are made and drawn.
    """
    return style.context("default")


def cumulative_variance(snapshot: Snapshot) -> Figure:
    """How many temporal modes carry the NTK, and how many its core (Figure 3 C).

    Args:
        snapshot: The measurement.

    Returns:
        The figure.
    """
    figure = _framed(2.8, top=0.25)
    axes = figure.subplots()
    total = snapshot.trace.value / snapshot.state_shape[2]
    spectra = {
        "NTK, temporal view": snapshot.temporal_spectrum.double().numpy() / total,
        "core VV*": (snapshot.core_spectrum / snapshot.core_spectrum.sum()).numpy(),
    }
    shown = min(20, max(len(s) for s in spectra.values()))
    for (name, spectrum), color, marker in zip(spectra.items(), COLORS, "os", strict=False):
        curve = np.cumsum(spectrum[:shown])
        axes.plot(
            np.arange(1, len(curve) + 1), curve, marker=marker, ms=4, color=color,
            label=f"{name} ({_count_to(spectrum, 0.95)} modes to 95 %)",
        )  # fmt: skip
    axes.axhline(0.95, color="0.6", lw=0.8, ls="--")
    axes.set(ylim=(0, 1.04), xlim=(0.5, shown + 0.5))
    axes.set_xlabel("modes", fontsize=8)
    axes.set_ylabel("share of the trace", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Cumulative variance of NTK and core", fontsize=9)
    axes.legend(loc="lower right", fontsize=7, frameon=False)
    return figure


def temporal_modes(snapshot: Snapshot) -> Figure:
    """The leading temporal modes of the NTK over time, a line for each trial (Figure 3 D).

    Args:
        snapshot: The measurement.

    Returns:
        The figure.
    """
    total = snapshot.trace.value / snapshot.state_shape[2]
    shown = min(SHOWN_MODES, len(snapshot.temporal_modes))
    figure, rows = _stack(shown, "When gradient descent can act")
    for i, axes in enumerate(rows):
        _draw(axes, snapshot.temporal_modes[i].numpy(), COLORS[i])
        share = float(snapshot.temporal_spectrum[i]) / total
        _caption(axes, f"NTK mode {i + 1}: {share:.0%} of the trace")
    return figure


def target_modes(snapshot: Snapshot) -> Figure:
    """The target's modes, and in grey what of them the NTK sees (after Figure 3 E).

    Where grey follows the colour, gradient descent learns; where it is flat, it cannot.

    Args:
        snapshot: A measurement with target modes.

    Returns:
        The figure.
    """
    shown = min(SHOWN_MODES, len(snapshot.target_modes))
    figure, rows = _stack(shown, "Target modes, and what the NTK sees (grey)")
    reached = reached_patterns(snapshot)
    for i, axes in enumerate(rows):
        if reached is not None:
            _draw(axes, reached[i].numpy(), GREY, behind=True)
        _draw(axes, snapshot.target_patterns[i].numpy(), COLORS[i])
        mode = snapshot.target_modes[i]
        steps = steps_in_words(mode.steps_to_learn)
        need = f", {steps} steps to learn" if steps[0].isdigit() else f", {steps}"
        _caption(axes, f"mode {mode.index}: learned {mode.learned:z.2f}{need}")
    return figure


def _stack(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Panels above each other with one time axis."""
    height = 0.6 + 1.1 * count
    figure = _framed(height, top=0.42)
    rows = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    figure.suptitle(title, fontsize=9, y=1 - 0.05 / height)
    return figure, rows


def _framed(height: float, top: float) -> Figure:
    """A figure of some height with its margins in inches, which a layout engine takes long for."""
    figure = Figure(figsize=(CARD, height))
    figure.subplots_adjust(
        left=0.56 / CARD, right=1 - 0.08 / CARD, bottom=0.42 / height, top=1 - top / height,
        hspace=0.36,
    )  # fmt: skip
    return figure


def _draw(axes: Axes, pattern: Array, color: str, *, behind: bool = False) -> None:
    """A line over time for each trial, or bars over trials where there is no time."""
    trials, steps = pattern.shape
    if steps == 1:
        width = 0.9 if behind else 0.5
        axes.bar(np.arange(trials), pattern[:, 0], color=color, width=width)
    else:
        width = 2.5 if behind else 0.8
        axes.plot(pattern[:SHOWN_TRIALS].T, color=color, lw=width, alpha=0.55)
    if behind:
        return
    axes.axhline(0, color="0.8", lw=0.6, zorder=0)
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="y", nbins=3)
    if axes.get_subplotspec().is_last_row():  # type: ignore[union-attr]
        axes.set_xlabel("trial" if steps == 1 else "time step", fontsize=8)


def _caption(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=8, loc="left", pad=2)


def _count_to(spectrum: Array, share: float) -> str:
    """How many leading entries reach a share of the whole, or that more than are known do."""
    reached = np.cumsum(spectrum) >= share - 1e-9
    return str(int(reached.argmax()) + 1) if reached.any() else f"more than {len(spectrum)}"
