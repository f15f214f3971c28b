"""The model itself as a function of its parameters, without copies of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from ntk_monitor.compat import hooks_of
from ntk_monitor.model.derivatives.forward_map import PLAIN, ForwardMap
from ntk_monitor.model.derivatives.intervention import Intervention
from ntk_monitor.model.derivatives.substitution import Substitution
from ntk_monitor.model.isolation.memory import address_of
from ntk_monitor.model.parameters.sharding import Sharding, averaged_by, place_of, reshard
from ntk_monitor.model.sites.recorder import Recorder
from ntk_monitor.model.state.finding import State
from ntk_monitor.model.step import StepFunction
from ntk_monitor.model.step.discovery import Discovery
from ntk_monitor.processes import Processes


class LiveForwardMap(ForwardMap):
    """The map from a module's own parameters to state and outputs, on one fixed batch.

    Calls are ordinary calls of the module, with copies in place of the buffers that they write.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Any,  # noqa: ANN401
        step: StepFunction,
        dtype: torch.dtype,
    ) -> None:
        """Keep what is called.

        Args:
            module: The module under study.
            batch: What to call it on, in the arithmetic of the parameters.
            step: How to call it.
            dtype: That arithmetic.
        """
        super().__init__(module, batch, step, dtype)
        self._buffers = {name for name, _ in module.named_buffers()}
        self._trained = [(p, p.requires_grad) for p in module.parameters()]

    def _taken(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def _protected(self) -> frozenset[int]:
        """The parameters' own numbers."""
        return frozenset(a for p in self.module.parameters() if (a := address_of(p)))

    def _taken_anew(self, used: Container[str]) -> list[str]:
        """None: these are not copies, and no step writes to them."""
        del used
        return []

    def leaves(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The parameters themselves.

        Args:
            names: Their names.

        Returns:
            The parameters by name.
        """
        return {name: self.tensors[name] for name in names}

    def gradients(
        self, value: Tensor, inputs: Mapping[str, Tensor], u: Tensor
    ) -> dict[str, Tensor | None]:
        """Go backward from what a run computed; see `ForwardMap.gradients`.

        The parameters' own hooks, one of which may step an optimizer, are not called.

        Args:
            value: Computed from the inputs.
            inputs: Leaves of the run's graph.
            u: Of the value's shape.

        Returns:
            The gradients of ``<u, value>``, None for what it does not depend on.
        """
        with _without_hooks(self.module):
            return super().gradients(value, inputs, u)

    def run_with(
        self, moving: Substitution, state: State, intervention: Intervention = PLAIN
    ) -> Tensor:
        """Run with other parameters in the operations; see `ForwardMap.run_with`."""
        with _following(self.module, moving):
            return super().run_with(moving, state, intervention)

    def _record(
        self, tensors: Mapping[str, Tensor], recorder: Recorder, discovery: Discovery
    ) -> Any:  # noqa: ANN401
        with _following(self.module, recorder):
            return super()._record(tensors, recorder, discovery)

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
                return functional_call(self._caller, named, (self.batch.lend(),))
            finally:  # a forward pass that freezes parameters has made a graph of them before
                for parameter, requires_grad in self._trained:
                    if parameter.requires_grad != requires_grad:
                        parameter.requires_grad_(requires_grad)


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Take the hooks of parameters away for a while."""
    found = [hooks for p in module.parameters() for hooks in hooks_of(p)]
    before = [dict(hooks) for hooks in found]
    try:
        for hooks in found:
            hooks.clear()
        yield
    finally:
        for hooks, content in zip(found, before, strict=True):
            hooks.update(content)


@contextmanager
def _following(module: nn.Module, recorder: Recorder | Substitution) -> Iterator[None]:
    """Tell who watches parameters of tensors that are in their places during some calls only."""
    canonical = {id(tensor): name for name, tensor in recorder.theta.items()}
    every = module.named_parameters(remove_duplicate=False)
    names = {path: canonical[id(p)] for path, p in every if id(p) in canonical}
    learned: list[list[int]] = []

    def enter(path: str, submodule: nn.Module) -> None:
        here = []
        for inner, owner in submodule.named_modules(prefix=path):
            for local_name, p in owner._parameters.items():
                name = names.get(f"{inner}.{local_name}" if inner else local_name)
                if name is None or p is None or p is recorder.theta[name]:
                    continue
                address = address_of(p)
                if address and not recorder.knows(address):
                    here.append(address)
                    recorder.learn_parameter(name, p)
                elif address is None:  # of a kind without memory of its own: a leaf all the same
                    recorder.learn_parameter(name, p)
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


class ShardedForwardMap(LiveForwardMap):
    """The map from parameters of which each process has a part, on each process's own batch.

    Calls and backward passes are those of training, in which the processes give one another what
    they lack; all make the same ones.
    """

    is_sharded = True
    keeps_graph = False
    stops_early = False  # the other processes would wait

    def __init__(
        self,
        module: nn.Module,
        batch: Any,  # noqa: ANN401
        step: StepFunction,
        dtype: torch.dtype,
        processes: Processes,
    ) -> None:
        """Keep what is called.

        Args:
            module: The module under study.
            batch: What to call it on.
            step: How to call it.
            dtype: Arithmetic of the parameters.
            processes: The processes over which batches and parameters are spread.
        """
        super().__init__(module, batch, step, dtype)
        self._processes = processes
        self._averaged = averaged_by(module, processes.size)

    def spread(self, parameters: Iterable[Tensor]) -> Sharding:
        """How parameters are spread over processes; see `LiveForwardMap.spread`."""
        everyone = self._processes.everyone
        return Sharding([place_of(p, everyone.size) for p in parameters], everyone)

    def gradients(
        self, value: Tensor, inputs: Mapping[str, Tensor], u: Tensor
    ) -> dict[str, Tensor | None]:
        """Go backward as training does; see `ForwardMap.gradients`.

        Args:
            value: Computed from the inputs.
            inputs: Leaves of the run's graph, whose ``.grad`` is none.
            u: Of the value's shape.

        Returns:
            The gradients; of sharded parameters summed over processes.
        """
        try:
            self._processes.meet("a backward pass")
            with _without_hooks(self.module):
                torch.autograd.backward(value, u)
            found: dict[str, Tensor | None] = {}
            for name, leaf in inputs.items():
                found[name] = (
                    None if leaf.grad is None else leaf.grad * self._averaged.get(name, 1.0)
                )
            return found
        finally:
            for leaf in [*self.module.parameters(), *inputs.values()]:
                leaf.grad = None
            reshard(self.module)

    def squares(self, direction: Mapping[str, Tensor]) -> dict[str, float]:
        """The squared norm of a direction, by parameter; see `ForwardMap.squares`."""
        own = super().squares(direction)
        spread = self.spread(self.tensors[name] for name in direction)
        return dict(zip(direction, spread.totals(own.values()), strict=True))

    def summed(
        self, gradients: Mapping[str, Tensor | None], processes: Processes
    ) -> dict[str, Tensor]:
        """Gradients summed over processes; see `ForwardMap.summed`."""
        whole = {n: g for n, g in gradients.items() if not isinstance(self.tensors[n], DTensor)}
        parts = {n: g for n, g in gradients.items() if n not in whole and g is not None}
        return {**super().summed(whole, processes), **parts}

    def _call(self, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
        reshard(self.module)
        self._processes.meet("a call of the model")  # in which nobody could hear of a failure
        try:
            return super()._call(tensors)
        finally:
            if not torch.is_grad_enabled():  # else going backward needs what was gathered
                reshard(self.module)
