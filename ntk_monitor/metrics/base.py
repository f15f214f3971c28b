"""What metrics over snapshots have in common."""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric


class SnapshotMetric(Metric):
    """A metric that can be drawn, as those of torchmetrics can."""

    def plot(self, val: Any = None, ax: Any = None) -> Any:  # noqa: ANN401
        """Draw the value, or several of ``forward``.

        Args:
            val: Values; what ``compute`` gives where left out.
            ax: Axes to draw on.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)
