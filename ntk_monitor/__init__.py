"""See what gradient descent can and cannot learn next.

`NTKMonitor` is a Lightning callback that measures, while a model trains, the operator through
which gradient descent moves its state (the global empirical NTK) and the core that bottlenecks it;
`StallAlert` says when a part of the target is out of reach. `probe` takes one such measurement
without Lightning and returns a `Snapshot`.
"""

from typing import TYPE_CHECKING, Any

from ntk_monitor.model import linearize, weight_sites
from ntk_monitor.probe import Probe, probe
from ntk_monitor.snapshot import Snapshot, TargetMode
from ntk_monitor.uncertainty import Estimate

if TYPE_CHECKING:
    from ntk_monitor.monitor import Monitor, NTKMonitor, StallAlert

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
    "weight_sites",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """What needs torchmetrics or Lightning, which are imported only when it is asked for."""
    if name not in {"Monitor", "NTKMonitor", "StallAlert"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ntk_monitor import monitor  # noqa: PLC0415

    return getattr(monitor, name)
