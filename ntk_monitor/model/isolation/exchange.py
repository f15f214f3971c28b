"""Giving attributes other values for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exchanged(values: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Give attributes other values in scope.

    Args:
        values: Objects, each with the name of an attribute and its value in scope.

    Yields:
        Nothing.
    """
    values = list(values)
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    try:
        for each in values:
            setattr(*each)
        yield
    finally:
        for each in before:
            setattr(*each)
