"""The self-attention block of the paper's Section 5.4, with the MLP of its appendix A.2.3."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ntk_monitor import Snapshot, probe

STATE = ("out", "mlp.0", "mlp.2")
"""The attention's output, and the hidden layers of the MLP."""


class AttentionBlock(nn.Module):
    """``Y = MLP(softmax(Q K* / sqrt(n)) Z W_O*)``, with ``Q``, ``K``, ``Z`` linear in the input.

    The state is the attention's output and the hidden layers; the weights are Xavier-normal, and,
    as in the ``V`` of the paper's appendix A.5.3, they alone are trained, not the biases.
    """

    def __init__(
        self, inputs: int, width: int = 64, heads: int = 1, hidden: int = 128, fourier: int = 0
    ) -> None:
        """Make the block.

        Args:
            inputs: Input channels.
            width: Of the attention.
            heads: Attention heads.
            hidden: Units of each layer of the MLP.
            fourier: Frequencies of an embedding of the input, or 0 for none.
        """
        super().__init__()
        self.heads, self.fourier = heads, fourier
        features = 2 * fourier * inputs if fourier else inputs
        self.query, self.key, self.value = (
            nn.Linear(features, width, bias=False) for _ in range(3)
        )
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.readout = nn.Linear(hidden, 1)
        for name, parameter in self.named_parameters():
            (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_normal_)(parameter)

    def embed(self, x: Tensor) -> Tensor:
        """Sines and cosines of the input at 1, 2, ... times a base frequency."""
        if not self.fourier:
            return x
        frequencies = torch.arange(1, self.fourier + 1, dtype=x.dtype, device=x.device)
        angles = math.pi / 2 * x.unsqueeze(-1) * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs at every step, from inputs of shape ``(B, T, inputs)``."""
        x = self.embed(x)
        q, k, z = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        attended = (weights @ z).transpose(1, 2).flatten(-2)
        return self.readout(self.mlp(self.out(attended)))


def normal(seed: int, *shape: int) -> Tensor:
    """Random normal inputs, the same whatever the model."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def look(model: AttentionBlock, x: Tensor, state: Sequence[str] = STATE) -> Snapshot:
    """One measurement at initialisation."""
    return probe(model, x, state=list(state), parameters="*weight", modes=0, tolerance=0.05)
