"""Run trainings without and with the bare callbacks, and say what came of it.

``PYTHONPATH=tests python -m outsiders.driver usual_losses darts`` prints one line of JSON for each
training of these modules. ``--only PATTERN`` chooses trainings by name, and ``--again`` has the
second run without the callbacks, too, which shows whether a training repeats itself at all.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import random
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.monitor.integrations.lightning.trainer import CallbackOfEither
from outsiders.training import Fitted, Training

LOGGERS = ("ntk_monitor", "lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")


class Listener(CallbackOfEither):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
        self.steps.append(step)


class Recording(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """Collect warnings and what is logged, from INFO up."""
    handler = Recording()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield handler.messages
        handler.messages += [str(warning.message) for warning in caught]
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def ends(fitted: Fitted) -> dict[str, Any]:
    """All that a training leaves behind: weights, optimizers, random states."""
    optimizers = fitted.trainer.optimizers
    return {
        "weights": frozen(fitted.module.state_dict()),
        "optimizers": [frozen(optimizer.state_dict()) for optimizer in optimizers],
        "torch": frozen(torch.get_rng_state()),
        "numpy": frozen(np.random.get_state()),
        "python": random.getstate(),
    }


def frozen(value: Any) -> Any:
    """The value, with bytes in the place of numbers, so that equal means equal bit for bit."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        plain = value.float() if value.dtype == torch.bfloat16 else value
        return (str(value.dtype), tuple(value.shape), plain.numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: frozen(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(entry) for entry in value]
    return value.hex() if isinstance(value, float) else repr(value)


def report(training: Training, *, again: bool = False, seconds: float = 10.0) -> dict[str, Any]:
    """Fit twice, and compare.

    Args:
        training: The training.
        again: Leave the callbacks out of the second run as well.
        seconds: That probes may take.

    Returns:
        What is printed.
    """
    line: dict[str, Any] = {"name": training.name, "library": training.library}
    started = time.perf_counter()
    try:
        with recorded() as usual_messages:
            before = ends(training.fit([]))
        middle = time.perf_counter()
        monitor, listener = NTKMonitor(max_overhead_seconds=seconds), Listener()
        callbacks = [] if again else [monitor, StallAlert(actions=()), listener]
        with recorded() as messages:
            fitted = training.fit(callbacks)
            after = ends(fitted)
        new = [message for message in dict.fromkeys(messages) if message not in usual_messages]
        differing = [key for key in before if before[key] != after[key]]
        line |= {"identical": not differing, "differing": differing}
        line["seconds"] = [middle - started, time.perf_counter() - middle]
        line["messages"] = new
        line["steps"] = fitted.trainer.global_step
        if not again:
            line |= seen(training, at_work(fitted, monitor), at_work(fitted, listener), new)
            line["copied"] = at_work(fitted, monitor) is not monitor
    except Exception as error:
        line["error"] = f"{type(error).__name__}: {error}"
        line["traceback"] = traceback.format_exc(limit=-4)
    return line


def at_work(fitted: Fitted, callback: Any) -> Any:
    """The callback, or the copy of it that a library gave to its Trainer."""
    of_kind = [c for c in fitted.trainer.callbacks if type(c) is type(callback)]
    return next(iter(of_kind), callback)


def seen(
    training: Training, monitor: NTKMonitor, listener: Listener, messages: list[str]
) -> dict[str, Any]:
    """What the monitor found, and whether that is what there is to find."""
    snapshot = monitor.snapshot
    found: dict[str, Any] = {
        "probes": len(listener.steps),
        "probe_steps": listener.steps,
        "failures": monitor.failures.count,
        "failure": first_failure(messages),
        "state": None,
        "state_shape": None,
        "state_expected": list(training.states),
        "state_ok": None,
        "target_modes": None,
        "modes_expected": training.modes,
        "modes_ok": None,
        "targets": training.targets,
    }
    if snapshot is not None:
        found["state"] = list(snapshot.state)
        found["state_shape"] = list(snapshot.state_shape)
        found["state_ok"] = accepts(training.states, snapshot.state)
        found["target_modes"] = [(m.singular_value, m.learned) for m in snapshot.target_modes]
        found["modes_ok"] = bool(snapshot.target_modes) == training.modes
        found["coverage"] = snapshot.coverage.fraction
        found["probe_seconds"] = snapshot.seconds
    return found


def first_failure(messages: list[str]) -> str | None:
    """The error of the first probe that failed, without its traceback."""
    failed = next((message for message in messages if "a probe failed" in message), None)
    if failed is None:
        return None
    errors = list(re.finditer(r"^[\w.]+(?:Error|Exception|Found)\b", failed, re.MULTILINE))
    return failed[errors[-1].start() if errors else 0 :].strip()


def accepts(patterns: tuple[str, ...], paths: tuple[str, ...]) -> bool:
    """Whether every path is one of a training's states."""
    matches = (any(fnmatchcase(path, pattern) for pattern in patterns) for path in paths)
    return bool(paths) and all(matches)


def trainings(name: str) -> tuple[Training, ...]:
    """Those of a module, which is named by itself or by its file."""
    return importlib.import_module(f"outsiders.{Path(name).stem}").TRAININGS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--only", default="*", metavar="PATTERN")
    parser.add_argument("--again", action="store_true")
    wanted = parser.parse_args()
    for file in wanted.files:
        for training in trainings(file):
            if fnmatchcase(training.name, wanted.only):
                with contextlib.redirect_stdout(sys.stderr):
                    line = report(training, again=wanted.again)
                sys.stdout.write(json.dumps({"file": Path(file).stem, **line}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
