"""The model as a pure function of the parameters under study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from ntk_monitor.model.batch import ForwardFn
from ntk_monitor.model.edit import Edit
from ntk_monitor.model.state import Call, StateSource

Result = TypeVar("Result")
PLAIN = Edit()
"""A forward pass as it is."""


class _Caller(nn.Module):
    """A module whose ``forward`` is the user's ``forward_fn``, as ``functional_call`` needs it."""

    def __init__(self, module: nn.Module, forward_fn: ForwardFn) -> None:
        super().__init__()
        self.module = module
        self._forward_fn = (forward_fn,)  # in a tuple: a callable module must not be registered

    def forward(self, batch: Any) -> Any:  # noqa: ANN401
        return self._forward_fn[0](self.module, batch)


class ForwardMap:
    """The map from parameters to state and outputs, on one fixed batch.

    Parameters and buffers are copied when the map is made, so that an optimizer step or a buffer
    update between two calls cannot change it.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Any,  # noqa: ANN401
        forward_fn: ForwardFn,
        dtype: torch.dtype,
    ) -> None:
        """Copy the module's tensors in the arithmetic of the probe.

        Args:
            module: The module under study.
            batch: What to call it on, already in that arithmetic.
            forward_fn: How to call it.
            dtype: Floating type of the copies.
        """
        self.module = module
        self.batch = batch
        self.dtype = dtype
        self._caller = _Caller(module, forward_fn)
        tensors = [*module.named_parameters(), *module.named_buffers()]
        self.tensors = {name: _copy(tensor, dtype) for name, tensor in tensors}

    def record(self) -> tuple[list[Call], Any]:
        """Run once without derivatives, recording every call of a submodule.

        Returns:
            The calls in the order in which they returned, and the outputs.
        """
        calls: list[Call] = []
        with torch.no_grad(), _recording(self.module, calls):
            outputs = self._call(self.tensors)
        return calls, outputs

    def run(
        self, theta: Mapping[str, Tensor], source: StateSource, edit: Edit = PLAIN
    ) -> tuple[Tensor, Any]:
        """Run with some parameters replaced.

        Args:
            theta: Values of the studied parameters; all others keep their copies.
            source: Where the state is read.
            edit: What to change in the pass.

        Returns:
            The computed state, shape ``(B, T, n)``, and the outputs.
        """
        states: list[Tensor] = []
        seen: Counter[str] = Counter()

        def watch(path: str) -> RemovableHandle:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ANN401
                call = Call(path, module, args, kwargs, output)
                edited, computed = edit.apply(call, seen[path], source)
                seen[path] += 1
                if computed is not None:
                    states.append(computed)
                return edited

            submodule = self.module.get_submodule(path)
            return submodule.register_forward_hook(hook, with_kwargs=True)

        with ExitStack() as stack:
            for path in edit.paths(source):
                stack.callback(watch(path).remove)
            if edit.given is not None and not edit.through_time:
                # What computes the state in vain need not be recorded for derivatives.
                stack.enter_context(_without_gradient(self.module.get_submodule(source.path)))
            outputs = self._call({**self.tensors, **theta})
        return states[0] if len(states) == 1 else torch.cat(states, dim=1), outputs

    def holding(self, action: Callable[[], Result]) -> Result:
        """Do something while the module holds the copies in place of its own tensors.

        Args:
            action: What to do.

        Returns:
            What it returns.
        """
        result: Result = self._call(self.tensors, _Caller(self.module, lambda *_: action()))
        return result

    def _call(self, tensors: Mapping[str, Tensor], caller: _Caller | None = None) -> Any:  # noqa: ANN401
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        return functional_call(caller or self._caller, named, (self.batch,))


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of its own; floating ones in ``dtype``."""
    return tensor.detach().to(dtype if tensor.is_floating_point() else None, copy=True)


@contextmanager
def _without_gradient(module: nn.Module) -> Iterator[None]:
    """Switch gradients off during the calls of a submodule."""
    before: list[bool] = []

    def enter(*_: Any) -> None:  # noqa: ANN401
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def leave(*_: Any) -> None:  # noqa: ANN401
        torch.set_grad_enabled(before.pop())

    first = module.register_forward_pre_hook(enter)
    last = module.register_forward_hook(leave, prepend=True, always_call=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()


@contextmanager
def _recording(module: nn.Module, calls: list[Call]) -> Iterator[None]:
    """Append every call of a submodule to ``calls``."""
    handles = []

    def watch(path: str, submodule: nn.Module) -> None:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
            calls.append(Call(path, submodule, args, kwargs, output))

        handles.append(submodule.register_forward_hook(hook, with_kwargs=True))

    try:
        for path, submodule in module.named_modules():
            if path:
                watch(path, submodule)
        yield
    finally:
        for handle in handles:
            handle.remove()
