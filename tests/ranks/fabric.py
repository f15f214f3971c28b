"""A loop with Fabric whose model is sharded, watched and not; its first probe by one process."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ntk_monitor import Monitor
from ntk_monitor.model.parameters.pieces import local
from ntk_monitor.probe import Probe
from ntk_monitor.processes import Processes
from ranks.data_parallel import by_samples_alone, draw, part
from ranks.sharded import made, shard

SETTINGS: dict[str, Any] = {"dtype": None, "modes": 2, "max_products": 48}


def net() -> nn.Module:
    layers = [nn.Linear(3, 9), nn.Tanh(), nn.Dropout(0.3), nn.Linear(9, 8), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(8, 4))


def parallelize(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return shard(module, mesh["data_parallel"])


def train(fabric: Fabric, *, watched: bool) -> dict[str, Any]:
    """Five steps of Adam."""
    model = fabric.setup_module(made(net))
    optimizer = fabric.setup_optimizers(torch.optim.Adam(model.parameters(), lr=0.01))
    every = draw(13, 3).double(), draw(13, 4).double()
    batch = part(every, Processes(dist.group.WORLD))
    heard: list[Any] = []

    def hear(snapshot: Any, step: int) -> None:
        scalars = snapshot.scalars()
        del scalars["ntk/probe_seconds"]
        heard.append((step, snapshot.method, scalars))

    def steps(monitor: Monitor | None) -> None:
        for _ in range(5):
            optimizer.zero_grad()
            fabric.backward(nn.functional.mse_loss(model(batch[0]), batch[1]))
            optimizer.step()
            if monitor is not None:
                monitor.step()

    torch.manual_seed(1)
    if watched:
        monitor = Monitor(2, on_probe=hear, on_error="raise", max_overhead=None, **SETTINGS)
        with monitor.attach(model, optimizer, batch=batch, total_steps=5, fabric=fabric):
            steps(monitor)
    else:
        steps(None)
    return {
        "heard": heard,
        "weights": [local(p).tolist() for p in model.parameters()],
        "sharded": all(isinstance(p, DTensor) for p in model.parameters()),
        "random": torch.rand(2).tolist(),
    }


def main(folder: Path) -> None:
    by_samples_alone()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    strategy = ModelParallelStrategy(parallelize, data_parallel_size=2, tensor_parallel_size=1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    found: dict[str, Any] = {
        "watched": train(fabric, watched=True),
        "plain": train(fabric, watched=False),
    }
    if fabric.is_global_zero:
        batch = draw(13, 3).double(), draw(13, 4).double()
        probe = Probe(method="in-place", learning_rate=0.01, **SETTINGS)
        snapshot = probe(made(net), batch)
        found["alone"] = snapshot.scalars()
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
