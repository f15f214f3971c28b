"""Figure 4: self-referential bias stalls SGD on Memory-Pro, and Shampoo gets past it.

Network 1 (Xavier) forgets without input; Network 2 has planted fixed points. Both are trained with
SGD, and Network 1 with Shampoo as well, under the monitor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import torch
from experiment import Claim, Experiment, Result, spread
from matplotlib.figure import Figure
from memory_pro import RESPONSE, evaluation, train
from pytorch_optimizer import Shampoo

from ntk_monitor.models import GRURegression


class Run(NamedTuple):
    """One of the three trainings."""

    initialization: Literal["xavier", "fixed_points"]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    steps: int
    every: int


COLORS = {
    "Network 1, SGD": "#D55E00",
    "Network 2, SGD": "#0072B2",
    "Network 1, Shampoo": "#009E73",
}
STYLES = ("-", "--", ":")
"""Of the lines of modes 1, 2, 3."""
SIDES = ("before", "after")


def runs(full: bool) -> dict[str, Run]:
    """The three trainings: the paper's 256 units for 1500 steps, or 64 units for fewer."""
    steps, every = (1500, 50) if full else (400, 100)

    def sgd(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        return torch.optim.SGD(parameters, lr=0.05)

    def shampoo(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        return Shampoo(parameters, lr=0.05 if full else 0.1)

    found = (
        Run("xavier", sgd, steps, every),
        Run("fixed_points", sgd, steps, every),
        Run("xavier", shampoo, 800 if full else 400, 10 if full else 25),
    )
    return dict(zip(COLORS, found, strict=True))


def measure(seed: int, full: bool) -> Result:
    """The three trainings."""
    found: Result = {}
    for name, run in runs(full).items():
        torch.manual_seed(seed)
        model = GRURegression(
            hidden_size=256 if full else 64,
            initialization=run.initialization,
            optimizer=run.optimizer,
        )
        before = look(model)
        snapshots, losses = train(model, run.steps, seed, run.every, max_products=32)
        after = look(model)
        modes = [snapshot.target_modes for _, snapshot in snapshots]
        found[name] = {
            "steps": [step for step, _ in snapshots],
            "learned": [[mode.learned for mode in at] for at in modes],
            "alignment": [[mode.alignment.value for mode in at] for at in modes],
            "alignment stderr": [[mode.alignment.stderr for mode in at] for at in modes],
            "core overlap": [[mode.core_overlap for mode in at] for at in modes],
            "steps to learn": [[mode.steps_to_learn for mode in at] for at in modes],
            "loss": np.array(losses).reshape(-1, 10).mean(1).tolist(),
            "spread": [before["spread"], after["spread"]],
        }
        if seed == 0:
            found[name] |= {"before": before, "after": after}
    return found


@torch.no_grad()
def look(model: GRURegression) -> Result:
    """Outputs and hidden paths on the noise-free trials, and how far apart the paths end.

    Returns:
        The two, and as ``spread`` the distance of the last states from their mean, over that at the
        end of the stimulus: 0 where all trials end in one point.
    """
    x, _ = evaluation()
    h, _ = model.network.rnn(x)
    away = (h - h.mean(0)).square().sum((0, 2)).sqrt()
    _, _, axes = torch.linalg.svd(h.flatten(0, 1) - h.mean((0, 1)), full_matrices=False)
    paths = h[:, RESPONSE:] @ axes[:2].T
    return {
        "outputs": model(x)[:, ::2, 0].tolist(),
        "paths": paths[:, ::3].tolist(),
        "spread": float(away[-1] / away[29]),
    }


def first(steps: Sequence[int], reached: np.ndarray) -> float:
    """The first probe at which something is reached."""
    return float(steps[int(reached.argmax())]) if reached.any() else float("inf")


def leads(result: Result) -> tuple[float, float]:
    """By how many steps alignment of mode 3 is ahead of the mode under Shampoo.

    Returns:
        From ten times the most that SGD ever reached to a learned fraction of 0.1, and from a tenth
        of its own maximum to there.
    """
    stalled, freed = result["Network 1, SGD"], result["Network 1, Shampoo"]
    alignment, learned = (np.array(freed[name])[:, 2] for name in ("alignment", "learned"))
    most = np.array(stalled["alignment"])[:, 2].max()
    visible = first(freed["steps"], learned >= 0.1)
    rises = [first(freed["steps"], alignment >= at) for at in (10 * most, 0.1 * alignment.max())]
    return visible - rises[0], visible - rises[1]


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    stalled, other, freed = ([r[name] for r in results] for name in COLORS)
    ends = {name: np.array([r[name]["learned"][-1] for r in results]) for name in COLORS}
    collapsed, apart = (np.array([r["spread"] for r in group]) for group in (stalled, other))
    start = [np.array([r["alignment"][0][2] for r in group]) for group in (stalled, other)]
    early, late = np.array([leads(r) for r in results]).T
    loss = [np.array([r["loss"][-1] for r in group]) for group in (stalled, other, freed)]
    return [
        Claim(
            "before training, Network 1 ends in one point, Network 2 in several",
            f"spread of the last states {spread(collapsed[:, 0])} and {spread(apart[:, 0])}",
            bool((collapsed[:, 0] < 1e-3).all() and (apart[:, 0] > 0.05).all()),
        ),
        Claim(
            "Network 1 with SGD learns the first mode only",
            f"learned {spread(ends['Network 1, SGD'][:, 0])}; modes 2 and 3 "
            f"{spread(abs(ends['Network 1, SGD'][:, 1:]))}",
            bool(
                (ends["Network 1, SGD"][:, 0] > 0.8).all()
                and (abs(ends["Network 1, SGD"][:, 1:]) < 0.05).all()
            ),
        ),
        Claim(
            "Network 2 with SGD learns all three",
            f"learned {spread(ends['Network 2, SGD'])}",
            bool((ends["Network 2, SGD"] > 0.8).all()),
        ),
        Claim(
            "Network 1 with Shampoo learns them, too",
            f"learned {spread(ends['Network 1, Shampoo'])}",
            bool((ends["Network 1, Shampoo"] > 0.8).all()),
        ),
        Claim(
            "SGD on Network 1 plateaus, the others do not",
            f"loss {spread(loss[0])} against {spread(loss[1])} and {spread(loss[2])}",
            bool(loss[0].min() > 3 * max(loss[1].max(), loss[2].max())),
        ),
        Claim(
            "the NTK is initially blind to mode 3 in Network 1, not in Network 2",
            f"alignment {spread(start[0])} and {spread(start[1])}",
            bool((start[0] < 1e-3 * start[1]).all()),
        ),
        Claim(
            "under Shampoo, alignment rises before mode 3 becomes visible",
            f"ten times what SGD ever has, {spread(early)} steps before a tenth of the mode is "
            "learned",
            bool((early > 0).all()),
        ),
        Claim(
            "ours: most of the rise in alignment comes together with the mode",
            f"a tenth of its maximum {spread(late)} steps before",
            bool((abs(late) < early).all()),
        ),
    ]


def draw(results: Sequence[Result]) -> Figure:
    """Panels A, B, D, E and F."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    for group, (name, color) in zip(top.subfigures(1, 3), COLORS.items(), strict=True):
        group.suptitle(name, fontsize=10, color=color)
        for column, when in zip(group.subplots(2, 2, sharey="row").T, SIDES, strict=True):
            draw_network(column, results[0][name][when], when)
    (losses, learned), (alignment, overlap) = bottom.subplots(2, 2, sharex=True)
    for name, color in COLORS.items():
        steps = results[0][name]["steps"]
        for result in results:
            run = result[name]
            label = name if result is results[0] else None
            at = 10 * np.arange(len(run["loss"])) + 5
            losses.plot(at, run["loss"], color=color, lw=0.7, label=label)
            for mode, style in zip(np.array(run["learned"]).T, STYLES, strict=True):
                learned.plot(steps, mode, color=color, lw=0.7, ls=style)
            for axes, what in ((alignment, "alignment"), (overlap, "core overlap")):
                axes.plot(steps, np.array(run[what])[:, 2], color=color, lw=0.7)
    losses.set(title="D  training loss", ylim=(0, 0.3))
    losses.legend(frameon=False, fontsize=8)
    learned.set(title="E  learned fraction of the target modes", ylim=(-0.1, 1.15))
    for i, style in enumerate(STYLES, 1):
        learned.plot([], [], color="0.3", ls=style, label=f"mode {i}")
    learned.legend(frameon=False, fontsize=8)
    alignment.set(title="F  alignment of the NTK with mode 3", yscale="log", xlabel="step")
    overlap.set(title="overlap of the core with mode 3", yscale="log", xlabel="step")
    return figure


def draw_network(column: np.ndarray, look: Result, when: str) -> None:
    """Outputs over the trial, and hidden paths in the response period with their ends."""
    outputs, paths = np.array(look["outputs"]), np.array(look["paths"])
    colors = matplotlib.colormaps["twilight"](np.linspace(0, 1, len(outputs), endpoint=False))
    above, below = column
    for y, path, color in zip(outputs, paths, colors, strict=True):
        above.plot(2 * np.arange(len(y)), y, color=color, lw=0.6)
        below.plot(*path.T, color=color, lw=0.6)
        below.plot(*path[-1], "o", ms=3, color=color)
    above.set_title(f"{when} training", fontsize=8)
    above.axvspan(RESPONSE, 90, color="0.93", zorder=0)
    above.set_ylim(-1.5, 1.5)
    below.set_aspect("equal", "datalim")
    for axes in column:
        axes.tick_params(labelsize=6)


FIGURE = Experiment("figure4", "Figure 4: SGD stalls, Shampoo does not", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
