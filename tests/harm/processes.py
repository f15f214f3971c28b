"""Trainings in two processes with gloo, one after the other; each process writes what it saw.

Run by test_processes.py, twice at once; the last argument is the folder to write to.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from harm.worlds import B, Dropout, Module, N, T, loader
from ntk_monitor import Monitor, NTKMonitor, StallAlert
from ntk_monitor.model.parameters.pieces import local
from ntk_monitor.monitor import StallWarning
from ntk_monitor.monitor.schedule import NONE
from ntk_monitor.probe import Probe

RANK = int(os.environ.get("LOCAL_RANK", "0"))
SETTINGS: dict[str, Any] = {"max_products": 16, "modes": 1, "tolerance": 1.0}
FAST: dict[str, Any] = {**SETTINGS, "max_overhead": None, "figures": False}
DEAR: dict[str, Any] = {"max_overhead": 1e-9, "max_overhead_seconds": 0.0}
LINEARIZE = Probe._linearize


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no luck today")


class Ears(Callback):
    """Notes what listeners are told: the trace, or -1 of a probe that goes less far."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, float]] = []

    def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
        trace = snapshot.trace
        self.heard.append((step, trace.value if trace.is_finite else -1.0))


class Sharded(Module):
    """Its recurrent layer and its readout are sharded one by one."""

    def configure_model(self) -> None:
        if self.body is None:
            super().configure_model()
            for part in (self.body, self.readout):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


class Gathers(Module):
    """Compares with the mean over all processes, by Lightning's own means."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("mean", loss, sync_dist=True)
        return loss + 0 * self.all_gather(loss).mean()


class Reduces(Module):
    """The same by torch's."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        return loss + 0 * total


class Synchronises(Module):
    """Logs what all processes have."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("mean", loss, sync_dist=True)
        return loss


STEPS = {"gathers": Gathers, "reduces": Reduces, "synchronises": Synchronises}


def run(
    name: str,
    folder: Path,
    callbacks: list[Any],
    *,
    sharded: bool = False,
    kind: type[Module] = Module,
    clip: float | None = None,
) -> dict[str, Any]:
    ears = Ears()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = Trainer(
        strategy=strategy if sharded else "ddp",
        devices=2,
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(folder, name),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        log_every_n_steps=2,
        gradient_clip_val=clip,
        callbacks=[*callbacks, ears],
    )
    torch.manual_seed(1)
    module = Sharded("dropout") if sharded else kind("dropout")
    error = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(module, loader(8), loader(2, shuffle=False))
        except RuntimeError as found:
            error = str(found)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if "/" in k}
    return {
        "weights": [local(p).double().sum().item() for p in module.parameters()],
        "losses": [float(loss) for loss in module.losses],
        "seen": module.seen,
        "metrics": metrics,
        "heard": ears.heard,
        "steps": trainer.global_step,
        "warnings": [str(w.message) for w in caught if str(w.message).startswith("NTKMonitor")],
        "alerts": sum(isinstance(w.message, StallWarning) for w in caught),
        "failures": sum(c.failures.count for c in callbacks if isinstance(c, NTKMonitor)),
        "error": error,
    }


def loop(*, watched: bool, cut: bool = False) -> dict[str, Any]:
    """A loop of one's own, as under torchrun; cut in two, with a state that the first wrote."""
    torch.manual_seed(0)
    model = DistributedDataParallel(Dropout())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(RANK)
    batches = [torch.randn(B, T, N, generator=generator) for _ in range(4)]
    torch.manual_seed(1)
    heard: list[tuple[int, float]] = []

    def monitor_of() -> Monitor:
        return Monitor(2, on_probe=lambda shot, i: heard.append((i, shot.trace.value)), **FAST)

    monitor = monitor_of()
    with contextlib.ExitStack() as stack:
        if watched:
            batch = (batches[0], batches[0])
            stack.enter_context(monitor.attach(model, optimizer, batch=batch, total_steps=4))
        for i, x in enumerate(batches):
            if cut and i == 3:
                state = [monitor.state_dict()]
                torch.distributed.broadcast_object_list(state)
                stack.close()
                monitor = monitor_of()
                monitor.load_state_dict(state[0])
                stack.enter_context(monitor.attach(model, optimizer, total_steps=4))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if watched:
                monitor.step()
    weights = [p.double().sum().item() for p in model.parameters()]
    return {"weights": weights, "heard": heard, "random": torch.rand(1).item()}


