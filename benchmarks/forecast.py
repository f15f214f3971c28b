"""What a forecast says, and what then happens.

The trainings of `forecast_trainings.py` are probed a few times, as a monitor would; what is said at
their beginning, and after 5 and 30 % of their steps, is kept, and it is recorded what then happens
to the loss and to the target's modes.
`forecast_scores.py` compares the two. What happened is told by a few lines of this file's own, in
the mode that a forecast speaks of: batch statistics as in training, no dropout.

`--stand-in` follows the tangent of the next step in place of asking a probe: a check of this file,
and what any forecast should beat.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from forecast_scores import FACTOR, STAYS, happened, horizons_around, matched, report
from forecast_trainings import Batch, Training, descend, make, names
from results import save
from torch import Tensor, nn
from torch.optim import Optimizer

from ntk_monitor.probe import Probe

RUNS = Path(__file__).parent / "results" / "forecast_runs.json.gz"
CHECKPOINTS = (0.0, 0.05, 0.3)
"""Shares of the training after which a forecast is compared with what then happens."""
BETWEEN = (0.01, 0.025, 0.1, 0.2)
"""Other shares at which the training is probed, so that a forecast knows how earlier ones fared."""
POINTS = 300
"""How often the modes are looked at in a training, besides the steps just after a forecast."""
SEEN = 2
"""Steps after which a monitor has seen that full batches are all the same."""
FAILED = {"loss": math.nan, "steps": [], "losses": [], "valid_for": 0.0, "modes": []}
"""What is kept of a forecast that fails."""
SMALL = 1e-5
"""Part of a step in which the rate of the modes is taken."""


def say(training: Training, model: nn.Module, optimizer: Optimizer, step: int) -> dict[str, Any]:
    """What a probe forecasts; all that this benchmark knows of the package.

    Args:
        training: The training; its probe is made at its first forecast, and kept in ``kept``,
            and so is the score of earlier forecasts.
        model: Its model.
        optimizer: Its optimizer.
        step: How many steps were made.

    Returns:
        ``loss``; the curve, as ``steps`` ahead with a loss each in ``losses``; ``valid_for`` steps;
        and ``modes``, each with ``sigma``, ``learned``, ``rate``, ``steps`` and ``band``.
    """
    from ntk_monitor.descent import (  # noqa: PLC0415
        Clipping,
        Scheduled,
        descent_of,
        read_ahead,
    )
    from ntk_monitor.monitor.score import Score  # noqa: PLC0415

    if "probe" not in training.kept:
        training.kept["probe"] = Probe(tier="modes", state=training.state, loss_fn=training.loss)
        training.kept["score"] = Score()
    remaining = training.steps - step
    schedulers = [] if training.scheduler is None else [Scheduled(training.scheduler)]
    descent = descent_of(
        [optimizer],
        model,
        rates=read_ahead(schedulers, remaining + 1),
        clipping=Clipping(norm=training.clip_norm),
    )
    second = training.second
    if training.data == "full" and step >= SEEN:
        second = training.evaluation
    snapshot = training.kept["probe"](
        model, training.evaluation, descent=descent, second=second, horizon=remaining
    )
    snapshot = training.kept["score"].kept(snapshot, step)
    forecast = snapshot.forecast
    return {
        "loss": float(snapshot.loss),
        "steps": torch.as_tensor(forecast.steps).tolist(),
        "losses": torch.as_tensor(forecast.loss).tolist(),
        "valid_for": float(forecast.valid_for),
        "modes": [
            {
                "sigma": float(mode.singular_value),
                "learned": float(mode.learned),
                "rate": float(mode.rate),
                "steps": _number(mode.steps_to_learn),
                "band": [_number(end) for end in mode.steps_band or (None, None)],
            }
            for mode in snapshot.target_modes
        ],
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def stand_in(
    training: Training, model: nn.Module, optimizer: Optimizer, step: int
) -> dict[str, Any]:
    """What the tangent of the next step forecasts; see `say`."""
    del model, optimizer
    modes = modes_of(training)
    now, rates = measure(training, modes), real_rates(training, modes)
    ahead = range(training.steps - step + 1)
    found = []
    for sigma, learned, (rate, _) in zip(modes.sigma, now.learned, rates["modes"], strict=False):
        steps = (0.9 - learned) / rate if rate > 0 else math.inf
        steps = 0.0 if learned >= 0.9 else steps
        band = [steps / 5, 5 * steps]
        mode = {"sigma": sigma, "learned": learned, "rate": rate, "steps": steps, "band": band}
        found.append(mode)
    slope = rates["loss"][0] / max(now.loss, 1e-30)
    return {
        "loss": now.loss,
        "steps": list(ahead),
        "losses": [now.loss * math.exp(min(slope * h, 50.0)) for h in ahead],
        "valid_for": 10.0,
        "modes": found[:3],
    }


class Modes(NamedTuple):
    """All modes of a target that has zero mean, largest first.

    Attributes:
        sigma: Singular values.
        patterns: Over rows, shape ``(m, rows)``, float64.
        directions: Over outputs, shape ``(m, o)``, float64.
    """

    sigma: list[float]
    patterns: Tensor
    directions: Tensor


def modes_of(training: Training) -> Modes:
    """The modes of the target of the evaluation batch.

    Of classes, the indicators less the frequencies; of values, what a singular value decomposition
    makes of them less each output's mean.

    Args:
        training: Whose.

    Returns:
        All that are not zero.
    """
    target = training.evaluation[1]
    if training.loss_kind == "CE":
        with torch.no_grad(), unchanged(training.model):
            outputs = training.model(training.evaluation[0]).shape[-1]
        indicators = nn.functional.one_hot(target.flatten(), outputs).double()
        centred = (indicators - indicators.mean(0)).T
        sigma, order = centred.norm(dim=1).sort(descending=True, stable=True)
        order = order[sigma > 1e-9]
        sigma = sigma[: len(order)]
        directions = torch.eye(outputs, dtype=torch.float64)[order]
        return Modes(sigma.tolist(), centred[order] / sigma[:, None], directions)
    values = target.flatten(0, -2).double()
    U, sigma, directions = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    count = int((sigma > 1e-6 * sigma[0]).sum())
    return Modes(sigma[:count].tolist(), U.T[:count], directions[:count])


class Measured(NamedTuple):
    """The evaluation batch after some steps.

    Attributes:
        loss: In the mode that a forecast speaks of.
        learned: Learned fractions of the modes, in that mode.
        training: The loss in training mode.
        evaluation: The loss in evaluation mode.
    """

    loss: float
    learned: list[float]
    training: float
    evaluation: float


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back buffers, the training mode and random states afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    mode = model.training
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            model.train(mode)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def measure(
    training: Training,
    modes: Modes,
    model: nn.Module | None = None,
    batch: Batch | None = None,
) -> Measured:
    """Loss and learned fractions, ``<link(y), e> / sigma``, of the model or a copy of it."""
    model = training.model if model is None else model
    x, y = training.evaluation if batch is None else batch
    batch_statistics = training.has(nn.BatchNorm2d)
    losses: dict[bool, float] = {}
    learned: list[float] = []
    changes = batch_statistics or training.has(nn.Dropout)
    for mode in (True, False) if changes else (batch_statistics,):
        with torch.no_grad(), unchanged(model):
            outputs = model.train(mode)(x)
            losses[mode] = float(training.loss(lambda _, y=outputs: y, (x, y)))
        if mode == batch_statistics:
            rows = outputs.flatten(0, -2).double()
            reached = rows.softmax(-1) if training.loss_kind == "CE" else rows
            sizes = ((modes.patterns @ reached) * modes.directions).sum(1)
            learned = (sizes / torch.tensor(modes.sigma, dtype=torch.float64)).tolist()
    told = losses[batch_statistics]
    return Measured(told, learned, losses.get(True, told), losses.get(False, told))


def real_rates(training: Training, modes: Modes) -> dict[str, Any]:
    """What the optimizer's next step on the evaluation batch does, in float64.

    Returns:
        ``modes``: for each, the slope along the step at its beginning, and what the whole step
        changes; ``loss`` likewise.
    """
    with unchanged(training.model):
        model, optimizer = copy.deepcopy((training.model, training.optimizer))
        model = model.double()
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and name != "step":
                    state[name] = value.double()
        batch = tuple(t.double() if t.is_floating_point() else t for t in training.evaluation)
        if not training.has(nn.BatchNorm2d):
            model.eval()  # no dropout
        before = [p.detach().clone() for p in model.parameters()]
        descend(training, model, optimizer, batch)
        after = [p.detach().clone() for p in model.parameters()]

        def part(share: float) -> Measured:
            with torch.no_grad():
                for p, start, end in zip(model.parameters(), before, after, strict=True):
                    p.copy_(start.lerp(end, share))
            return measure(training, modes, model, batch)

        none, whole, ahead, behind = (part(share) for share in (0.0, 1.0, SMALL, -SMALL))
    return {
        "modes": [
            [(a - b) / (2 * SMALL), w - n]
            for a, b, w, n in zip(
                ahead.learned, behind.learned, whole.learned, none.learned, strict=True
            )
        ],
        "loss": [(ahead.loss - behind.loss) / (2 * SMALL), whole.loss - none.loss],
    }


def record(name: str, *, tangent: bool = False) -> dict[str, Any]:
    """Train, forecast, and keep what happens.

    Args:
        name: Of the training.
        tangent: Whether `stand_in` speaks in place of the probe.

    Returns:
        Everything that `forecast_scores.py` looks at.
    """
    torch.set_num_threads(1)
    training = make(name)
    modes, speak = modes_of(training), stand_in if tangent else say
    steps = training.steps
    checkpoints = [round(share * steps) for share in CHECKPOINTS]
    between = {round(share * steps) for share in BETWEEN}
    watched = set(range(0, steps + 1, max(1, steps // POINTS))) | {steps}
    for step in checkpoints:
        watched.update(step + ahead for ahead in (*range(11), *horizons_around()))
    found: dict[str, Any] = {
        "name": name, "half": training.half, "loss_kind": training.loss_kind,
        "family": training.family, "data": training.data, "planned": steps,
        "sigma": modes.sigma, "steps": [], "loss": [], "training": [], "evaluation": [],
        "learned": [], "forecasts": [],
    }  # fmt: skip
    exact = training.data == "full" and not training.has(nn.Dropout)
    seconds = 0.0
    for step in range(steps + 1):
        if step in watched:
            now = measure(training, modes)
            found["steps"].append(step)
            for field, value in zip(
                ("loss", "training", "evaluation"),
                (now.loss, now.training, now.evaluation),
                strict=True,
            ):
                found[field].append(_short(value))
            found["learned"].append([_short(value) for value in now.learned])
        if step in between.difference(checkpoints):
            with suppress(Exception):  # kept where it is scored
                speak(training, training.model, training.optimizer, step)
        if step in checkpoints:
            begin = time.perf_counter()
            try:
                said = speak(training, training.model, training.optimizer, step)
            except Exception as error:  # a forecast that fails is one that is wrong
                said = FAILED | {"failed": f"{type(error).__name__}: {error}"}
            said["seconds"] = time.perf_counter() - begin
            real = real_rates(training, modes)["modes"] if exact else None
            found["forecasts"].append({"step": step, "said": said, "real": real})
        if step < steps:
            begin = time.perf_counter()
            training.step()
            seconds += time.perf_counter() - begin
    found["seconds"] = seconds
    go_on(training, modes, found)
    return found


def go_on(training: Training, modes: Modes, found: dict[str, Any]) -> None:
    """Train beyond the planned steps, to know what a forecast was wrong or right by.

    A mode that was forecast within the training and is not learned in it may be learned a little
    later: the forecast is right by a factor of 5 if so. Trainings whose rate has ended at zero are
    over.

    Args:
        training: After its planned steps.
        modes: Of its target.
        found: What is known of it; ``later`` and ``later learned`` are added.
    """
    found["later"], found["later learned"] = [], []
    if all(group["lr"] == 0 for group in training.optimizer.param_groups):
        return
    planned, waits = training.steps, []
    for forecast in found["forecasts"]:
        step, said = forecast["step"], forecast["said"]["modes"]
        now = found["learned"][found["steps"].index(step)]
        for mode, told in zip(matched(said, found["sigma"], now), said, strict=True):
            if mode >= 0 and now[mode] < 0.9 and told["steps"] <= planned - step:
                waits.append((mode, step, step + FACTOR * max(told["steps"], 1.0)))
    step = planned
    while any(step <= min(until, _settled(found, mode, since)) for mode, since, until in waits):
        for _ in range(max(1, planned // POINTS)):
            training.step()
            step += 1
        found["later"].append(step)
        found["later learned"].append([_short(v) for v in measure(training, modes).learned])


def _settled(found: dict[str, Any], mode: int, since: int) -> float:
    """The step at which it is known that a mode is learned."""
    return since + happened(found, mode, since) + STAYS * found["planned"]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _record(name: str, *, tangent: bool) -> dict[str, Any]:
    found = record(name, tangent=tangent)
    ends = ", ".join(f"{value:.2f}" for value in found["learned"][-1][:3])
    print(
        f"{found['half']} {name}: {found['seconds']:.1f} s, loss {found['loss'][0]:.3g} to "
        f"{found['loss'][-1]:.3g}, learned {ends}",
        flush=True,
    )
    return found


def main() -> None:
    """Record all trainings, print the tables and keep both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the trainings' names")
    parser.add_argument("--half", choices=("choice", "report"))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--worst", type=int, default=8, help="how many of each kind to list")
    parser.add_argument("--stand-in", action="store_true", help="the tangent; keeps nothing")
    parser.add_argument("--kept", action="store_true", help="score what was recorded before")
    arguments = parser.parse_args()
    wanted = [
        name
        for name, half, *_ in names()
        if arguments.only in name and arguments.half in {None, half}
    ]
    if arguments.kept:
        runs = [r for r in json.loads(gzip.decompress(RUNS.read_bytes())) if r["name"] in wanted]
    elif arguments.processes == 1:
        runs = [_record(name, tangent=arguments.stand_in) for name in wanted]
    else:
        with get_context("spawn").Pool(arguments.processes) as pool:
            runs = pool.map(partial(_record, tangent=arguments.stand_in), wanted, chunksize=1)
    found = report(runs, arguments.worst)
    if not arguments.stand_in and len(runs) == len(list(names())):
        RUNS.write_bytes(gzip.compress(json.dumps(runs).encode(), mtime=0))
        save("forecast", {"trainings": len(runs), **found})


if __name__ == "__main__":
    main()
