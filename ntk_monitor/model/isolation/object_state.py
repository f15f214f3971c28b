"""What a module holds, however deep, and how to give it back."""

from __future__ import annotations

import enum
import io
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ntk_monitor.model.isolation.keepers import CONTAINER, KEEPERS, Keeper

MOST_ITEMS = 10_000
"""Items of a container up to which each is looked into; of a longer one only the list is kept."""


class ObjectState:
    """All that some modules hold at one moment, and what that holds in turn.

    Attributes of modules and of plain objects that they hold (``training`` flags, hooks and
    registries among them; and the class, which lazy modules change); the contents of lists,
    dictionaries, sets, queues and arrays; the numbers in tensors; the states of random generators.
    Of the modules' own parameters and buffers a probe has copies, so their numbers are kept only
    where a ``forward`` could reach the real ones by another way. A ``forward`` that stores what it
    saw, ``self.h = h``, would otherwise be left holding a tensor of ours.

    Not looked into are Trainers, loggers, optimizers, loaders, threads and files; iterators, whose
    place cannot be read; and the parameters of a module that is held in a list.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Take note of what is held now."""
        modules = list(modules)
        self._kept: list[_Attributes | _Contents] = []
        self._seen: dict[int, Any] = {}
        own = {id(m) for m in modules}
        waiting: deque[Any] = deque(modules)
        while waiting:
            value = waiting.popleft()
            if id(value) in self._seen:
                continue
            self._seen[id(value)] = value  # kept alive, so that the id stays its own
            waiting.extend(self._keep(value, own))
        del self._seen

    def _keep(self, value: Any, own: set[int]) -> Iterator[Any]:  # noqa: ANN401
        """Keep one object, and name those in it that are to be looked at."""
        keeper = next((k for kind, k in KEEPERS if isinstance(value, kind)), None)
        if keeper is not None:
            self._kept.append(_Contents(value, keeper))
        if isinstance(value, (dict, list, tuple, set, deque)):
            if len(value) <= MOST_ITEMS:
                yield from filter(_may_change, value.values() if isinstance(value, dict) else value)
        elif isinstance(value, nn.Module) or (keeper is None and _has_attributes(value)):
            attributes = _Attributes(value)
            self._kept.append(attributes)
            for name, held in attributes.items():
                tensors = name == "_parameters" or (name == "_buffers" and id(value) in own)
                if "hooks" in name and isinstance(held, dict):
                    self._kept.append(_Hooks(held, CONTAINER))
                elif tensors and isinstance(value, nn.Module) and isinstance(held, dict):
                    self._kept.append(_Contents(held, CONTAINER))  # which, not their numbers
                elif _may_change(held):
                    yield held

    def changed(self) -> ObjectState | None:
        """What, other than hooks, has changed since; None if nothing has."""
        found = [part for kept in self._kept if (part := kept.changed()) is not None]
        if not found:
            return None
        some = object.__new__(ObjectState)
        some._kept = found
        return some

    def put_back(self) -> None:
        """Give back what was held.

        Raises:
            RuntimeError: If something could not be put back; all else has been.
        """
        failed: Exception | None = None
        for kept in self._kept:
            try:
                kept.put_back()
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise RuntimeError(
                f"what a forward pass changed in the model could not be put back: {failed!r}"
            ) from failed


class _Attributes:
    """The attributes and the class of one object."""

    _names: set[str] | None = None
    """Those that may be put back; None for all."""

    def __init__(self, value: Any) -> None:  # noqa: ANN401
        self._value, self._class = value, type(value)
        self._slots = slots_of(value)
        self._then = self._read()

    def _read(self) -> dict[str, Any]:
        slots = {n: getattr(self._value, n) for n in self._slots if hasattr(self._value, n)}
        return {**getattr(self._value, "__dict__", {}), **slots}

    def items(self) -> Iterable[tuple[str, Any]]:
        return self._then.items()

    def _differing(self) -> set[str]:
        now, then = self._read(), self._then
        names = {n for n, v in now.items() if n not in then or then[n] is not v}
        return names | (then.keys() - now.keys())

    def changed(self) -> _Attributes | None:
        names = {n for n in self._differing() if "hooks" not in n}
        if not names and type(self._value) is self._class:
            return None
        some = object.__new__(_Attributes)
        then = {n: v for n, v in self._then.items() if n in names}  # others may hold a pass alive
        some.__dict__.update(self.__dict__, _names=names, _then=then)
        return some

    def put_back(self) -> None:
        if type(self._value) is not self._class:
            object.__setattr__(self._value, "__class__", self._class)
        names = self._differing()
        for name in names if self._names is None else names & self._names:
            self._write(name)

    def _write(self, name: str) -> None:
        if name in self._slots:
            if name in self._then:
                object.__setattr__(self._value, name, self._then[name])
            else:
                object.__delattr__(self._value, name)
        elif name in self._then:
            self._value.__dict__[name] = self._then[name]
        else:
            self._value.__dict__.pop(name, None)


class _Contents:
    """The contents of one object."""

    def __init__(self, value: Any, keeper: Keeper) -> None:  # noqa: ANN401
        self._value, self._keeper = value, keeper
        self._then = keeper.read(value)

    def changed(self) -> _Contents | None:
        return None if self._keeper.same(self._value, self._then) else self

    def put_back(self) -> None:
        if not self._keeper.same(self._value, self._then):
            self._keeper.write(self._value, self._then)


class _Hooks(_Contents):
    """A module's hooks of one kind: ours come and go between two forward passes."""

    def changed(self) -> None:
        return None


_ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, enum.Enum)
_CODE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_BUSY = (threading.Thread, io.IOBase)
_ELSEWHERE = (
    "lightning", "lightning_fabric", "pytorch_lightning", "torch.optim", "torch.utils",
    "torch.distributed", "torch._dynamo", "torch._inductor", "torch.cuda", "torch.amp", "torch.fx",
    "logging", "concurrent", "multiprocessing", "asyncio", "jsonargparse", "weakref", "functools",
)  # fmt: skip
"""Where the classes of objects are at home that no ``forward`` changes for itself."""


def _may_change(value: Any) -> bool:  # noqa: ANN401
    return not isinstance(value, _ATOMS) and not isinstance(value, _CODE)


def _has_attributes(value: Any) -> bool:  # noqa: ANN401
    """Whether an object is one that a user's code keeps numbers in."""
    if isinstance(value, _BUSY) or not (hasattr(value, "__dict__") or slots_of(value)):
        return False
    homes = [f"{kind.__module__}." for kind in type(value).__mro__]
    return not any(home.startswith(f"{package}.") for home in homes for package in _ELSEWHERE)


def slots_of(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The names of an object's attributes that its classes have slots for.

    Args:
        value: The object.

    Returns:
        The names; without slots that a further class hides behind a property, as Python 3.13 does
        in its paths.
    """
    found = []
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    slot = types.MemberDescriptorType
    return tuple(name for name in found if isinstance(getattr(type(value), name, None), slot))