def only_in(rank: int) -> None:
    """Have probes fail in one process; in none if it is -1."""
    Probe._linearize = broken if rank == RANK else LINEARIZE  # type: ignore[method-assign]


def too_dear_in(rank: int) -> NTKMonitor:
    """A monitor that could not pay for a second probe in one of the processes."""
    monitor = NTKMonitor(2, **FAST)
    choose = monitor.schedule.choose

    def choice(step: int, *args: Any, **settings: Any) -> int:
        return NONE if rank == RANK and step else choose(step, *args, **settings)

    monitor.schedule.choose = choice  # type: ignore[method-assign]
    return monitor


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {"plain": run("plain", folder, [])}
    watching = NTKMonitor(2, **FAST | {"figures": True})
    found["watched"] = run("watched", folder, [watching, StallAlert(1)])
    batches = watching.state_dict()["batches"]
    found["watched"]["kept"] = [float(x.double().sum()) for x, _ in batches]
    found["watched"]["own"] = found["watched"]["seen"][0]
    found["val"] = run("val", folder, [NTKMonitor(2, probe_batch="val", **FAST)])
    found["dear"] = run("dear", folder, [NTKMonitor(2, **{**FAST, **DEAR})])
    found["planned"] = run(
        "planned", folder, [NTKMonitor(**SETTINGS, max_overhead_seconds=100, figures=False)]
    )
    for rank in (0, 1):
        found[f"dear in {rank}"] = run(f"dear{rank}", folder, [too_dear_in(rank)])
    stop = StallAlert(1, learned_threshold=1.0, level=0.999, horizon=100, actions=("stop",))
    found["stopped"] = run("stopped", folder, [NTKMonitor(1, **FAST), stop], clip=1e-12)
    one = next(iter(loader(1, shuffle=False)))
    found["same"] = run("same", folder, [NTKMonitor(2, probe_batch=one, **FAST)])
    torch.manual_seed(0)
    module = Module("dropout")
    module.configure_model()
    torch.manual_seed(1)
    found["same"]["alone"] = [Probe(**SETTINGS)(module, one, learning_rate=0.01).trace.value]
    found["plain sharded"] = run("plain_sharded", folder, [], sharded=True)
    watching = [NTKMonitor(2, **FAST), StallAlert(1)]
    found["sharded"] = run("sharded", folder, watching, sharded=True)
    found["sharded"]["method"] = watching[0].snapshot.method
    for name, kind in STEPS.items():
        watching = NTKMonitor(2, **FAST)
        found[name] = run(name, folder, [watching], kind=kind)
        found[f"plain {name}"] = run(f"plain_{name}", folder, [], kind=kind)
    found["loop"] = loop(watched=True)
    found["cut loop"] = loop(watched=True, cut=True)
    found["plain loop"] = loop(watched=False)
    for rank in (0, 1):
        only_in(rank)
        found[f"broken in {rank}"] = run(f"broken{rank}", folder, [NTKMonitor(2, **FAST)])
        apart = NTKMonitor(2, probe_batch=one, **FAST)
        found[f"broken apart in {rank}"] = run(f"apart{rank}", folder, [apart])
        raising = NTKMonitor(2, on_error="raise", **FAST)
        found[f"raised in {rank}"] = run(f"raised{rank}", folder, [raising])
    (folder / f"{RANK}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():  # a process that leaves early would abort the other one
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
