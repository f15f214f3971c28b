"""Short trainings of which it is known afterwards which target modes were learned.

Each of the kinds in `kinds.py` is probed some sixty times, as by default, on a fixed batch, and
what the probes say of the target modes is kept: the rule of the alert, and others, can then be
replayed (`alerts.py`). Settings are chosen on one half of the kinds, and reported on the other.
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
from kinds import KINDS, Training, half, learned, make, train
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ntk_monitor.descent import Clipping, Descent, Scheduled, descent_of, read_ahead
from ntk_monitor.monitor.score import Score
from ntk_monitor.probe import Probe
from ntk_monitor.snapshot import Snapshot, TargetMode

RUNS = Path(__file__).parent / "results" / "alert_runs.json.gz"
PROBES = 60
SCENARIOS = KINDS


def descent_at(training: Training, rates: list[float], step: int) -> Descent | None:
    """How a training steps from a step on."""
    optimizer, rate = training.optimizer, training.rate
    left = training.steps - step
    if isinstance(rate, LRScheduler):
        ahead = read_ahead([Scheduled(rate)], left + 1)
    else:
        factors = [rate(step + i) for i in range(left + 1)]
        groups = zip(optimizer.param_groups, rates, strict=True)
        ahead = {id(group): [full * f for f in factors] for group, full in groups}
    clipping = Clipping(norm=training.clip_norm)
    return descent_of([optimizer], training.model, rates=ahead, clipping=clipping)


def short(value: float) -> float:
    """A number in five digits."""
    return float(f"{value:.5g}")


def said(mode: TargetMode) -> dict[str, Any]:
    """What a probe says of a mode."""
    transfer = mode.transfer
    return {
        "learned": short(mode.learned),
        "steps": math.nan if mode.steps_to_learn is None else short(mode.steps_to_learn),
        "transfer": None if transfer is None else [short(transfer.value), short(transfer.stderr)],
        "rate": short(mode.rate),
        "gain": short(mode.gain),
        "core_overlap": short(mode.core_overlap),
        "readout": short(mode.readout),
        "steps_if": [[what, short(steps)] for what, steps in mode.steps_if],
        "rate_if": [[what, short(rate)] for what, rate in mode.rate_if],
    }


def record(name: str, seed: int) -> dict[str, Any]:
    """Train and probe.

    Returns:
        Steps, losses, and for each mode what every probe said.
    """
    torch.set_num_threads(1)
    training, kind = make(name, seed), KINDS[name]
    model, optimizer = training.model, training.optimizer

    def loss_fn(module: nn.Module, batch: Any) -> Any:  # noqa: ANN401
        return training.loss(module(batch[0]), batch[1])

    probe = Probe(tier="modes", modes=training.modes, state=training.state, loss_fn=loss_fn)
    torch.manual_seed(seed)
    another = training.batch()
    alike = all(torch.equal(a, b) for a, b in zip(another, training.evaluation, strict=True))
    rates = [group["lr"] for group in optimizer.param_groups]
    found: dict[str, Any] = {
        "scenario": name, "half": half(name), "group": kind.group, "cause": kind.cause,
        "loss_kind": kind.loss, "seed": seed, "planned": training.steps,
        "unpredictable": sorted(training.unpredictable), "stuck": sorted(training.stuck),
        "since": kind.since, "steps": [], "loss": [], "transfer": [], "idle": [],
        "headroom": [], "modes": [],
    }  # fmt: skip
    every = max(training.steps // PROBES, 1)
    losses, score = [math.nan], Score()

    def look(step: int) -> None:
        if step % every:
            return
        snapshot: Snapshot = probe(
            model,
            training.evaluation,
            descent=descent_at(training, rates, step),
            horizon=max(training.steps - step, 1),
            second=None if alike else training.batch(),
        )
        snapshot = score.kept(snapshot, step)
        found["steps"].append(step)
        found["loss"].append(short(losses[-1]))
        whole = snapshot.transfer
        transfer = None if whole is None else [short(whole.value), short(whole.stderr)]
        found["transfer"].append(transfer)
        found["idle"].append([short(snapshot.dead_units), short(snapshot.saturated_units)])
        instruments = snapshot.instruments
        headroom = math.nan if instruments is None else instruments.headroom
        found["headroom"].append(short(headroom))
        found["modes"].append([said(mode) for mode in snapshot.target_modes])

    train(training, before=look, stepped=lambda _, loss: losses.append(loss))
    return found | {"end": [short(value) for value in learned(training)]}


def _record(job: tuple[str, int]) -> dict[str, Any] | None:
    try:
        found = record(*job)
    except Exception as error:  # the others are not lost for it
        print(f"{job[0]} {job[1]}: failed: {error!r}", flush=True)
        return None
    ends = [f"{mode['learned']:.2f}" for mode in found["modes"][-1]]
    print(f"{job[0]} {job[1]}: loss {found['loss'][-1]:.3g}, learned {', '.join(ends)}", flush=True)
    return found


def jobs(only: str, which: str, first: int, count: int) -> Iterator[tuple[str, int]]:
    """Every training of a half whose scenario has a text in its name, with seeds from one on."""
    for i in range(count):
        for name in KINDS:
            if only in name and which in {"both", half(name)}:
                yield name, first + i


def main() -> None:
    """Record all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the scenarios' names")
    parser.add_argument("--half", choices=("choice", "report", "both"), default="both")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--missing", action="store_true", help="only what is not kept yet")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--first-seed", type=int, default=100)
    arguments = parser.parse_args()
    todo = list(jobs(arguments.only, arguments.half, arguments.first_seed, arguments.seeds))
    if arguments.missing:
        there = {(run["scenario"], run["seed"]) for run in kept()}
        todo = [job for job in todo if job not in there]
    with get_context("spawn").Pool(arguments.processes) as pool:
        for found in pool.imap_unordered(_record, todo):
            if found is not None:
                keep(found)


def keep(found: dict[str, Any]) -> None:
    """Keep a run, in the place of an earlier one."""
    same = {"scenario": found["scenario"], "seed": found["seed"]}
    others = [run for run in kept() if {key: run[key] for key in same} != same]
    RUNS.write_bytes(gzip.compress(json.dumps([*others, found]).encode(), mtime=0))


def kept() -> list[dict[str, Any]]:
    """The runs that are kept."""
    return json.loads(gzip.decompress(RUNS.read_bytes())) if RUNS.exists() else []


if __name__ == "__main__":
    main()
