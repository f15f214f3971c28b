"""What a module holds, and how to give it back."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Held:
    """All attributes of one module at one moment, with the contents of those that can change.

    ``training`` flags, hooks and registries are among them; lists, dictionaries, sets and queues;
    the numbers in tensors that are neither parameters nor buffers (of which a probe has copies);
    and the states of random generators. A ``forward`` that stores what it saw, ``self.h = h``,
    would otherwise be left holding a tensor of ours.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take note of what a module holds now."""
        self._now = vars(module)
        self._then = dict(self._now)
        self._contents = {
            name: _Contents(value, *keeper)
            for name, value in self._then.items()
            if (keeper := _keeper(value)) is not None
        }

    def changed(self) -> Held | None:
        """Those attributes, other than hooks, that have changed since; None if none has."""
        names = {n for n, v in self._now.items() if n not in self._then or self._then[n] is not v}
        names |= self._then.keys() - self._now.keys()
        names |= {n for n, contents in self._contents.items() if contents.changed()}
        names = {n for n in names if "hooks" not in n}
        if not names:
            return None
        some = object.__new__(Held)
        some._now = self._now
        some._then = {n: v for n, v in self._then.items() if n in names}
        some._contents = {n: v for n, v in self._contents.items() if n in names}
        some._new = tuple(names - self._then.keys())
        return some

    _new: tuple[str, ...] | None = None
    """Names to be deleted; None for all that were not there."""

    def put_back(self) -> None:
        """Give the module back what it held."""
        new = self._now.keys() - self._then.keys() if self._new is None else self._new
        for name in new:
            self._now.pop(name, None)
        self._now.update(self._then)
        for contents in self._contents.values():
            contents.put_back()


class _Contents:
    """The contents of one object, and how to compare and to restore them."""

    def __init__(
        self,
        value: Any,  # noqa: ANN401
        read: Callable[[Any], Any],
        same: Callable[[Any, Any], bool],
        write: Callable[[Any, Any], object],
    ) -> None:
        self._value, self._same, self._write = value, same, write
        self._then = read(value)

    def changed(self) -> bool:
        return not self._same(self._value, self._then)

    def put_back(self) -> None:
        if self.changed():
            self._write(self._value, self._then)


def _keeper(value: Any) -> tuple[Any, Any, Any] | None:  # noqa: ANN401
    """How the contents of an object are read, compared and written; None if they cannot change."""
    return next((keeper for kind, keeper in _KEEPERS if isinstance(value, kind)), None)


def _copy(value: Any) -> Any:  # noqa: ANN401
    return value.copy()


def _same_items(value: Any, then: Any) -> bool:  # noqa: ANN401
    """Whether two containers hold the same objects in the same order."""
    if len(value) != len(then):
        return False
    if isinstance(value, dict) and not all(a is b for a, b in zip(value, then, strict=True)):
        return False
    items = (value.values(), then.values()) if isinstance(value, dict) else (value, then)
    return all(a is b for a, b in zip(*items, strict=True))


def _refill(value: Any, then: Any) -> None:  # noqa: ANN401
    value.clear()
    (value.extend if hasattr(value, "extend") else value.update)(then)


def _read_tensor(value: Tensor) -> tuple[int | None, Tensor]:
    version = None if value.is_inference() else value._version
    return version, value.detach().clone()


def _same_tensor(value: Tensor, then: tuple[int | None, Tensor]) -> bool:
    version, content = then
    return torch.equal(value, content) if version is None else bool(value._version == version)


def _write_tensor(value: Tensor, then: tuple[int | None, Tensor]) -> None:
    value.data.copy_(then[1])


def _state(name: str) -> tuple[Any, Any, Any]:
    """A random generator whose state has a getter and a setter."""

    def same(value: Any, then: Any) -> bool:  # noqa: ANN401
        now = getattr(value, f"get{name}")()
        return torch.equal(now, then) if isinstance(now, Tensor) else str(now) == str(then)

    def write(value: Any, then: Any) -> None:  # noqa: ANN401
        getattr(value, f"set{name}")(then)

    return lambda value: getattr(value, f"get{name}")(), same, write


_KEEPERS: tuple[tuple[type, tuple[Any, Any, Any]], ...] = (
    (dict, (_copy, _same_items, _refill)),
    (list, (_copy, _same_items, _refill)),
    (set, (_copy, lambda value, then: value == then, _refill)),
    (deque, (_copy, _same_items, _refill)),
    (Tensor, (_read_tensor, _same_tensor, _write_tensor)),
    (np.ndarray, (_copy, np.array_equal, np.copyto)),
    (torch.Generator, _state("_state")),
    (random.Random, _state("state")),
    (np.random.RandomState, _state("_state")),
    (
        np.random.Generator,
        (
            lambda value: value.bit_generator.state,
            lambda value, then: value.bit_generator.state == then,
            lambda value, then: setattr(value.bit_generator, "state", then),
        ),
    ),
)
"""How to keep the contents of each kind of object."""
