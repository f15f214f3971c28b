"""Figure 6: the input's dimension bottlenecks the NTK of a self-attention block in time.

Random normal inputs of several dimensions and batch sizes; dominant temporal modes for three
dimensions; and one-dimensional inputs behind Fourier features of several frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attention import STATE, AttentionBlock, look
from experiment import Claim, Experiment, Result, spread, values
from matplotlib.figure import Figure
from scipy.stats import spearmanr

DIMENSIONS = (1, 2, 5, 10, 20, 50, 100)
BATCHES = (5, 10, 15)
FREQUENCIES = (1, 2, 4, 8, 16)
SHOWN = (1, 10, 100)
MODES = 6


def constancy(mode: torch.Tensor) -> float:
    """Which share of a temporal mode (B, T) does not change over time."""
    return float(mode.shape[1] * mode.mean(1).square().sum() / mode.square().sum())


def measure(seed: int, full: bool) -> Result:
    """Temporal ranks over dimensions, batches and frequencies, bounds, and modes to draw."""
    steps, width, hidden = (50, 64, 128) if full else (20, 32, 32)
    rank, core, bound = [], [], []
    modes: dict[str, Result] = {}
    first: dict[str, list[float]] = {}
    for batch in BATCHES:
        row = []
        for dimension in DIMENSIONS:
            torch.manual_seed(seed)
            model = AttentionBlock(dimension, width, hidden=hidden)
            row.append(look(model, torch.randn(batch, steps, dimension)))
            share = row[-1].temporal_spectrum / (row[-1].trace.value / row[-1].state_shape[2])
            if batch == 10 and dimension in SHOWN:
                leading = row[-1].temporal_modes[0]
                first[str(dimension)] = [float(share[0]), constancy(leading)]
            if batch == 10 and dimension in SHOWN and seed == 0:
                modes[str(dimension)] = {
                    "share": share[:MODES].tolist(),
                    "modes": row[-1].temporal_modes[:MODES].tolist(),
                }
        rank.append([s.temporal_effective_rank.value for s in row])
        core.append([s.core_effective_rank for s in row])
        bound.append([min(batch * steps, 3 * d + width + 2 * hidden) for d in DIMENSIONS])
    torch.manual_seed(seed)
    model = AttentionBlock(1, width, hidden=hidden)
    leading = look(model, torch.randn(10, steps, 1), ("query", "key", "value", *STATE))
    whole = constancy(leading.temporal_modes[0])
    fourier, embedded = [], []
    for count in FREQUENCIES:
        torch.manual_seed(seed)
        model = AttentionBlock(1, width, hidden=hidden, fourier=count)
        x = torch.randn(10, steps, 1)
        fourier.append(look(model, x).temporal_effective_rank.value)
        spectrum = torch.linalg.svdvals(model.embed(x).flatten(0, 1).double()).square()
        embedded.append(float(spectrum.sum() ** 2 / spectrum.square().sum()))
    found: Result = {"rank": rank, "core": core, "bound": bound, "fourier": fourier, "first": first}
    found |= {"embedded": embedded, "first of all layers is constant": whole}
    return found | ({"modes": modes} if modes else {})


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    rank, core, bound = (values(results, name) for name in ("rank", "core", "bound"))
    rises = [spearmanr(DIMENSIONS, row).statistic for seed in rank for row in seed]
    batches = rank[:, :, -1]
    fourier, embedded = values(results, "fourier"), values(results, "embedded")
    with_features = [spearmanr(FREQUENCIES, row).statistic for row in fourier]
    whole = values(results, "first of all layers is constant")
    one, hundred = (np.array([r["first"][d] for r in results]) for d in ("1", "100"))
    return [
        Claim(
            "temporal rank rises with the input's dimension",
            f"rank correlation {spread(rises)}",
            min(rises) > 0.9,
        ),
        Claim(
            "and with the batch, at 100 dimensions",
            f"{spread(batches[:, 0])}, {spread(batches[:, 1])}, {spread(batches[:, 2])} for "
            f"batches of {BATCHES}",
            bool((np.diff(batches, axis=1) > 0).all()),
        ),
        Claim(
            "it is bounded by the columns of V (A.5.3)",
            f"at most {float((rank / bound).max()):.2g} of the bound; "
            f"{spread(rank / core)} times the core's effective rank",
            bool((rank <= bound).all()),
        ),
        Claim(
            "one dimension has one dominant temporal mode, nearly constant; a hundred have many",
            f"the first mode has {spread(100 * one[:, 0])} % and {spread(100 * hundred[:, 0])} % "
            f"of the trace; of the former, {spread(100 * one[:, 1])} % is constant in time",
            bool(one[:, 0].min() > 0.7 and one[:, 1].min() > 0.8 and hundred[:, 0].max() < 0.1),
        ),
        Claim(
            "ours: with queries, keys and values in the state, it is the input's own time course",
            f"{spread(100 * whole)} % of it is constant in time",
            bool(whole.max() < 0.2),
        ),
        Claim(
            "Fourier features raise the rank of a one-dimensional input's NTK",
            f"rank correlation {spread(with_features)}; from {spread(fourier[:, 0])} to "
            f"{spread(fourier[:, -1])}, the embedded input's own from {spread(embedded[:, 0])} to "
            f"{spread(embedded[:, -1])}",
            min(with_features) > 0.85 and bool((fourier[:, -1] > 4 * fourier[:, 0]).all()),
        ),
    ]


def draw(results: Sequence[Result]) -> Figure:
    """Panels B, C and D."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    left, right = top.subplots(1, 2)
    rank, fourier = values(results, "rank"), values(results, "fourier")
    for i, (batch, color) in enumerate(zip(BATCHES, ("0.7", "0.45", "0.1"), strict=True)):
        left.plot(DIMENSIONS, rank[:, i].mean(0), "o-", ms=3, color=color, label=f"batch {batch}")
        low, high = rank[:, i].min(0), rank[:, i].max(0)
        left.fill_between(DIMENSIONS, low, high, color=color, alpha=0.2, lw=0)
    left.set(xscale="log", title="input dimension", xlabel="input channels", ylabel="temporal rank")
    left.legend(frameon=False, fontsize=8)
    right.plot(FREQUENCIES, fourier.mean(0), "o-", ms=3, color="#D55E00")
    low, high = fourier.min(0), fourier.max(0)
    right.fill_between(FREQUENCIES, low, high, color="#D55E00", alpha=0.2, lw=0)
    right.set(xscale="log", title="Fourier features of one channel", xlabel="frequencies")
    for axes, at in ((left, DIMENSIONS), (right, FREQUENCIES)):
        axes.set_xticks(at, at)
        axes.minorticks_off()
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    for axes, dimension in zip(bottom.subplots(1, 3, sharey=True), SHOWN, strict=True):
        found = results[0]["modes"][str(dimension)]
        for share, mode, color in zip(found["share"], found["modes"], colors, strict=False):
            axes.plot(np.sqrt(share) * np.array(mode).T, color=color, lw=0.5, alpha=0.6)
        axes.set_title(f"modes for {dimension} channel{'s' * (dimension > 1)}", fontsize=9)
        axes.set_xlabel("time step", fontsize=8)
    return figure


FIGURE = Experiment("figure6", "Figure 6: input dimension of attention", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
