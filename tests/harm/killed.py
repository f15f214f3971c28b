"""Trainings that are killed at every stage of a probe, and what is found afterwards.

Run by test_faults.py in a process of its own, because it forks; prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harm.worlds import World, train
from ntk_monitor import NTKMonitor, Snapshot
from ntk_monitor.model.derivatives.forward_map import ForwardMap
from ntk_monitor.model.derivatives.jacobian import ParameterJacobian
from ntk_monitor.monitor.reporting.reporter import Reporter
from ntk_monitor.monitor.tracked_state import TrackedState

STAGES: dict[str, tuple[Any, str]] = {
    "forward pass": (ForwardMap, "record"),
    "product": (ParameterJacobian, "pulls_apart"),
    "metrics": (TrackedState, "scalars"),
    "numbers": (Reporter, "scalars"),
    "figures": (Reporter, "figures"),
    "snapshot": (np, "savez_compressed"),
}


class Keep(Callback):
    """Saves every snapshot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_probe(self, trainer: Any, pl_module: Any, snapshot: Snapshot, step: int) -> None:
        snapshot.save(self.folder / "snapshots" / f"{step}.npz")


def run(
    folder: Path, ckpt: Path | None = None, *, figures: bool = False
) -> tuple[Any, Any, NTKMonitor]:
    settings: dict[str, Any] = {
        "max_products": 16,
        "modes": 1,
        "tolerance": 1.0,
        "max_overhead": None,
    }
    monitor = NTKMonitor(3, figures=figures, **settings)
    every_step = ModelCheckpoint(
        folder / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1
    )
    world = World(
        {"enable_checkpointing": True}, loggers=lambda path: TensorBoardLogger(path, "tb")
    )
    callbacks = [monitor, Keep(folder), every_step]
    return *train("dropout", world, callbacks, folder, ckpt_path=ckpt), monitor


def kill(stage: str, folder: Path) -> bool:
    """Train in another process, which ends at once in the third probe."""
    child = os.fork()
    if child == 0:
        owner, name = STAGES[stage]
        honest, calls = getattr(owner, name), []

        def deadly(*args: Any, **kwargs: Any) -> Any:
            step = max((int(p.stem) for p in (folder / "snapshots").glob("[0-9]*.npz")), default=0)
            calls.append(step)
            if step >= 3:
                if stage == "snapshot":
                    args[0].write(b"half")
                    args[0].flush()
                os._exit(9)
            return honest(*args, **kwargs)

        setattr(owner, name, deadly)
        run(folder, figures=stage == "figures")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def examine(stage: str, folder: Path) -> dict[str, bool]:
    killed = kill(stage, folder)
    steps = sorted(int(p.stem) for p in (folder / "snapshots").glob("[0-9]*.npz"))
    loaded = [Snapshot.load(folder / "snapshots" / f"{step}.npz") for step in steps]
    log = next((folder / "tb").rglob("events*"))
    events = EventAccumulator(str(log)).Reload()
    numbers = (
        [e.value for e in events.Scalars("loss")] if "loss" in events.Tags()["scalars"] else []
    )
    last = max((folder / "checkpoints").glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]))
    trainer, _, monitor = run(folder, last)
    return {
        "killed": killed,
        "snapshots": steps == [0, 3] and all(s.is_finite for s in loaded),
        "events": all(np.isfinite(numbers)),
        "resumed": trainer.global_step == 12 and monitor.snapshot is not None,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        found = {s: examine(s, folder / s.replace(" ", "_")) for s in STAGES}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
