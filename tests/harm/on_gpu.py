"""Trainings on a GPU, with and without a monitor."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

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
    torch.cuda.manual_seed(0)
    witness = Witness()
    trainer, module = train(kind, world, [monitor, witness] if watched else [witness], path)
    if watched:
        assert monitor.snapshot is not None
        assert monitor.snapshot.is_finite
    found = {**evidence(trainer, module, witness), "cuda": torch.cuda.get_rng_state()}
    return tree_map_only(torch.Tensor, torch.Tensor.cpu, found)


def pickled(kind: str, precision: str, path: Path, *, watched: bool) -> bytes:
    """The same in bytes: shared memory would not outlive the process."""
    return pickle.dumps(trained(kind, precision, path, watched=watched))
