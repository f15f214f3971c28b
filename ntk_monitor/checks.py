"""Arguments that are not what they should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from inspect import signature
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


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


def suggesting(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function tell of a misspelt keyword which one is meant.

    Args:
        function: A function, or an ``__init__``.

    Returns:
        The same; an unknown keyword raises a TypeError that names those that are alike.

    Example:
        >>> @suggesting
        ... def measure(*, tolerance: float = 0.05) -> float:
        ...     return tolerance
        >>> measure(tolerence=0.1)
        Traceback (most recent call last):
        TypeError: measure has no setting 'tolerence': did you mean 'tolerance'?
    """
    known = tuple(signature(function).parameters)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        require_known_keywords(function, args, kwargs, known)
        return function(*args, **kwargs)

    return checked


def require_known_keywords(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    known: Sequence[str],
) -> None:
    """Refuse a misspelt keyword.

    Args:
        function: What is called, a function or an ``__init__``.
        args: Its positional arguments.
        kwargs: Those by name.
        known: Names of its parameters.

    Raises:
        TypeError: If it has none of a name; it names the one that is meant.
    """
    unknown = [name for name in kwargs if name not in known]
    if not unknown:
        return
    method = function.__name__ == "__init__"
    who = type(args[0]).__name__ if method else function.__name__
    close = get_close_matches(unknown[0], known, n=1)
    settings = ", ".join(name for name in known if name != "self")
    meant = f"did you mean {close[0]!r}?" if close else f"settings are {settings}"
    raise TypeError(f"{who} has no setting {unknown[0]!r}: {meant}")
