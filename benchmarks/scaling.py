"""What a product costs as models grow: time against forward passes, and bytes between processes.

Run with ``python benchmarks/scaling.py``; one thread, a language model like GPT-2 of several sizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from results import save
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ntk_monitor import linearize
from ntk_monitor.estimators import Activities, CoreGram
from ntk_monitor.probe import Probe
from ntk_monitor.ranks import Ranks

SIZES = {  # layers, width, heads, vocabulary
    "0.9 M": (2, 128, 4, 4000),
    "7 M": (4, 256, 4, 16000),
    "30 M": (6, 512, 8, 22000),
    "100 M": (12, 768, 12, 20000),
}
METHODS = ("finite-difference", "in-place")
PORT = "29547"


def model(size: str, steps: int) -> nn.Module:
    """A language model of a size, as it is initialised."""
    layers, width, heads, words = SIZES[size]
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=words, n_positions=max(steps, 64),
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def tokens(size: str, trials: int, steps: int) -> dict[str, Tensor]:
    """A batch."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SIZES[size][3], (trials, steps), generator=generator)
    return {"input_ids": ids, "labels": ids.roll(-1, 1)}


def seconds(act: Callable[[], Any], repeats: int) -> float:
    """The median time of a call."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def times(repeats: int, trials: int, steps: int) -> list[dict[str, Any]]:
    """Seconds of forward passes and of products, and of what a probe does beside its products."""
    rows = []
    for size in SIZES:
        module, batch = model(size, steps), tokens(size, trials, steps)

        def forward(module: nn.Module = module, batch: dict[str, Tensor] = batch) -> None:
            with torch.no_grad():
                module(batch["input_ids"])

        forward()
        row: dict[str, Any] = {
            "size": size,
            "parameters": sum(p.numel() for p in module.parameters()),
        }
        for method in METHODS:
            parts = Activities()
            lin = linearize(
                module, {"input_ids": batch["input_ids"]}, method=method, consume=parts.add
            )
            parts.add(lin.state.new_zeros(lin.rows, 0))
            started = time.perf_counter()
            CoreGram.of(parts)
            row["core"] = time.perf_counter() - started
            factor = lin.factor(0)
            factor.sample(range(1))  # chooses the step
            plain, products, backs = [], [], []
            for i in range(1, repeats + 1):  # in turn, since the machine's speed changes
                plain.append(seconds(forward, 2))
                products.append(seconds(lambda i=i, f=factor: f.sample(range(i, i + 1)), 1))
            u = torch.randn_like(lin.state)
            backs = [seconds(lambda f=factor, u=u: f.pull(u), 1) for _ in range(2)]
            ratio = statistics.median(p / (2 * f) for p, f in zip(products, plain, strict=True))
            row[method] = {
                "forward": statistics.median(plain),
                "product": statistics.median(products),
                "over two forward passes": ratio,
                "adjoint over forward": min(backs) / statistics.median(plain),
            }
        rows.append(row)
        print(row, flush=True)
    return rows


def wire(size: str, trials: int, steps: int, products: int) -> None:
    """Bytes that a process gives to sums in a probe, and what the model of cost says."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Ranks(dist.group.WORLD)
    share = slice(ranks.index, None, ranks.size)
    batch = {name: t[share] for name, t in tokens(size, trials, steps).items()}
    module = model(size, steps)
    rows = []
    for tier in ("core", "modes", "kernel"):
        before = ranks.given
        probe = Probe(tier=tier, method="finite-difference", max_products=products, modes=1)
        snapshot = probe(module, batch, ranks=ranks)
        rows.append((tier, ranks.given - before, snapshot.products, snapshot.scheme))
    if ranks.index == 0:
        p = sum(q.numel() for q in module.parameters())
        print("p", p, "state", snapshot.state_shape, rows, flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure, in this process and in two of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--steps", type=int, default=64)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        wire("0.9 M", 16, 32, 40)
        return
    torch.set_num_threads(1)
    rows = times(arguments.repeats, arguments.trials, arguments.steps)
    save("scaling", {"trials": arguments.trials, "steps": arguments.steps, "rows": rows})
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
