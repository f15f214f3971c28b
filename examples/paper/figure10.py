"""Figure 10: the number of attention heads changes the temporal rank little."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attention import AttentionBlock, look, normal
from experiment import Claim, Experiment, Result, draw_curve, log_axis, spread, values
from matplotlib.figure import Figure
from scipy.stats import spearmanr

DIMENSIONS = (1, 2, 5, 10, 20, 50)
HEADS = (1, 2, 4, 8)


def measure(seed: int, full: bool) -> Result:
    """Temporal ranks for every number of heads and dimension."""
    steps, hidden = (50, 128) if full else (20, 32)
    rank = []
    for heads in HEADS:
        row = []
        for dimension in DIMENSIONS:
            torch.manual_seed(seed)
            model = AttentionBlock(dimension, 64, heads, hidden)
            x = normal(seed, 10, steps, dimension)
            row.append(look(model, x).temporal_effective_rank.value)
        rank.append(row)
    return {"rank": rank}


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    rank = values(results, "rank")
    over_heads = rank.max(1) / rank.min(1)
    over_dimensions = rank[:, :, -1] / rank[:, :, 0]
    rises = [spearmanr(DIMENSIONS, row).statistic for seed in rank for row in seed]
    return [
        Claim(
            "temporal rank rises with the input's dimension for every number of heads",
            f"rank correlation {spread(rises)}, by a factor of {spread(over_dimensions)}",
            min(rises) > 0.9,
        ),
        Claim(
            "the number of heads changes it little",
            f"by a factor of {spread(over_heads)}",
            bool(over_heads.max() < 2 and over_heads.max() < over_dimensions.min() / 4),
        ),
    ]


def draw(results: Sequence[Result]) -> Figure:
    """A curve for each number of heads."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    rank = values(results, "rank")
    for i, heads in enumerate(HEADS):
        color = str(0.75 - 0.22 * i)
        label = f"{heads} head{'s' * (heads > 1)}"
        draw_curve(axes, DIMENSIONS, rank[:, i], color, marker="o", ms=3, label=label)
    axes.set(xlabel="input dimension", ylabel="temporal rank")
    log_axis(axes, DIMENSIONS)
    axes.legend(frameon=False, fontsize=8)
    return figure


FIGURE = Experiment("figure10", "Figure 10: attention heads", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
