"""Figure 5: gain and input rank bottleneck the NTK in time and in space.

A vanilla RNN whose recurrent weights are drawn with gain g, with random normal inputs of several
channels. Only the recurrent weights are trained (the core is that of the hidden state), or only the
input weights (the core is that of the input).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from experiment import Claim, Experiment, Result, draw_curve, spread, values
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import nn

from ntk_monitor import probe

GAINS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
CHANNELS = (1, 2, 4, 8, 16)
TRAINED = {"recurrent": "rnn.weight_hh_l0", "input": "rnn.weight_ih_l0"}


class Student(nn.Module):
    """``h' = tanh(W h + W_in x)``, with a linear readout."""

    def __init__(self, channels: int, units: int, gains: dict[str, float]) -> None:
        """Draw Xavier-normal weights, each with its gain."""
        super().__init__()
        self.rnn = nn.RNN(channels, units, bias=False, batch_first=True)
        self.readout = nn.Linear(units, 1, bias=False)
        nn.init.xavier_normal_(self.rnn.weight_hh_l0, gains["recurrent"])
        nn.init.xavier_normal_(self.rnn.weight_ih_l0, gains["input"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs at every step."""
        return self.readout(self.rnn(x)[0])


def measure(seed: int, full: bool) -> Result:
    """Temporal and spatial rank for every gain and number of channels, for both trainings."""
    units, trials, steps = (64, 16, 40) if full else (32, 8, 20)
    found: Result = {"gains": GAINS, "channels": CHANNELS}
    for what, weight in TRAINED.items():
        temporal, spatial = [], []
        for gain in GAINS:
            processes = []
            for channels in CHANNELS:
                torch.manual_seed(seed)
                model = Student(channels, units, {**dict.fromkeys(TRAINED, 1.0), what: gain})
                x = torch.randn(trials, steps, channels)
                processes.append(probe(model, x, state="rnn", parameters=weight, tolerance=0.05))
            temporal.append([r.temporal_effective_rank.value for r in processes])
            spatial.append([r.spatial_effective_rank.value for r in processes])
        found[f"{what} temporal"], found[f"{what} spatial"] = temporal, spatial
    return found


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    temporal, spatial = (values(results, f"recurrent {view}") for view in ("temporal", "spatial"))
    widest = temporal[:, :, -1]
    peak, first, last = widest.max(1), widest[:, 0], widest[:, -1]
    interior = (peak > 1.2 * first) & (peak > 1.2 * last)
    falls = [spearmanr(GAINS, s[:, -1]).statistic for s in spatial]
    by_channels = values(results, "input temporal")[:, GAINS.index(1.0)]
    rises = [spearmanr(CHANNELS, t).statistic for t in by_channels]
    other = values(results, "input spatial")[:, GAINS.index(1.0)]
    varies = other.max(1) / other.min(1)
    recurrent = spatial[:, :, -1].max(1) / spatial[:, :, -1].min(1)
    return [
        Claim(
            "recurrent weights trained: temporal rank rises with the gain, then falls",
            f"{spread(first)} at gain {GAINS[0]}, {spread(peak)} at its peak, {spread(last)} at "
            f"gain {GAINS[-1]}",
            bool(interior.all()),
        ),
        Claim(
            "recurrent weights trained: spatial rank falls with the gain",
            f"rank correlation {spread(falls)}",
            max(falls) < -0.8,
        ),
        Claim(
            "input weights trained: temporal rank grows with input rank",
            f"rank correlation {spread(rises)}",
            min(rises) > 0.9,
        ),
        Claim(
            "input weights trained: spatial rank varies little with input rank",
            f"by a factor of {spread(varies)}, against {spread(recurrent)} over gains",
            bool((varies < recurrent / 2).all()),
        ),
    ]


def draw(results: Sequence[Result]) -> Figure:
    """Panels B to E."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2)
    colors = [str(0.75 - 0.15 * i) for i in range(len(CHANNELS))]
    for row, what in zip(panels, TRAINED, strict=True):
        for axes, view in zip(row, ("temporal", "spatial"), strict=True):
            processes = values(results, f"{what} {view}")
            for i, channels in enumerate(CHANNELS):
                curve = processes[:, :, i]
                draw_curve(axes, GAINS, curve, colors[i], marker="o", ms=3, label=str(channels))
            axes.set_title(f"{what} weights trained: {view} rank", fontsize=10)
            axes.set_xlabel(f"gain of the {what} weights", fontsize=9)
            axes.set_ylim(bottom=0)
    panels[0, 0].legend(title="input channels", fontsize=8, title_fontsize=8, frameon=False)
    return figure


FIGURE = Experiment("figure5", "Figure 5: gain and input rank", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
