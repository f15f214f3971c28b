"""Bare callbacks on trainings that certainly stall: when the alert speaks, and what it costs.

Each is trained for so many steps with ``Monitor(alert=StallAlert())``, nothing else set. Kept are
the step of the first alert (a stall, or a mode that is unpredictable) over all steps; how many
probes there were; the seconds they took, over what the limit allows: the larger of 2 % of the whole
time and 10 seconds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from kinds import Training, make
from results import save
from torch import nn

from ntk_monitor import Monitor, StallAlert

STALLS: dict[str, int] = {
    "clipped to nothing, MLP": 500,
    "learning rate too small, Adam": 800,
    "dead ReLUs": 1000,
    "decay, digits, SGD": 1000,
    "frozen zero readout": 1500,
    "saturated tanh, digits": 2000,
    "saturated attention": 2000,
    "clipped to nothing, recall": 2000,
    "saturated sigmoid, bits": 4000,
    "learning rate too small, MLP": 8000,
    "dead ReLUs, digits": 16000,
    "frozen body, digits": 30000,
}
"""Kinds of `kinds.py`, and for how many steps."""


def step_with(training: Training) -> Callable[[], Any]:
    """One optimizer step; returns the batch."""
    model, optimizer = training.model, training.optimizer

    def step() -> Any:  # noqa: ANN401
        x, y = training.batch()
        optimizer.zero_grad()
        training.loss(model(x), y).backward()
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        return x, y

    return step


def loss_of(training: Training, module: nn.Module, batch: Any) -> Any:  # noqa: ANN401
    """The loss as the training has it."""
    return training.loss(module(batch[0]), batch[1])


def run(name: str, steps: int) -> dict[str, Any]:
    """Train one, with bare callbacks."""
    training = make(name, 100)
    alerts: list[Any] = []
    alert = StallAlert(actions=(), on_alert=alerts.append)
    monitor = Monitor(alert=alert)
    step = step_with(training)
    begun = time.perf_counter()
    with monitor.attach(
        training.model,
        training.optimizer,
        loss_fn=partial(loss_of, training),
        clip_norm=training.clip_norm,
        total_steps=steps,
    ):
        for _ in range(steps):
            monitor.step(step())
    seconds = time.perf_counter() - begun
    told = [a for a in alerts if a.kind in {"stalled", "unpredictable"}]
    limit = max(0.02 * seconds, 10.0)
    return {
        "kind": name,
        "steps": steps,
        "probes": monitor.schedule.probes,
        "first": told[0].step / steps if told else None,
        "kinds": sorted({a.kind for a in told}),
        "reasons": sorted({a.reason for a in told if a.reason}),
        "states": list(alert.states.values()),
        "seconds": round(seconds, 1),
        "spent": round(monitor.schedule.spent, 2),
        "of_limit": round(monitor.schedule.spent / limit, 2),
    }


def main() -> None:
    """Train all, print and keep what came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the names")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name, steps in STALLS.items():
        if arguments.only in name:
            rows.append(run(name, steps))
            print(rows[-1], flush=True)
    if not arguments.only:
        save("bare", {"rows": rows})


if __name__ == "__main__":
    main()
