"""What a probe costs, in units of plain forward passes, and in memory.

A product by finite differences is two plain forward passes; so the time of a product over two
forward passes is the price of the method, and the time of a whole probe over ``products x 2 forward
passes`` that of everything around it. Forward passes and products are timed in turn in one process,
and the median of the ratios is taken: absolute times on a shared machine drift. Peak memory is what
a fresh process grows by, as Linux accounts for it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import save
from workloads import COST, Workload

from ntk_monitor import linearize, probe
from ntk_monitor.estimators import draw_tangents

METHODS = ("forward-ad", "double-backward", "finite-difference")
CHUNKS = (1, 4, 16)


def main() -> None:
    """Measure every workload and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workloads", nargs="*", default=list(COST))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.workloads:
        work = COST[name]()
        step = peak(name, "step")
        for method in METHODS:
            row: dict[str, Any] = {"workload": name, "method": method}
            try:
                for chunk in CHUNKS if method == "forward-ad" else (16,):
                    row[f"product, chunk {chunk}"] = product(work, method, chunk, arguments.repeats)
                whole = [
                    whole_probe(work, method, arguments.products)
                    for _ in range(arguments.repeats + 1)
                ][1:]
                row["probe"] = statistics.median(ratio for ratio, _ in whole)
                row["seconds"] = statistics.median(seconds for _, seconds in whole)
                row["memory over a training step"] = peak(name, method) / step
            except (RuntimeError, NotImplementedError) as error:
                row["fails"] = str(error).splitlines()[0]
            rows.append(row)
            print(json.dumps(row), flush=True)
    save("cost", {"products": arguments.products, "repeats": arguments.repeats, "rows": rows})


def product(work: Workload, method: str, chunk: int, repeats: int) -> float:
    """Time of a product over that of two plain forward passes; the median over repeats."""
    lin = linearize(work.model, work.batch, state=work.state, method=method, chunk_size=chunk)
    J = lin.jacobian
    G = draw_tangents(J.input_size, range(16), 0)
    J.matmat(G)  # settles the step, warms up
    ratios = []
    for _ in range(repeats):
        forward = seconds_of(lambda: forward_passes(work, 8)) / 8
        ratios.append(seconds_of(lambda: J.matmat(G)) / (len(G) * 2 * forward))
    return statistics.median(ratios)


def whole_probe(work: Workload, method: str, products: int) -> tuple[float, float]:
    """Time of a probe over that of ``products x 2`` forward passes, and its seconds."""
    forward = seconds_of(lambda: forward_passes(work, 8)) / 8
    snapshot = probe(
        work.model,
        work.batch,
        state=work.state,
        method=method,
        max_products=products,
        tolerance=0.0,
    )
    return snapshot.seconds / (snapshot.products * 2 * forward), snapshot.seconds


def forward_passes(work: Workload, count: int) -> None:
    """Plain forward passes."""
    with torch.no_grad():
        for _ in range(count):
            work.model(work.batch[0])


def training_step(work: Workload) -> None:
    """One step of SGD on a mean squared error."""
    optimizer = torch.optim.SGD(work.model.parameters(), lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(work.model(work.batch[0]), work.batch[1]).backward()
        optimizer.step()


def seconds_of(action: Callable[[], Any]) -> float:
    """Wall time of an action."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def peak(name: str, what: str) -> int:
    """By how many bytes a fresh process grows that does one thing with a workload."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (name, what))


def _peak(name: str, what: str) -> int:
    work = COST[name]()
    forward_passes(work, 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    if what == "step":
        training_step(work)
    else:
        probe(work.model, work.batch, state=work.state, method=what, tolerance=0.0)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
