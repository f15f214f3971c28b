"""Does the core predict the kernel?"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ntk_monitor.estimators import cosine
from ntk_monitor.metrics.base import SnapshotMetric
from ntk_monitor.snapshot import Snapshot

View = Literal["full", "temporal"]


def core_cosine(snapshot: Snapshot, view: View = "full") -> Tensor:
    r"""Cosine between a kernel and its core.

    .. math::
        \cos(A, G \otimes I_n) \quad\text{or}\quad \cos(T, G), \qquad T = \mathrm{tr}_n(A) / n

    Args:
        snapshot: The measurement.
        view: ``"full"`` compares the kernel, ``"temporal"`` its temporal view.

    Returns:
        A float64 scalar in [0, 1], up to the error of the sample.
    """
    return cosine(*_sums(snapshot, view))


def _sums(snapshot: Snapshot, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Inner product, and the squared norms of kernel and core."""
    units = snapshot.state_shape[2]
    if view == "full":
        value, norm = snapshot.core_cosine.value, snapshot.frobenius_norm.value
        core = snapshot.core_spectrum.double().square().sum() * units
    else:
        rank = snapshot.temporal_effective_rank.value
        value = snapshot.temporal_core_cosine.value
        norm = snapshot.trace.value / math.sqrt(rank) if rank else 0.0
        core = snapshot.core_spectrum.double().square().sum()
    return value * norm * core.sqrt(), torch.tensor(norm**2, dtype=torch.float64), core


class CoreCosine(SnapshotMetric):
    r"""Cosine between kernel and core, pooled over snapshots.

    .. math::
        \cos = \frac{\sum_s \langle A_s, K_s\rangle}
                    {\sqrt{\sum_s \|A_s\|_F^2 \; \sum_s \|K_s\|_F^2}}

    As input to ``update`` the metric takes an `ntk_monitor.Snapshot`; ``compute`` gives a float64
    scalar, nan before the first update.

    Args:
        view: ``"full"`` compares the kernel with ``G (x) I_n``, ``"temporal"`` its temporal view
            with ``G``.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    inner: Tensor
    norm_squared: Tensor
    core_norm_squared: Tensor

    def __init__(self, view: View = "full", **kwargs: Any) -> None:  # noqa: ANN401
        """Start from empty sums.

        Raises:
            ValueError: If the view is not one of the two.
        """
        super().__init__("inner", "norm_squared", "core_norm_squared", **kwargs)
        if view not in {"full", "temporal"}:
            raise ValueError(f"view must be 'full' or 'temporal', got {view!r}")
        self.view = view

    def update(self, snapshot: Snapshot) -> None:
        """Add a snapshot."""
        inner, norm_squared, core_norm_squared = _sums(snapshot, self.view)
        self.inner += inner
        self.norm_squared += norm_squared
        self.core_norm_squared += core_norm_squared

    def compute(self) -> Tensor:
        """The pooled cosine."""
        return cosine(self.inner, self.norm_squared, self.core_norm_squared)
