"""Whether what an event file holds is a record of ours; another tool may use the same tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from ntk_monitor.views.record import FORMAT, plain

MOST_BYTES = 500_000
MOST_CHANGES_BYTES = 5_000_000
"""Bytes of a snapshot's record, and of one of ``alert/changes``, which holds all alerts so far."""
MOST_LEVELS = 20
"""How deep lists and dictionaries of a record may lie within each other."""
LARGEST = 2**53
"""Whole numbers beyond it are not exact in a browser."""
SEVERITIES = frozenset({"info", "warning"})

_ODD = (KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class Changed(NamedTuple):
    """What the alert of a run has recorded: a record of ``alert/changes``, or several together.

    Attributes:
        state: What the tags of its state begin with; None if it does not say.
        history: For each mode the states since steps.
        alerts: The alerts.
        whole: Whether it holds everything up to its step, or only what changed there.
        planned: Steps of the whole training, if it says.
        level: Probability that a verdict is wrong, if it says.
        endless: Whether the alert does not know how many steps remain.
        unsure: Modes that the alert calls without being certain.
    """

    state: str | None
    history: dict[int, list[tuple[int, str]]]
    alerts: list[dict[str, Any]]
    whole: bool
    planned: float | None = None
    level: float | None = None
    endless: bool = False
    unsure: frozenset[int] = frozenset()


NOTHING = Changed(None, {}, [], whole=True)


def checked_snapshot(content: Any) -> dict[str, Any]:  # noqa: ANN401
    """Read a snapshot's record.

    Args:
        content: What the tensor holds.

    Returns:
        The record, in which everything that the tab draws has the type it should have.

    Raises:
        ValueError: If it is not a record of this format; the message says why.
    """
    record = _object(content, MOST_BYTES)
    if record.get("format") not in range(1, FORMAT + 1):
        raise ValueError(
            f"it is of format {record.get('format')!r}, this version reads 1 to {FORMAT}"
        )
    try:
        msgspec.convert(record, _Snapshot)
    except msgspec.ValidationError as error:
        raise ValueError(f"it is not complete ({error})") from error
    return record


Whole = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
Number = Whole | float | Literal["NaN", "Infinity", "-Infinity"]
"""What of a number JSON has no sign for is text."""


class _Pattern(msgspec.Struct):
    values: list[list[Whole | None]]
    scale: Number


class _Patterns(msgspec.Struct):
    trials: list[Whole]
    steps: list[Whole]
    items: list[_Pattern]

    def __post_init__(self) -> None:
        """Each has a row for each trial, with an entry for each step.

        Raises:
            ValueError: If one has not.
        """
        shape = {len(self.steps)} if self.trials else set()
        for item in self.items:
            if len(item.values) != len(self.trials) or {len(row) for row in item.values} != shape:
                raise ValueError("patterns of another shape than their axes")


class _Share(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    share: Number
    stderr: Number = 0.0


class _Mode(msgspec.Struct):
    index: Whole
    gain: Number
    core_overlap: Number
    learned: Number
    singular_value: Number
    steps_to_learn: Number | None
    steps_band: tuple[Number, Number] | None = None
    share: Number = 0.0
    by_site: list[tuple[str, Number]] = []
    by_output: list[tuple[Whole, Number]] = []


class _Snapshot(msgspec.Struct):
    """What the tab draws of a snapshot's record, as far as every version has it."""

    state_shape: tuple[Whole, Whole, Whole]
    core_spectrum: list[Number]
    temporal_spectrum: list[Number]
    trace: Number
    core_total: Number
    coverage: Number
    products: Number
    temporal_modes: _Patterns
    target_patterns: _Patterns
    seen_patterns: _Patterns | None
    target_modes: list[_Mode]
    trace_by_site: list[_Share] = []
    dead_units: Number = 0.0
    saturated_units: Number = 0.0


def checked_facts(content: Any) -> dict[str, Any]:  # noqa: ANN401
    """Read what trains.

    Args:
        content: What the tensor holds.

    Returns:
        The record, with those entries that are what they should be.
    """
    record = _object(content, MOST_BYTES)
    kinds: dict[str, Any] = {
        "started": str, "model": str, "device": str, "parameters": Whole, "trained": Whole,
        "planned": Positive, "optimizers": list[str], "outputs": list[str],
        "versions": dict[str, str],
    }  # fmt: skip
    return {name: record[name] for name, kind in kinds.items() if _fits(record.get(name), kind)}


def checked_changes(content: Any, step: int) -> Changed:  # noqa: ANN401
    """Read a record of ``alert/changes``, of this version or of one before.

    Args:
        content: What the tensor holds.
        step: Its step.

    Returns:
        The states of each mode, and the alerts.

    Raises:
        ValueError: If it is not one; the message says why.
    """
    record = _object(content, MOST_CHANGES_BYTES)
    try:
        state = record.get("state")
        _require(state is None or isinstance(state, str), "state")
        history = {_whole(i): [(step, str(name))] for i, name in record["states"].items()}
        history |= {
            _whole(index): sorted(
                ((_whole(since), str(name)) for since, name in entries), key=lambda entry: entry[0]
            )
            for index, entries in record.get("history", {}).items()
        }
        alerts = [
            {
                "step": _whole(alert["step"]),
                "mode": None if alert.get("mode") is None else _whole(alert["mode"]),
                "kind": str(alert["kind"]),
                "severity": alert["severity"] if alert.get("severity") in SEVERITIES else "info",
                "reason": None if alert.get("reason") is None else str(alert["reason"]),
                "message": str(alert["message"]),
            }
            for alert in record["alerts"]
        ]
        unsure = frozenset(_whole(index) for index in record.get("unsure", ()))
    except _ODD as error:
        raise ValueError(f"it is not complete ({error})") from error
    prefix = f"{state.rstrip('/')}/" if state else state
    planned, level = (_optional(record.get(name)) for name in ("planned", "level"))
    endless = record.get("endless") is True
    return Changed(prefix, history, alerts, "history" in record, planned, level, endless, unsure)


def _optional(value: Any) -> float | None:  # noqa: ANN401
    """A finite number above 0, or None."""
    return float(value) if _fits(value, Positive) else None


def _fits(value: Any, kind: Any) -> bool:  # noqa: ANN401
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _object(content: Any, most: int) -> dict[str, Any]:  # noqa: ANN401
    """The JSON object in a tensor of one text."""
    items = content.ravel().tolist() if hasattr(content, "ravel") else [content]
    if len(items) != 1 or not isinstance(items[0], (bytes, str)):
        raise ValueError("it is not one text; another tool uses the same tag")
    if len(items[0]) > most:
        raise ValueError(f"it has {len(items[0])} bytes, more than {most}")
    try:
        record = json.loads(items[0])
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON; another tool uses the same tag") from error
    if not isinstance(record, Mapping):
        raise ValueError("it is not a record; another tool uses the same tag")
    if _is_deep(record, MOST_LEVELS):
        raise ValueError(f"it is more than {MOST_LEVELS} levels deep")
    return dict(plain(dict(record)))


def _whole(value: Any) -> int:  # noqa: ANN401
    number = int(value)
    _require(abs(number) <= LARGEST, "whole numbers")
    return number


def _is_deep(value: Any, levels: int) -> bool:  # noqa: ANN401
    """Whether there are more levels than these."""
    if not isinstance(value, (dict, list)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(item, levels - 1) for item in items)


def _require(condition: bool, name: str) -> None:
    if not condition:
        raise ValueError(f"its {name} is not what it should be")
