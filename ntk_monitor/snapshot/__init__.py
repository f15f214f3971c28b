"""The result of a probe."""

from ntk_monitor.snapshot.parts import (
    ComparedOutput,
    Forecast,
    Instruments,
    PredictedMode,
    TargetMode,
)
from ntk_monitor.snapshot.snapshot import AHEAD, Snapshot

__all__ = [
    "AHEAD",
    "ComparedOutput",
    "Forecast",
    "Instruments",
    "PredictedMode",
    "Snapshot",
    "TargetMode",
]
