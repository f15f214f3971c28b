"""Why a target mode stalls: the words that alerts and remedies share."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "clipping",
    "decay",
    "saturated",
    "readout",
    "core",
    "propagator",
    "learning rate",
    "gradient noise",
]
