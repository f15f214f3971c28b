"""How the contents of each kind of object are kept, compared and put back."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Keeper(NamedTuple):
    """How the contents of a kind of object are read, compared and written."""

    read: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]
    write: Callable[[Any, Any], object]


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


CONTAINER = Keeper(_copy, _same_items, _refill)


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


def _state(name: str) -> Keeper:
    """A random generator whose state has a getter and a setter."""

    def read(value: Any) -> Any:  # noqa: ANN401
        return getattr(value, f"get{name}")()

    def same(value: Any, then: Any) -> bool:  # noqa: ANN401
        now = read(value)
        return torch.equal(now, then) if isinstance(now, Tensor) else str(now) == str(then)

    return Keeper(read, same, lambda value, then: getattr(value, f"set{name}")(then))


_ARRAY = Keeper(
    lambda value: value.copy() if value.flags.writeable else None,
    lambda value, then: (
        then is None or np.array_equal(value, then, equal_nan=value.dtype.kind in "fc")
    ),
    np.copyto,
)
_NUMPY_GENERATOR = Keeper(
    lambda value: value.bit_generator.state,
    lambda value, then: str(value.bit_generator.state) == str(then),
    lambda value, then: setattr(value.bit_generator, "state", then),
)


KEEPERS: tuple[tuple[type, Keeper], ...] = (
    *((kind, CONTAINER) for kind in (dict, list, set, deque)),
    (Tensor, Keeper(_read_tensor, _same_tensor, _write_tensor)),
    (np.ndarray, _ARRAY),
    (torch.Generator, _state("_state")),
    (random.Random, _state("state")),
    (np.random.RandomState, _state("_state")),
    (np.random.Generator, _NUMPY_GENERATOR),
)
"""How to keep the contents of each kind of object."""
