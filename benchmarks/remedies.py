"""Which remedies cure which stall, and whether short trials tell.

Trainings of `kinds.py` that stall, or whose rest is noise, are trained with each remedy, whole and
for the share that `try_remedies` takes; both are kept. How well the trials' order is that of whole
trainings, and what the rule of `try_remedies` says, is told from that, for the half of the kinds on
which the rule was chosen and for the other.
"""

from __future__ import annotations

import argparse
import gzip
import inspect
import json
import os
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from kinds import KINDS, half, make
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ntk_monitor.remedies import PlainTraining, Remedy, remedies
from ntk_monitor.remedies.search import LEAST_STEPS, SHARE
from ntk_monitor.remedies.trial import Job, Trial, run_trial

RUNS = Path(__file__).parent / "results" / "remedies.json.gz"


def plain(name: str, seed: int) -> PlainTraining:
    """A training of a kind, as trials take it."""
    training = make(name, seed)

    def loss_fn(module: nn.Module, batch: Any) -> Any:  # noqa: ANN401
        return training.loss(module(batch[0]), batch[1])

    optimizer, rate = training.optimizer, training.rate
    if isinstance(rate, LRScheduler) or len(optimizer.param_groups) > 1:
        made, scheduler = optimizer, rate
    else:
        accepted = inspect.signature(type(optimizer)).parameters
        settings = {k: v for k, v in optimizer.defaults.items() if k in accepted}
        made, scheduler = partial(type(optimizer), **settings), partial(by, rate)
    return PlainTraining(
        training.model, made, training.batch, training.steps, loss_fn, scheduler,
        training.clip_norm, training.accumulate,
    )  # fmt: skip


def by(rate: Any, optimizer: Optimizer) -> LRScheduler:  # noqa: ANN401
    """A schedule that multiplies the learning rate."""
    return LambdaLR(optimizer, rate)


def told(trial: Trial) -> dict[str, Any]:
    """What is kept of a trial."""
    return {
        "losses": {str(stage): [float(f"{x:.6g}") for x in v] for stage, v in trial.losses.items()},
        "learned": [[round(m.before, 4), round(m.after, 4)] for m in trial.modes],
        "steps": trial.steps, "ended": trial.ended, "seconds": round(trial.seconds, 2),
    }  # fmt: skip


def record(job: tuple[str, int, int]) -> dict[str, Any] | None:
    """Train one kind with one remedy, for a while and whole."""
    torch.set_num_threads(1)
    name, seed, number = job
    remedy = (Remedy(), *remedies())[number]
    monitor = {"tier": "modes", "plan": [1], "max_overhead": None, "figures": False}
    found = {}
    for what, share in (("trial", SHARE), ("whole", 1.0)):
        work = Job(
            partial(plain, name, seed), {}, remedy, share, LEAST_STEPS, monitor, None, seed
        )  # fmt: skip
        trial = run_trial(work)
        found[what] = told(trial)
        if not trial.losses:
            break
    kind = KINDS[name]
    planned = make(name, seed).steps
    print(name, seed, remedy.name, found["trial"]["ended"], flush=True)
    return {
        "kind": name, "half": half(name), "group": kind.group, "cause": kind.cause, "seed": seed,
        "remedy": remedy.name, "cost": remedy.cost, "planned": planned, **found,
    }  # fmt: skip


def jobs(only: str, groups: str, first: int, count: int) -> Iterator[tuple[str, int, int]]:
    """Every kind and remedy, seed by seed."""
    for seed in range(first, first + count):
        for name, kind in KINDS.items():
            if only in name and kind.group in groups:
                for number in range(1 + len(remedies())):
                    yield name, seed, number


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the kinds' names")
    parser.add_argument("--groups", default="stalled limited")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    names = [remedy.name for remedy in (Remedy(), *remedies())]
    there = {(run["kind"], run["seed"], run["remedy"]) for run in kept()}
    todo = jobs(arguments.only, arguments.groups, arguments.first_seed, arguments.seeds)
    left = [job for job in todo if (job[0], job[1], names[job[2]]) not in there]
    found = kept()
    with get_context("spawn").Pool(arguments.processes) as pool:
        for i, run in enumerate(pool.imap_unordered(record, left)):
            found.append(run)
            if i % 20 == 0 or i + 1 == len(left):
                RUNS.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))


def kept() -> list[dict[str, Any]]:
    """What is kept."""
    return json.loads(gzip.decompress(RUNS.read_bytes())) if RUNS.exists() else []


if __name__ == "__main__":
    main()
