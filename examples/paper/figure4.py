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
        from pytorch_optimizer import Shampoo  # noqa: PLC0415  drawing and judging go without

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
        before = behaviour(model)
        snapshots, losses = train(model, run.steps, seed, run.every, max_products=32)
        after = behaviour(model)
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
def behaviour(model: GRURegression) -> Result:
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


def curve(run: Result, what: str) -> np.ndarray:
    """A number at every probe: the smaller one of modes 2 and 3, a pair that may be rotated."""
    found: np.ndarray = np.array(run[what])[:, 1:].min(1)
    return found


def when(run: Result, reached: np.ndarray) -> float:
    """The first step from which on something stays reached; infinite if it does not."""
    missed = np.flatnonzero(~reached)
    begin = missed[-1] + 1 if len(missed) else 0
    return float(run["steps"][begin]) if begin < len(reached) else float("inf")


def rises(result: Result) -> dict[str, float]:
    """When, under Shampoo, alignment and the learned fraction of modes 2 and 3 rise.

    Returns:
        Steps at which each has ten times what it has under SGD at most, and a tenth of its own
        last value.
    """
    stalled, freed = result["Network 1, SGD"], result["Network 1, Shampoo"]
    found = {}
    for what in ("alignment", "learned"):
        before, now = abs(np.array(stalled[what])[:, 1:]).max(), curve(freed, what)
        found[f"{what} stirs"] = when(freed, now > 10 * before)
        found[f"{what} is there"] = when(freed, now > 0.1 * now[-1])
    return found


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    stalled, other, _ = ([r[name] for r in results] for name in COLORS)
    ends, losses = (
        {name: np.array([r[name][what] for r in results]) for name in COLORS}
        for what in ("learned", "loss")
    )
    last = {name: at[:, -1] for name, at in ends.items()}
    collapsed, apart = (np.array([r["spread"] for r in group])[:, 0] for group in (stalled, other))
    overlap = [np.array([curve(r, "core overlap")[0] for r in g]) for g in (stalled, other)]
    aligned = [np.array([curve(r, "alignment")[0] for r in g]) for g in (stalled, other)]
    known = max(
        (np.array(r[name]["alignment stderr"]) / np.array(r[name]["alignment"])).max()
        for r in results
        for name in COLORS
    )
    needed = np.array([r["steps to learn"][0][1:] for r in stalled])
    half = losses["Network 1, SGD"].shape[1] // 2
    plateau = losses["Network 1, SGD"][:, half : half + 10].mean(1)
    drop = 1 - losses["Network 1, SGD"][:, -10:].mean(1) / plateau
    finals = {name: at[:, -10:].mean(1) for name, at in losses.items()}
    steps = {name: np.array([rises(r)[name] for r in results]) for name in rises(results[0])}
    early = steps["learned is there"] - steps["alignment stirs"]
    same = steps["learned stirs"] - steps["alignment stirs"]
    together = steps["learned is there"] - steps["alignment is there"]
    return [
        Claim(
            "A, B: before training, Network 1 ends in one point, Network 2 does not",
            f"spread of the last states {spread(collapsed)} and {spread(apart)}",
            bool((collapsed < 1e-3).all() and (apart > 0.05).all()),
        ),
        Claim(
            "D: Network 1 plateaus under SGD, and trains under Shampoo; Network 2 trains under SGD",
            f"loss {spread(finals['Network 1, SGD'])}, in the last half down by "
            f"{spread(100 * drop)} %; {spread(finals['Network 1, Shampoo'])}; "
            f"{spread(finals['Network 2, SGD'])}",
            bool(
                (drop < 0.05).all()
                and finals["Network 1, SGD"].min()
                > 3 * max(finals["Network 2, SGD"].max(), finals["Network 1, Shampoo"].max())
            ),
        ),
        Claim(
            "E: Network 1 with SGD learns the first mode only",
            f"learned {spread(last['Network 1, SGD'][:, 0])}; modes 2 and 3 at most "
            f"{abs(last['Network 1, SGD'][:, 1:]).max():.2g}",
            bool(
                (last["Network 1, SGD"][:, 0] > 0.8).all()
                and (abs(last["Network 1, SGD"][:, 1:]) < 0.05).all()
            ),
        ),
        Claim(
            "E: Network 2 with SGD learns all three",
            f"learned {spread(last['Network 2, SGD'])}",
            bool((last["Network 2, SGD"] > 0.8).all()),
        ),
        Claim(
            "E: Network 1 with Shampoo learns them, too",
            f"learned {spread(last['Network 1, Shampoo'])}; a tenth of modes 2 and 3 by step "
            f"{spread(steps['learned is there'])}",
            bool((last["Network 1, Shampoo"] > 0.8).all()),
        ),
        Claim(
            "F: modes 2 and 3 are initially out of the NTK's sight in Network 1, not in Network 2",
            f"alignment {spread(aligned[0])} and {spread(aligned[1])} (standard errors at most "
            f"{known:.0%}), core overlap {spread(overlap[0])} and {spread(overlap[1])}",
            bool(
                (aligned[0] < 1e-6).all()
                and (aligned[1] > 1e-5).all()
                and (overlap[0] < 1e-6).all()
                and (overlap[1] > 1e-4).all()
            ),
        ),
        Claim(
            "ours: the monitor says so before the first step",
            f"steps to learn modes 2 and 3 of Network 1: {spread(needed)}",
            bool((needed > 1e5).all()),
        ),
        Claim(
            "F: under Shampoo, alignment rises before the modes become visible",
            f"alignment has ten times what SGD ever has {spread(early)} steps before a tenth of "
            "both modes is learned",
            bool(np.isfinite(early).all() and (early > 0).all()),
        ),
        Claim(
            "ours: measured alike, the lead is shorter",
            f"of ten times what SGD ever has of each, {spread(same)} steps; of a tenth of the last "
            f"value of each, {spread(together)} steps",
            bool(np.isfinite(same).all() and (abs(together) <= 0.5 * early).all()),
        ),
    ]


