"""The estimators' own figure: error and time against dense truth, as products grow.

A GRU small enough for its dense Jacobian, at initialisation, when many directions carry the kernel,
and after training, when few do. Beside a probe stand two simpler estimates of the effective rank
from as many samples: a ratio of means over pairs, from which no direction is taken out, and the
plug-in ratio, the participation ratio of the samples' own covariance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from experiment import Claim, Experiment, Result, log_axis, spread
from matplotlib.figure import Figure
from memory_pro import evaluation
from torch import Tensor, nn

from ntk_monitor import Snapshot, linearize, probe
from ntk_monitor.models import GRURegression

PRODUCTS = (16, 32, 64, 128)
METRICS = {
    "trace": "#999999",
    "effective_rank": "#0072B2",
    "temporal_effective_rank": "#D55E00",
    "spatial_effective_rank": "#009E73",
    "core_cosine": "#CC79A7",
}
WHEN = ("initial", "trained")


def network(seed: int, units: int, when: str) -> GRURegression:
    """A GRU, at initialisation or after 500 steps of Adam on noisy trials."""
    torch.manual_seed(seed)
    model = GRURegression(hidden_size=units)
    if when == "trained":
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, y = (tensor.repeat(4, 1, 1) for tensor in evaluation())
        for _ in range(500):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x + 0.5 * torch.randn_like(x)), y).backward()
            optimizer.step()
    return model


def measure(seed: int, full: bool) -> Result:
    """Errors of many probes with different tangents, at every number of products."""
    units, repeats = (32, range(12)) if full else (16, range(4))
    batch = evaluation(8)
    found: Result = {}
    for when in WHEN:
        model = network(seed, units, when)
        truth = probe(model, batch, method="exact", modes=0, dtype=torch.float64)
        dense = [probe(model, batch, method="exact", modes=0).seconds for _ in range(3)]
        exact = {name: getattr(truth, name).value for name in METRICS}
        rows = [compare(model, batch, products, exact, repeats) for products in PRODUCTS]
        found[when] = {
            "exact": exact,
            "dense seconds": float(np.median(dense)),
            **{key: [row[key] for row in rows] for key in rows[0]},
            **simpler(model, batch, exact["effective_rank"], repeats),
        }
    return found


def compare(
    model: GRURegression,
    batch: tuple[Tensor, Tensor],
    products: int,
    exact: dict[str, float],
    seeds: Sequence[int],
) -> Result:
    """Root mean squared relative errors, and how often a 95 % interval holds the truth."""
    snapshots = [
        probe(model, batch, modes=0, tolerance=0.0, max_products=products, seed=seed)
        for seed in seeds
    ]
    return {
        "error": {name: rms(gaps(snapshots, name, exact)) for name in METRICS},
        "coverage": float(np.mean([covered(s, exact) for s in snapshots])),
        "seconds": float(np.median([s.seconds for s in snapshots])),
    }


def simpler(
    model: GRURegression, batch: tuple[Tensor, Tensor], rank: float, seeds: Sequence[int]
) -> Result:
    """Errors of two simpler estimates of the effective rank, from as many samples."""
    J = linearize(model, batch, state="network.rnn").jacobian
    errors: dict[str, list[list[float]]] = {"plain": [], "plug-in": []}
    for seed in seeds:
        g = torch.randn(PRODUCTS[-1], *J.shape_in, generator=torch.Generator().manual_seed(seed))
        Y = J.matmat(g).flatten(1).double()
        gram, sizes = (Y @ Y.T).square(), Y.square().sum(1)
        for name, pairs in (("plain", 1 - torch.eye(len(Y))), ("plug-in", torch.ones(len(Y), 1))):
            above, below = (torch.outer(sizes, sizes) * pairs, gram * pairs)
            errors[name].append([
                float(above[:s, :s].sum() / below[:s, :s].sum()) / rank - 1 for s in PRODUCTS
            ])
    return {name: [rms(at) for at in np.transpose(found)] for name, found in errors.items()}


def gaps(snapshots: Sequence[Snapshot], name: str, exact: dict[str, float]) -> list[float]:
    """Relative errors of one number."""
    return [getattr(snapshot, name).value / exact[name] - 1 for snapshot in snapshots]


def rms(errors: Sequence[float]) -> float:
    """Root of the mean of the squares."""
    return float(np.sqrt(np.mean(np.square(errors))))


def covered(snapshot: Snapshot, exact: dict[str, float]) -> float:
    """Which share of the numbers has the truth in its 95 % interval."""
    intervals = {name: getattr(snapshot, name).interval() for name in METRICS}
    return float(np.mean([low <= exact[name] <= high for name, (low, high) in intervals.items()]))


def curve(results: Sequence[Result], when: str, *keys: str) -> np.ndarray:
    """One number at every budget, the seeds first."""
    found = []
    for result in results:
        column = result[when][keys[0]]
        found.append([row[keys[1]] for row in column] if keys[1:] else column)
    return np.array(found, dtype=float)


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the figure says."""
    found = []
    at = PRODUCTS.index(64)
    for when in WHEN:
        errors = np.stack([curve(results, when, "error", name) for name in METRICS])
        found.append(
            Claim(
                f"{when}: 64 products give every number to 10 %, 128 to 5 %",
                f"errors {spread(100 * errors[..., at])} %, {spread(100 * errors[..., -1])} %",
                bool((errors[..., at] < 0.1).all() and (errors[..., -1] < 0.05).all()),
            )
        )
        cover = curve(results, when, "coverage").mean(0)
        found.append(
            Claim(
                f"{when}: the stated 95 % intervals hold the truth in nine cases of ten at least, "
                "at every number of products",
                f"in {', '.join(f'{share:.0%}' for share in cover)} for {PRODUCTS}",
                bool((cover > 0.9).all()),
            )
        )
    error, plain, plugged = (
        {when: curve(results, when, *keys)[:, at] for when in WHEN}
        for keys in (("error", "effective_rank"), ("plain",), ("plug-in",))
    )
    times = {when: plugged[when] / error[when] for when in WHEN}
    share = np.stack([relative_seconds(results, when)[:, at] for when in WHEN])
    return [
        *found,
        Claim(
            "trained: taking leading directions out makes the error smaller than plain sampling's",
            f"by {spread(plain['trained'] / error['trained'])} at 64 products",
            bool((plain["trained"] > 2 * error["trained"]).all()),
        ),
        Claim(
            "the plug-in ratio is further off than a probe's",
            f"by {spread(times['initial'])} initially, {spread(times['trained'])} after training, "
            "at 64 products",
            bool(min(times["initial"].min(), times["trained"].min()) > 2),
        ),
        Claim(
            "64 products take a fraction of the time of the dense kernel",
            f"{spread(100 * share)} % of it for 32 units on 8 trials of 90 steps",
            bool((share < 0.5).all()),
        ),
    ]


