"""See what gradient descent can and cannot learn next.

`NTKMonitor` is a Lightning callback that measures, while a model trains, the operator through
which gradient descent moves its state (the global empirical NTK) and the core that bottlenecks it;
`StallAlert` says when a part of the target is out of reach. `probe` takes one such measurement
without Lightning and returns a `Snapshot`; `try_remedies` tells what would help.

Names are imported when they are asked for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntk_monitor.model import linearize, weight_sites
    from ntk_monitor.monitor import Monitor, NTKMonitor, StallAlert
    from ntk_monitor.probe import Probe, probe
    from ntk_monitor.remedies import try_remedies
    from ntk_monitor.snapshot import Snapshot, TargetMode
    from ntk_monitor.uncertainty import Estimate

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
HOMES = {
    "Estimate": "uncertainty",
    "Monitor": "monitor",
    "NTKMonitor": "monitor",
    "Probe": "probe",
    "Snapshot": "snapshot",
    "StallAlert": "monitor",
    "TargetMode": "snapshot",
    "linearize": "model",
    "probe": "probe",
    "try_remedies": "remedies",
    "weight_sites": "model",
}
"""The folder or file that each name is in."""


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """A name from its home; `__version__` is that of the installed package."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("ntk-monitor")
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The names, whether they are imported or not."""
    return sorted({*globals(), *__all__, "__version__"})


class _Package(ModuleType):
    """`probe` is the function, also after the file of that name was imported."""

    @property
    def probe(self) -> Any:  # noqa: ANN401
        """`ntk_monitor.probe.probe`."""
        return __getattr__("probe")

    @probe.setter
    def probe(self, value: ModuleType) -> None:
        """What importing the file does."""


sys.modules[__name__].__class__ = _Package
