"""See what gradient descent can and cannot learn next.

`NTKMonitor` is a Lightning callback that measures, while a model trains, the operator through
which gradient descent moves its state (the global empirical NTK) and the core that bottlenecks it;
`StallAlert` says when a part of the target is out of reach. `probe` takes one such measurement
without Lightning and returns a `Snapshot`.
"""

from ntk_monitor.model import linearize, weight_sites
from ntk_monitor.monitor import NTKMonitor, StallAlert
from ntk_monitor.probe import Probe, probe
from ntk_monitor.snapshot import Snapshot, TargetMode
from ntk_monitor.uncertainty import Estimate

__all__ = [
    "Estimate",
    "NTKMonitor",
    "Probe",
    "Snapshot",
    "StallAlert",
    "TargetMode",
    "linearize",
    "probe",
    "weight_sites",
]
