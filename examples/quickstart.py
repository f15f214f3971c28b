"""The shortest training under the monitor: a GRU that repeats what it saw, after a pause.

python examples/quickstart.py
tensorboard --logdir runs
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ntk_monitor import NTKMonitor, StallAlert


class Echo(LightningModule):
    """A GRU with a linear readout."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.rnn, self.readout = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs at every step."""
        return self.readout(self.rnn(x)[0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean squared error."""
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trials(count: int = 256, steps: int = 30) -> TensorDataset:
    """A pulse at the start; the same pulse wanted at the end."""
    x, y = torch.zeros(count, steps, 1), torch.zeros(count, steps, 1)
    size = torch.randn(count, 1, 1)
    x[:, :5], y[:, -5:] = size, size
    return TensorDataset(x, y)


if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(
        max_epochs=50,
        accelerator="cpu",
        logger=TensorBoardLogger("runs", "quickstart"),
        callbacks=[NTKMonitor(every_n_steps=40, max_overhead=None), StallAlert()],
    )
    trainer.fit(Echo(), DataLoader(trials(), batch_size=32, shuffle=True))
