"""Figure 3: the core is the NTK's bottleneck in time, on a GRU that learns Memory-Pro.

The parameters under study are the weights: the paper's ``V`` has the hidden state and the input,
and no column of ones for biases. What biases change is measured, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from experiment import Claim, Experiment, Result, draw_curve, spread, values
from matplotlib.figure import Figure
from memory_pro import RESPONSE, evaluation, train

from ntk_monitor import Snapshot, linearize, probe
from ntk_monitor.models import GRURegression

WEIGHTS = "*.weight_*"
SHOWN = 4
"""Temporal modes that are drawn."""
COLORS = {"core": "#D55E00", "NTK": "#0072B2", "P": "0.5"}
SPANNED = 6
"""Temporal modes in whose span the targets of panel E are looked for."""


def measure(seed: int, full: bool) -> Result:
    """Network 1 at initialisation, then its cosines while SGD trains it."""
    units, steps, every = (256, 1000, 50) if full else (64, 200, 100)
    torch.manual_seed(seed)
    model = GRURegression(hidden_size=units)
    start, biased = (
        # A spectrum has no standard error that a tolerance would look at.
        probe(model, evaluation(), parameters=which, tolerance=0.0, max_products=192)
        for which in (WEIGHTS, None)
    )
    P = propagator_spectrum(model, seed)
    curves = {"NTK": kernel_shares(start), "core": shares(start.core_spectrum), "P": shares(P)}
    modes = start.temporal_modes[:SPANNED].double()
    seen = modes[:, :, RESPONSE:].square().sum((1, 2))
    inside = {name: float((modes * y).sum((1, 2)).square().sum()) for name, y in targets().items()}
    gap = curves["NTK"][:SPANNED] - curves["core"][:SPANNED]
    snapshots, losses = train(model, steps, seed, every, parameters=WEIGHTS)
    found: Result = {
        "k95": {name: count(curve) for name, curve in curves.items()},
        "k95 with biases": [count(kernel_shares(biased)), count(shares(biased.core_spectrum))],
        "curves": {name: thinned(curve) for name, curve in curves.items()},
        "above the core by": [float(gap.min()), float(gap.max())],
        "rows": start.state_shape[0] * start.state_shape[1],
        "energy in the response": seen[:3].tolist(),
        "inside": inside,
        "steps": [step for step, _ in snapshots],
        "cosine": [[s.core_cosine.value, s.core_cosine.stderr] for _, s in snapshots],
        "temporal": [
            [s.temporal_core_cosine.value, s.temporal_core_cosine.stderr] for _, s in snapshots
        ],
        "loss": np.array(losses).reshape(-1, 10).mean(1).tolist(),
    }
    if seed == 0:
        weights = np.sqrt(np.diff(curves["NTK"], prepend=0))
        found["modes"] = [
            (mode * weight).tolist() for mode, weight in zip(modes[:SHOWN], weights, strict=False)
        ]
    return found


def shares(spectrum: torch.Tensor, trace: float | None = None) -> np.ndarray:
    """Cumulative share of the trace, which is that of the spectrum unless this is cut off."""
    curve = spectrum.double().cumsum(0)
    found: np.ndarray = (curve / (curve[-1] if trace is None else trace)).numpy()
    return found


def kernel_shares(snapshot: Snapshot) -> np.ndarray:
    """The same of the temporal view; its trace is the kernel's over the number of units."""
    return shares(snapshot.temporal_spectrum, snapshot.trace.value / snapshot.state_shape[2])


def count(curve: np.ndarray, share: float = 0.95) -> int:
    """How many leading modes have that share of the trace."""
    return int(np.searchsorted(curve, share)) + 1


def thinned(curve: np.ndarray) -> list[list[float]]:
    """Ranks and shares, at ranks that are even on a logarithmic axis."""
    processes = np.unique(np.geomspace(1, len(curve), 40).round().astype(int))
    return [processes.tolist(), curve[processes - 1].tolist()]


