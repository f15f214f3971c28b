"""Training with the monitor against training without.

The speed of a shared machine drifts by more than the 2 % in question within seconds. So both
trainings run in one process and take turns every few steps, and each is clocked while it runs.
Which begins changes from pair to pair. Pairs in which neither is monitored tell what is left of the
noise.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lockstep import TakeTurns, train_in_turns
from results import load, save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from workloads import Block

from ntk_monitor import NTKMonitor
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import memory_pro_trials

SETTINGS: dict[str, dict[str, Any] | None] = {"default": {}, "no monitor": None} | {
    f"every {n} steps, no limit": {"every_n_steps": n, "max_overhead": None, "max_products": 32}
    for n in (1, 4, 16, 64, 256)
}
TURN = 10
"""Steps that a training makes before the other's turn."""
SHARE, AMOUNT = 0.02, 10.0
"""The default limit: the larger of a share of the training, and seconds."""
SHORTER, FEWER = 8, 5
"""Divisors of the steps and the repeats where probes have no limit and so weigh more."""


class Supervised(LightningModule):
    """A network with a loss, and AdamW."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Keep both."""
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network."""
        output: Tensor = self.net(x)
        return output

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss on a batch."""
        del batch_idx
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def gru() -> tuple[LightningModule, DataLoader[Any]]:
    """The paper's Network 1 at 64 units."""
    torch.manual_seed(0)
    x, y = memory_pro_trials(2 * math.pi * torch.rand(1000))
    return GRURegression(), DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)


def gpt() -> tuple[LightningModule, DataLoader[Any]]:
    """Sequences to be repeated with a delay."""
    torch.manual_seed(0)
    x = torch.randn(1024, 32, 16)
    module = Supervised(Block(16, 64, 2, 4, 16), nn.functional.mse_loss)
    return module, DataLoader(TensorDataset(x, x.roll(4, 1)), batch_size=32, shuffle=True)


def cnn() -> tuple[LightningModule, DataLoader[Any]]:
    """The digits that scikit-learn ships, 8 x 8 pixels in ten classes."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    data = TensorDataset(x, torch.from_numpy(digits.target))
    module = Supervised(net, nn.functional.cross_entropy)
    return module, DataLoader(data, batch_size=64, shuffle=True)


TRAININGS: dict[str, Callable[[], tuple[LightningModule, DataLoader[Any]]]] = {
    "Memory-Pro GRU": gru,
    "small GPT": gpt,
    "digits CNN": cnn,
}


def main() -> None:
    """Time every training and setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--trainings", nargs="*", default=list(TRAININGS))
    parser.add_argument("--keep", action="store_true", help="replace only the rows timed now")
    arguments = parser.parse_args()
    kept = load("overhead").get("rows", []) if arguments.keep else []
    for training in arguments.trainings:
        pair(TRAININGS[training], {}, 2 * TURN, swap=False)  # what comes first warms up
        for setting in arguments.settings:
            limited = "no limit" not in setting
            steps = arguments.steps if limited else arguments.steps // SHORTER
            repeats = arguments.repeats if limited else max(arguments.repeats // FEWER, 1)
            pairs = [
                pair(TRAININGS[training], SETTINGS[setting], steps, swap=bool(i % 2))
                for i in range(repeats)
            ]
            ratios = [watched / plain - 1 for plain, watched, _ in pairs]
            row = {
                "training": training,
                "setting": setting,
                "steps": steps,
                "repeats": repeats,
                "overhead": statistics.median(ratios),
                "all": ratios,
                "seconds": statistics.median(watched - plain for plain, watched, _ in pairs),
                "of the limit": [
                    (watched - plain) / max(SHARE * plain, AMOUNT) for plain, watched, _ in pairs
                ],
                "probes": statistics.median_low(probes for *_, probes in pairs),
            }
            print(json.dumps(row), flush=True)
            kept = [r for r in kept if (r["training"], r["setting"]) != (training, setting)]
            kept.append(row)
            save("overhead", {"rows": kept})


def pair(
    make: Callable[[], tuple[LightningModule, DataLoader[Any]]],
    settings: dict[str, Any] | None,
    steps: int,
    *,
    swap: bool,
) -> tuple[float, float, int]:
    """Seconds without a monitor and with one of these settings, and how many probes it took."""
    watching = Counting(on_error="raise", **(settings or {}))
    turns = [TakeTurns(TURN), TakeTurns(TURN)]
    watching.schedule.clock = turns[0 if swap else 1].clock
    monitors: list[Callback] = [] if settings is None else [watching]
    order = [monitors, []] if swap else [[], monitors]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainings = [
            (trainer(steps, [*order[i], turns[i]], f"{folder}/{i}"), *make()) for i in range(2)
        ]
        seconds = train_in_turns(trainings)
    plain, watched = reversed(seconds) if swap else seconds
    return plain, watched, watching.probes


class Counting(NTKMonitor):
    """A monitor that counts its probes."""

    probes = 0

    def on_probe(self, *_: Any) -> None:  # noqa: ANN401
        """Count one more."""
        self.probes += 1


def trainer(steps: int, callbacks: list[Callback], folder: str) -> Trainer:
    """A Trainer with TensorBoard and nothing else."""
    return Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=TensorBoardLogger(folder),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


if __name__ == "__main__":
    main()
