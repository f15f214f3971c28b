"""The tensors in batches and outputs of any class, and copies of what holds them."""

from __future__ import annotations

import copy
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ntk_monitor.compat import is_traceable_wrapper_subclass
from ntk_monitor.model.isolation.object_state import slots_of


def described(batch: Any) -> str:  # noqa: ANN401
    """A batch in words.

    Args:
        batch: Anything.

    Returns:
        Its class, and what is in it.
    """
    entries = entries_of(batch)
    name = type(batch).__name__
    if entries is not None:
        return f"the batch, a {name} with the entries {', '.join(map(repr, entries))}"
    if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
        return f"the batch, a {name} of {', '.join(type(item).__name__ for item in batch)}"
    return f"the batch, a {name}"


def main_output(outputs: Any) -> Tensor | None:  # noqa: ANN401
    """The tensor that a loss would compare with the target.

    Args:
        outputs: What a module returned.

    Returns:
        The tensor itself; of a structured output its ``logits``, else its ``last_hidden_state``,
        else its first floating tensor; None when there is none.
    """
    for name in ("logits", "last_hidden_state"):
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    output: Tensor | None = padded(first_tensor(outputs))
    return output


def first_tensor(outputs: Any) -> Tensor | PackedSequence | None:  # noqa: ANN401
    """The first floating tensor of a nested structure, depth first.

    Args:
        outputs: Tensor, packed sequence, or nested tuples, lists, mappings and dataclasses.

    Returns:
        The tensor or packed sequence, or None.
    """
    if isinstance(outputs, PackedSequence):
        return outputs
    if isinstance(outputs, Tensor):
        return outputs if outputs.is_floating_point() else None
    entries = entries_of(outputs)
    if entries is not None:
        outputs = list(entries.values())
    if isinstance(outputs, (tuple, list)):
        return next((t for t in map(first_tensor, outputs) if t is not None), None)
    return None


def copy_batch(batch: Any, convert: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """Copy a batch of any class, with other tensors in it.

    Args:
        batch: Anything; tensors are found in containers and in objects.
        convert: From each tensor to the one that takes its place.

    Returns:
        The same structure; a tensor that stands in two places does so in the copy.

    Raises:
        TypeError: If the batch holds something that cannot be copied.
    """
    instead: dict[int, Any] = {id(t): _alike(convert(t), t) for t in tensors_of(batch)}
    try:
        return copy.deepcopy(batch, instead)
    except Exception as error:
        raise TypeError(
            f"the batch, a {type(batch).__name__}, cannot be copied ({error}), so that a probe "
            "could change it: pass probe_batch, a batch that copy.deepcopy takes"
        ) from error


def _alike(new: Tensor, old: Tensor) -> Tensor:
    """A tensor with what a class of the user's keeps beside its numbers."""
    if type(old) is not Tensor and type(new) is type(old) and new is not old:
        vars(new).update({k: v for k, v in vars(old).items() if k not in vars(new)})
    return new


def plain_tensor(tensor: Tensor) -> Tensor:
    """A tensor without a class of the user's, which may need more than the numbers.

    Args:
        tensor: Of any class.

    Returns:
        The same numbers; a tensor of a class that keeps them elsewhere (a sharded one) as it is.
    """
    own = type(tensor) in {Tensor, nn.Parameter} or is_traceable_wrapper_subclass(tensor)
    return tensor if own else tensor.as_subclass(Tensor)


def of_the_class(new: Tensor, old: Tensor) -> Tensor:
    """A plain tensor as one of a class of the user's.

    Args:
        new: The numbers.
        old: Of that class.

    Returns:
        The numbers, with what the old one keeps beside its own.
    """
    if plain_tensor(old) is old:
        return new
    return _alike(new.as_subclass(type(old)), old)


def is_plain(batch: Any) -> bool:  # noqa: ANN401
    """Whether a batch consists of plain containers of tensors and numbers.

    Args:
        batch: Any batch.

    Returns:
        True if it does.
    """
    if type(batch) in {tuple, list}:
        return all(map(is_plain, batch))
    if type(batch) is dict:
        return all(type(k) is str for k in batch) and all(map(is_plain, batch.values()))
    return type(batch) in {torch.Tensor, int, float, bool, str, type(None)}


def tensors_of(batch: Any) -> list[Tensor]:  # noqa: ANN401
    """The tensors of a batch, in order.

    Args:
        batch: Anything; tensors are found in containers and in the attributes of objects.

    Returns:
        Each tensor once.
    """
    found: list[Tensor] = []
    seen: dict[int, Any] = {}
    waiting = [batch]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _WITHOUT_TENSORS):
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, PackedSequence):  # whose sizes stay on the CPU
            waiting += [value.unsorted_indices, value.sorted_indices, value.data]
        else:
            waiting += reversed(list(_inside(value)))
    return found


_WITHOUT_TENSORS = (str, bytes, int, float, complex, type(None), type, types.ModuleType, np.ndarray)


def _inside(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """What an object holds."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value
    held = (getattr(value, name, None) for name in slots_of(value))
    yield from (each for each in held if each is not None)
    yield from getattr(value, "__dict__", {}).values()


def size_of(batch: Any) -> int:  # noqa: ANN401
    """The memory of a batch's tensors.

    Args:
        batch: Nested tuples, lists, mappings or dataclasses of tensors.

    Returns:
        Bytes.
    """
    return sum(tensor.nbytes for tensor in tensors_of(batch))


def entries_of(batch: Any) -> Mapping[str, Any] | None:  # noqa: ANN401
    """The entries of a mapping or a dataclass by name."""
    if isinstance(batch, Mapping):
        return batch
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return None


def padded(found: Any) -> Any:  # noqa: ANN401
    """A packed sequence as a tensor, batch first; anything else as it is."""
    if isinstance(found, PackedSequence):
        return pad_packed_sequence(found, batch_first=True)[0]
    return found
