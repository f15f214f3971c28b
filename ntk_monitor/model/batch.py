"""What to feed a module, what it answers, and what it should have answered."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import types
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ntk_monitor.ranks import checksum

ForwardFn = Callable[[nn.Module, Any], Any]
TargetFn = Callable[[Any], Any]
"""From a batch to the target, or None."""
MaskFn = Callable[[Any], Any]
"""From a batch to what is padding, or None."""


def default_forward(module: nn.Module, batch: Any) -> Any:  # noqa: ANN401
    """Call a module on a batch of one of the usual kinds.

    A tensor or a packed sequence is passed as it is; of a tuple or list, as many of the first
    elements as ``forward`` requires, one at least; of a mapping or a dataclass, the entries that
    ``forward`` names, as keywords.

    Args:
        module: The module to call.
        batch: Tensor, packed sequence, tuple, list, mapping or dataclass.

    Returns:
        Whatever the module returns.

    Raises:
        TypeError: If the batch is of another kind, or the module cannot take it.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    entries = _entries(batch)
    if isinstance(batch, (Tensor, PackedSequence)):
        args = (batch,)
    elif isinstance(batch, (tuple, list)) and batch:
        args = tuple(batch[: _required(module)])
    elif entries is not None:
        kwargs = _accepted(module, entries)
        if not kwargs and isinstance(batch, Mapping) and _required(module) == 1:
            return _read_by_forward(module, batch)
    else:
        raise TypeError(
            "the batch must be a tensor, a packed sequence, a tuple, a list, a mapping or a "
            f"dataclass, got {type(batch).__name__}: {_REMEDY}"
        )
    try:
        return module(*args, **kwargs)
    except (TypeError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) and '"forward" function' not in str(error):
            raise  # from inside forward: an operation without a derivative of some kind
        raise TypeError(
            f"{type(module).__name__} could not take the batch ({error}): {_remedy(batch)}"
        ) from error


def _read_by_forward(module: nn.Module, batch: Any) -> Any:  # noqa: ANN401
    """Call a module on a mapping whose entries ``forward`` does not name, but may read."""
    try:
        return module(batch)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise TypeError(
            f"{type(module).__name__} could not take {described(batch)} ({error}): {_remedy(batch)}"
        ) from None


_REMEDY = "pass forward_fn, for example forward_fn=lambda module, batch: module(batch['inputs'])"


def _remedy(batch: Any) -> str:  # noqa: ANN401
    """What to do about a batch that a module cannot take, with a name that is in it."""
    parts = (_entries(batch) or {}).items()
    named = [str(name) for name, part in parts if isinstance(part, Tensor)]
    return _REMEDY.replace("inputs", named[0]) if named else _REMEDY


def require_tensors(module: nn.Module, batch: Any) -> None:  # noqa: ANN401
    """Refuse arrays in the place of tensors, and a model that has no numbers yet.

    Args:
        module: The module.
        batch: What it is to be called on.

    Raises:
        ValueError: If the batch has NumPy arrays and no tensors, or parameters are on the meta
            device.
    """
    meta = next((name for name, p in module.named_parameters() if p.is_meta), None)
    if meta is not None:
        raise ValueError(
            f"module must have numbers in its parameters, got {meta} on the meta device: call "
            "module.to_empty(device=...) and load or draw its weights first"
        )
    entries = _entries(batch)
    parts: Any = batch if entries is None else tuple(entries.values())
    parts = parts if isinstance(parts, (tuple, list)) else (parts,)
    if any(isinstance(part, np.ndarray) for part in parts) and not tensors_of(batch):
        raise ValueError(
            f"batch must have tensors, got NumPy arrays in {described(batch)}: "
            "torch.as_tensor(array) makes one of each"
        )


