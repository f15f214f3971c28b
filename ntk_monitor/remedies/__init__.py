"""Remedies for a training that learns nothing, and short trials that tell which of them helps.

`try_remedies` trains a baseline and each remedy for a share of the planned steps, on the same data,
and ranks them by the loss on data that none trained on. A `Remedy` is a small object; `ApplyRemedy`
is the Lightning callback that trains with one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ntk_monitor.remedies.catalogue import remedies
from ntk_monitor.remedies.optimization import (
    Adam,
    Clipping,
    Curriculum,
    LargerBatches,
    LearningRate,
    Shampoo,
    WeightDecay,
)
from ntk_monitor.remedies.plain import PlainTraining
from ntk_monitor.remedies.remedy import Loop, NotApplicableError, Remedy, Together
from ntk_monitor.remedies.results import Trials
from ntk_monitor.remedies.search import try_remedies
from ntk_monitor.remedies.trial import Mode, Trial
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

if TYPE_CHECKING:
    from ntk_monitor.remedies.lightning import ApplyRemedy

__all__ = [
    "Adam",
    "ApplyRemedy",
    "CentredReadout",
    "Clipping",
    "Curriculum",
    "FourierFeatures",
    "Gain",
    "HoldingRecurrence",
    "LargerBatches",
    "LearningRate",
    "LiveUnits",
    "Loop",
    "Mode",
    "NotApplicableError",
    "OrthogonalRecurrence",
    "PlainTraining",
    "Remedy",
    "Shampoo",
    "Together",
    "Trial",
    "Trials",
    "Unfreeze",
    "UnitVariance",
    "WeightDecay",
    "remedies",
    "try_remedies",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """What needs Lightning, which is imported only when it is asked for."""
    if name != "ApplyRemedy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.lightning").ApplyRemedy
