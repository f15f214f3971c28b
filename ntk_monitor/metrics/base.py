"""What metrics over snapshots have in common."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import Metric


class SnapshotMetric(Metric):
    """A metric of sums over snapshots, that can be drawn, as those of torchmetrics can."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, *sums: str, **kwargs: Any) -> None:  # noqa: ANN401
        """Start from empty sums.

        Args:
            sums: What they are called.
            kwargs: Passed to ``torchmetrics.Metric``.
        """
        super().__init__(**kwargs)
        for name in sums:
            zero = torch.tensor(0.0, dtype=torch.float64, device="cpu")
            self.add_state(name, zero, dist_reduce_fx="sum")

    def plot(self, val: Any = None, ax: Any = None) -> Any:  # noqa: ANN401
        """Draw the value, or several of ``forward``.

        Args:
            val: Values; what ``compute`` gives where left out.
            ax: Axes to draw on.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)
