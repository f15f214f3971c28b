"""Draw the pictures of docs/what.md and docs/architecture.md, for light and for dark pages.

    python docs/pictures.py

What they show was measured by docs/measure.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_monitor.tasks import memory_pro_trials

HERE = Path(__file__).parent
MEASURED: dict[str, Any] = json.loads((HERE / "results" / "memory_pro.json").read_text())
COLORS = {"stalled": "#c8553d", "healthy": "#2a7f9e"}
CHANNELS = ("cosine", "sine", "fixation")
MODES = ("#b08020", "#5b7fbf", "#7a5195")
GREY = "#8a8a8a"
INK = {"light": "#22272e", "dark": "#d4d8dd"}
PAPER = {"light": "#ffffff", "dark": "#131416"}
"""Backgrounds of the theme."""
STYLE = {"font.size": 9.5, "axes.titlesize": 10, "axes.spines.top": False,
         "axes.spines.right": False, "legend.frameon": False, "figure.dpi": 180}  # fmt: skip
Draw = Callable[[], Figure]


def main() -> None:
    """Draw each picture twice."""
    for name, draw in (("two_runs", two_runs), ("target_modes", target_modes), ("sees", sees)):
        for page in INK:
            with colours(page):
                figure = draw()
                figure.savefig(HERE / "images" / f"{name}_{page}.png")
                plt.close(figure)


@contextmanager
def colours(page: str) -> Iterator[None]:
    """Draw for a light or a dark page.

    Args:
        page: ``"light"`` or ``"dark"``.

    Yields:
        Nothing.
    """
    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK[page]
    )
    paper = dict.fromkeys(("figure.facecolor", "axes.facecolor"), PAPER[page])
    with mpl.rc_context({**STYLE, **ink, **paper}):
        yield


def two_runs() -> Figure:
    """The loss of both runs, and what each answers in one trial.

    Returns:
        The figure.
    """
    figure = plt.figure(figsize=(7.2, 4.3), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    loss = figure.add_subplot(grid[:, 0])
    for name, run in MEASURED.items():
        steps, losses = series(run, "loss/now")
        loss.plot(steps, losses, color=COLORS[name], lw=2)
        loss.annotate(
            f"{name}: {losses[-1]:.3f}", (steps[-1], losses[-1]), (0, 17),
            textcoords="offset points", color=COLORS[name], ha="right", weight="bold",
        )  # fmt: skip
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5)
    loss.set(yscale="log", xlabel="step", title="loss of one task, two networks")
    loss.set_yticks(ticks, map(str, ticks))
    loss.minorticks_off()
    targets = trial_targets()[0]
    for place, (name, run) in enumerate(MEASURED.items()):
        panel = figure.add_subplot(grid[place, 1])
        panel.plot(targets[:, 0], color=GREY, lw=4, alpha=0.5, label="wanted")
        panel.plot(np.array(run["outputs"])[:, 0], color=COLORS[name], lw=1.6, label="given")
        panel.set(title=f"{name}: one answer", ylim=(-0.35, 1.25), yticks=(0, 1))
        panel.legend(loc="upper left", fontsize=8.5)
    panel.set_xlabel("step of the trial")
    return figure


def target_modes() -> Figure:
    """The target, less its mean, as a sum of three patterns: its singular value decomposition.

    Returns:
        The figure.
    """
    targets = trial_targets()
    targets = targets - targets.mean((0, 1))  # 0 learned is what the best constant reaches
    matrix = targets.reshape(-1, len(CHANNELS))
    u, sizes, v = np.linalg.svd(matrix, full_matrices=False)
    parts = [np.outer(u[:, i] * sizes[i], v[i]).reshape(targets.shape) for i in range(3)]
    assert np.allclose(sum(parts), targets)
    figure, axes = plt.subplots(4, 3, figsize=(7.2, 5.2), layout="constrained")
    shares = sizes**2 / (sizes**2).sum()
    rows = [("target,\nless its mean", targets)]
    rows += [(f"mode {i + 1}\n{shares[i]:.0%}", part) for i, part in enumerate(parts)]
    for place, (row, (name, values)) in enumerate(zip(axes, rows, strict=True)):
        for channel, panel in enumerate(row):
            image = panel.imshow(values[..., channel], cmap="RdBu_r", vmin=-1, vmax=1,
                                 aspect="auto", interpolation="nearest")  # fmt: skip
            panel.set(xticks=(), yticks=())
            panel.spines[:].set_visible(place == 0)
            if place == 0:
                panel.set_title(f"output: {CHANNELS[channel]}")
        row[0].set_ylabel(name if place == 0 else ("= " if place == 1 else "+ ") + name,
                          rotation=0, ha="right", va="center", fontsize=10)  # fmt: skip
    axes[-1, 1].set_xlabel("time in the trial  →     (rows of each picture: 20 trials)")
    figure.colorbar(image, ax=axes, shrink=0.5, ticks=(-1, 0, 1))
    return figure


def sees() -> Figure:
    """State, what a step can move, and what was learned, of both runs.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 4.4), layout="constrained")
    for row, (name, run) in zip(axes, MEASURED.items(), strict=True):
        state, mode, learned = row
        order = np.argsort(np.abs(run["activity"]).sum(0))
        state.imshow(np.array(run["activity"])[:, order].T, cmap="RdBu_r", vmin=-1, vmax=1,
                     aspect="auto", interpolation="nearest")  # fmt: skip
        state.set(yticks=(), xticks=())
        state.set_ylabel(name, color=COLORS[name], weight="bold", fontsize=11)
        draw_mode(mode, run)
        for i, color in enumerate(MODES, start=1):
            learned.plot(*series(run, f"target/mode_{i}/learned"), color=color, label=f"mode {i}")
        learned.axhline(0.9, color=GREY, lw=0.8, ls=":")
        learned.set(ylim=(-0.1, 1.15), yticks=(0, 1))
    titles = ("state: 64 units, one trial", "mode 2, and what\na step can move of it",
              "learned")  # fmt: skip
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
    for panel, label in zip(axes[1], ("time in the trial", "time in the trial", "step"),
                            strict=True):  # fmt: skip
        panel.set_xlabel(label)
    axes[1, 2].legend(fontsize=8.5, loc="lower right")
    return figure


def draw_mode(panel: Axes, run: dict[str, Any]) -> None:
    """A mode's time course in some trials, and its part in the NTK's leading temporal modes.

    Args:
        panel: Where.
        run: What was measured.
    """
    wanted, seen = np.array(run["modes"][1]), np.array(run["seen"][1])
    panel.plot(wanted.T, color=MODES[1], lw=1.2)
    panel.plot(seen.T, color=GREY, lw=2.4, alpha=0.75)
    bound = 1.25 * np.abs(wanted).max()
    panel.set(yticks=(0,), xticks=(), ylim=(-bound, bound))


def trial_targets() -> np.ndarray[Any, np.dtype[np.float64]]:
    """The targets of the batch that was probed, shape (trials, steps, outputs)."""
    angles = 2 * math.pi * torch.arange(20, dtype=torch.float64) / 20
    found: np.ndarray[Any, np.dtype[np.float64]] = memory_pro_trials(angles)[1].numpy()
    return found


def series(run: dict[str, Any], tag: str) -> tuple[list[float], list[float]]:
    """A number over the training.

    Args:
        run: What was measured.
        tag: The number's tag.

    Returns:
        Steps and values.
    """
    found = [(row["step"], float(row[tag])) for row in run["history"] if tag in row]
    return [step for step, _ in found], [value for _, value in found]


if __name__ == "__main__":
    main()
