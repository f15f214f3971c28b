"""The remedies that are tried, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

from ntk_monitor.reason import Reason
from ntk_monitor.remedies.optimization import (
    Adam,
    Clipping,
    Curriculum,
    LargerBatches,
    LearningRate,
    Shampoo,
    WeightDecay,
)
from ntk_monitor.remedies.remedy import Remedy, Together
from ntk_monitor.remedies.weights import (
    CentredReadout,
    FourierFeatures,
    Gain,
    HoldingRecurrence,
    LiveUnits,
    OrthogonalRecurrence,
    Unfreeze,
    UnitVariance,
)


def remedies(reason: Reason | None = None) -> tuple[Remedy, ...]:
    """What `try_remedies` tries unless told otherwise.

    Args:
        reason: Why a training stalls, as the alert names it: what is for that comes first.

    Returns:
        The remedies, in the order in which they are tried.
    """
    found: Sequence[Remedy] = (
        Adam(1e-3),
        Adam(1e-2),
        Together([OrthogonalRecurrence(), Adam(1e-3)]),
        Together([HoldingRecurrence(), Adam(1e-3)]),
        LearningRate(10.0),
        Clipping(None),
        WeightDecay(0.0),
        Unfreeze(),
        LiveUnits(),
        UnitVariance(),
        Shampoo(),
        HoldingRecurrence(),
        OrthogonalRecurrence(),
        Curriculum(),
        FourierFeatures(),
        LearningRate(0.1),
        Gain(2.0),
        Clipping(1.0),
        CentredReadout(),
        WeightDecay(0.01),
        LargerBatches(4),
    )
    return tuple(sorted(found, key=lambda remedy: reason not in remedy.reasons))
