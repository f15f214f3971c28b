"""How much faster several processes probe a batch, each a part of it, than one does.

Run with ``python benchmarks/ranks.py``; every process has one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntk_monitor.probe import Probe
from ntk_monitor.processes import ALONE, Processes

PORT = "29533"


class Recurrent(nn.Module):
    """A GRU with a readout."""

    def __init__(self, width: int) -> None:
        """Make it."""
        super().__init__()
        self.rnn = nn.GRU(8, width, batch_first=True)
        self.readout = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs at every step."""
        outputs: Tensor = self.readout(self.rnn(x)[0])
        return outputs


def transformer(width: int) -> nn.Module:
    """Two blocks between an embedding and a readout."""
    block = nn.TransformerEncoderLayer(
        width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(8, width), encoder, nn.LayerNorm(width), nn.Linear(width, 8))


CASES = {
    "GRU 128, 64 x 100": (lambda: Recurrent(128), (64, 100, 8)),
    "transformer 128, 32 x 64": (lambda: transformer(128), (32, 64, 8)),
    "transformer 256, 16 x 128": (lambda: transformer(256), (16, 128, 8)),
    "GRU 256, 256 x 50": (lambda: Recurrent(256), (256, 50, 8)),
}


def work(repeats: int, cases: list[str]) -> None:
    """What each process does: probes with all, and the first one alone, in turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    together = Processes(dist.group.WORLD)
    for name in cases:
        make, shape = CASES[name]
        torch.manual_seed(0)
        module = make()
        x = torch.randn(*shape).cumsum(1) / shape[1] ** 0.5
        y = torch.roll(x, 1, dims=1)
        share = slice(together.index, None, together.size)
        times: dict[str, list[float]] = {"one": [], "all": []}
        busy: dict[str, list[float]] = {"one": [], "all": []}
        for repeat in range(repeats + 1):
            for kind, processes, batch in (
                ("all", together, (x[share], y[share])),
                ("one", ALONE, (x, y)),
            ):
                dist.barrier()
                if kind == "one" and together.index:
                    continue
                probe = Probe(method="finite-difference", max_products=64, tolerance=0.03)
                started, worked = time.perf_counter(), time.process_time()
                snapshot = probe(module, batch, processes=processes)
                if repeat:
                    times[kind].append(time.perf_counter() - started)
                    busy[kind].append(time.process_time() - worked)
        if together.index == 0:
            one, several = (statistics.median(times[kind]) for kind in ("one", "all"))
            ratios = [a / b for a, b in zip(times["all"], times["one"], strict=True)]
            work_ratio = statistics.median(busy["all"]) / statistics.median(busy["one"])
            print(
                f"{name}: {snapshot.products} products, {one:.2f} s by one process and "
                f"{several:.2f} s by {together.size}: {statistics.median(ratios):.2f} times as "
                f"long (from {min(ratios):.2f} to {max(ratios):.2f} in {repeats} pairs), with "
                f"{work_ratio:.2f} times the processor time each",
                flush=True,
            )
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", choices=list(CASES), help="one of them; all if left out")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        work(arguments.repeats, [arguments.case] if arguments.case else list(CASES))
        return
    size = arguments.processes
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT, "WORLD_SIZE": str(size)}
    started = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]
    if any(process.wait() for process in started):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
