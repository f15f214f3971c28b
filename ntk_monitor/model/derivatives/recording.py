"""Forward passes that are watched, and recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ntk_monitor.model.sites.collector import Collector
from ntk_monitor.model.sites.recorder import Recorder
from ntk_monitor.model.state.calls import Call


@contextmanager
def without_gradient(module: nn.Module) -> Iterator[None]:
    """Switch gradients off during the calls of a submodule."""
    inner = module.forward

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with torch.no_grad():
            return inner(*args, **kwargs)

    with instead_of_forward(module, forward):
        yield


Hook = Callable[[nn.Module, Any, Any, Any], Any]
"""Sees a call of a module, its arguments by position and by name, and what it returned; what the
hook itself returns, unless None, takes the place of that."""


@contextmanager
def watched(module: nn.Module, hook: Hook, *, first: bool = False) -> Iterator[None]:
    """Let a hook see the calls of a module, those of its ``forward`` by name among them.

    Args:
        module: The module.
        hook: Sees each call.
        first: Whether the hook comes before those that are there.

    Yields:
        Nothing.
    """
    inner, called = module.forward, [0]

    def enter(*_: Any) -> None:  # noqa: ANN401
        called[0] += 1

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if called[0]:  # a call of the module, whose hooks come later
            called[0] -= 1
            return inner(*args, **kwargs)
        output = inner(*args, **kwargs)
        instead = hook(module, args, kwargs, output)
        return output if instead is None else instead

    before = module.register_forward_pre_hook(enter)
    after = module.register_forward_hook(hook, with_kwargs=True, prepend=first)
    try:
        with instead_of_forward(module, forward):
            yield
    finally:
        before.remove()
        after.remove()


@contextmanager
def instead_of_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have a module call another function for a while.

    Yields:
        Nothing.
    """
    own = vars(module)
    before = own.get("forward", instead_of_forward)
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        if before is not instead_of_forward:
            own["forward"] = before


@contextmanager
def recording(module: nn.Module, recorder: Recorder | Collector) -> Iterator[None]:
    """Tell a recorder of every call of a submodule.

    Args:
        module: The module.
        recorder: Who is told.

    Yields:
        Nothing.
    """

    def tell(path: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
            recorder.record_call(Call(path, module, args, kwargs, output))

        return hook

    with ExitStack() as stack:
        for path, submodule in module.named_modules():
            if path:
                # Before the parameters that were gathered for the call are let go of.
                first = isinstance(submodule, FSDPModule)
                stack.enter_context(watched(submodule, tell(path), first=first))
        yield
