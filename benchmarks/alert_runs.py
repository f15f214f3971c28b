"""Short trainings of which it is known afterwards which target modes were learned.

Each of the kinds in `kinds.py` is probed some eighty times, on a fixed batch, and what the probes
say of the target modes is kept: the alert's rule, and others, can then be replayed on them
(`alerts.py`). The rule's settings were chosen on trainings with other seeds (from 0 on) than those
that are kept (from 100 on).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from kinds import KINDS, half, learned, make, train
from ntk_monitor.monitor.optimizers import learning_rate, preconditioner

from ntk_monitor.probe import Probe

RUNS = Path(__file__).parent / "results" / "alert_runs.json.gz"
PROBES = 80
SCENARIOS = KINDS


def record(name: str, seed: int) -> dict[str, Any]:
    """Train and probe.

    Returns:
        Steps, losses, and for each mode what every probe said.
    """
    torch.set_num_threads(1)
    training, kind = make(name, seed), KINDS[name]
    model, optimizer = training.model, training.optimizer
    probe = Probe(tier="modes", modes=training.modes, state=training.state)
    torch.manual_seed(seed)
    found: dict[str, Any] = {
        "scenario": name, "half": half(name), "group": kind.group, "cause": kind.cause,
        "seed": seed, "planned": training.steps, "noise": bool(training.unpredictable),
        "unpredictable": sorted(training.unpredictable), "stuck": sorted(training.stuck),
        "since": kind.since, "steps": [], "loss": [], "modes": [],
    }  # fmt: skip
    every = training.steps // PROBES
    losses = [math.nan]

    def look(step: int) -> None:
        if step % every:
            return
        snapshot = probe(
            model,
            training.evaluation,
            learning_rate=learning_rate([optimizer]),
            preconditioner=preconditioner([optimizer], model),
        )
        found["steps"].append(step)
        found["loss"].append(float(f"{losses[-1]:.5g}"))
        found["modes"].append([
            [
                float(f"{value:.5g}")
                for value in (
                    mode.learned,
                    mode.steps_to_learn or math.nan,
                    mode.preconditioned_steps_to_learn or math.nan,
                    mode.gain,
                    mode.core_overlap,
                )
            ]
            for mode in snapshot.target_modes
        ])

    train(training, before=look, stepped=lambda _, loss: losses.append(loss))
    return found | {"end": [float(f"{value:.4g}") for value in learned(training)]}


def _record(job: tuple[str, int]) -> dict[str, Any]:
    found = record(*job)
    ends = [f"{mode[0]:.2f}" for mode in found["modes"][-1]]
    print(f"{job[0]} {job[1]}: loss {found['loss'][-1]:.3g}, learned {', '.join(ends)}", flush=True)
    return found


def jobs(only: str, first: int) -> Iterator[tuple[str, int]]:
    """Every training whose scenario has a text in its name, with seeds from the first on."""
    for name, kind in KINDS.items():
        if only in name:
            yield from ((name, first + i) for i in range(kind.runs))


def main() -> None:
    """Record all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the scenarios' names")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--first-seed", type=int, default=100)
    arguments = parser.parse_args()
    with get_context("spawn").Pool(arguments.processes) as pool:
        found = pool.map(_record, list(jobs(arguments.only, arguments.first_seed)), chunksize=1)
    kept = json.loads(gzip.decompress(RUNS.read_bytes())) if RUNS.exists() else []
    new = {(run["scenario"], run["seed"]) for run in found}
    kept = [run for run in kept if (run["scenario"], run["seed"]) not in new]
    RUNS.write_bytes(gzip.compress(json.dumps([*kept, *found]).encode(), mtime=0))


if __name__ == "__main__":
    main()
