"""The remedies that are tried, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

from ntk_monitor.reason import Reason
from ntk_monitor.remedies import optimization, weights
from ntk_monitor.remedies.remedy import Remedy, Together


def remedies(reason: Reason | None = None) -> tuple[Remedy, ...]:
    """What `try_remedies` tries unless told otherwise.

    Args:
        reason: Why a training stalls, as the alert names it: what is for that comes first.

    Returns:
        The remedies, in the order in which they are tried.
    """
    found: Sequence[Remedy] = (
        optimization.Adam(1e-3),
        optimization.Adam(1e-2),
        Together([weights.OrthogonalRecurrence(), optimization.Adam(1e-3)]),
        Together([weights.HoldingRecurrence(), optimization.Adam(1e-3)]),
        optimization.LearningRate(10.0),
        optimization.Clipping(None),
        optimization.WeightDecay(0.0),
        weights.Unfreeze(),
        weights.LiveUnits(),
        weights.UnitVariance(),
        optimization.Shampoo(),
        weights.HoldingRecurrence(),
        weights.OrthogonalRecurrence(),
        optimization.Curriculum(),
        weights.FourierFeatures(),
        optimization.LearningRate(0.1),
        weights.Gain(2.0),
        optimization.Clipping(1.0),
        weights.CentredReadout(),
        optimization.WeightDecay(0.01),
        optimization.LargerBatches(4),
    )
    return tuple(sorted(found, key=lambda remedy: reason not in remedy.reasons))
