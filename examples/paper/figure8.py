"""Figure 8: planted fixed points decide where an RNN ends (Equation 17).

``h' = W tanh(h)`` with 256 units, ``W`` Xavier-normal with gain g, and none, one or two fixed
points planted. Trajectories from random states; their ends are counted. The paper's gains go from
1 to 2; at 1 the spectral radius of 256 units is above or below one by chance, so 0.9 stands for a
small gain.

The paper names scaled coordinate directions as natural fixed points. There only one unit saturates,
and all others go on as before: measured here, too, such points do not tame the rest of the network.
Points on which every unit saturates, with entries +-k, do, and they are the ones drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from experiment import Claim, Experiment, Result, values
from matplotlib.figure import Figure
from scipy.linalg import hadamard
from torch import Tensor, nn

GAINS = (0.9, 1.0, 1.25, 1.5, 1.75, 2.0)
PLANTED = (0, 1, 2)
SIZE = {"dense": 2.0, "coordinate": 2.0}
"""Size k of an entry of a planted point that is not zero."""
SHOWN, DRAWN = 12, 4
STILL, APART = 1e-3, 0.05
"""A trajectory has ended that moves by less than the first of its length; two ends are different
that are farther apart than the second of their length."""


def points(kind: str, count: int, units: int) -> Tensor:
    """Fixed points whose images under tanh are orthogonal, shape ``(count, units)``."""
    if kind == "dense":
        return SIZE[kind] * torch.tensor(hadamard(units)[1 : count + 1], dtype=torch.float64)
    return SIZE[kind] * torch.eye(units, dtype=torch.float64)[:count]


def plant(W: Tensor, fixed: Tensor) -> Tensor:
    """Equation 17: ``fixed`` become fixed, and what is orthogonal to their images stays."""
    if not len(fixed):
        return W
    images = torch.tanh(fixed)
    images = images / images.square().sum(1, keepdim=True)
    kept = torch.eye(len(W), dtype=W.dtype) - torch.tanh(fixed).T @ images
    return fixed.T @ images + W @ kept


def trajectories(W: Tensor, starts: Tensor, steps: int) -> Tensor:
    """``h' = W tanh(h)``; shape ``(steps + 1, trials, units)``."""
    path = [starts]
    for _ in range(steps):
        path.append(torch.tanh(path[-1]) @ W.T)
    return torch.stack(path)


def endpoints(path: Tensor) -> tuple[int, float]:
    """How many different ends there are, and which share of the trajectories has ended."""
    last, scale = path[-1], math.sqrt(path.shape[-1])
    moved = torch.linalg.vector_norm(last - path[-2], dim=1) / scale
    ended = last[moved < STILL]
    found: list[Tensor] = []
    for h in ended:
        if all(torch.linalg.vector_norm(h - other) / scale > APART for other in found):
            found.append(h)
    return len(found), len(ended) / len(last)


def measure(seed: int, full: bool) -> Result:
    """Endpoints for every gain, number of planted points and kind; and paths to draw."""
    units, trials, steps = 256, 40, (3000 if full else 600)
    torch.manual_seed(seed)
    base = nn.init.xavier_normal_(torch.empty(units, units, dtype=torch.float64))
    starts = torch.randn(trials, units, dtype=torch.float64)
    result: Result = {"gains": GAINS, "planted": PLANTED}
    drawn = []
    for kind in SIZE:
        count, ended = [], []
        for planted in PLANTED:
            paths = [
                trajectories(plant(g * base, points(kind, planted, units)), starts, steps)
                for g in GAINS
            ]
            found = [endpoints(path) for path in paths]
            count.append([n for n, _ in found])
            ended.append([share for _, share in found])
            if kind == "dense" and seed == 0:
                drawn.append(_plane(torch.stack([path[:60, :SHOWN] for path in paths])))
        result[f"{kind} endpoints"], result[f"{kind} ended"] = count, ended
    if drawn:
        result["paths"] = drawn
    return result


def _plane(paths: Tensor) -> list[list[list[list[float]]]]:
    """Trajectories of all gains in the plane of their first two principal components."""
    flat = paths.flatten(0, 2)
    axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:2]
    plane: list[list[list[list[float]]]] = (paths @ axes.T).tolist()
    return plane


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    count, ended = values(results, "dense endpoints"), values(results, "dense ended")
    none, one, two = (count[:, PLANTED.index(n)] for n in PLANTED)
    coordinate = values(results, "coordinate ended")[:, 1:, -1]
    return [
        Claim(
            "none planted: small gain ends at zero, large gain does not end",
            f"{_list(none[:, 0])} endpoints at gain {GAINS[0]}; at gain {GAINS[-1]} "
            f"{ended[:, 0, -1].mean():.0%} have ended",
            bool((none[:, 0] == 1).all() and (ended[:, 0, -1] < 0.1).all()),
        ),
        Claim(
            "one planted: bistable at every gain",
            f"{_list(one)} endpoints, {ended[:, 1].mean():.0%} ended",
            bool((one == 2).all() and (ended[:, 1] == 1).all()),
        ),
        Claim(
            "two planted: four fixed points at every gain",
            f"{_list(two)} endpoints, {ended[:, 2].mean():.0%} ended",
            bool((two == 4).all() and (ended[:, 2] == 1).all()),
        ),
        Claim(
            "coordinate directions in their place leave the rest of a large gain unstable",
            f"{coordinate.mean():.0%} ended at gain {GAINS[-1]}",
            bool((coordinate < 0.1).all()),
        ),
    ]


def _list(numbers: np.ndarray) -> str:
    return ", ".join(str(int(n)) for n in np.unique(numbers))


def draw(results: Sequence[Result]) -> Figure:
    """Trajectories in a shared plane, time upwards, one colour for each gain."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 3, subplot_kw={"projection": "3d"})
    colors = ("#999999", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00")
    for axes, planted, paths in zip(panels, PLANTED, results[0]["paths"], strict=True):
        for color, gain, trials in reversed([*zip(colors, GAINS, np.array(paths), strict=True)]):
            for trial in trials.transpose(1, 0, 2)[:DRAWN]:
                axes.plot(trial[:, 0], trial[:, 1], np.arange(len(trial)), color=color, lw=0.6)
            axes.plot([], [], [], color=color, label=f"gain {gain}")
        axes.set_title(f"{planted} planted", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_zlabel("time step", fontsize=8)
        axes.tick_params(labelsize=7)
    panels[0].legend(fontsize=7, frameon=False, loc="upper left")
    return figure


FIGURE = Experiment("figure8", "Figure 8: planted fixed points", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
