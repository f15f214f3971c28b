"""What a module holds, however deep, and how to give it back."""

from __future__ import annotations

import enum
import io
import random
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

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
        self._kept: list[_Keepsake] = []
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
        keeper = next((k for kind, k in _KEEPERS if isinstance(value, kind)), None)
        if keeper is not None:
            self._kept.append(_Contents(value, keeper))
        if isinstance(value, dict):
            yield from (v for v in value.values() if _may_change(v)) if _is_short(value) else ()
        elif isinstance(value, (list, tuple, set, deque)):
            yield from (v for v in value if _may_change(v)) if _is_short(value) else ()
        elif isinstance(value, nn.Module) or (keeper is None and _has_attributes(value)):
            attributes = _Attributes(value)
            self._kept.append(attributes)
            for name, held in attributes.items():
                tensors = name == "_parameters" or (name == "_buffers" and id(value) in own)
                if "hooks" in name and isinstance(held, dict):
                    self._kept.append(_Hooks(held, _CONTAINER))
                elif tensors and isinstance(value, nn.Module) and isinstance(held, dict):
                    self._kept.append(_Contents(held, _CONTAINER))  # which, not their numbers
                elif _may_change(held):
                    yield held

    def changed(self) -> ObjectState | None:
        """What, other than hooks, has changed since; None if nothing has."""
        found = [some for kept in self._kept if (some := kept.changed()) is not None]
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


class _Keepsake(Protocol):
    """One thing that is kept."""

    def changed(self) -> _Keepsake | None:
        """The part of it that has changed since, hooks aside."""

    def put_back(self) -> None:
        """Put it back."""


class _Attributes:
    """The attributes and the class of one object."""

    _names: set[str] | None = None
    """Those that may be put back; None for all."""

    def __init__(self, value: Any) -> None:  # noqa: ANN401
        self._value, self._class = value, type(value)
        self._slots = _slots(value)
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
        some.__dict__.update(self.__dict__, _names=names)
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


class _Keeper(NamedTuple):
    """How the contents of a kind of object are read, compared and written."""

    read: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]
    write: Callable[[Any, Any], object]


class _Contents:
    """The contents of one object."""

    def __init__(self, value: Any, keeper: _Keeper) -> None:  # noqa: ANN401
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


def _is_short(container: Any) -> bool:  # noqa: ANN401
    return len(container) <= MOST_ITEMS


def _has_attributes(value: Any) -> bool:  # noqa: ANN401
    """Whether an object is one that a user's code keeps numbers in."""
    if isinstance(value, _BUSY) or not (hasattr(value, "__dict__") or _slots(value)):
        return False
    homes = [f"{kind.__module__}." for kind in type(value).__mro__]
    return not any(home.startswith(f"{package}.") for home in homes for package in _ELSEWHERE)


def _slots(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    found = []
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return tuple(name for name in found if name not in {"__dict__", "__weakref__"})


def _copy(value: Any) -> Any:  # noqa: ANN401
    return list(value.items()) if isinstance(value, dict) else list(value)


def _same_items(value: Any, then: list[Any]) -> bool:  # noqa: ANN401
    """Whether a container holds the same objects in the same order."""
    if len(value) != len(then):
        return False
    if isinstance(value, dict):
        pairs = zip(value.items(), then, strict=True)
        return all(a is c and b is d for (a, b), (c, d) in pairs)
    return all(a is b for a, b in zip(value, then, strict=True))


def _refill(value: Any, then: list[Any]) -> None:  # noqa: ANN401
    # By the methods of the built-in kind, since a user's own may refuse.
    kind: Any = next(k for k in (OrderedDict, dict, list, set, deque) if isinstance(value, k))
    kind.clear(value)
    if isinstance(value, dict):
        for key, item in then:
            kind.__setitem__(value, key, item)
    else:
        (kind.update if kind is set else kind.extend)(value, then)


_CONTAINER = _Keeper(_copy, _same_items, _refill)


class _TensorThen(NamedTuple):
    """A tensor at one moment."""

    version: int | None
    place: Tensor
    numbers: Tensor
    requires_grad: bool
    grad: Tensor | None


def _read_tensor(value: Tensor) -> _TensorThen:
    version = None if value.is_inference() else value._version
    grad = value.grad if value.is_leaf else None
    return _TensorThen(version, value.data, value.detach().clone(), value.requires_grad, grad)


def _same_tensor(value: Tensor, then: _TensorThen) -> bool:
    if value.is_leaf and (value.grad is not then.grad or value.requires_grad != then.requires_grad):
        return False
    if value.shape != then.numbers.shape or (
        then.version is not None and value._version != then.version
    ):
        return False
    return torch.equal(value, then.numbers)  # writes through .data or numpy count no version


def _write_tensor(value: Tensor, then: _TensorThen) -> None:
    if value.shape != then.place.shape or value.data_ptr() != then.place.data_ptr():
        value.data = then.place
    value.data.copy_(then.numbers)
    if value.is_leaf:
        if value.requires_grad != then.requires_grad:
            value.requires_grad_(then.requires_grad)
        if value.grad is not then.grad:
            value.grad = then.grad


def _state(name: str) -> _Keeper:
    """A random generator whose state has a getter and a setter."""

    def same(value: Any, then: Any) -> bool:  # noqa: ANN401
        now = getattr(value, f"get{name}")()
        return torch.equal(now, then) if isinstance(now, Tensor) else str(now) == str(then)

    def write(value: Any, then: Any) -> None:  # noqa: ANN401
        getattr(value, f"set{name}")(then)

    return _Keeper(lambda value: getattr(value, f"get{name}")(), same, write)


_ARRAY = _Keeper(
    lambda value: value.copy() if value.flags.writeable else None,
    lambda value, then: then is None or np.array_equal(value, then, equal_nan=_has_nan(value)),
    np.copyto,
)
_NUMPY_GENERATOR = _Keeper(
    lambda value: value.bit_generator.state,
    lambda value, then: str(value.bit_generator.state) == str(then),
    lambda value, then: setattr(value.bit_generator, "state", then),
)


def _has_nan(value: Any) -> bool:  # noqa: ANN401
    return bool(value.dtype.kind in "fc")


_KEEPERS: tuple[tuple[type, _Keeper], ...] = (
    (dict, _CONTAINER),
    (list, _CONTAINER),
    (set, _CONTAINER),
    (deque, _CONTAINER),
    (Tensor, _Keeper(_read_tensor, _same_tensor, _write_tensor)),
    (np.ndarray, _ARRAY),
    (torch.Generator, _state("_state")),
    (random.Random, _state("state")),
    (np.random.RandomState, _state("_state")),
    (np.random.Generator, _NUMPY_GENERATOR),
)
"""How to keep the contents of each kind of object."""
