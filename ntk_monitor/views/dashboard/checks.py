"""Whether what an event file holds is a record of ours; another tool may use the same tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ntk_monitor.views.record import FORMAT, plain

MOST_BYTES = 500_000
SEVERITIES = frozenset({"info", "warning"})

_TEXTS = {"NaN", "Infinity", "-Infinity"}


def checked_snapshot(content: Any) -> dict[str, Any]:  # noqa: ANN401
    """Read a snapshot's record.

    Args:
        content: What the tensor holds.

    Returns:
        The record, in which everything that the tab draws has the type it should have.

    Raises:
        ValueError: If it is not a record of this format; the message says why.
    """
    record = _object(content)
    if record.get("format") != FORMAT:
        raise ValueError(f"it is of format {record.get('format')!r}, this version reads {FORMAT}")
    try:
        _require(len(record["state_shape"]) == 3, "state_shape")
        for name in ("core_spectrum", "temporal_spectrum", "state_shape"):
            _require(all(map(_is_number, record[name])), name)
        for name in ("trace", "core_total", "coverage", "products"):
            _require(_is_number(record[name]), name)
        for name in ("temporal_modes", "target_patterns"):
            _require(_are_patterns(record[name]), name)
        seen = record["seen_patterns"]
        _require(seen is None or _are_patterns(seen), "seen_patterns")
        for mode in record["target_modes"]:
            _require(type(mode["index"]) is int, "target_modes")
            numbers = (mode["gain"], mode["core_overlap"], mode["learned"], mode["singular_value"])
            _require(all(map(_is_number, numbers)), "target_modes")
            _require(mode["steps_to_learn"] is None or _is_number(mode["steps_to_learn"]), "steps")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not complete ({error})") from error
    return record


def checked_changes(content: Any) -> tuple[dict[int, str], list[dict[str, Any]]]:  # noqa: ANN401
    """Read a record of ``alert/changes``.

    Args:
        content: What the tensor holds.

    Returns:
        The states by mode, and the alerts.

    Raises:
        ValueError: If it is not one; the message says why.
    """
    record = _object(content)
    try:
        states = {int(index): str(name) for index, name in record["states"].items()}
        alerts = [
            {
                "step": int(alert["step"]),
                "mode": None if alert.get("mode") is None else int(alert["mode"]),
                "kind": str(alert["kind"]),
                "severity": alert["severity"] if alert.get("severity") in SEVERITIES else "info",
                "reason": None if alert.get("reason") is None else str(alert["reason"]),
                "message": str(alert["message"]),
            }
            for alert in record["alerts"]
        ]
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is not complete ({error})") from error
    return states, alerts


def _object(content: Any) -> dict[str, Any]:  # noqa: ANN401
    """The JSON object in a tensor of one text."""
    items = content.ravel().tolist() if hasattr(content, "ravel") else [content]
    if len(items) != 1 or not isinstance(items[0], (bytes, str)):
        raise ValueError("it is not one text; another tool uses the same tag")
    if len(items[0]) > MOST_BYTES:
        raise ValueError(f"it has {len(items[0])} bytes, more than {MOST_BYTES}")
    try:
        record = json.loads(items[0])
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON; another tool uses the same tag") from error
    if not isinstance(record, Mapping):
        raise ValueError("it is not a record; another tool uses the same tag")
    return dict(plain(dict(record)))


def _are_patterns(patterns: Any) -> bool:  # noqa: ANN401
    axes = (patterns["trials"], patterns["steps"])
    shaped = all(
        len(item["values"]) == len(axes[0])
        and all(len(row) == len(axes[1]) for row in item["values"])
        and all(v is None or type(v) is int for row in item["values"] for v in row)
        and _is_number(item["scale"])
        for item in patterns["items"]
    )
    return shaped and all(type(index) is int for axis in axes for index in axis)


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return type(value) in {int, float} or (isinstance(value, str) and value in _TEXTS)


def _require(condition: bool, name: str) -> None:
    if not condition:
        raise ValueError(f"its {name} is not what it should be")
