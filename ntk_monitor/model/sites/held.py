"""Tensors that a module holds beside its parameters and buffers: a mask in an attribute, say."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST = 1000
"""Entries of a container up to which it is looked into: more are records, or data."""
REGISTERED = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes of a module in which torch keeps what is registered."""


def held_by(module: nn.Module) -> list[Tensor]:
    """The tensors that a module holds in attributes, containers, closures and arrays.

    Args:
        module: The module, whose submodules count.

    Returns:
        The tensors; of an array one on the same memory.
    """
    waiting: deque[Any] = deque()
    for each in module.modules():
        waiting += (value for name, value in vars(each).items() if name not in REGISTERED)
        waiting.append(type(each).forward)
    found: list[Tensor] = []
    seen: dict[int, Any] = {}
    while waiting:
        value = waiting.popleft()
        if id(value) in seen or isinstance(value, (nn.Module, nn.Parameter)):
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, np.ndarray):
            found += _on_the_memory_of(value)
        else:
            waiting += _inside(value)
    return found


def _inside(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """What a container or a function holds."""
    if isinstance(value, (dict, list, tuple, set, frozenset, deque)):
        if len(value) <= MOST:
            yield from value.values() if isinstance(value, dict) else value
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield value.__func__
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # an empty one
                continue


def _on_the_memory_of(array: np.ndarray[Any, Any]) -> Iterator[Tensor]:
    """An array as a tensor, if it can be one."""
    try:
        if array.size and array.flags.writeable:
            yield torch.from_numpy(array)
    except (TypeError, ValueError):
        return
