"""Figure 9: input dimension moves the temporal rank of attention, width the spatial and total."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attention import AttentionBlock, look, normal
from experiment import Claim, Experiment, Result, spread, values
from matplotlib.figure import Figure
from scipy.stats import spearmanr

DIMENSIONS = (1, 4, 16, 64)
WIDTHS = (8, 16, 32, 64, 128)
VIEWS = {"temporal": "temporal_effective_rank", "spatial": "spatial_effective_rank"}
VIEWS["total"] = "effective_rank"


def measure(seed: int, full: bool) -> Result:
    """Ranks for every dimension and width."""
    steps, hidden = (50, 128) if full else (20, 32)
    found: Result = {}
    grid = []
    for dimension in DIMENSIONS:
        row = []
        for width in WIDTHS:
            torch.manual_seed(seed)
            model = AttentionBlock(dimension, width, hidden=hidden)
            row.append(look(model, normal(seed, 10, steps, dimension)))
        grid.append(row)
    for view, name in VIEWS.items():
        found[view] = [[getattr(s, name).value for s in row] for row in grid]
    return found


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    temporal = values(results, "temporal")
    by_dimension = temporal[:, -1, -1] / temporal[:, 0, -1]
    by_width = (temporal.max(2) / temporal.min(2))[:, -1]
    found = [
        Claim(
            "temporal rank grows primarily with the input's dimension",
            f"by {spread(by_dimension)} over dimensions, by {spread(by_width)} over widths",
            min(by_dimension) > 3 * max(by_width),
        )
    ]
    for view in ("spatial", "total"):
        processes = values(results, view)
        rises = [spearmanr(WIDTHS, seed[-1]).statistic for seed in processes]
        few, many = (processes[:, row, -1] / processes[:, row, 0] for row in (0, -1))
        found.append(
            Claim(
                f"{view} rank grows strongly with the attention's width, at {DIMENSIONS[-1]} "
                "channels",
                f"by {spread(many)}, rank correlation {spread(rises)}; for one channel by "
                f"{spread(few)}",
                many.min() > 2 and min(rises) > 0.9,
            )
        )
    return found


def draw(results: Sequence[Result]) -> Figure:
    """A map for each view, means over seeds."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, view in zip(figure.subplots(1, 3), VIEWS, strict=True):
        processes = values(results, view).mean(0)
        image = axes.imshow(processes, origin="lower", cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(WIDTHS)), [str(w) for w in WIDTHS])
        axes.set_yticks(range(len(DIMENSIONS)), [str(d) for d in DIMENSIONS])
        axes.set(title=f"{view} rank", xlabel="attention width", ylabel="input dimension")
        for i, row in enumerate(processes):
            for j, rank in enumerate(row):
                light = rank < 0.6 * processes.max()
                text = f"{rank:.3g}" if rank < 1000 else f"{rank / 1000:.2g}k"
                axes.text(j, i, text, ha="center", va="center", color="w" if light else "k", size=8)
        figure.colorbar(image, ax=axes)
    return figure


FIGURE = Experiment("figure9", "Figure 9: input dimension and width", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
