"""What is used of PyTorch that it does not promise to keep: all of it, under names of our own.

With torch 2.9 to 2.13 each of these is what it says here; `tests/test_compat.py` holds them to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

__all__ = [
    "NormWithStatistics",
    "StridedShard",
    "TorchDispatchMode",
    "as_strided",
    "default_device",
    "hooks_of",
    "is_traceable_wrapper_subclass",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
    "without_torch_function",
]

NormWithStatistics: type[nn.Module] = _NormBase
"""The class of normalisations that may keep running statistics."""
without_torch_function: Any = torch._C.DisableTorchFunction
"""A context in which no function mode, and no tensor subclass, sees calls of torch's functions."""
StridedShard = _StridedShard
"""How a parameter is placed that tensor parallelism and ``fully_shard`` split along one axis."""
as_strided: Any = torch.ops.aten.as_strided.default
"""The operation that views a tensor's memory with strides of its own."""


def default_device() -> torch.device | None:
    """The device that ``torch.set_default_device`` chose, which torch does not tell otherwise.

    Returns:
        The device in this thread; None if none was chosen.
    """
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def hooks_of(parameter: Tensor) -> list[dict[int, Any]]:
    """The dictionaries of a parameter's own hooks, where it has any."""
    own = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
    return [hooks for hooks in own if hooks]
