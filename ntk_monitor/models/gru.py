"""A GRU with a linear readout, and its training as a regression."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ntk_monitor.models.initialization import plant_fixed_points_, xavier_

Initialization = Literal["xavier", "fixed_points"]


class GRUNetwork(nn.Module):
    """A one-layer GRU and a linear readout at every step.

    Attributes:
        rnn: The recurrent layer; its output is the state.
        readout: From state to outputs.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        """Make the two layers with PyTorch's own initialisation."""
        super().__init__()
        self.rnn = nn.GRU(input_size, hidden_size, batch_first=True)
        self.readout = nn.Linear(hidden_size, output_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs ``(B, T, input_size)`` to outputs ``(B, T, output_size)``."""
        outputs: Tensor = self.readout(self.rnn(inputs)[0])
        return outputs


class GRURegression(LightningModule):
    """`GRUNetwork` trained on a mean squared error at every step.

    Attributes:
        network: The network.
    """

    def __init__(
        self,
        input_size: int = 3,
        hidden_size: int = 64,
        output_size: int = 3,
        initialization: Initialization = "xavier",
        gain: float = 1.0,
        planted: int = 4,
        radius: float = 0.125,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    ) -> None:
        """Make and initialise the network.

        Args:
            input_size: Number of inputs.
            hidden_size: Number of units.
            output_size: Number of outputs.
            initialization: ``"xavier"`` (the paper's Network 1) or ``"fixed_points"`` (Network 2,
                which can hold a state without input).
            gain: Factor on the Xavier weights.
            planted: How many pairs of fixed points to plant.
            radius: Root mean square of their entries.
            optimizer: Takes the parameters, returns the optimizer.
        """
        super().__init__()
        self.network = GRUNetwork(input_size, hidden_size, output_size)
        self.optimizer = optimizer
        xavier_(self.network.rnn, gain)
        nn.init.xavier_normal_(self.network.readout.weight)
        nn.init.zeros_(self.network.readout.bias)
        if initialization == "fixed_points":
            plant_fixed_points_(self.network.rnn, planted, radius)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs ``(B, T, input_size)`` to outputs ``(B, T, output_size)``."""
        outputs: Tensor = self.network(inputs)
        return outputs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean squared error of a batch ``(inputs, targets)``."""
        del batch_idx
        loss = mse_loss(self(batch[0]), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean squared error of a batch."""
        del batch_idx
        self.log("val/loss", mse_loss(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> Any:  # noqa: ANN401  whatever the user's callable returns
        """The optimizer that was asked for."""
        return self.optimizer(self.parameters())
