"""How a measurement becomes JSON and arrays, and comes back; nothing in a file is executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

FORMAT = 3
"""Version of the file format of `Snapshot.save`."""
T = TypeVar("T")


def taken_apart(measured: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401
    """A dataclass as plain types that JSON can hold, and its tensors apart, bfloat16 as float32.

    Args:
        measured: The dataclass; others may be in it.

    Returns:
        The record, in which each tensor is the name of an array, and the arrays by name.
    """
    arrays: dict[str, Any] = {}

    def name_of(value: Any) -> str:  # noqa: ANN401
        if not isinstance(value, Tensor):
            raise NotImplementedError(f"{type(value).__name__} cannot be written")
        name = f"tensor_{len(arrays)}"
        value = value.detach().cpu()
        arrays[name] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return name

    record: dict[str, Any] = msgspec.to_builtins(measured, enc_hook=name_of)
    return record, arrays


def put_together(kind: type[T], record: Any, arrays: Mapping[str, Any]) -> T:  # noqa: ANN401
    """The dataclass that a record and its arrays are of.

    Args:
        kind: The dataclass.
        record: What `taken_apart` gave.
        arrays: Likewise.

    Returns:
        It, with every field of the type that it is declared to have.

    Raises:
        ValueError: If one is of another; the message names it.
    """

    def tensor_of(wanted: type, name: Any) -> Tensor:  # noqa: ANN401
        found = arrays.get(name) if wanted is Tensor and isinstance(name, str) else None
        if found is None or found.dtype.kind != "f":
            raise ValueError(f"there are no real numbers {name!r}")
        return torch.from_numpy(found)

    try:
        return msgspec.convert(record, kind, dec_hook=tensor_of)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
