"""The Lightning side: when to probe, what to do with a snapshot, when to raise an alert.

`NTKMonitor` decides that a probe is due, takes it in the quiet context, and hands the snapshot to
the loggers, to ``trainer.callback_metrics`` and to every callback that listens. `StallAlert` is
such a listener: it watches the target modes and says when one of them is out of reach.
"""

from ntk_monitor.monitor.alert import StallAlert, StallWarning
from ntk_monitor.monitor.callback import NTKMonitor, ProbeListener
from ntk_monitor.monitor.delivery import Alert

__all__ = ["Alert", "NTKMonitor", "ProbeListener", "StallAlert", "StallWarning"]
