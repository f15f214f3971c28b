"""A long training with very many probes: what a monitor could pile up stays flat.

20 000 steps with 2 000 probes and an alert, with figures at every tenth; at every hundredth step
the resident memory, the tensors that python can reach, the hooks on the model, open files and
threads. The same training without the callbacks then ends with the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from results import load, save

from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import MemoryProDataModule
from ntk_monitor.views import own_style

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "soak.png"
EVERY = 100
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Gauge(Callback):
    """Reads what could grow, and asks for figures now and then."""

    def __init__(self, monitor: NTKMonitor) -> None:
        """Begin with no reading."""
        self.monitor = monitor
        self.readings: list[dict[str, float]] = []
        self.probes = 0

    def on_probe(self, *_: Any) -> None:  # noqa: ANN401
        """Count a probe."""
        self.probes += 1
        self.monitor.figures = self.probes % 10 == 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *_: Any,  # noqa: ANN401
    ) -> None:
        """Take a reading at every hundredth step."""
        if trainer.global_step % EVERY:
            return
        gc.collect()
        tensors = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
        hooks = sum(
            len(value)
            for module in pl_module.modules()
            for name, value in vars(module).items()
            if "hooks" in name
        )
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
        self.readings.append({
            "step": trainer.global_step,
            "probes": self.probes,
            "resident_mb": resident / 2**20,
            "tensors": tensors,
            "hooks": hooks,
            "files": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
        })


def train(steps: int, folder: str, *callbacks: Callback) -> LightningModule:
    """Train a small GRU on a short task."""
    seed_everything(0, verbose=False)
    module = GRURegression(hidden_size=16)
    data = MemoryProDataModule(
        trials=512, batch_size=16, stimulus_steps=5, memory_steps=5, response_steps=5
    )
    Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=TensorBoardLogger(folder) if callbacks else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    ).fit(module, data)
    return module


def main() -> None:
    """Train twice, compare, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--draw", action="store_true", help="only draw what was measured before")
    args = parser.parse_args()
    if not args.draw:
        measure(args.steps)
    draw(load("soak")["readings"])


def measure(steps: int) -> None:
    """Train with and without callbacks."""
    monitor = NTKMonitor(10, max_overhead=None, max_products=16, modes=2, on_error="raise")
    gauge = Gauge(monitor)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = train(steps, folder, monitor, StallAlert(), gauge)
        plain = train(steps, folder)
    pairs = zip(watched.state_dict().values(), plain.state_dict().values(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    first, last = gauge.readings[len(gauge.readings) // 10], gauge.readings[-1]
    print(f"{last['probes']} probes in {last['step']} steps; same weights as without: {same}")
    for name in ("resident_mb", "tensors", "hooks", "files", "threads"):
        print(f"{name}: {first[name]:.0f} after a tenth, {last[name]:.0f} at the end")
    save("soak", {"same_weights": same, "readings": gauge.readings})


def draw(readings: list[dict[str, float]]) -> None:
    """Draw ``docs/images/soak.png``."""
    shown = {
        "resident_mb": "resident memory (MB)",
        "tensors": "reachable tensors",
        "hooks": "hooks on the model",
        "files": "open files",
    }
    with own_style():
        figure, rows = plt.subplots(
            len(shown), 1, sharex=True, figsize=(6, 5), layout="constrained"
        )
        for axes, (name, label) in zip(rows, shown.items(), strict=True):
            values = [reading[name] for reading in readings]
            axes.plot([reading["step"] for reading in readings], values, color="#0072B2", lw=1.2)
            top = 1.3 * max(1, *values)
            axes.set_ylim(-0.06 * top, top)
            axes.set_title(label, fontsize=9, loc="left")
            axes.tick_params(labelsize=8)
        probes = int(readings[-1]["probes"])
        rows[-1].set_xlabel(f"training step ({probes} probes, one at every tenth step)", fontsize=9)
        figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    main()
