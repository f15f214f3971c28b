"""Monitors: when to probe a training, what to do with a snapshot, when to raise an alert.

A monitor decides that a probe is due, takes it in the quiet context, and hands the snapshot to the
loggers and to everyone who listens. It knows a training only as a `Host`; `NTKMonitor` is the
callback of Lightning, `Monitor` is for loops of one's own and for Fabric, `NTKTrainerCallback` for
the Trainer of transformers. `StallAlert` is one that listens: it watches the target modes and says
when one of them is out of reach.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ntk_monitor.monitor.alerts.delivery import Alert
from ntk_monitor.monitor.alerts.service import StallDetector, StallWarning
from ntk_monitor.monitor.integrations.loop import Monitor

if TYPE_CHECKING:
    from ntk_monitor.monitor.integrations.lightning.alert import StallAlert
    from ntk_monitor.monitor.integrations.lightning.callback import NTKMonitor, ProbeListener
    from ntk_monitor.monitor.integrations.transformers import NTKTrainerCallback

__all__ = [
    "Alert",
    "Monitor",
    "NTKMonitor",
    "NTKTrainerCallback",
    "ProbeListener",
    "StallAlert",
    "StallDetector",
    "StallWarning",
]
HOMES = {
    "NTKMonitor": "lightning.callback",
    "NTKTrainerCallback": "transformers",
    "ProbeListener": "lightning.callback",
    "StallAlert": "lightning.alert",
}
"""What needs Lightning or transformers, imported only when it is asked for."""


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """What needs Lightning or transformers, by name."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.integrations.{HOMES[name]}"), name)
