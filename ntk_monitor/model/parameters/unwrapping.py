"""Wrapped models, as they were written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def unwrapped(module: nn.Module) -> Iterator[None]:
    """Compiled submodules, in whose place are the ones that were compiled; and compiled functions.

    Their parameters have the names that they had before compilation. The registries are put back
    by `attributes`.

    Args:
        module: The module.

    Yields:
        Nothing.
    """
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and (plain := plain_module(child)) is not child:
                parent._modules[name] = plain
    # Nothing can have been compiled where there is no compiler yet.
    has_compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if has_compiled else nullcontext():
        yield


def plain_module(module: nn.Module) -> nn.Module:
    """The module inside what `torch.compile`, data parallelism or Fabric wraps around it.

    Args:
        module: Wrapped or not.

    Returns:
        The module as it was written.
    """
    while True:
        inner = getattr(module, _inner_name(module), None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _inner_name(module: nn.Module) -> str:
    """The attribute that a wrapper, if it is one, keeps the wrapped module under."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    return "_original_module" if "_original_module" in module._modules else "_orig_mod"


def plain_name(name: str) -> str:
    """The name of a module or parameter without what compilation adds to it.

    Args:
        name: A path with dots.

    Returns:
        The path in the module as it was written.
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
