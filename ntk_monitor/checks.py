"""Arguments that are not what they should be."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(condition: bool, name: str, expected: str, got: Any) -> None:  # noqa: ANN401
    """Refuse a value of an argument.

    Args:
        condition: Whether the value is good.
        name: The argument's name.
        expected: What it must be.
        got: The value.

    Raises:
        ValueError: If it is not good, naming all three.
    """
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {got!r}")


def imported(value: Any) -> Any:  # noqa: ANN401
    """A function by its import path, as a YAML file has it; anything else as it is.

    Args:
        value: What an argument was given.

    Returns:
        The function; the value where it is no import path of one.

    Example:
        >>> imported("math.floor")(2.5), imported("rnn.weight*"), imported(3)
        (2, 'rnn.weight*', 3)
    """
    module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
    if not module:
        return value
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return value
    return found if callable(found) else value
