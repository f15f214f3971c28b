"""A recurrent network on tasks of the neurogym package, watched by NTKMonitor.

    pip install neurogym
    python examples/neurogym_tasks.py --task DelayMatchSample-v0
    tensorboard --logdir runs

The network decides at every time step, so its targets are class indices over (time, trials), time
first as neurogym and torch's recurrent layers have it. The monitor needs to be told none of this.
"""

from __future__ import annotations

import argparse
import warnings
from typing import cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ntk_monitor import NTKMonitor, StallAlert

TASKS = ("PerceptualDecisionMaking-v0", "DelayMatchSample-v0")


class Trials(Dataset[tuple[Tensor, Tensor]]):
    """Batches of one task, drawn once, so that every epoch sees the same ones."""

    def __init__(self, task: str, batches: int, batch_size: int, steps: int, seed: int) -> None:
        """Draw the batches: inputs (T, B, m) and the right action (T, B)."""
        import neurogym  # noqa: PLC0415 (says at its import what it lacks)

        source = neurogym.Dataset(task, {"dt": 100}, batch_size=batch_size, seq_len=steps)
        source.seed(seed)
        drawn = [source() for _ in range(batches)]
        self.batches = [(torch.tensor(x).float(), torch.tensor(y).long()) for x, y in drawn]
        self.inputs, self.actions = self.batches[0][0].shape[2], source.env.action_space.n

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One batch."""
        return self.batches[index]


class Decisions(LightningModule):
    """A recurrent network with a readout of the actions."""

    def __init__(self, inputs: int, actions: int, units: int = 64) -> None:
        """Make the layers."""
        super().__init__()
        self.rnn = nn.RNN(inputs, units)
        self.readout = nn.Linear(units, actions)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at every time step."""
        return cast(Tensor, self.readout(self.rnn(x)[0]))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy at every time step."""
        del batch_idx
        x, y = batch
        logits = self(x)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        self.log("loss", loss)
        self.log("accuracy", (logits.argmax(-1) == y).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train(task: str, steps: int, folder: str = "runs") -> NTKMonitor:
    """Train a network on a task.

    Args:
        task: The task's name.
        steps: How many optimizer steps to make.
        folder: Where TensorBoard's logs go.

    Returns:
        The monitor, with the last snapshot.
    """
    torch.manual_seed(0)
    trials = Trials(task, batches=50, batch_size=16, steps=50, seed=0)
    monitor = NTKMonitor(every_n_steps=50, max_overhead=None, max_products=48)
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        logger=TensorBoardLogger(folder, name=task),
        callbacks=[monitor, StallAlert()],
        accelerator="cpu",
        log_every_n_steps=10,
    )
    loader = DataLoader(trials, batch_size=None, shuffle=True)
    trainer.fit(Decisions(trials.inputs, trials.actions), loader)
    return monitor


def main() -> None:
    """Train on one task, or on each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default=None)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")
    for task in [arguments.task] if arguments.task else TASKS:
        train(task, arguments.steps)


if __name__ == "__main__":
    main()
