"""What a probe through the training step costs, over one through the forward pass.

Both measure the same state of the same model on the same batch with as many products, in turn in
one process; the median of the ratios is taken. The step computes a loss besides, and logs it;
passes that need the state alone end with it, of either kind.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from results import save
from torch import Tensor, nn
from workloads import ACCURACY, COST, Workload

from ntk_monitor import Snapshot, probe

WORKLOADS: dict[str, Callable[[], Workload]] = {
    name: (ACCURACY | COST)[name]
    for name in ("MLP", "RNN, chaotic", "GRU-256, 20 x 90", "transformer 4 x 128, 8 x 64")
}


class Regression(LightningModule):
    """A model with a usual training step."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the model."""
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Call the model."""
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean squared error, logged."""
        x, y = batch
        outputs = self(x)
        loss = nn.functional.mse_loss(outputs, y)
        self.log("loss", loss)
        return loss


def main() -> None:
    """Measure every workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.workloads:
        work = WORKLOADS[name]()
        ratios = [compared(work, arguments.products) for _ in range(arguments.repeats + 1)][1:]
        row = {"workload": name, "ratio": statistics.median(ratios), "ratios": sorted(ratios)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    save("step_cost", {"products": arguments.products, "rows": rows})


def compared(work: Workload, products: int) -> float:
    """Seconds through the step over seconds through the forward pass; each first every other time.

    Args:
        work: The model and its batch.
        products: How many each takes.

    Returns:
        The ratio.

    Raises:
        RuntimeError: If both do not measure the same.
    """
    module = Regression(work.model)
    state = "model" if work.state == "auto" else f"model.{work.state}"
    state = "auto" if work.state == "auto" else state
    settings: dict[str, Any] = {
        "state": state,
        "max_products": products,
        "learning_rate": 0.1,
    }
    ways: dict[str, dict[str, Any]] = {
        "step": {},
        "forward": {"forward_fn": lambda m, b: m(b[0]), "target_fn": lambda b: b[1]},
    }
    seconds = dict.fromkeys(ways, 0.0)
    found: dict[str, Snapshot] = {}
    for way in ("step", "forward", "forward", "step"):
        begun = time.perf_counter()
        found[way] = probe(module, work.batch, **settings, **ways[way])
        seconds[way] += time.perf_counter() - begun
    if found["step"].trace != found["forward"].trace:
        raise RuntimeError("both ways must measure the same")
    return seconds["step"] / seconds["forward"]


if __name__ == "__main__":
    main()
