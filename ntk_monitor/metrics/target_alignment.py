"""Is a part of the target visible to gradient descent?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntk_monitor.metrics.base import SnapshotMetric
from ntk_monitor.snapshot import Snapshot


def target_mode_alignment(snapshot: Snapshot, mode: int = 1) -> Tensor:
    r"""Alignment of the kernel with a target mode, the paper's cosine.

    .. math:: a_i = \frac{\langle q_i, A q_i\rangle}{\|q_i\|^2 \, \|A\|_F} \in [0, 1]

    Args:
        snapshot: The measurement.
        mode: Which target mode, from 1.

    Returns:
        A float64 scalar; nan where the snapshot does not have that mode.
    """
    gain, norm_squared = _sums(snapshot, mode)
    return gain / norm_squared.sqrt()


def _sums(snapshot: Snapshot, mode: int) -> tuple[Tensor, Tensor]:
    """Gain of the mode, and squared norm of the kernel."""
    gains = {m.index: m.gain for m in snapshot.target_modes}
    norm = torch.tensor(snapshot.frobenius_norm.value, dtype=torch.float64)
    return torch.tensor(gains.get(mode, torch.nan), dtype=torch.float64), norm.square()


class TargetModeAlignment(SnapshotMetric):
    r"""Alignment with a target mode, pooled over ``m`` snapshots.

    .. math:: a_i = \frac{\sum_s R_i^{(s)}}{\sqrt{m \sum_s \|A_s\|_F^2}}

    with the gains :math:`R_i`. As input to ``update`` the metric takes an `ntk_monitor.Snapshot`;
    ``compute`` gives a float64 scalar, nan before the first update.

    Args:
        mode: Which target mode, from 1.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    gain: Tensor
    norm_squared: Tensor
    count: Tensor

    def __init__(self, mode: int = 1, **kwargs: Any) -> None:  # noqa: ANN401
        """Start from empty sums.

        Raises:
            ValueError: If the mode is below 1.
        """
        super().__init__("gain", "norm_squared", "count", **kwargs)
        if mode < 1:
            raise ValueError(f"mode must be 1 or more, got {mode}")
        self.mode = mode

    def update(self, snapshot: Snapshot) -> None:
        """Add a snapshot."""
        gain, norm_squared = _sums(snapshot, self.mode)
        self.gain += gain
        self.norm_squared += norm_squared
        self.count += 1

    def compute(self) -> Tensor:
        """The pooled alignment."""
        return self.gain / (self.count * self.norm_squared).sqrt()