def draw(results: Sequence[Result]) -> Figure:
    """Panels A, B, D, E and F."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    for group, (name, color) in zip(top.subfigures(1, 3), COLORS.items(), strict=True):
        group.suptitle(name, fontsize=10, color=color)
        size = max(np.abs(results[0][name][side]["paths"]).max() for side in SIDES)
        for column, side in zip(group.subplots(2, 2, sharey="row").T, SIDES, strict=True):
            draw_network(column, results[0][name][side], side, 1.1 * size)
    (losses, learned), (alignment, overlap) = bottom.subplots(2, 2, sharex=True)
    for name, color in COLORS.items():
        steps = results[0][name]["steps"]
        for result in results:
            run = result[name]
            at = 10 * np.arange(len(run["loss"])) + 5
            label = name if result is results[0] else None
            losses.plot(at, run["loss"], color=color, lw=0.7, label=label)
            for mode, style in zip(np.array(run["learned"]).T, STYLES, strict=True):
                learned.plot(steps, mode, color=color, lw=0.7, ls=style)
            for axes, what in ((alignment, "alignment"), (overlap, "core overlap")):
                axes.plot(steps, curve(run, what), color=color, lw=0.7)
    losses.set(title="D  training loss", ylim=(0, 0.3))
    losses.legend(frameon=False, fontsize=8)
    learned.set(title="E  learned fraction of the target modes", ylim=(-0.1, 1.15))
    for i, style in enumerate(STYLES, 1):
        learned.plot([], [], color="0.3", ls=style, label=f"mode {i}")
    learned.legend(frameon=False, fontsize=8)
    alignment.set(title="F  alignment of the NTK with modes 2, 3", yscale="log", xlabel="step")
    overlap.set(title="overlap of the core with modes 2, 3", yscale="log", xlabel="step")
    return figure


def draw_network(column: np.ndarray, seen: Result, side: str, size: float) -> None:
    """Outputs over the trial, and hidden paths in the response period with their ends."""
    outputs, paths = np.array(seen["outputs"]), np.array(seen["paths"])
    colors = matplotlib.colormaps["twilight"](np.linspace(0, 1, len(outputs), endpoint=False))
    above, below = column
    for y, path, color in zip(outputs, paths, colors, strict=True):
        above.plot(2 * np.arange(len(y)), y, color=color, lw=0.6)
        below.plot(*path.T, color=color, lw=0.6)
        below.plot(*path[-1], "o", ms=3, color=color)
    above.set_title(f"{side} training", fontsize=8)
    above.axvspan(RESPONSE, 90, color="0.93", zorder=0)
    above.set_ylim(-1.5, 1.5)
    below.set(xlim=(-size, size), ylim=(-size, size), aspect="equal")
    for axes in column:
        axes.tick_params(labelsize=6)


FIGURE = Experiment("figure4", "Figure 4: SGD stalls, Shampoo does not", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
