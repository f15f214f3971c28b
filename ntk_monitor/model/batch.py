"""What to feed a module, what it answers, and what it should have answered."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ntk_monitor.ranks import checksum

ForwardFn = Callable[[nn.Module, Any], Any]
TargetFn = Callable[[Any], Tensor | None]
MaskFn = Callable[[Any], Tensor | None]


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
            f"{type(module).__name__} could not take the batch ({error}): {_REMEDY}"
        ) from error


_REMEDY = "pass forward_fn, for example forward_fn=lambda module, batch: module(batch['inputs'])"


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
        batch: Nested tuples, lists, mappings or dataclasses of tensors; or an object of the user's.

    Returns:
        The same structure with tensors of its own, outside inference mode.
    """
    with torch.inference_mode(mode=False):
        cloned = apply_to_collection(batch, Tensor, lambda t: t.detach().clone())
    return copy_objects(cloned)


def copy_objects(batch: Any) -> Any:  # noqa: ANN401
    """Copy all of a batch but its tensors.

    Args:
        batch: Nested tuples, lists, mappings or dataclasses; or an object of the user's.

    Returns:
        The same structure; tensors in containers are the same, those in objects are copies.
    """
    tensors: dict[int, Any] = {}
    apply_to_collection(batch, Tensor, lambda t: tensors.setdefault(id(t), t))
    return copy.deepcopy(batch, tensors)


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
        batch: Nested tuples, lists, mappings or dataclasses of tensors.

    Returns:
        The tensors; those in other objects are not found.
    """
    found: list[Tensor] = []
    apply_to_collection(batch, Tensor, found.append)
    return found


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
        batch: Nested tuples, lists, mappings or dataclasses of tensors.

    Returns:
        The same structure.
    """
    return apply_to_collection(batch, Tensor, Tensor.cpu)


def cast_batch(batch: Any, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
    """Move every tensor of a batch to a device, and floating ones to a dtype.

    Args:
        batch: Nested tuples, lists, mappings or dataclasses of tensors.
        dtype: Floating type.
        device: Device.

    Returns:
        The same structure, its tensors outside inference mode.
    """

    def cast(tensor: Tensor) -> Tensor:
        tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    with torch.inference_mode(mode=False):
        return apply_to_collection(batch, Tensor, cast)
