"""How often stated intervals hold the truth, for every sampled number of a probe.

Ten models small enough for a dense Jacobian in float64 as the truth, each at initialisation or
after a training; 24, 48 and 96 products; a probe for each seed. `alignment` is a gain, which is no
sampled number, over ``||A||_F``: its interval is that of the norm.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import torch
from accuracy import METRICS as OTHERS
from accuracy import measure, summary
from forecast_trainings import make
from results import save
from workloads import ACCURACY, Workload

METRICS = (OTHERS[0], "frobenius_norm", *OTHERS[1:])
PRODUCTS = (24, 48, 96)
TRIALS = 8
"""Of a batch of those that are trained here."""


class Case(NamedTuple):
    """A model, a number of products, and what the stated intervals hold."""

    workload: str
    products: int
    deflated: float
    coverage: dict[str, float]


def trained(name: str, share: float) -> Callable[[], Workload]:
    """One of the trainings of `forecast_trainings`, after a part of its steps."""

    def found() -> Workload:
        training = make(name)
        for _ in range(round(share * training.steps)):
            training.step()
        x, y = training.evaluation
        return Workload(training.model.eval(), (x[:TRIALS], y[:TRIALS]), training.state)

    return found


MODELS: dict[str, Callable[[], Workload]] = ACCURACY | {
    "LSTM, classes": trained("LSTM, most frequent token: SGD, fresh", 0.0),
    "CNN": trained("CNN, bars: momentum, finite", 0.0),
    "CNN, trained": trained("CNN, bars: momentum, finite", 0.3),
    "transformer, trained": trained("transformer, backwards: momentum, fresh", 0.3),
    "MLP, trained": trained("MLP, smooth function: Adam, finite", 0.3),
}


def held(name: str, seeds: int) -> list[Case]:
    """What the intervals hold, for one model."""
    torch.set_num_threads(1)
    work = MODELS[name]()
    truth = measure(work, method="exact", dtype=torch.float64)
    exact = {metric: getattr(truth, metric).value for metric in METRICS}
    cases = []
    for products in PRODUCTS:
        found = [
            measure(work, seed=seed, tolerance=0.0, max_products=products) for seed in range(seeds)
        ]
        told = summary(found, exact)
        cases.append(Case(name, products, told["deflated"], told["coverage"]))
    for case in cases:
        print(_line(case), flush=True)
    return cases


def _line(case: Case) -> str:
    shares = "".join(f"{100 * case.coverage[metric]:>8.0f}" for metric in METRICS)
    return f"{case.workload:22}{case.products:>5}{100 * case.deflated:>8.0f} %{shares}"


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--only", default="", help="a part of the models' names")
    arguments = parser.parse_args()
    wanted = [name for name in MODELS if arguments.only in name]
    heads = "".join(f"{metric.replace('effective_rank', 'rank')[:13]:>15}" for metric in METRICS)
    print(f"share of intervals that hold the truth, %; columns:{heads}")
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        every = pool.map(partial(held, seeds=arguments.seeds), wanted, chunksize=1)
    cases = [case for found in every for case in found]
    means = {
        metric: sum(case.coverage[metric] for case in cases) / len(cases) for metric in METRICS
    }
    least = {metric: min(case.coverage[metric] for case in cases) for metric in METRICS}
    for metric in METRICS:
        print(
            f"{metric}: {100 * means[metric]:.0f} % on average, {100 * least[metric]:.0f} % least"
        )
    if len(wanted) == len(MODELS):
        rows = [case._asdict() for case in cases]
        save("intervals", {"seeds": arguments.seeds, "rows": rows, "means": means, "least": least})


if __name__ == "__main__":
    main()