def relative_seconds(results: Sequence[Result], when: str) -> np.ndarray:
    """Seconds at every budget over those of the dense kernel."""
    dense = np.array([result[when]["dense seconds"] for result in results])
    return curve(results, when, "seconds") / dense[:, None]


def draw(results: Sequence[Result]) -> Figure:
    """Errors at both times, and seconds."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, when in ((left, "initial"), (middle, "trained")):
        for name, color in METRICS.items():
            errors = curve(results, when, "error", name)
            axes.plot(PRODUCTS, errors.mean(0), "o-", ms=3, color=color, label=name)
        for name, style in (("plain", "--"), ("plug-in", ":")):
            errors = curve(results, when, name)
            axes.plot(PRODUCTS, errors.mean(0), color="#0072B2", ls=style, label=name)
        axes.set(yscale="log", title=when, xlabel="products", ylim=(1e-4, 3))
        log_axis(axes, PRODUCTS)
    left.set_ylabel("relative error")
    left.legend(frameon=False, fontsize=7)
    for when, color in zip(WHEN, ("0.6", "0.1"), strict=True):
        seconds = relative_seconds(results, when)
        right.plot(PRODUCTS, seconds.mean(0), "o-", ms=3, color=color, label=when)
    right.axhline(1, color="0.8", lw=0.8, zorder=0)
    right.set(yscale="log", title="time, dense kernel = 1", xlabel="products")
    log_axis(right, PRODUCTS)
    right.legend(frameon=False, fontsize=8)
    return figure


FIGURE = Experiment("estimators", "The estimators against dense truth", measure, claims, draw)

if __name__ == "__main__":
    FIGURE.main()
