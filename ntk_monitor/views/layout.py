"""The Custom Scalars tab of TensorBoard: charts with error bands."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ntk_monitor.snapshot import Snapshot
from ntk_monitor.views.glossary import NAMES

BANDS = (
    "ntk/core_cosine",
    "ntk/temporal_core_cosine",
    "ntk/effective_rank",
    "ntk/temporal_effective_rank",
    "ntk/spatial_effective_rank",
    "ntk/trace",
)
"""The kernel's numbers that are shown with a band, under the names that the glossary has."""

AHEAD_BANDS = {
    "transfer of the loss": "loss/transfer",
    "signal to noise of the gradient": "gradient/signal_to_noise",
}
"""Chart titles and tags of the same of what the loss does; known or not with the training."""

WIDTH = 1.96
"""Half width of a band in standard errors: 95 % of a normal distribution."""

POWER = "ntk_bands/target/mode_<i>/log10_steps_to_learn"
"""Steps to learn as a power of ten: a layout cannot ask for a logarithmic axis."""

Chart = list[str | list[str]]
Layout = dict[str, dict[str, Chart]]


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
    first = prefixes[0]
    numbers = range(1, modes + 1)
    if modes:
        layout["NTK verdict"] = {
            f"mode {i}: stalled (1) or not (0)": _as_it_is(f"alert/mode_{i}") for i in numbers
        }
        layout["NTK target modes"] = {
            "learned fraction": _lines(first, r"target/mode_\d+/learned"),
            "steps to learn, as a power of ten": _lines(first, POWER.replace("<i>", r"\d+")),
            "rate": _lines(first, r"target/mode_\d+/rate"),
            "alignment": _lines(first, r"target/mode_\d+/alignment"),
            **{
                f"transfer of mode {i}": _margin(first, f"target/mode_{i}/transfer")
                for i in numbers
            },
        }
    layout["NTK loss and next steps"] = {
        "loss now, in 10 and in 30 steps": _lines(first, r"loss/(now|in_\d+_steps)"),
        "steps for which forecasts hold": _lines(first, "loss/forecast_holds_for"),
        "gradient norm": _lines(first, "gradient/norm"),
        "left by clipping": _lines(first, "gradient/clip_coefficient"),
        "learning rate": _lines(first, "update/learning_rate"),
        "relative update": _lines(first, "update/relative_size"),
        "headroom of the learning rate (best on a log axis)": _lines(first, "update/headroom"),
        **{title: _margin(first, tag) for title, tag in AHEAD_BANDS.items()},
    }
    for prefix in prefixes:
        name = f"NTK of {prefix[:-1]} (95 % bands)" if prefix else "NTK (95 % bands)"
        layout[name] = {
            **{NAMES[tag]: _margin(prefix, tag) for tag in BANDS},
            "core effective rank": _lines(prefix, "core/effective_rank"),
        }
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
    for tag in (*BANDS, *AHEAD_BANDS.values(), *transfers):
        if f"{tag}_stderr" in scalars:
            half = WIDTH * scalars[f"{tag}_stderr"]
            lower, upper = _ends(tag)
            bands |= {lower: scalars[tag] - half, upper: scalars[tag] + half}
    for mode in snapshot.target_modes:
        steps = mode.steps_to_learn
        if steps is not None and 0 < steps < math.inf:
            bands[POWER.replace("<i>", str(mode.index))] = math.log10(steps)
    return bands


def _lines(prefix: str, pattern: str) -> Chart:
    """A chart of all numbers whose tags are like a regular expression, a line each."""
    return ["Multiline", [f"{re.escape(prefix)}{pattern}$"]]


def _as_it_is(tag: str) -> Chart:
    """A chart of a number that TensorBoard does not smooth: it smooths no chart with a band."""
    return ["Margin", [tag, tag, tag]]


def _margin(prefix: str, tag: str) -> Chart:
    """A chart of one number with its band."""
    return ["Margin", [f"{prefix}{name}" for name in (tag, *_ends(tag))]]


def _ends(tag: str) -> tuple[str, str]:
    """Tags of a band's ends, in a group of their own, so that the Scalars tab stays readable."""
    band = f"ntk_bands/{tag.removeprefix('ntk/')}"
    return f"{band}/lower", f"{band}/upper"
