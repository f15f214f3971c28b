"""What a probe costs, in units of plain forward passes, and in memory.

A product by finite differences is two plain forward passes; so the time of a product over two
forward passes is the price of the method, and the time of a whole probe over ``products x 2 forward
passes`` that of everything around it. Forward passes and products are timed in turn in one process,
and the median of the ratios is taken: absolute times on a shared machine drift. Peak memory is that
of all tensors, as torch's profiler accounts for it, over that of a training step with AdamW.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from results import save
from torch.profiler import ProfilerActivity, profile
from workloads import COST, Workload

from ntk_monitor import Snapshot, linearize, probe
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
        if torch.cuda.is_available():
            work = work.to("cuda")
        step = step_memory(work)
        for method in METHODS:
            row: dict[str, Any] = {"workload": name, "method": method}
            try:
                row |= costs(work, method, arguments.products, arguments.repeats, step)
            except (RuntimeError, NotImplementedError) as error:
                row["fails"] = str(error).splitlines()[0]
            rows.append(row)
            print(json.dumps(row), flush=True)
    save("cost", {"products": arguments.products, "repeats": arguments.repeats, "rows": rows})


def costs(
    work: Workload, method: str, products: int, repeats: int, step: float
) -> dict[str, float]:
    """Times and memory of a method on a workload."""
    found = {
        f"product, chunk {chunk}": product(work, method, chunk, repeats)
        for chunk in (CHUNKS if method == "forward-ad" else (16,))
    }
    whole = [whole_probe(work, method, products) for _ in range(repeats + 1)][1:]
    found["probe"] = statistics.median(ratio for ratio, _ in whole)
    found["seconds"] = statistics.median(seconds for _, seconds in whole)
    memory = peak(work, lambda: probe_once(work, method, products))
    return found | {"memory over a training step": memory / step}


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
    snapshot = probe_once(work, method, products)
    return snapshot.seconds / (snapshot.products * 2 * forward), snapshot.seconds


def probe_once(work: Workload, method: str, products: int) -> Snapshot:
    """One probe with its three target modes."""
    return probe(
        work.model,
        work.batch,
        state=work.state,
        method=method,
        max_products=products,
        tolerance=0.0,
    )


def forward_passes(work: Workload, count: int) -> None:
    """Plain forward passes."""
    with torch.no_grad():
        for _ in range(count):
            work.model(work.batch[0])


def training_step(work: Workload, optimizer: torch.optim.Optimizer) -> None:
    """One step on a mean squared error."""
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(work.model(work.batch[0]), work.batch[1]).backward()
    optimizer.step()


def seconds_of(action: Callable[[], Any]) -> float:
    """Wall time of an action."""
    synchronize()
    started = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step_memory(work: Workload) -> float:
    """Peak memory of a training step; the second, when the optimizer has its state."""
    optimizer = torch.optim.AdamW(work.model.parameters(), lr=0.0)
    training_step(work, optimizer)
    return peak(work, lambda: training_step(work, optimizer))


def peak(work: Workload, action: Callable[[], Any]) -> float:
    """Most bytes of tensors in an action, and of weights, gradients and AdamW's two moments."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        most = torch.cuda.max_memory_allocated() - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            action()
        events = profiler.profiler.kineto_results.events()
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        most = max(itertools.accumulate(change for _, change in sorted(changes)))
    return most + 4 * sum(p.nbytes for p in work.model.parameters())


if __name__ == "__main__":
    main()
