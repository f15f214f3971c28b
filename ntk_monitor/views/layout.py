"""The Custom Scalars tab of TensorBoard: charts with error bands."""

from __future__ import annotations

import math
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

AHEAD_BANDS = {
    "transfer of the loss": "loss/transfer",
    "signal to noise of the gradient": "gradient/signal_to_noise",
}
"""The same of what the loss does; whether they are known depends on the training."""

WIDTH = 1.96
"""Half width of a band in standard errors: 95 % of a normal distribution."""

POWER = "ntk_bands/target/mode_<i>/log10_steps_to_learn"
"""Steps to learn as a power of ten: a layout cannot ask for a logarithmic axis."""

Layout = dict[str, dict[str, list[str | list[str]]]]


def custom_scalars_layout(modes: int, prefixes: Sequence[str] = ("",)) -> Layout:
    """The layout for ``SummaryWriter.add_custom_scalars``.

    Args:
        modes: How many target modes are followed.
        prefixes: What the tags of each state begin with; the target modes shown are the first's.

    Returns:
        What the alert says of each mode, the target modes together, the loss with its forecast, and
        for each state the kernel's numbers; with 95 % bands where there are standard errors.
    """
    layout: Layout = {}
    first = re.escape(prefixes[0])  # charts of several lines take regular expressions
    if modes:
        layout["NTK verdict"] = {
            f"mode {i}: stalled (1) or not (0)": _as_it_is(f"alert/mode_{i}")
            for i in range(1, modes + 1)
        }
        layout["NTK target modes"] = {
            "learned fraction": ["Multiline", [rf"{first}target/mode_\d+/learned$"]],
            "steps to learn, as a power of ten": [
                "Multiline",
                [first + POWER.replace("<i>", r"\d+") + "$"],
            ],
            "rate": ["Multiline", [rf"{first}target/mode_\d+/rate$"]],
            "alignment": ["Multiline", [rf"{first}target/mode_\d+/alignment$"]],
            **{
                f"transfer of mode {i}": _margin(prefixes[0], f"target/mode_{i}/transfer")
                for i in range(1, modes + 1)
            },
        }
    layout["NTK loss and next steps"] = {
        "loss now, in 10 and in 30 steps": [
            "Multiline",
            [rf"{first}loss/(now|in_\d+_steps)$"],
        ],
        "steps for which forecasts hold": ["Multiline", [f"{first}loss/forecast_holds_for$"]],
        "gradient norm": ["Multiline", [f"{first}gradient/norm$"]],
        "left by clipping": ["Multiline", [f"{first}gradient/clip_coefficient$"]],
        "learning rate": ["Multiline", [f"{first}update/learning_rate$"]],
        "relative update": ["Multiline", [f"{first}update/relative_size$"]],
        "headroom of the learning rate (best on a log axis)": [
            "Multiline",
            [f"{first}update/headroom$"],
        ],
        **{title: _margin(prefixes[0], tag) for title, tag in AHEAD_BANDS.items()},
    }
    for prefix in prefixes:
        kernel: dict[str, list[str | list[str]]] = {
            title: _margin(prefix, tag) for title, tag in BANDS.items()
        }
        kernel["core effective rank"] = ["Multiline", [f"{re.escape(prefix)}core/effective_rank$"]]
        name = f"NTK of {prefix[:-1]} (95 % bands)" if prefix else "NTK (95 % bands)"
        layout[name] = kernel
    return layout


def band_scalars(snapshot: Snapshot) -> dict[str, float]:
    """The ends of every band, and steps to learn on a logarithmic axis.

    Args:
        snapshot: The measurement.

    Returns:
        Lower and upper ends, and powers of ten where there are such, by tag.
    """
    scalars = snapshot.scalars()
    bands: dict[str, float] = {}
    transfers = [f"target/mode_{mode.index}/transfer" for mode in snapshot.target_modes]
    for tag in (*BANDS.values(), *AHEAD_BANDS.values(), *transfers):
        if f"{tag}_stderr" not in scalars:
            continue
        half = WIDTH * scalars[f"{tag}_stderr"]
        lower, upper = _ends(tag)
        bands |= {lower: scalars[tag] - half, upper: scalars[tag] + half}
    steps = {mode.index: mode.steps_to_learn for mode in snapshot.target_modes}
    powers = {
        POWER.replace("<i>", str(i)): math.log10(value)
        for i, value in steps.items()
        if value is not None and 0 < value < math.inf
    }
    return bands | powers


def _as_it_is(tag: str) -> list[str | list[str]]:
    """A chart of a number that TensorBoard does not smooth: it smooths no chart with a band."""
    return ["Margin", [tag, tag, tag]]


def _margin(prefix: str, tag: str) -> list[str | list[str]]:
    """A chart of one number with its band."""
    return ["Margin", [f"{prefix}{name}" for name in (tag, *_ends(tag))]]


def _ends(tag: str) -> tuple[str, str]:
    """Tags of a band's ends, in a group of their own, so that the Scalars tab stays readable."""
    band = f"ntk_bands/{tag.removeprefix('ntk/')}"
    return f"{band}/lower", f"{band}/upper"
