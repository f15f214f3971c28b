"""Arguments that are not what they should be."""

from __future__ import annotations

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
