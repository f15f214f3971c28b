"""A snapshot as a small record in an event file, for the NTK tab and the report."""

from __future__ import annotations

import json
import math
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from torch import Tensor

from ntk_monitor.estimators import Estimate
from ntk_monitor.snapshot import Forecast, Snapshot, TargetMode
from ntk_monitor.views.reach import reached_patterns
from ntk_monitor.views.summary import of_several

PLUGIN = "ntk"
"""The name under which TensorBoard knows these records, and the tab that shows them."""
SNAPSHOT_TAG = "ntk/snapshot"
CHANGES_TAG = "alert/changes"
FORMAT = 2
"""Version of a snapshot's record; those of 1 lack what this one has of losses and forecasts."""
AS_THEY_ARE = ("state_shape", "state", "scheme", "method", "tier", "products", "seconds", "loss",
               "transfer", "dead_units", "saturated_units")  # fmt: skip
"""What of a snapshot goes into its record under the same name."""
SPECTRUM = 64
MODES = 3
TRIALS = 20
STEPS = 200
POINTS = 665
AHEAD = 20
SITES = 3
"""The most that is kept: eigenvalues, patterns, trials, time steps, points of a pattern, steps of a
forecast, and weight sites of a mode or of the trace."""
FEWEST_TRIALS = 8
RESOLUTION = 1000
"""A pattern is kept in steps of a thousandth of its largest value."""

Array = NDArray[Any]


def snapshot_record(snapshot: Snapshot) -> dict[str, Any]:
    """What the NTK tab shows of a snapshot, as plain types of some 30 kB at most.

    Patterns over trials and time are thinned evenly, and kept as whole numbers: ``values`` times
    ``scale``. Numbers that are not finite become text, as in `plain`.

    Args:
        snapshot: The measurement.

    Returns:
        A dictionary that JSON can hold.
    """
    seen = reached_patterns(snapshot)
    record = {
        "format": FORMAT,
        **{name: getattr(snapshot, name) for name in AS_THEY_ARE},
        "coverage": snapshot.coverage.fraction,
        "trace": snapshot.trace.value,
        "trace_stderr": snapshot.trace.stderr,
        "trace_by_site": _shares(snapshot),
        "forecast": None if snapshot.forecast is None else _forecast(snapshot.forecast),
        "instruments": None if snapshot.instruments is None else vars(snapshot.instruments),
        "core_spectrum": snapshot.core_spectrum[:SPECTRUM],
        "core_total": float(snapshot.core_spectrum.sum()),
        "temporal_spectrum": snapshot.temporal_spectrum[:SPECTRUM],
        "temporal_modes": _patterns(snapshot.temporal_modes[:MODES]),
        "target_patterns": _patterns(snapshot.target_patterns[:MODES]),
        "seen_patterns": None if seen is None else _patterns(seen[:MODES]),
        "target_modes": [_mode(mode, of_several(snapshot)) for mode in snapshot.target_modes],
    }
    return dict(plain(_short(record)))


def plain(value: Any) -> Any:  # noqa: ANN401
    """A value in which every number that is not finite is text: ``"NaN"``, ``"Infinity"``.

    Args:
        value: Numbers, text, lists and dictionaries.

    Returns:
        The same, such that JSON of any reader can hold it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def write_record(writer: Any, tag: str, record: dict[str, Any], step: int) -> None:  # noqa: ANN401
    """Write a record to an event file, as a text that TensorBoard gives to the NTK tab.

    Args:
        writer: A ``SummaryWriter`` of torch or of tensorboardX.
        tag: Under which tag.
        record: What JSON can hold, see `plain`.
        step: Where on the x-axis.

    Raises:
        TypeError: If the writer writes no event files.
    """
    if not hasattr(writer, "_get_file_writer"):
        raise TypeError(
            f"writer must be a SummaryWriter of torch or tensorboardX, got {type(writer).__name__}"
        )
    file_writer = writer._get_file_writer()
    if file_writer is None:  # a stand-in that writes nothing
        return
    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN), data_class=DATA_CLASS_TENSOR
    )
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
    summary = Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
    if type(writer).__module__.partition(".")[0] == "tensorboardX":  # it has classes of its own
        own = import_module("tensorboardX.proto.summary_pb2").Summary
        summary = own.FromString(summary.SerializeToString())
    file_writer.add_summary(summary, step)


def _mode(mode: TargetMode, named: bool) -> dict[str, Any]:
    """A target mode, with its output's name where there are several."""
    return vars(mode) | {
        "output": mode.output if named else "",
        "alignment": mode.alignment.value,
        "alignment_stderr": mode.alignment.stderr,
        "by_site": mode.by_site[:SITES],
    }


def _shares(snapshot: Snapshot) -> list[tuple[str, float, float]]:
    """What the largest weight sites have of the trace: names, shares and their standard errors."""
    shares = zip(snapshot.trace_by_site[:SITES], snapshot.trace_by_site_stderr, strict=False)
    return [(name, share, error) for (name, share), error in shares]


def _forecast(forecast: Forecast) -> dict[str, Any]:
    """The loss ahead and each mode's learned fraction, at a few of the steps."""
    kept = torch.as_tensor(_kept(len(forecast.steps), AHEAD)) if len(forecast.steps) else slice(0)
    return {
        "steps": forecast.steps[kept],
        "loss": forecast.loss[kept],
        "learned": list(forecast.learned[kept].T[:MODES]),
        "valid_for": forecast.valid_for,
    }


def _short(value: Any) -> Any:  # noqa: ANN401
    """Each number to four digits; an estimate as its value and its standard error."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, Estimate):
        value = (value.value, value.stderr)
    elif isinstance(value, Tensor):
        value = value.tolist()
    return [_short(item) for item in value] if isinstance(value, (list, tuple)) else value


def _kept(length: int, most: int) -> Array:
    """Evenly spaced indices, with the first and the last."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))


def _thinned(trials: int, steps: int) -> tuple[Array, Array]:
    """Which trials and which steps of a pattern are kept."""
    if steps == 1:  # bars over trials
        return _kept(trials, STEPS), _kept(1, 1)
    most = min(steps, STEPS, POINTS // min(trials, FEWEST_TRIALS))
    return _kept(trials, min(TRIALS, POINTS // most)), _kept(steps, most)


def _patterns(patterns: Tensor) -> dict[str, Any]:
    """Patterns of shape (modes, trials, steps) as whole numbers with a scale for each."""
    trials, steps = _thinned(*patterns.shape[1:]) if patterns.numel() else (_kept(1, 1),) * 2
    rows = patterns.detach().cpu().double().numpy()
    items = []
    for row in rows if patterns.numel() else ():
        kept = row[np.ix_(trials, steps)]
        finite = np.isfinite(kept)
        scale = float(np.abs(kept, where=finite, out=np.zeros_like(kept)).max()) / RESOLUTION
        whole = np.rint(np.where(finite, kept, 0.0) / (scale or 1.0)).astype(int).tolist()
        if not finite.all():
            for i, j in zip(*np.nonzero(~finite), strict=True):
                whole[i][j] = None
        items.append({"scale": scale, "values": whole})
    return {"trials": trials.tolist(), "steps": steps.tolist(), "items": items}
