"""Misspelt settings, each of which mypy must refuse: an ignored error that is none is an error."""

import torch
from torch import nn

from ntk_monitor import Monitor, NTKMonitor, Probe, probe


def misspelt(module: nn.Module, x: torch.Tensor) -> None:
    """Settings that do not exist, and values of the wrong type."""
    probe(module, x, tolerence=0.1)  # type: ignore[call-arg]
    probe(module, x, modes="three")  # type: ignore[arg-type]
    Probe(tolerence=0.1)  # type: ignore[call-arg]
    NTKMonitor(every_n_step=5)  # type: ignore[call-arg]
    NTKMonitor(plan="sometimes")  # type: ignore[arg-type]
    Monitor(max_overheads=0.1)  # type: ignore[call-arg]
    probe(module, x, tolerance=0.1, modes=2)
    NTKMonitor(tolerance=0.1, plan="log", state={"encoder": "rnn"})
