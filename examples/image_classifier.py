"""A convolutional classifier of handwritten digits under the monitor.

The digits come with scikit-learn. The rows of the state are the positions of the images.

    pip install -c constraints.txt ".[examples]"
    python examples/image_classifier.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.commands.fit import print_summary


class Classifier(LightningModule):
    """Two convolutions, a pool and a readout."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()
        )
        self.readout = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten digits."""
        return self.readout(self.features(x).mean((2, 3)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Gradient descent with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


if __name__ == "__main__":
    seed_everything(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    trainer = Trainer(
        max_epochs=20,
        accelerator="cpu",
        callbacks=[NTKMonitor(every_n_steps=100, max_overhead=None), StallAlert()],
    )
    data = TensorDataset(images, torch.tensor(digits.target))
    trainer.fit(Classifier(), DataLoader(data, batch_size=64, shuffle=True))
    print_summary(trainer, Console())
