"""Probes of models of which each process has a part, and of the same models whole."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from ntk_monitor.descent import descent_of
from ntk_monitor.model import linearize
from ntk_monitor.probe import Probe
from ntk_monitor.processes import ALONE, Processes
from ranks.data_parallel import CASES, COMPARED, NIGHTLY, by_samples_alone, draw, mlp, numbers, part

SHARDED = (
    "mlp",
    "classes",
    "gru",
    "wide core",
    "long",
    "transformer",
    "words",
    "modes only",
    "core only",
)


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Some submodules by themselves, the others with the whole."""
    for child in list(module.children())[::2]:
        fully_shard(child, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().double()


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def state_of(module: nn.Module) -> list[Any]:
    """Everything that a probe must leave as it was, this process's part."""
    with torch.no_grad():
        return [
            (name, type(p).__name__, local(p).tolist(), None if p.grad is None else id(p.grad))
            for name, p in module.named_parameters()
        ]


def compare(processes: Processes, mesh: DeviceMesh) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SHARDED if processes.size == 2 else ("mlp", "gru"):
        make, draw_batch, settings = CASES[name]
        batch = tuple(t.double() if t.is_floating_point() else t for t in draw_batch())
        probe = Probe(**COMPARED | settings)
        module = shard(made(make), mesh)
        before = state_of(module)
        together = numbers(probe, module, part(batch, processes), processes)
        assert state_of(module) == before
        alone = None
        if processes.index == 0:
            probe = Probe(method="in-place", **COMPARED | settings)
            alone = numbers(probe, made(make), batch)
        found[f"{name}, in-place"] = {"together": together, "alone": alone}
    return found


def tensor_parallel(world: Processes) -> dict[str, Any]:
    """Processes with the same batch that have parts of each layer, and pairs of such."""
    pairs = world.size // 2
    names = ("data_parallel", "tensor_parallel")
    mesh = init_device_mesh("cpu", (pairs, 2), mesh_dim_names=names)
    processes = world.within(mesh["data_parallel"].get_group())

    def make() -> nn.Module:
        layers = [nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)]
        return nn.Sequential(*layers)

    module = made(make)
    plan: Any = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(module, mesh["tensor_parallel"], plan)
    if pairs > 1:
        shard(module, mesh["data_parallel"])
    batch = draw(13, 3).double(), draw(13, 4).double()
    settings: Any = {"state": "2", **COMPARED}
    before = state_of(module)
    together = numbers(Probe(**settings), module, part(batch, processes), processes)
    assert state_of(module) == before
    try:
        Probe(**{**settings, "state": "0"})(module, part(batch, processes), processes=processes)
        together["in parts"] = "nothing"
    except ValueError as error:
        together["in parts"] = str(error)
    alone = None
    if world.index == 0:
        alone = numbers(Probe(method="in-place", **settings), made(make), batch)
    return {"together": together, "alone": alone}


def training(processes: Processes, mesh: DeviceMesh) -> dict[str, Any]:
    """Weights after training with probes and without, and gradients of errors."""
    batch = draw(12, 3).double(), draw(12, 4).double()
    x, y = part(batch, processes)
    found: dict[str, Any] = {}
    for watched in (False, True):
        module = shard(made(mlp), mesh)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for step in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(module(x), y).backward()
            if watched and step == 2:  # between the backward pass and the step
                descent = descent_of([optimizer], module)
                probe = Probe(max_products=40, dtype=None)
                found["remarks"] = probe(
                    module, (x, y), descent=descent, processes=processes
                ).remarks
            optimizer.step()
        found["watched" if watched else "plain"] = [local(p).tolist() for p in module.parameters()]
    module = shard(made(mlp), mesh)
    for factor in (None, 3.0):
        for part_of in module.modules():
            if factor is not None and isinstance(part_of, FSDPModule):
                part_of.set_gradient_divide_factor(factor)
        for alike in (False, True):  # as where all processes have the same batch
            inputs, several = (batch[0][:2], processes.within(None)) if alike else (x, processes)
            lin = linearize(module, inputs, dtype=torch.float64, processes=several)
            errors = [(0, torch.ones(len(inputs), 1, 4, dtype=torch.float64))]
            pulled = next(iter(lin.pull_back_outputs(errors)))
            found[f"divided by {factor}, alike {alike}"] = [sum(pulled[1].values())]
    for watched in (False, True):  # two batches make up a step, and a probe comes between them
        module = shard(made(mlp), mesh)
        for i, half in enumerate((slice(None, None, 2), slice(1, None, 2))):
            module.set_requires_gradient_sync(i == 1)  # type: ignore[operator]
            nn.functional.mse_loss(module(x[half]), y[half]).backward()
            if watched and i == 0:
                Probe(max_products=40, dtype=None)(module, (x, y), processes=processes)
        grads = [local(p.grad).tolist() for p in module.parameters() if p.grad is not None]
        found["watched gradients" if watched else "gradients"] = grads
    return found


def failures(processes: Processes, mesh: DeviceMesh) -> dict[str, Any]:
    """What each process raises where one fails between calls of the model, or asks in vain."""
    found: dict[str, Any] = {}
    last = processes.index == processes.size - 1
    batch = part((draw(12, 3), draw(12, 4)), processes)
    torch.manual_seed(3)
    module = shard(mlp(), mesh)

    def attempt(name: str, **settings: Any) -> None:
        try:
            Probe(max_products=60, **settings)(module, batch, processes=processes)
            found[name] = "nothing"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    def target(batch: Any) -> Tensor:
        if last:
            raise OSError("no luck today")
        return batch[1]

    before = state_of(module)
    attempt("target", target_fn=target)
    attempt("method", method="forward-ad")
    attempt("exact", method="exact")
    attempt("arithmetic", dtype=torch.float64)
    attempt("seeds", seed=int(last))
    attempt("alone")
    found["unchanged"] = state_of(module) == before
    return found


def main(folder: Path) -> None:
    by_samples_alone()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes = Processes(dist.group.WORLD)
    mesh = init_device_mesh("cpu", (processes.size,))
    found = {
        "compare": compare(processes, mesh),
        "tensor parallel": tensor_parallel(processes),
    }
    if processes.size == 2 or NIGHTLY:  # more of them do the same
        found |= {"training": training(processes, mesh), "failures": failures(processes, mesh)}
    assert ALONE.size == 1
    (folder / f"{processes.index}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
