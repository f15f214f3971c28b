"""What a default probe costs: forward passes a product, and training steps a probe.

Forward passes, training steps (Adam) and whole probes with default settings take turns in one
process, once for the large models; the median of the ratios is taken. A probe is everything:
watching the operations, checks, target modes, products and statistics.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from cost import forward_passes, seconds_of, training_step
from growth import transformer
from results import save
from workloads import Workload, gru, wide_gru, wide_transformer

from ntk_monitor import Snapshot
from ntk_monitor.probe import Probe

WORKLOADS: dict[str, Callable[[], Workload]] = {
    "GRU-64, 20 x 90": lambda: gru(units=64, trials=20, steps=30),
    "GRU-256, 20 x 90": wide_gru,
    "transformer 4 x 128, 8 x 64": wide_transformer,
    "GPT-2 shape, 1 x 32": lambda: transformer(12, 768, 1, 32),
    "GPT-2 shape, 4 x 128": lambda: transformer(12, 768, 4, 128),
}


def turn(work: Workload, probe: Probe, passes: int) -> tuple[float, float, Snapshot]:
    """Seconds of a forward pass, of a training step, and a probe."""
    forward = seconds_of(lambda: forward_passes(work, passes)) / passes
    optimizer = torch.optim.Adam(work.model.parameters(), lr=0.0)
    training_step(work, optimizer)
    steps = max(passes // 2, 1)
    step = seconds_of(lambda: [training_step(work, optimizer) for _ in range(steps)]) / steps
    work.model.zero_grad()
    return forward, step, probe(work.model, work.batch)


def main() -> None:
    """Measure every workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--products", type=int, help="as many, whatever the accuracy")
    arguments = parser.parse_args()
    exact = {"tolerance": 0.0, "max_products": arguments.products} if arguments.products else {}
    rows = []
    for name in arguments.workloads:
        work = WORKLOADS[name]()
        large = sum(p.numel() for p in work.model.parameters()) > 10**7
        probe = Probe(state=work.state, time_limit=None, **exact)
        turn(work, probe, 1)  # settles the method
        repeats = 1 if large else arguments.repeats
        turns = [turn(work, probe, 4 if large else 16) for _ in range(repeats)]
        row = {
            "workload": name,
            "products": statistics.median(shot.products for *_, shot in turns),
            "passes a product": statistics.median(
                shot.seconds / shot.products / forward for forward, _, shot in turns
            ),
            "steps a probe": statistics.median(shot.seconds / step for _, step, shot in turns),
            "seconds": statistics.median(shot.seconds for *_, shot in turns),
            "method": turns[-1][2].method,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    if not exact and len(rows) == len(WORKLOADS):
        save("engine", {"rows": rows})


if __name__ == "__main__":
    main()
