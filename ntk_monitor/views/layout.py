"""The Custom Scalars tab of TensorBoard: charts with error bands."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ntk_monitor.snapshot import Snapshot

BANDS = {
    "core cosine": "ntk/core_cosine",
    "temporal core cosine": "ntk/temporal_core_cosine",
    "effective rank": "ntk/effective_rank",
    "temporal effective rank": "ntk/temporal_effective_rank",
    "spatial effective rank": "ntk/spatial_effective_rank",
    "trace": "ntk/trace",
}
"""Chart titles and the tags that they show with a band."""

WIDTH = 1.96
"""Half width of a band in standard errors: 95 % of a normal distribution."""

Layout = dict[str, dict[str, list[str | list[str]]]]


def custom_scalars_layout(modes: int, prefixes: Sequence[str] = ("",)) -> Layout:
    """The layout for ``SummaryWriter.add_custom_scalars``.

    Args:
        modes: How many target modes are followed.
        prefixes: What the tags of each state begin with; the target modes shown are the first's.

    Returns:
        The target modes together, and for each state the kernel's numbers with 95 % bands.
    """
    layout: Layout = {}
    if modes:
        first = re.escape(prefixes[0])  # charts of several lines take regular expressions
        layout["NTK target modes"] = {
            "learned fraction": ["Multiline", [rf"{first}target/mode_\d+/learned$"]],
            "steps to learn (best on a log axis)": [
                "Multiline",
                [rf"{first}target/mode_\d+/steps_to_learn$"],
            ],
            "alignment": ["Multiline", [rf"{first}target/mode_\d+/alignment$"]],
            "stalled (1) or not (0)": ["Multiline", [r"alert/mode_\d+$"]],
        }
    for prefix in prefixes:
        kernel: dict[str, list[str | list[str]]] = {
            title: ["Margin", [f"{prefix}{t}" for t in (tag, *_ends(tag))]]
            for title, tag in BANDS.items()
        }
        kernel["core effective rank"] = ["Multiline", [f"{re.escape(prefix)}core/effective_rank$"]]
        name = f"NTK of {prefix[:-1]} (95 % bands)" if prefix else "NTK (95 % bands)"
        layout[name] = kernel
    return layout


def band_scalars(snapshot: Snapshot) -> dict[str, float]:
    """The ends of every band.

    Args:
        snapshot: The measurement.

    Returns:
        Lower and upper ends by tag.
    """
    scalars = snapshot.scalars()
    bands: dict[str, float] = {}
    for tag in filter(scalars.__contains__, BANDS.values()):
        half = WIDTH * scalars[f"{tag}_stderr"]
        lower, upper = _ends(tag)
        bands |= {lower: scalars[tag] - half, upper: scalars[tag] + half}
    return bands


def _ends(tag: str) -> tuple[str, str]:
    """Tags of a band's ends, in a group of their own, so that the Scalars tab stays readable."""
    band = tag.replace("ntk/", "ntk_bands/")
    return f"{band}/lower", f"{band}/upper"
