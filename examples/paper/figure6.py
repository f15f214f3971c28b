"""Figure 6: the input's dimension bottlenecks the NTK of a self-attention block in time.

Random normal inputs of several dimensions and batch sizes; dominant temporal modes for three
dimensions; and one-dimensional inputs behind Fourier features of several frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attention import STATE, AttentionBlock, look, normal
from experiment import Claim, Experiment, Result, draw_curve, log_axis, spread, values
from matplotlib.figure import Figure
from scipy.stats import spearmanr

DIMENSIONS = (1, 2, 5, 10, 20, 50, 100)
BATCHES = (5, 10, 15)
FREQUENCIES = (1, 2, 4, 8, 16)
SHOWN = (1, 10, 100)
SHOWN_BATCH = 10
MODES = 6
ALL = ("query", "key", "value", *STATE)


def constancy(mode: torch.Tensor) -> float:
    """Which share of a temporal mode (B, T) does not change over time."""
    return float(mode.shape[1] * mode.mean(1).square().sum() / mode.square().sum())


def measure(seed: int, full: bool) -> Result:
    """Temporal ranks over dimensions, batches and frequencies, and modes to draw."""
    steps, width, hidden = (50, 64, 128) if full else (20, 32, 32)
    columns = [3 * d + 2 * width + hidden for d in DIMENSIONS]
    found: Result = {"columns": columns, "rank": [], "core": [], "fourier": [], "first": {}}
    everything: Result = {"rank": [], "fourier": []}

    def model(inputs: int, fourier: int = 0) -> AttentionBlock:
        torch.manual_seed(seed)
        return AttentionBlock(inputs, width, hidden=hidden, fourier=fourier)

    for batch in BATCHES:
        row = [look(model(d), normal(seed, batch, steps, d)) for d in DIMENSIONS]
        found["rank"].append([s.temporal_effective_rank.value for s in row])
        found["core"].append([s.core_effective_rank for s in row])
        x = normal(seed, batch, steps, 1)
        found["fourier"].append([
            look(model(1, count), x).temporal_effective_rank.value for count in FREQUENCIES
        ])
        if batch == SHOWN_BATCH:
            shown = [(d, row[DIMENSIONS.index(d)]) for d in SHOWN]
    for dimension, snapshot in shown:
        share = snapshot.temporal_spectrum / (snapshot.trace.value / snapshot.state_shape[2])
        leading = {"share": float(share[0]), "constant": constancy(snapshot.temporal_modes[0])}
        found["first"][str(dimension)] = leading
        if seed == 0:
            weighted = share[:MODES, None, None].sqrt() * snapshot.temporal_modes[:MODES]
            leading["modes"] = weighted.tolist()
        x = normal(seed, SHOWN_BATCH, steps, dimension)
        whole = look(model(dimension), x, ALL)
        everything["rank"].append(whole.temporal_effective_rank.value)
        if dimension == 1:
            everything["constant"] = constancy(whole.temporal_modes[0])
    for count in (FREQUENCIES[0], FREQUENCIES[-1]):
        whole = look(model(1, count), normal(seed, SHOWN_BATCH, steps, 1), ALL)
        everything["fourier"].append(whole.temporal_effective_rank.value)
    return found | {"with queries, keys and values": everything}


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    rank, core, fourier = (values(results, name) for name in ("rank", "core", "fourier"))
    columns = values(results, "columns")[:, None]
    rises = [spearmanr(DIMENSIONS, row).statistic for seed in rank for row in seed]
    with_features = [spearmanr(FREQUENCIES, row).statistic for seed in fourier for row in seed]
    batches = rank[:, :, -1]
    one, hundred = (
        np.array([[r["first"][d]["share"], r["first"][d]["constant"]] for r in results])
        for d in ("1", "100")
    )
    everything = [r["with queries, keys and values"] for r in results]
    whole, features, constant = (values(everything, n) for n in ("rank", "fourier", "constant"))
    return [
        Claim(
            "B: temporal rank rises with the input's dimension",
            f"rank correlation {spread(rises)}",
            min(rises) > 0.9,
        ),
        Claim(
            "B: and with the batch",
            f"{spread(batches[:, 0])}, {spread(batches[:, 1])}, {spread(batches[:, 2])} for "
            f"batches of {BATCHES}, at 100 channels",
            bool((np.diff(batches, axis=1) > 0).all()),
        ),
        Claim(
            "B: the core bottlenecks it (A.5.3 bounds the core's rank by the columns of V)",
            f"{spread(rank / core)} times the core's effective rank, at most "
            f"{float((rank / columns).max()):.2g} of the columns",
            bool((rank < 2 * core).all() and (rank < columns).all()),
        ),
        Claim(
            "C: one channel has one dominant temporal mode, nearly constant; a hundred have many",
            f"the first mode has {spread(100 * one[:, 0])} % and {spread(100 * hundred[:, 0])} % "
            f"of the trace; of the former, {spread(100 * one[:, 1])} % is constant in time",
            bool(one[:, 0].min() > 0.7 and one[:, 1].min() > 0.8 and hundred[:, 0].max() < 0.1),
        ),
        Claim(
            "D: Fourier features raise the rank of a one-dimensional input's NTK",
            f"from {spread(fourier[..., 0])} to {spread(fourier[..., -1])}, rank correlation "
            f"{spread(with_features)}",
            bool(min(with_features) > 0.85 and (fourier[..., -1] > 2 * fourier[..., 0]).all()),
        ),
        Claim(
            "ours: B and D are so with queries, keys and values in the state, too",
            f"from {spread(whole[:, 0])} to {spread(whole[:, -1])} over channels, from "
            f"{spread(features[:, 0])} to {spread(features[:, -1])} over frequencies",
            bool((whole[:, -1] > 2 * whole[:, 0]).all())
            and bool((features[:, -1] > 2 * features[:, 0]).all()),
        ),
        Claim(
            "ours: C is not; the one mode is then the input's own time course",
            f"{spread(100 * constant)} % of it is constant in time",
            bool(constant.max() < 0.2),
        ),
    ]


def draw(results: Sequence[Result]) -> Figure:
    """Panels B, C and D."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    left, right = top.subplots(1, 2)
    for axes, name, at in ((left, "rank", DIMENSIONS), (right, "fourier", FREQUENCIES)):
        rank = values(results, name)
        for i, (batch, color) in enumerate(zip(BATCHES, ("0.7", "0.45", "0.1"), strict=True)):
            label = f"batch {batch}"
            draw_curve(axes, at, rank[:, i], color, marker="o", ms=3, label=label)
        axes.set_ylabel("temporal rank")
        log_axis(axes, at)
    left.set(title="B  input dimension", xlabel="input channels")
    right.set(title="D  Fourier features of one channel", xlabel="frequencies")
    left.legend(frameon=False, fontsize=8)
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    for axes, dimension in zip(bottom.subplots(1, 3, sharey=True), SHOWN, strict=True):
        modes = results[0]["first"][str(dimension)]["modes"]
        for mode, color in zip(modes, colors, strict=False):
            axes.plot(np.array(mode).T, color=color, lw=0.5, alpha=0.6)
        plural = "s" * (dimension > 1)
        axes.set_title(f"C  modes for {dimension} channel{plural}", fontsize=9)
        axes.set_xlabel("time step", fontsize=8)
    return figure


FIGURE = Experiment("figure6", "Figure 6: input dimension of attention", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
