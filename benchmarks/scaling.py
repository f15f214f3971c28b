"""What a product costs as models grow: time against forward passes, and bytes between processes.

Run with ``python benchmarks/scaling.py``; one thread, a language model like GPT-2 of several sizes.
With ``--device cuda`` on one GPU: products in place, of GPT-2 and of the largest like it that fits.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from results import save
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ntk_monitor import linearize
from ntk_monitor.estimators import Activities, CoreGram
from ntk_monitor.probe import Probe
from ntk_monitor.processes import Processes

SIZES = {  # layers, width, heads, vocabulary
    "0.9 M": (2, 128, 4, 4000),
    "7 M": (4, 256, 4, 16000),
    "30 M": (6, 512, 8, 22000),
    "100 M": (12, 768, 12, 20000),
}
GPU_SIZES = {  # GPT-2, its large and extra large form, and the shapes of GPT-3 and OPT
    "124 M": (12, 768, 12, 50257),
    "774 M": (36, 1280, 20, 50257),
    "1.6 B": (48, 1600, 25, 50257),
    "6.7 B": (32, 4096, 32, 50257),
    "13 B": (40, 5120, 40, 50257),
    "30 B": (48, 7168, 56, 50257),
}
LONGEST = 20.0
"""Seconds after which nothing is repeated once more."""
METHODS = ("finite-difference", "in-place")
PORT = "29547"


def model(shape: tuple[int, int, int, int], steps: int) -> nn.Module:
    """A language model of a shape, as it is initialised."""
    layers, width, heads, words = shape
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=words, n_positions=max(steps, 64),
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def tokens(words: int, trials: int, steps: int) -> dict[str, Tensor]:
    """A batch."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(words, (trials, steps), generator=generator)
    return {"input_ids": ids, "labels": ids.roll(-1, 1)}


def seconds(act: Callable[[], Any], repeats: int) -> float:
    """The median time of a call."""
    found = []
    for _ in range(repeats):
        started = now()
        act()
        found.append(now() - started)
    return statistics.median(found)


def now() -> float:
    """Seconds, once all that was asked of a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> int:
    """Most bytes of a GPU's memory that were in use since this was last asked."""
    if not torch.cuda.is_initialized():
        return 0
    found = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return found


def times(repeats: int, trials: int, steps: int) -> list[dict[str, Any]]:
    """Seconds of forward passes and of products, and of what a probe does beside its products."""
    rows = []
    for size, shape in SIZES.items():
        module, ids = model(shape, steps), tokens(shape[3], trials, steps)["input_ids"]
        row: dict[str, Any] = {"size": size, "parameters": count(module)}
        for method in METHODS:
            row[method], row["core"] = measured(module, ids, method, repeats)
        rows.append(row)
        print(row, flush=True)
    return rows


def measured(
    module: nn.Module, ids: Tensor, method: str, repeats: int
) -> tuple[dict[str, float], float]:
    """Seconds of what a probe does by a method, and of the core's spectrum."""

    def forward() -> None:
        with torch.no_grad():
            module(ids)

    forward()
    peaks = {"forward": peak()}
    parts = Activities()
    lin = linearize(module, {"input_ids": ids}, method=method, consume=parts.add)
    parts.add(lin.state.new_zeros(lin.rows, 0))
    lin = replace(lin, outputs=None)  # as a probe does
    core = seconds(lambda: CoreGram.of(parts), 1)
    factor = lin.sampler(0)
    factor.sample(range(1))  # chooses the step
    plain, products = [], []
    peaks["linearize"], started = peak(), now()
    for i in range(1, repeats + 1):  # in turn, since the machine's speed changes
        plain.append(seconds(forward, 2))
        products.append(seconds(lambda i=i: factor.sample(range(i, i + 1)), 1))
        if now() - started > LONGEST:
            break
    peaks["products"] = peak()
    row = {
        "forward": statistics.median(plain),
        "product": statistics.median(products),
        "over two forward passes": statistics.median(
            p / (2 * f) for p, f in zip(products, plain, strict=True)
        ),
    }
    with contextlib.suppress(torch.OutOfMemoryError):  # it takes the gradients' memory besides
        u = torch.randn_like(lin.state)
        backs = [seconds(lambda: factor.pull(u), 1) for _ in range(2)]
        row["adjoint over forward"] = min(backs) / row["forward"]
        peaks["adjoint"] = peak()
    return {**row, **{f"peak bytes, {name}": size for name, size in peaks.items() if size}}, core


def on_gpu(repeats: int, trials: int, steps: int) -> None:
    """Products in place of larger and larger models, until one does not fit; saved one by one."""
    rows: list[dict[str, Any]] = []
    for size, shape in GPU_SIZES.items():
        torch.cuda.empty_cache()
        row: dict[str, Any] = {"size": size}
        ids = tokens(shape[3], trials, steps)["input_ids"].cuda()
        try:
            with torch.device("cuda"):
                module = model(shape, steps)
            row["parameters"] = count(module)
            row["bytes of the model"] = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            row["in-place"], row["core"] = measured(module, ids, "in-place", repeats)
        except torch.OutOfMemoryError:
            row["out of memory"] = True
        module = None
        rows.append(row)
        print(row, flush=True)
        save("scaling_gpu", {"trials": trials, "steps": steps, "rows": rows})
        if "out of memory" in row:
            break


def count(module: nn.Module) -> int:
    """How many parameters there are."""
    return sum(p.numel() for p in module.parameters())


def wire(size: str, trials: int, steps: int, products: int) -> None:
    """Bytes that a process gives to sums in a probe, and what the model of cost says."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes = Processes(dist.group.WORLD)
    share = slice(processes.index, None, processes.size)
    batch = {name: t[share] for name, t in tokens(SIZES[size][3], trials, steps).items()}
    module = model(SIZES[size], steps)
    rows = []
    for tier in ("core", "modes", "kernel"):
        before = processes.given
        probe = Probe(tier=tier, method="finite-difference", max_products=products, modes=1)
        snapshot = probe(module, batch, processes=processes)
        rows.append((tier, processes.given - before, snapshot.products, snapshot.scheme))
    if processes.index == 0:
        print("p", count(module), "state", snapshot.state_shape, rows, flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure, in this process and in two of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--trials", type=int, help="2, or 8 on a GPU")
    parser.add_argument("--steps", type=int, help="64, or 512 on a GPU")
    arguments = parser.parse_args()
    gpu = arguments.device == "cuda"
    trials = arguments.trials or (8 if gpu else 2)
    steps = arguments.steps or (512 if gpu else 64)
    if gpu:
        on_gpu(arguments.repeats, trials, steps)
        return
    if "RANK" in os.environ:
        wire("0.9 M", 16, 32, 40)
        return
    torch.set_num_threads(1)
    rows = times(arguments.repeats, trials, steps)
    save("scaling", {"trials": trials, "steps": steps, "rows": rows})
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    if any(process.wait() for process in started):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
