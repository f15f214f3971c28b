"""What is used of PyTorch that it does not promise to keep: all of it, under names of our own.

With torch 2.9 to 2.15 each of these is what it says here; `tests/test_compat.py` holds them to it.
"""
# ruff: noqa: F401  (what is imported is for others)

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing
from torch import Tensor, nn
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.modules import batchnorm, conv, instancenorm, pooling
from torch.nn.modules import module as modules
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

CONVOLUTION: type[nn.Module] = conv._ConvNd
"""The class of convolutions, transposed ones among them."""
NORMS_OF_CHANNELS: tuple[type[nn.Module], ...] = (batchnorm._BatchNorm, instancenorm._InstanceNorm)
"""Normalisations whose inputs have the channels before the places."""
POOLINGS: tuple[type[nn.Module], ...] = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
)
"""Classes of layers that pool over places."""
NormWithStatistics: type[nn.Module] = batchnorm._NormBase
"""The class of normalisations that may keep running statistics."""
without_torch_function: Any = torch._C.DisableTorchFunction
"""A context in which no function mode, and no tensor subclass, sees calls of torch's functions."""
StridedShard = _StridedShard
"""How a parameter is placed that tensor parallelism and ``fully_shard`` split along one axis."""
as_strided: Any = torch.ops.aten.as_strided.default
"""The operation that views a tensor's memory with strides of its own."""


BACKWARD_HOOKS: tuple[dict[int, Any], ...] = (
    modules._global_backward_hooks,
    modules._global_backward_pre_hooks,
)
"""Hooks of the backward pass that all modules share."""
CHECKPOINTING = tuple(
    name
    for name in (
        "_checkpoint_without_reentrant_generator",
        "_checkpoint_without_reentrant_generator_impl",  # from torch 2.15 on
    )
    if hasattr(checkpointing, name)
)
"""In `torch.utils.checkpoint`, what is done before and after a function, where not reentrant; of
several names the last is that of what all go through."""


def default_device() -> torch.device | None:
    """The device that ``torch.set_default_device`` chose, which torch does not tell otherwise.

    Returns:
        The device in this thread; None if none was chosen.
    """
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def set_default_device(device: torch.device | str | None) -> None:
    """``torch.set_default_device``, after which torch 2.9 tells the default device, too.

    Args:
        device: The device; None for none.
    """
    torch.set_default_device(device)
    if device is None and hasattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context"):
        del torch._GLOBAL_DEVICE_CONTEXT.device_context


IS_BACKWARD_SEEN = "has_torch_function" in torch.autograd.backward.__code__.co_names
"""Whether function modes see ``torch.autograd.backward``; in torch 2.9 they do not."""


@contextmanager
def backward_seen() -> Iterator[None]:
    """Have function modes see ``torch.autograd.backward``, whatever the version.

    Yields:
        Nothing.
    """
    if IS_BACKWARD_SEEN:
        yield
        return
    own = torch.autograd.backward

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        given = tuple(tree_leaves(tensors))
        if has_torch_function(given):
            return handle_torch_function(backward, given, tensors, *args, **kwargs)
        return own(tensors, *args, **kwargs)

    torch.autograd.backward = backward
    try:
        yield
    finally:
        torch.autograd.backward = own


@contextmanager
def only_batched() -> Iterator[None]:
    """Have ``vmap`` refuse operations that it would go through one by one, with a warning.

    Yields:
        Nothing.
    """
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


def hooks_of(parameter: Tensor) -> list[dict[int, Any]]:
    """The dictionaries of a parameter's own hooks, where it has any."""
    own = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
    return [hooks for hooks in own if hooks]
