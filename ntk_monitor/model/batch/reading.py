"""What to feed a module, what it answers, and what it should have answered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ntk_monitor.model.batch.structure import described, entries_of, padded, tensors_of

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
    entries = entries_of(batch)
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
    parts = (entries_of(batch) or {}).items()
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
    entries = entries_of(batch)
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
    entries = entries_of(batch)
    found: Any = None
    if entries is not None:
        found = next((entries[name] for name in TARGETS if name in entries), None)
    elif isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
        found = batch[1] if len(batch) > 1 else None
    found = padded(found)
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
    entries = entries_of(batch) or {}
    found = next((entries[name] for name in MASKS if entries.get(name) is not None), None)
    return found if isinstance(found, Tensor) else None
