"""The model itself as a function of its parameters, without copies of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ntk_monitor.model.batch import ForwardFn
from ntk_monitor.model.forward import ForwardMap
from ntk_monitor.model.recorder import Recorder, address_of


class RealForward(ForwardMap):
    """The map from a module's own parameters to state and outputs, on one fixed batch.

    Calls are ordinary calls of the module, with copies in place of the buffers that they write.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Any,  # noqa: ANN401
        forward_fn: ForwardFn,
        dtype: torch.dtype,
    ) -> None:
        """Keep what is called.

        Args:
            module: The module under study.
            batch: What to call it on, in the arithmetic of the parameters.
            forward_fn: How to call it.
            dtype: That arithmetic.
        """
        super().__init__(module, batch, forward_fn, dtype)
        self._buffers = {name for name, _ in module.named_buffers()}
        self._trained = [(p, p.requires_grad) for p in module.parameters()]

    def _taken(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def leaves(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The parameters themselves.

        Args:
            names: Their names.

        Returns:
            The parameters by name.
        """
        return {name: self.tensors[name] for name in names}

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Without the parameters' own hooks, one of which may step an optimizer.

        Yields:
            Nothing.
        """
        found = [
            hooks
            for p in self.module.parameters()
            for hooks in (p._backward_hooks, getattr(p, "_post_accumulate_grad_hooks", None))
            if hooks
        ]
        before = [dict(hooks) for hooks in found]
        try:
            for hooks in found:
                hooks.clear()
            yield
        finally:
            for hooks, content in zip(found, before, strict=True):
                hooks.update(content)

    def _record(self, tensors: Mapping[str, Tensor], recorder: Recorder) -> None:
        with _following(self.module, recorder):
            super()._record(tensors, recorder)

    def _call(self, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
        fresh = {name: tensors[name].clone() for name in self._written}
        others = {n: t for n, t in {**tensors, **fresh}.items() if t is not self.tensors[n]}
        if not others.keys() <= self._buffers:
            raise ValueError(
                "method='in-place' keeps no copies of the parameters, so this operator is not to "
                "be had with it: linearize with another method"
            )
        named = {f"module.{name}": tensor for name, tensor in others.items()}
        with self._as_at_first():
            try:
                return functional_call(self._caller, named, (self._fresh_batch(),))
            finally:  # a forward pass that freezes parameters has made a graph of them before
                for parameter, requires_grad in self._trained:
                    if parameter.requires_grad != requires_grad:
                        parameter.requires_grad_(requires_grad)


@contextmanager
def _following(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Tell a recorder of tensors that are in the parameters' places during some calls only."""
    canonical = {id(tensor): name for name, tensor in recorder.theta.items()}
    every = module.named_parameters(remove_duplicate=False)
    names = {path: canonical[id(p)] for path, p in every if id(p) in canonical}
    learned: list[list[int]] = []

    def enter(path: str, submodule: nn.Module) -> None:
        here = []
        for inner, owner in submodule.named_modules(prefix=path):
            for local_name, p in owner._parameters.items():
                name = names.get(f"{inner}.{local_name}" if inner else local_name)
                address = None if name is None or p is None else address_of(p)
                if name and p is not None and address and not recorder.knows(address):
                    recorder.learn_parameter(name, p)
                    here.append(address)
        learned.append(here)

    def leave() -> None:
        for address in learned.pop():
            recorder.forget_parameter(address)

    with ExitStack() as stack:
        for path, submodule in module.named_modules():
            before = submodule.register_forward_pre_hook(lambda m, _, path=path: enter(path, m))
            after = submodule.register_forward_hook(lambda *_: leave(), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield
