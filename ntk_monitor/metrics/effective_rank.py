"""How many directions can the next step move?"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ntk_monitor.estimators import participation_ratio
from ntk_monitor.metrics.base import SnapshotMetric
from ntk_monitor.snapshot import Snapshot

View = Literal["full", "temporal", "spatial", "core"]
VIEWS: tuple[View, ...] = ("full", "temporal", "spatial", "core")


def effective_rank(snapshot: Snapshot, view: View = "full") -> Tensor:
    r"""Participation ratio of a kernel, of one of its views, or of its core.

    .. math:: \mathrm{PR}(M) = (\mathrm{tr}\, M)^2 / \|M\|_F^2

    Args:
        snapshot: The measurement.
        view: ``"full"`` for the kernel, ``"temporal"`` for its trace over units, ``"spatial"``
            for its trace over trials and time, ``"core"`` for the Gram matrix of site activity.

    Returns:
        A float64 scalar, at least 1 up to the error of the sample.
    """
    return participation_ratio(*_sums(snapshot, view))


def _sums(snapshot: Snapshot, view: View) -> tuple[Tensor, Tensor]:
    """Squared trace and squared norm."""
    if view == "core":
        spectrum = snapshot.core_spectrum.double()
        return spectrum.sum().square(), spectrum.square().sum()
    ranks = {
        "full": snapshot.effective_rank,
        "temporal": snapshot.temporal_effective_rank,
        "spatial": snapshot.spatial_effective_rank,
    }
    trace_squared = torch.tensor(snapshot.trace.value, dtype=torch.float64).square()
    return trace_squared, trace_squared / ranks[view].value


class EffectiveRank(SnapshotMetric):
    r"""Participation ratio, pooled over snapshots.

    .. math:: \mathrm{PR} = \sum_s (\mathrm{tr} M_s)^2 \big/ \sum_s \|M_s\|_F^2

    As input to ``update`` the metric takes an `ntk_monitor.Snapshot`; ``compute`` gives a float64
    scalar, nan before the first update.

    Args:
        view: ``"full"``, ``"temporal"``, ``"spatial"`` or ``"core"``.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    higher_is_better = None
    plot_lower_bound = 1.0

    trace_squared: Tensor
    norm_squared: Tensor

    def __init__(self, view: View = "full", **kwargs: Any) -> None:  # noqa: ANN401
        """Start from empty sums.

        Raises:
            ValueError: If the view is none of the four.
        """
        super().__init__("trace_squared", "norm_squared", **kwargs)
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
        self.view = view

    def update(self, snapshot: Snapshot) -> None:
        """Add a snapshot."""
        trace_squared, norm_squared = _sums(snapshot, self.view)
        self.trace_squared += trace_squared
        self.norm_squared += norm_squared

    def compute(self) -> Tensor:
        """The pooled effective rank."""
        return participation_ratio(self.trace_squared, self.norm_squared)
