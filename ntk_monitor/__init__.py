"""See what gradient descent can and cannot learn next.

`NTKMonitor` is a Lightning callback that measures, while a model trains, the operator through
which gradient descent moves its state (the global empirical NTK) and the core that bottlenecks it;
`StallAlert` says when a part of the target is out of reach. `probe` takes one such measurement
without Lightning and returns a `Snapshot`; `try_remedies` tells what would help.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ntk_monitor.model import linearize, weight_sites
from ntk_monitor.probe import Probe, probe
from ntk_monitor.snapshot import Snapshot, TargetMode
from ntk_monitor.uncertainty import Estimate

if TYPE_CHECKING:
    from ntk_monitor.monitor import Monitor, NTKMonitor, StallAlert
    from ntk_monitor.remedies import try_remedies

__all__ = [
    "Estimate",
    "Monitor",
    "NTKMonitor",
    "Probe",
    "Snapshot",
    "StallAlert",
    "TargetMode",
    "linearize",
    "probe",
    "try_remedies",
    "weight_sites",
]

LATER = {
    "Monitor": "monitor",
    "NTKMonitor": "monitor",
    "StallAlert": "monitor",
    "try_remedies": "remedies",
}
"""What needs torchmetrics or Lightning, and the folder that it is in."""


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """What is imported only when it is asked for."""
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{LATER[name]}"), name)