def propagator_spectrum(model: GRURegression, seed: int, samples: int = 64) -> torch.Tensor:
    """The spectrum of ``tr_n(P P*) / n``, sampled trial by trial, since no trial acts on another.

    Returns:
        All eigenvalues, descending. Random vectors give each trial's (T x T) block as a mean over
        samples and units.
    """
    P = linearize(model, evaluation(), state="network.rnn").propagator
    generator = torch.Generator().manual_seed(seed)
    Y = torch.cat([
        P.matmat(torch.randn(16, *P.shape_in, generator=generator, dtype=P.dtype))
        for _ in range(samples // 16)
    ]).double()
    blocks = torch.einsum("sbtn,sbun->btu", Y, Y) / (samples * Y.shape[-1])
    spectrum: torch.Tensor = torch.linalg.eigvalsh(blocks).flatten().sort(descending=True).values
    return spectrum


def targets() -> dict[str, torch.Tensor]:
    """Two targets of one dimension, of norm 1: seen now, or asked for later."""
    stimulus, response = evaluation()[0][..., 0], evaluation()[1][..., 0]
    return {"aligned": stimulus / stimulus.norm(), "misaligned": response / response.norm()}


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the caption says."""
    k95 = {name: np.array([r["k95"][name] for r in results]) for name in COLORS}
    rows, biased = values(results, "rows"), values(results, "k95 with biases")
    above = values(results, "above the core by")
    temporal, full = (values(results, name)[:, :, 0] for name in ("temporal", "cosine"))
    response = values(results, "energy in the response")
    aligned, other = (
        np.array([r["inside"][name] for r in results]) for name in ("aligned", "misaligned")
    )
    return [
        Claim(
            "the core predicts the NTK throughout training",
            f"cosine {spread(full)}",
            bool(full.min() > 0.7),
        ),
        Claim(
            "ours: what it misses is how the kernel is spread over units, not when it acts",
            f"temporal cosine {spread(temporal)}",
            bool(temporal.min() > 0.95),
        ),
        Claim(
            "the core has 95 % of its variance in about 3 modes",
            f"{spread(k95['core'])} modes",
            bool((k95["core"] == 3).all()),
        ),
        Claim(
            "the NTK needs no more modes than the core",
            f"{spread(k95['NTK'])} modes",
            bool((k95["NTK"] <= k95["core"]).all()),
        ),
        Claim(
            "the NTK's cumulative variance lies strictly above the core's",
            f"by {spread(above)} over the first {SPANNED} modes",
            bool((above > 0).all()),
            "The two curves coincide to about one per cent, little more than the sampling error of "
            "the NTK's shares: on this network neither is more concentrated.",
        ),
        Claim(
            "P is nearly of full rank",
            f"{spread(k95['P'])} of {int(rows[0])} modes",
            bool((k95["P"] > 0.7 * rows).all()),
        ),
        Claim(
            "the leading NTK modes drop to zero in the response period",
            f"{spread(100 * response)} % of the energy of each of the first three",
            bool(response.max() < 0.05),
        ),
        Claim(
            "a target in the stimulus is well explained by them, one in the response is not",
            f"{spread(100 * aligned)} % against {spread(100 * other)} % in the span of {SPANNED} "
            "modes",
            bool(aligned.min() > 0.9 and other.max() < 0.01),
        ),
        Claim(
            "ours: biases are a column of ones in V, and add a mode",
            f"{spread(biased)} modes of NTK and core",
            bool((biased == 4).all()),
        ),
    ]


def draw(results: Sequence[Result]) -> Figure:
    """Panels B to E."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 2)
    steps = results[0]["steps"]
    for name, label, color in (
        ("temporal", "in time", "#0072B2"),
        ("cosine", "in time and over units", "0.5"),
    ):
        curve = values(results, name)[:, :, 0]
        draw_curve(panels[0, 0], steps, curve, color, label=label)
    panels[0, 0].set(title="B  cosine of NTK and core", xlabel="SGD step", ylim=(0, 1.02))
    panels[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    for name, color in COLORS.items():
        for result in results:
            processes, curve = result["curves"][name]
            label = name if result is results[0] else None
            style = "--" if name == "NTK" else "-"
            panels[0, 1].plot(processes, curve, color=color, lw=1.2, ls=style, label=label)
    panels[0, 1].axhline(0.95, color="0.8", lw=0.8, zorder=0)
    panels[0, 1].set(xscale="log", title="C  cumulative variance", xlabel="temporal modes")
    panels[0, 1].legend(frameon=False, fontsize=8, loc="lower right")
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    for mode, color in zip(results[0]["modes"], colors, strict=False):
        panels[1, 0].plot(np.array(mode).T, color=color, lw=0.6, alpha=0.7)
    panels[1, 0].axvspan(RESPONSE, 90, color="0.93", zorder=0)
    panels[1, 0].set(title="D  dominant temporal modes of the NTK", xlabel="time step")
    for (name, y), color, shift in zip(
        targets().items(), ("#009E73", "#D55E00"), (2.5, 0.0), strict=True
    ):
        panels[1, 1].plot(shift + (y / y.abs().max()).T, color=color, lw=0.6)
        share = np.mean([r["inside"][name] for r in results])
        panels[1, 1].text(89, shift + 1.1, f"{name}: {share:.0%} explained", ha="right", fontsize=8)
    panels[1, 1].axvspan(RESPONSE, 90, color="0.93", zorder=0)
    panels[1, 1].set(title="E  two targets", xlabel="time step", yticks=[], ylim=(-1.3, 4.2))
    return figure


FIGURE = Experiment("figure3", "Figure 3: the core bottlenecks the NTK", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
