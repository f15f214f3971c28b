"""Trainings on a GPU, with and without a monitor."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch.utils._pytree import tree_map_only

from harm.evidence import Witness, evidence
from harm.worlds import World, train
from ntk_monitor import NTKMonitor


def trained(kind: str, precision: str, path: Path, *, watched: bool) -> dict[str, Any]:
    """What a training leaves, on the CPU."""
    world = World({"accelerator": "gpu", "devices": 1, "precision": precision})
    monitor = NTKMonitor(
        4, max_products=16, modes=1, tolerance=1.0, max_overhead=None, on_error="raise"
    )
    lightning.seed_everything(0, verbose=False)
    witness = Witness()
    trainer, module = train(kind, world, [monitor, witness] if watched else [witness], path)
    if watched:
        assert monitor.snapshot is not None
        assert monitor.snapshot.is_finite
    found = {**evidence(trainer, module, witness), "cuda": torch.cuda.get_rng_state()}
    return tree_map_only(torch.Tensor, torch.Tensor.cpu, found)


def trained_apart(kind: str, precision: str, path: Path, *, watched: bool) -> dict[str, Any]:
    """The same in a process of its own."""
    found = path / f"{watched}.pickle"
    subprocess.run(
        [sys.executable, "-m", "harm.on_gpu", kind, precision, str(found), str(watched)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:2",  # else an LSTM does not repeat itself
        },
        check=True,
        timeout=120,
    )
    return pickle.loads(found.read_bytes())


if __name__ == "__main__":
    _, kind, precision, found, watched = sys.argv
    path = Path(found)
    path.write_bytes(pickle.dumps(trained(kind, precision, path.parent, watched=watched == "True")))
