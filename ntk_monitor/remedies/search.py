"""Short trials of remedies, ranked by what they did."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ntk_monitor.checks import require
from ntk_monitor.model.isolation.quiet import random_states
from ntk_monitor.notices import say
from ntk_monitor.reason import Reason
from ntk_monitor.remedies.catalogue import remedies as known_remedies
from ntk_monitor.remedies.progress import Progress
from ntk_monitor.remedies.race import Race
from ntk_monitor.remedies.remedy import Remedy
from ntk_monitor.remedies.results import Trials
from ntk_monitor.remedies.trial import Job, Make, run_trial
from ntk_monitor.remedies.workers import Worker, can_travel, workers

SHARE = 0.08
"""Share of the planned steps that a trial takes; what its order of remedies is worth is measured by
``benchmarks/remedies.py``, see docs/performance.md."""
LEAST_STEPS = 30
"""Steps of a trial at least: how far a forecast is logged."""
NEWS = 0.1
"""Seconds between two looks at the processes."""
LATE = "the time limit was reached"


def try_remedies(
    model_factory: Make,
    datamodule: Any = None,  # noqa: ANN401
    *,
    trainer: dict[str, Any] | None = None,
    max_steps: int | None = None,
    held_out: Sequence[Any] | None = None,
    ckpt_path: str | os.PathLike[str] | None = None,
    remedies: Sequence[Remedy] | None = None,
    reason: Reason | None = None,
    share: float = SHARE,
    least_steps: int = LEAST_STEPS,
    max_cost: float = 1.0,
    time_limit: float | None = None,
    processes: int = 1,
    state: str = "auto",
    modes: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> Trials:
    r"""Train with each of some remedies for a short while, and rank them by what that did.

    A baseline and each remedy are trained for a share of the planned steps, from the beginning or
    from a checkpoint, on the same data in the same order, in processes of their own; the files of
    the training are not touched. Trials that are behind end early. They are ranked by the loss on
    batches that no trial trained on. The cost is at most that of ``max_cost`` whole trainings, and
    what processes take to start.

    Args:
        model_factory: Makes the training anew: returns a LightningModule, a `PlainTraining`, or a
            Trainer of the transformers library. One that cannot be sent to another process (a
            lambda, a function of a notebook) is tried in this one.
        datamodule: For a LightningModule: a LightningDataModule, or a loader of training batches; a
            copy of it is made for each trial.
        trainer: For a LightningModule: arguments of its Trainer.
        max_steps: Optimizer steps of the whole training, where neither the Trainer nor the data
            tell.
        held_out: Batches to judge on; by default of the validation data, else some of the
            training's, which no trial trains on.
        ckpt_path: A checkpoint to begin from; what changes initial weights is then left out.
        remedies: What to try; by default `ntk_monitor.remedies.remedies`.
        reason: Why the training stalls, as the alert says: what is for that comes first.
        share: Share of the planned steps that remain, for each trial.
        least_steps: Optimizer steps of a trial at least.
        max_cost: Most that all trials together may cost, in whole trainings.
        time_limit: Seconds after which what is known so far is the result; None for no limit.
        processes: Trials at a time.
        state: The state whose modes are followed, see `ntk_monitor.probe`.
        modes: How many target modes are followed.
        seed: Of models and data; the same for all trials.
        progress: Show a bar, where there is a terminal.

    Returns:
        The trials, best first. Ctrl-C ends them, with what is known so far.
    """
    require(callable(model_factory), "model_factory", "a function without arguments", model_factory)
    require(0 < share <= 1, "share", "a share above 0 and up to 1", share)
    require(least_steps >= 1, "least_steps", "at least 1", least_steps)
    require(max_cost > 0, "max_cost", "above 0, in whole trainings", max_cost)
    require(time_limit is None or time_limit > 0, "time_limit", "seconds, or None", time_limit)
    require(processes >= 1, "processes", "at least 1", processes)
    require(max_steps is None or max_steps >= 1, "max_steps", "at least 1, or None", max_steps)
    tried = known_remedies(reason) if remedies is None else tuple(remedies)
    good = all(isinstance(each, Remedy) for each in tried)
    require(good, "remedies", "a sequence of remedies, or None", remedies)
    base = Job(
        model_factory,
        {"data": datamodule, "trainer": trainer, "max_steps": max_steps, "held_out": held_out},
        Remedy(),
        share,
        least_steps,
        {
            "tier": "modes", "plan": [1], "max_overhead": None, "figures": False,
            "modes": modes, "state": state,
        },
        None if ckpt_path is None else str(ckpt_path),
        seed,
    )  # fmt: skip
    race = Race(base, tried, max_cost)
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    obstacle = can_travel(base)
    if obstacle:
        say(
            f"try_remedies: model_factory cannot be sent to another process ({obstacle}), so that "
            "trials are made in this one, one after the other: a function at the top of a module "
            "can"
        )
    with Progress(len(tried) + 1, progress) as bar:
        try:
            if obstacle:
                _here(race, bar, deadline)
            else:
                _elsewhere(race, bar, deadline, processes)
        except KeyboardInterrupt:
            race.stop("interrupted")
    return race.result


def _here(race: Race, bar: Progress, deadline: float) -> None:
    """Make all trials in this process."""
    for job in iter(race.next, None):
        bar.begin(job.remedy.name)
        with random_states(torch.nn.Identity()):
            own = replace(job, settings=copy.deepcopy(dict(job.settings)))
            found = run_trial(own, bar.moved)
        race.learn(job, found)
        bar.done(found)
        if time.monotonic() > deadline:
            race.stop(LATE)


def _elsewhere(race: Race, bar: Progress, deadline: float, processes: int) -> None:
    """Make all trials in other processes."""
    threads = max(torch.get_num_threads() // processes, 1)
    busy: dict[int, Worker] = {}
    with workers(threads) as worker:
        while time.monotonic() < deadline:
            for number in range(processes):
                job = race.next() if number not in busy else None
                if job is not None:
                    busy[number] = worker(number)
                    busy[number].start(job)
                    bar.begin(job.remedy.name)
            if not busy:
                return
            for number, each in list(busy.items()):
                found = each.result(NEWS / len(busy))
                bar.moved(each.done)
                if found is not None:
                    del busy[number]
                    race.learn(each.job, found)
                    bar.done(found)
    race.stop(LATE)
