"""Accuracy against products: the adaptive engine and plain sampling against dense truth.

For each workload the dense Jacobian gives the truth; then many probes with different seeds give the
error that a user would see, the products that were spent, and how often the stated 95 % interval
holds the truth.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from typing import Any

import torch
from results import save
from workloads import ACCURACY, Workload

from ntk_monitor import Snapshot, probe
from ntk_monitor.estimators.kernel import adaptive
from ntk_monitor.model.derivatives import trial_gradients

METRICS = (
    "trace",
    "effective_rank",
    "temporal_effective_rank",
    "spatial_effective_rank",
    "core_cosine",
)


def main() -> None:
    """Measure every workload and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--workloads", nargs="*", default=list(ACCURACY))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.workloads:
        work = ACCURACY[name]()
        truth = measure(work, method="exact", dtype=torch.float64)
        exact = {metric: getattr(truth, metric).value for metric in METRICS}
        for label, settings in {
            "tolerance 5 %": {"tolerance": 0.05, "max_products": 250},
            "tolerance 2 %": {"tolerance": 0.02, "max_products": 400},
            "32 products": {"tolerance": 0.0, "max_products": 32},
            "32 products, plain": {"tolerance": 0.0, "max_products": 32, "plain": True},
        }.items():
            found = [measure(work, seed=seed, **settings) for seed in range(arguments.repeats)]
            row = {"workload": name, "setting": label, "exact": exact} | summary(found, exact)
            rows.append(row)
            print(json.dumps({k: v for k, v in row.items() if k != "exact"}), flush=True)
    save("accuracy", {"repeats": arguments.repeats, "rows": rows})


def measure(work: Workload, *, plain: bool = False, **settings: Any) -> Snapshot:  # noqa: ANN401
    """One probe without target modes; ``plain`` is by samples alone, nothing taken out of them."""
    before = adaptive.DIRECTIONS, trial_gradients.FEWEST_GROUPS
    if plain:
        adaptive.DIRECTIONS, trial_gradients.FEWEST_GROUPS = 0, 10**6
    try:
        return probe(work.model, work.batch, state=work.state, modes=0, **settings)
    finally:
        adaptive.DIRECTIONS, trial_gradients.FEWEST_GROUPS = before


def summary(found: list[Snapshot], exact: dict[str, float]) -> dict[str, Any]:
    """Root mean squared relative error and coverage of each metric, and mean products."""
    errors, coverage = {}, {}
    for metric, truth in exact.items():
        estimates = [getattr(snapshot, metric) for snapshot in found]
        gaps = [estimate.value / truth - 1 for estimate in estimates]
        errors[metric] = math.sqrt(statistics.mean(gap**2 for gap in gaps))
        coverage[metric] = statistics.mean(
            low <= truth <= high for low, high in (estimate.interval() for estimate in estimates)
        )
    return {
        "rmse": errors,
        "coverage": coverage,
        "products": statistics.mean(snapshot.products for snapshot in found),
        "deflated": statistics.mean(snapshot.scheme == "deflated" for snapshot in found),
    }


if __name__ == "__main__":
    main()
