"""What is said by hand of each run of the gallery, from ``docs/gallery.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from ntk_monitor.reason import Reason


@dataclass(frozen=True)
class Shown:
    """A run of the gallery.

    Attributes:
        kind: The training, in ``gallery_runs.py`` or in ``benchmarks/kinds.py``.
        title: The heading: what one sees.
        short: The same for a picture's text alternative.
        built_in: What was built in, for the table.
        what: The training.
        curve: What the loss curve alone would suggest.
        to_do: What to do.
        reason: The alert's reason that is right; None where no stall is built in.
        if_wrong: What to make of it where the alert names another one.
        tried: Whether short trials of remedies are made.
        otherwise: The remedy to show where trials find none that helps; none where empty.
        probes: How many probes it has; 0 for as many as the others.
    """

    kind: str
    title: str
    short: str
    built_in: str
    what: str
    curve: str
    to_do: str
    reason: Reason | None = None
    if_wrong: str = ""
    tried: bool = True
    otherwise: str = ""
    probes: int = 0


_TEXTS = tomllib.loads(Path(__file__).with_name("gallery.toml").read_text())
MISSING: dict[Reason, str] = _TEXTS.pop("missing")
"""Why a reason of the alert was given for no run."""
SHOWN: dict[str, Shown] = {key: Shown(**texts) for key, texts in _TEXTS.items()}
"""The runs, in their order on the page."""
