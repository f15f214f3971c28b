"""How a probe grows with the batch, time, width, depth and number of parameters.

One axis is varied at a time from a common middle. The time of a probe is given over that of as many
pairs of forward passes as it had products, and its peak memory over that of a training step with
AdamW: both are flat where a probe grows as training does. The last rows are networks of GPT-2's
shape; on a GPU the 124 million parameters at full length, elsewhere fewer rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from cost import peak, probe_once, step_memory, whole_probe
from results import save
from workloads import Block, Workload, gru

METHOD = "finite-difference"


def recurrent(trials: int = 20, steps: int = 30, units: int = 128) -> Workload:
    """A GRU on Memory-Pro, ``3 steps`` time steps."""
    return gru(units=units, trials=trials, steps=steps)


def transformer(
    layers: int = 4, width: int = 128, sequences: int = 8, length: int = 64
) -> Workload:
    """Causal layers with heads of 32 or 64 units."""
    torch.manual_seed(0)
    x = torch.randn(sequences, length, 16)
    heads = max(width // 64, 1) if width > 256 else width // 32
    return Workload(Block(16, width, layers, heads, 3), (x, x[..., :3]), "blocks")


def growth() -> Iterator[tuple[str, Any, Workload]]:
    """Axis, value and workload."""
    for trials in (5, 20, 80):
        yield "GRU, trials", trials, recurrent(trials=trials)
    for steps in (10, 30, 90):
        yield "GRU, time steps", 3 * steps, recurrent(steps=steps)
    for units in (64, 128, 256, 512):
        yield "GRU, units", units, recurrent(units=units)
    for layers in (1, 4, 12):
        yield "transformer, layers", layers, transformer(layers=layers)
    for width in (128, 512):
        yield "transformer, width", width, transformer(width=width)
    if torch.cuda.is_available():
        yield "GPT-2 shape, 8 x 512", "12 x 768", transformer(12, 768, 8, 512)
    else:
        yield "GPT-2 shape, 1 x 32", "12 x 768", transformer(12, 768, 1, 32)
        yield "GPT-2 shape, 1 x 32", "12 x 832", transformer(12, 832, 1, 32)


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for axis, value, work in growth():
        placed = work.to("cuda") if torch.cuda.is_available() else work
        row = {"axis": axis, "value": value}
        row |= measure(placed, arguments.products, arguments.repeats)
        rows.append(row)
        print(json.dumps(row), flush=True)
    save("growth", {"products": arguments.products, "repeats": arguments.repeats, "rows": rows})


def measure(work: Workload, products: int, repeats: int) -> dict[str, float]:
    """Size, time and memory of a probe."""
    step = step_memory(work)
    whole = [whole_probe(work, METHOD, products) for _ in range(repeats + 1)][1:]
    return {
        "parameters": sum(p.numel() for p in work.model.parameters()),
        "seconds": statistics.median(seconds for _, seconds in whole),
        "probe": statistics.median(ratio for ratio, _ in whole),
        "memory over a training step": peak(work, lambda: probe_once(work, METHOD, products))
        / step,
    }


if __name__ == "__main__":
    main()
