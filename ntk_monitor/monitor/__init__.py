"""Monitors: when to probe a training, what to do with a snapshot, when to raise an alert.

A monitor decides that a probe is due, takes it in the quiet context, and hands the snapshot to the
loggers and to everyone who listens. It knows a training only as a `Host`; `NTKMonitor` is the
callback of Lightning, `Monitor` is for loops of one's own and for Fabric, and
`ntk_monitor.monitor.transformers` has a callback for the Trainer of that library. `StallAlert` is
one that listens: it watches the target modes and says when one of them is out of reach.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ntk_monitor.monitor.delivery import Alert
from ntk_monitor.monitor.detector import StallDetector, StallWarning
from ntk_monitor.monitor.plain import Monitor

if TYPE_CHECKING:
    from ntk_monitor.monitor.alert import StallAlert
    from ntk_monitor.monitor.callback import NTKMonitor, ProbeListener

__all__ = [
    "Alert",
    "Monitor",
    "NTKMonitor",
    "ProbeListener",
    "StallAlert",
    "StallDetector",
    "StallWarning",
]
LIGHTNING = {"NTKMonitor": "callback", "ProbeListener": "callback", "StallAlert": "alert"}
"""What needs Lightning, which is imported only when one of these is asked for."""


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """What needs Lightning, by name."""
    if name not in LIGHTNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{LIGHTNING[name]}"), name)
