"""How snapshots are written to files, and what a file must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ntk_monitor.estimators import Estimate
from ntk_monitor.model import Coverage

if TYPE_CHECKING:
    pass

from ntk_monitor.snapshot.parts import ComparedOutput, Forecast, Instruments, TargetMode

FORMAT = 2
"""Version of the file format of `Snapshot.save`."""


def is_number(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a number, and no boolean."""
    return type(value) in {int, float}


def is_count(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a whole number, 0 or more."""
    return type(value) is int and value >= 0


def is_estimate(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is an estimate of two numbers."""
    return isinstance(value, Estimate) and is_number(value.value) and is_number(value.stderr)


def _is_real(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Tensor) and value.is_floating_point()


KINDS: Mapping[str, Callable[[Any], bool]] = {
    "Estimate": is_estimate,
    "Tensor": _is_real,
    "float": is_number,
    "int": is_count,
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "tuple[str, ...]": lambda value: all(isinstance(item, str) for item in value),
}
"""What the value of a field must be, by the field's type."""


def plain(value: Any) -> Any:  # noqa: ANN401
    """A field as plain types that JSON can hold."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Coverage):
        return asdict(value)
    known = (Estimate, TargetMode, ComparedOutput, Instruments)
    return asdict(value) if isinstance(value, known) else value


def revive(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn plain types back into the fields' own."""
    revived: dict[str, Any] = {
        name: Estimate(**value) if isinstance(value, dict) and "stderr" in value else value
        for name, value in record.items()
    }
    coverage = record["coverage"]
    revived["coverage"] = Coverage(
        coverage["fraction"],
        coverage["left_out"],
        tuple(coverage.get("missed", ())),
        tuple(tuple(site) for site in coverage.get("sites", ())),
    )
    revived["state"] = tuple(record.get("state", ()))
    revived["trace_by_site"] = tuple(
        (str(name), float(share)) for name, share in record.get("trace_by_site", ())
    )
    revived["trace_by_site_stderr"] = tuple(map(float, record.get("trace_by_site_stderr", ())))
    revived["remarks"] = tuple(record.get("remarks", ()))
    revived["outputs"] = tuple(
        ComparedOutput(**{**output, "shape": tuple(output["shape"])})
        for output in record.get("outputs", ())
    )
    revived["state_shape"] = tuple(record["state_shape"])
    revived["target_modes"] = tuple(_revived_mode(mode) for mode in record["target_modes"])
    if record.get("instruments") is not None:
        found = record["instruments"]
        ratio = _revived_estimate(found["signal_to_noise"])
        revived["instruments"] = Instruments(**{**found, "signal_to_noise": ratio})
    return revived


def _revived_estimate(value: Any) -> Estimate | None:  # noqa: ANN401
    return None if value is None else Estimate(**value)


def _revived_mode(mode: Mapping[str, Any]) -> TargetMode:
    band = mode["steps_band"]
    return TargetMode(**{
        **mode,
        "alignment": Estimate(**mode["alignment"]),
        "transfer": _revived_estimate(mode["transfer"]),
        "steps_band": None if band is None else tuple(band),
        **{
            name: tuple((str(what), float(number)) for what, number in mode[name])
            for name in ("steps_if", "rate_if", "by_site")
            if name in mode
        },
        "by_output": tuple((int(i), float(part)) for i, part in mode.get("by_output", ())),
    })


def with_forecast(arrays: Mapping[str, Tensor], revived: Mapping[str, Any]) -> dict[str, Any]:
    """All fields, the forecast's arrays put together."""
    found = {**arrays, **revived}
    valid_for = found.pop("forecast", None)
    own = {n: found.pop(f"forecast_{n}", None) for n in ("steps", "loss", "learned")}
    if valid_for is not None:
        found["forecast"] = Forecast(**own, valid_for=float(valid_for))
    return found
