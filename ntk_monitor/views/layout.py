"""The Custom Scalars tab of TensorBoard: charts with error bands."""

from __future__ import annotations

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


def custom_scalars_layout(modes: int) -> Layout:
    """The layout for ``SummaryWriter.add_custom_scalars``.

    Args:
        modes: How many target modes are followed.

    Returns:
        Two categories: the kernel's numbers with 95 % bands, and the target modes together.
    """
    kernel: dict[str, list[str | list[str]]] = {
        title: ["Margin", [tag, f"{_band(tag)}/lower", f"{_band(tag)}/upper"]]
        for title, tag in BANDS.items()
    }
    kernel["core effective rank"] = ["Multiline", ["core/effective_rank$"]]
    if not modes:
        return {"NTK (95 % bands)": kernel}
    targets: dict[str, list[str | list[str]]] = {
        "learned fraction": ["Multiline", [r"target/mode_\d+/learned$"]],
        "steps to learn (best on a log axis)": ["Multiline", [r"target/mode_\d+/steps_to_learn$"]],
        "alignment": ["Multiline", [r"target/mode_\d+/alignment$"]],
        "stalled (1) or not (0)": ["Multiline", [r"alert/mode_\d+$"]],
    }
    return {"NTK target modes": targets, "NTK (95 % bands)": kernel}


def band_scalars(snapshot: Snapshot) -> dict[str, float]:
    """The ends of every band.

    Args:
        snapshot: The measurement.

    Returns:
        Lower and upper ends by tag.
    """
    scalars = snapshot.scalars()
    bands = {}
    for tag in filter(scalars.__contains__, BANDS.values()):
        half = WIDTH * scalars[f"{tag}_stderr"]
        bands[f"{_band(tag)}/lower"] = scalars[tag] - half
        bands[f"{_band(tag)}/upper"] = scalars[tag] + half
    return bands


def _band(tag: str) -> str:
    """Bands have a group of their own, so that the Scalars tab stays readable."""
    return tag.replace("ntk/", "ntk_bands/")