def _required(module: nn.Module) -> int:
    """How many arguments ``forward`` cannot do without; one at least."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return max(len(required), 1)


def _accepted(module: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a mapping that ``forward`` takes."""
    parameters = inspect.signature(module.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(batch)
    return {name: value for name, value in batch.items() if name in parameters}


def _entries(batch: Any) -> Mapping[str, Any] | None:  # noqa: ANN401
    """The entries of a mapping or a dataclass by name."""
    if isinstance(batch, Mapping):
        return batch
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return None


def described(batch: Any) -> str:  # noqa: ANN401
    """A batch in words.

    Args:
        batch: Anything.

    Returns:
        Its class, and what is in it.
    """
    entries = _entries(batch)
    name = type(batch).__name__
    if entries is not None:
        return f"the batch, a {name} with the entries {', '.join(map(repr, entries))}"
    if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
        return f"the batch, a {name} of {', '.join(type(item).__name__ for item in batch)}"
    return f"the batch, a {name}"


def _padded(found: Any) -> Any:  # noqa: ANN401
    """A packed sequence as a tensor, batch first; anything else as it is."""
    if isinstance(found, PackedSequence):
        return pad_packed_sequence(found, batch_first=True)[0]
    return found


TARGETS = ("labels", "label", "targets", "target", "y")
"""Names under which a batch usually keeps its target."""
MASKS = ("decoder_attention_mask", "attention_mask")
"""Names under which a batch usually says what is no padding."""


def default_target(batch: Any) -> Tensor | None:  # noqa: ANN401
    """The second element of a tuple or list, or the entry of a mapping or dataclass by its name.

    Args:
        batch: Any batch. Names that are known are labels, label, targets, target and y.

    Returns:
        The target, or None when the batch does not carry one in that place. Where it is a tuple
        itself, of values and weights say, its first tensor.
    """
    entries = _entries(batch)
    found: Any = None
    if entries is not None:
        found = next((entries[name] for name in TARGETS if name in entries), None)
    elif isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
        found = batch[1] if len(batch) > 1 else None
    found = _padded(found)
    while isinstance(found, (tuple, list)) and found:
        found = found[0]
    return found if isinstance(found, Tensor) else None


def default_mask(batch: Any) -> Tensor | None:  # noqa: ANN401
    """The mask that a mapping or dataclass of the transformers library's kind carries.

    Args:
        batch: Any batch.

    Returns:
        The mask, (B, T), or None.
    """
    entries = _entries(batch) or {}
    found = next((entries[name] for name in MASKS if entries.get(name) is not None), None)
    return found if isinstance(found, Tensor) else None


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
    output: Tensor | None = _padded(first_tensor(outputs))
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
    entries = _entries(outputs)
    if entries is not None:
        outputs = list(entries.values())
    if isinstance(outputs, (tuple, list)):
        return next((t for t in map(first_tensor, outputs) if t is not None), None)
    return None


def keep_batch(batch: Any) -> Any:  # noqa: ANN401
    """Copy a batch, so that nobody else's later change reaches it.

    Args:
        batch: Anything; tensors are found in containers and in objects.

    Returns:
        The same structure with tensors of its own, outside inference mode.
    """
    with torch.inference_mode(mode=False):
        return copy_batch(batch, lambda t: t.detach().clone())


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
    slots = (
        name for kind in type(value).__mro__ for name in _names(kind.__dict__.get("__slots__"))
    )
    yield from (held for name in slots if (held := getattr(value, name, None)) is not None)
    yield from getattr(value, "__dict__", {}).values()


def _names(slots: Any) -> Sequence[str]:  # noqa: ANN401
    names = (slots,) if isinstance(slots, str) else tuple(slots or ())
    return [name for name in names if name not in {"__dict__", "__weakref__"}]


def size_of(batch: Any) -> int:  # noqa: ANN401
    """The memory of a batch's tensors.

    Args:
        batch: Nested tuples, lists, mappings or dataclasses of tensors.

    Returns:
        Bytes.
    """
    return sum(tensor.nbytes for tensor in tensors_of(batch))


def fingerprint(batch: Any) -> int | None:  # noqa: ANN401
    """A number that tells whether two batches hold the same numbers.

    Args:
        batch: Nested tuples, lists, mappings or dataclasses of tensors; or an object of the user's.

    Returns:
        A checksum over all tensors, or, where there are none in containers, over what pickle
        writes, with checksums of tensors in their places; None where that cannot be had.
    """
    tensors = tensors_of(batch)
    try:
        return checksum(*tensors) if tensors else _pickled_checksum(batch)
    except Exception:
        return None


def _pickled_checksum(batch: Any) -> int:  # noqa: ANN401
    written = io.BytesIO()
    _Pickler(written).dump(batch)
    return zlib.crc32(written.getvalue())


class _Pickler(pickle.Pickler):
    """Writes tensors as checksums: pickle writes where they are in memory, too."""

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401
        """What to write in a value's place."""
        if isinstance(value, Tensor):
            return tuple, ((checksum(value), tuple(value.shape), str(value.dtype)),)
        return NotImplemented


def on_cpu(batch: Any) -> Any:  # noqa: ANN401
    """Move every tensor of a batch to the CPU.

    Args:
        batch: Anything.

    Returns:
        The same structure.
    """
    return copy_batch(batch, Tensor.cpu)


def cast_batch(batch: Any, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
    """Move every tensor of a batch to a device, and floating ones to a dtype.

    Args:
        batch: Anything.
        dtype: Floating type.
        device: Device.

    Returns:
        The same structure, its tensors outside inference mode.
    """

    def cast(tensor: Tensor) -> Tensor:
        # A copy, as a monitor keeps it, may be laid out in another way than what is no whole.
        whole = tensor.layout != torch.strided or tensor.is_contiguous()
        tensor = tensor.detach() if whole and not tensor.is_inference() else tensor.detach().clone()
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    with torch.inference_mode(mode=False):
        return copy_batch(batch, cast)


class FreshBatch:
    """A batch for one call after another, each of which gets it as it was."""

    def __init__(self, batch: Any) -> None:  # noqa: ANN401
        """Keep it.

        Args:
            batch: The batch, which nobody else changes.
        """
        self._batch = batch
        self._is_changed: bool | None = None
        self._lent: list[tuple[Tensor, int, bool]] = []

    def lend(self) -> Any:  # noqa: ANN401
        """The batch for one call.

        Returns:
            A copy, with tensors of its own until it is known that no call changes them.
        """
        if self._is_changed is False:
            return copy_batch(self._batch, lambda tensor: tensor)
        lent = copy_batch(self._batch, lambda tensor: tensor.detach().clone())
        if self._is_changed is None:
            self._lent = [(t, t._version, t.requires_grad) for t in tensors_of(lent)]
        return lent

    def settle(self) -> None:
        """Look whether the call that the batch was lent to has changed a tensor of it."""
        if self._is_changed is None:
            now = zip(self._lent, tensors_of(self._batch), strict=True)
            self._is_changed = any(
                t._version != version or t.requires_grad != requires_grad or not _same(t, before)
                for (t, version, requires_grad), before in now
            )
            self._lent = []


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers; not, where they cannot be compared."""
    try:
        return torch.equal(a, b) or (
            bool(torch.equal(a.isnan(), b.isnan()))
            and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
        )
    except (RuntimeError, NotImplementedError):
        return False
