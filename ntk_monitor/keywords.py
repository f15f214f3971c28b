"""Settings of a dataclass as keyword arguments of functions, with their defaults and docs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter
from typing import Any, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")
Source = type | Callable[..., Any]
"""A dataclass, of which the fields are meant, or a function, of which the parameters are."""


def with_keywords(*sources: Source, **defaults: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:  # noqa: ANN401
    """Spell out the ``**settings`` of a function, which are the fields of dataclasses.

    Its signature, and the ``Args`` of its docstring, then have every setting: of these, `help`, a
    notebook, the command line and the documentation read them. A keyword that is none raises a
    TypeError that says which one is meant, also where there are no ``**settings``.

    Args:
        *sources: Dataclasses, whose docstrings describe their fields under ``Attributes``, and
            functions, whose docstrings describe their parameters under ``Args``.
        **defaults: Where the function's defaults are others.

    Returns:
        A decorator of functions and of ``__init__``.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Settings:
        ...     '''Settings.
        ...
        ...     Attributes:
        ...         tolerance: Wanted error.
        ...     '''
        ...
        ...     tolerance: float = 0.05
        >>> @with_keywords(Settings)
        ... def measure(x: float, **settings: float) -> float:
        ...     return x * Settings(**settings).tolerance
        >>> print(inspect.signature(measure), measure(2.0))
        (x: float, *, tolerance: float = 0.05) -> float 0.1
        >>> measure(2.0, tolerence=0.1)
        Traceback (most recent call last):
        TypeError: measure has no setting 'tolerence': did you mean 'tolerance'?
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        hints = get_type_hints(function)
        named = [
            p.replace(annotation=hints.get(p.name, p.annotation))
            for p in own.parameters.values()
            if p.kind is not Parameter.VAR_KEYWORD
        ]
        spelt = [p for s in sources for p in _keywords(s, defaults) if p.name not in own.parameters]
        described = {name: text for s in sources for name, text in descriptions(s).items()}

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            _require_known(function, args, kwargs, known)
            return function(*args, **kwargs)

        signature = inspect.Signature(
            [*named, *spelt], return_annotation=hints.get("return", own.return_annotation)
        )
        known = tuple(signature.parameters)
        checked.__signature__ = signature  # type: ignore[attr-defined]
        checked.__doc__ = _spelt_out(function.__doc__, {p.name: described[p.name] for p in spelt})
        return checked

    return decorate


def descriptions(source: Source) -> dict[str, str]:
    """What is said of the attributes of a class, or the parameters of a function.

    Args:
        source: A class or function with a docstring in Google's style.

    Returns:
        The text of each, on lines of its own where it has several.
    """
    title = "Attributes:\n" if isinstance(source, type) else "Args:\n"
    section = inspect.cleandoc(source.__doc__ or "").partition(title)[2]
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.split(r"^    (\w+): ", section, flags=re.MULTILINE)[1:]
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return {name: inspect.cleandoc(words).strip() for name, words in pairs}


def _keywords(source: Source, defaults: dict[str, Any]) -> list[Parameter]:
    if isinstance(source, type):
        hints = get_type_hints(source)
        found = {f.name: (_default(f.default), hints[f.name]) for f in fields(source)}
    else:
        known = inspect.signature(source).parameters.values()
        found = {p.name: (p.default, p.annotation) for p in known if p.name != "self"}
    return [
        Parameter(
            name, Parameter.KEYWORD_ONLY, default=defaults.get(name, default), annotation=annotation
        )
        for name, (default, annotation) in found.items()
    ]


def _default(value: Any) -> Any:  # noqa: ANN401
    return Parameter.empty if value is MISSING else value


def _spelt_out(doc: str | None, described: dict[str, str]) -> str:
    """A docstring in which the entry of ``**settings`` is replaced by one for each setting."""
    text = inspect.cleandoc(doc or "")
    entries = "".join(
        f"    {name}: " + words.replace("\n", "\n        ") + "\n"
        for name, words in described.items()
    )
    return re.sub(r"    \*\*settings:.*\n(?:        .*\n)*", lambda _: entries, text + "\n")


def _require_known(
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
