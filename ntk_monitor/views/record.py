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
from ntk_monitor.snapshot import Forecast, Instruments, Snapshot, TargetMode
from ntk_monitor.views.reach import reached_patterns
from ntk_monitor.views.summary import of_several

PLUGIN = "ntk"
"""The name under which TensorBoard knows these records, and the tab that shows them."""
SNAPSHOT_TAG = "ntk/snapshot"
CHANGES_TAG = "alert/changes"
FORMAT = 2
"""Version of a snapshot's record; those of 1 lack what this one has of losses and forecasts."""
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
        "state_shape": list(snapshot.state_shape),
        "state": list(snapshot.state),
        "scheme": snapshot.scheme,
        "method": snapshot.method,
        "tier": snapshot.tier,
        "products": snapshot.products,
        "seconds": _rounded(snapshot.seconds),
        "coverage": _rounded(snapshot.coverage.fraction),
        "trace": _rounded(snapshot.trace.value),
        "trace_stderr": _rounded(snapshot.trace.stderr),
        "trace_by_site": _shares(snapshot),
        "loss": _known(snapshot.loss),
        "transfer": _estimate(snapshot.transfer),
        "forecast": None if snapshot.forecast is None else _forecast(snapshot.forecast),
        "instruments": None if snapshot.instruments is None else _instruments(snapshot.instruments),
        "dead_units": _rounded(snapshot.dead_units),
        "saturated_units": _rounded(snapshot.saturated_units),
        "core_spectrum": _numbers(snapshot.core_spectrum[:SPECTRUM]),
        "core_total": _rounded(float(snapshot.core_spectrum.sum())),
        "temporal_spectrum": _numbers(snapshot.temporal_spectrum[:SPECTRUM]),
        "temporal_modes": _patterns(snapshot.temporal_modes[:MODES]),
        "target_patterns": _patterns(snapshot.target_patterns[:MODES]),
        "seen_patterns": None if seen is None else _patterns(seen[:MODES]),
        "target_modes": [_mode(mode, of_several(snapshot)) for mode in snapshot.target_modes],
    }
    return dict(plain(record))


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
    """A target mode, each number to four digits; with its output's name where there are several."""
    return {
        "index": mode.index,
        "output": mode.output if named else "",
        "singular_value": _rounded(mode.singular_value),
        "gain": _rounded(mode.gain),
        "learned": _rounded(mode.learned),
        "alignment": _rounded(mode.alignment.value),
        "alignment_stderr": _rounded(mode.alignment.stderr),
        "core_overlap": _rounded(mode.core_overlap),
        "share": _rounded(mode.share),
        "rate": _rounded(mode.rate),
        "steps_to_learn": _known(mode.steps_to_learn),
        "steps_band": None if mode.steps_band is None else list(map(_rounded, mode.steps_band)),
        "transfer": _estimate(mode.transfer),
        "steps_if": [[name, _rounded(steps)] for name, steps in mode.steps_if],
        "rate_if": [[name, _rounded(rate)] for name, rate in mode.rate_if],
        "readout": _rounded(mode.readout),
        "by_site": [[name, _rounded(share)] for name, share in mode.by_site[:SITES]],
        "by_output": [[i, _rounded(part)] for i, part in mode.by_output],
    }


def _shares(snapshot: Snapshot) -> list[list[Any]]:
    """What the largest weight sites have of the trace: names, shares and their standard errors."""
    errors = snapshot.trace_by_site_stderr
    return [
        [name, _rounded(share), _rounded(error)]
        for (name, share), error in zip(snapshot.trace_by_site[:SITES], errors, strict=False)
    ]


def _forecast(forecast: Forecast) -> dict[str, Any]:
    """The loss ahead and each mode's learned fraction, at a few of the steps."""
    kept = torch.as_tensor(_kept(len(forecast.steps), AHEAD)) if len(forecast.steps) else slice(0)
    return {
        "steps": _numbers(forecast.steps[kept]),
        "loss": _numbers(forecast.loss[kept]),
        "learned": [_numbers(row) for row in forecast.learned[kept].T[:MODES]],
        "valid_for": _rounded(forecast.valid_for),
    }


def _instruments(found: Instruments) -> dict[str, Any]:
    return {
        "gradient_norm": _rounded(found.gradient_norm),
        "signal_to_noise": _estimate(found.signal_to_noise),
        "relative_update": _rounded(found.relative_update),
        "headroom": _rounded(found.headroom),
        "learning_rate": _rounded(found.learning_rate),
        "clip_coefficient": _rounded(found.clip_coefficient),
    }


def _estimate(value: Estimate | None) -> list[float] | None:
    """A number and its standard error."""
    return None if value is None else [_rounded(value.value), _rounded(value.stderr)]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _known(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _numbers(values: Tensor) -> list[float]:
    return [_rounded(value) for value in values.tolist()]


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
        items.append({"scale": _rounded(scale), "values": whole})
    return {"trials": trials.tolist(), "steps": steps.tolist(), "items": items}
