"""The model as a pure function of the parameters under study."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy
from traceback import clear_frames
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ntk_monitor.model.batch.copies import FreshBatch, cast_batch
from ntk_monitor.model.derivatives.intervention import Intervention
from ntk_monitor.model.derivatives.recording import (
    Hook,
    instead_of_forward,
    recording,
    watched,
    without_gradient,
)
from ntk_monitor.model.derivatives.substitution import Substitution
from ntk_monitor.model.isolation.deadline import require_time
from ntk_monitor.model.isolation.interception import FunctionMode
from ntk_monitor.model.isolation.kernels import Again, open_checkpoints
from ntk_monitor.model.isolation.memory import address_of
from ntk_monitor.model.isolation.object_state import ObjectState
from ntk_monitor.model.isolation.quiet import batch_statistics
from ntk_monitor.model.isolation.write_guard import guarded
from ntk_monitor.model.parameters.pieces import dots
from ntk_monitor.model.parameters.sharding import Sharding, place_of
from ntk_monitor.model.sites.collector import Collector
from ntk_monitor.model.sites.held import held_by
from ntk_monitor.model.sites.recorder import Recorder
from ntk_monitor.model.sites.saved_tensors import Sketch, without_saved_tensors
from ntk_monitor.model.sites.watch import Injector
from ntk_monitor.model.state.calls import Call
from ntk_monitor.model.state.finding import State
from ntk_monitor.model.step import StepFunction
from ntk_monitor.model.step.discovery import Discovery
from ntk_monitor.model.step.standins import WithoutMessages, WithoutWrites
from ntk_monitor.model.step.tape import Tape
from ntk_monitor.model.step.watch import Following, LossWatch, Reading
from ntk_monitor.processes import Processes

PLAIN = Intervention()
"""A forward pass as it is."""


class _Caller(nn.Module):
    """A module whose ``forward`` is the step, as ``functional_call`` needs it."""

    def __init__(self, module: nn.Module, step: StepFunction) -> None:
        super().__init__()
        self.module = module
        self._step = (step,)  # in a tuple: a callable module must not be registered

    def forward(self, batch: Any) -> Any:  # noqa: ANN401
        return self._step[0](self.module, batch)


class _Again(nn.Module):
    """A module whose ``forward`` is a part of a step, computed once more."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        return function(*args, **kwargs)


class _Enough(BaseException):
    """Ends a pass whose state is complete; no error, so that nobody who expects one takes it."""


class Recorded(NamedTuple):
    """One recorded pass.

    Attributes:
        recorder: The calls of submodules and the uses of parameters.
        discovery: What the loss may compare.
        returned: What the step returned.
    """

    recorder: Recorder
    discovery: Discovery
    returned: Any


class ForwardMap:
    """The map from parameters to state and outputs, on one fixed batch.

    Buffers are copied when the map is made, and parameters unless it is to do without, so that an
    optimizer step or a buffer update between two calls cannot change it. Every call begins with the
    same random states, those of generators that the module keeps among them, and with what the
    module held at the first; so a ``forward`` that draws noise, counts its calls or carries a
    hidden state on is a function.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Any,  # noqa: ANN401
        step: StepFunction,
        dtype: torch.dtype,
        *,
        copies: bool = True,
    ) -> None:
        """Take the module's tensors in the arithmetic of the probe.

        Args:
            module: The module under study.
            batch: What to call it on, already in that arithmetic.
            step: How to call it.
            dtype: Floating type of the tensors.
            copies: Whether to copy parameters that are of this type; if not, a step that writes to
                them raises a `WriteError` before it does.

        Raises:
            ValueError: If the module is, or has, one of TorchScript.
        """
        scripted = [n for n, m in module.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        if scripted:
            raise ValueError(
                f"TorchScript keeps its parameters where no copies can take their place (module "
                f"{scripted[0]!r}): probe the module that was scripted or traced"
            )
        self.module = module
        self.step = step
        self.batch = FreshBatch(batch)
        self.dtype = dtype
        self._caller = _Caller(module, step)
        self._steps_itself = False
        self._copies = copies
        tensors = [*module.named_parameters(), *module.named_buffers()]
        self.parameters = dict(module.named_parameters())
        self.tensors = {name: self._taken(tensor) for name, tensor in tensors}
        self._device = next((t.device for _, t in tensors), torch.device("cpu"))
        self._same_dtype = all(t.dtype == self.tensors[n].dtype for n, t in tensors)
        self._noise = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._noise_there = (
            torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        )
        self._written: list[str] = []
        self._changing: ObjectState | None = None
        self._keeps_weights = False

    def _taken(self, tensor: Tensor) -> Tensor:
        """What is studied in a tensor's place, floating ones in ``dtype``."""
        if not self._copies and isinstance(tensor, nn.Parameter) and tensor.dtype == self.dtype:
            return tensor.detach()
        return tensor.detach().to(self.dtype if tensor.is_floating_point() else None, copy=True)

    def on(self, batch: Any) -> Self:  # noqa: ANN401
        """The same map on another batch, with the same tensors.

        Args:
            batch: The batch, in any arithmetic.

        Returns:
            Another map.
        """
        other = copy(self)
        other.batch = FreshBatch(cast_batch(batch, self.dtype, self._device))
        return other

    def leaves(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Parameters as leaves of the graph of a run to which they are given.

        Args:
            names: Their names.

        Returns:
            The leaves by name.
        """
        return {name: self.tensors[name].detach().requires_grad_() for name in names}

    @contextmanager
    def as_training_normalises(self) -> Iterator[None]:
        """Batch statistics in runs where training takes them; running ones are not touched.

        Yields:
            Nothing.
        """
        before = self._written, self._same_dtype
        with batch_statistics(self.module) as buffers:
            self._written = [*self._written, *(n for n in buffers if n not in self._written)]
            # What is checkpointed is computed again going backward, on the buffers themselves.
            self._same_dtype = False
            try:
                yield
            finally:
                self._written, self._same_dtype = before

    def spread(self, parameters: Iterable[Tensor]) -> Sharding:
        """How parameters are spread over processes.

        Args:
            parameters: The parameters.

        Returns:
            Where this process's parts are.
        """
        return Sharding([place_of(p) for p in parameters])

    is_sharded = False
    """Whether each process has a part of the parameters."""
    keeps_graph = True
    """Whether one run serves several calls of `gradients`."""
    together = False
    """Whether other processes do the same, so that a step must not talk to them by itself."""
    stops_early = True
    """Whether a pass for the state alone ends with the state."""

    def gradients(
        self, value: Tensor, inputs: Mapping[str, Tensor], u: Tensor
    ) -> dict[str, Tensor | None]:
        """Go backward from what a run computed.

        Args:
            value: Computed from the inputs.
            inputs: Leaves of the run's graph.
            u: Of the value's shape.

        Returns:
            The gradients of ``<u, value>``, None for what it does not depend on.
        """
        found = torch.autograd.grad(
            value, list(inputs.values()), u, retain_graph=True, allow_unused=True
        )
        return dict(zip(inputs, found, strict=True))

    def summed(
        self, gradients: Mapping[str, Tensor | None], processes: Processes
    ) -> dict[str, Tensor]:
        """Gradients summed over processes.

        Args:
            gradients: This process's, by the parameters' names.
            processes: The processes.

        Returns:
            The sums; of what no process has a gradient there is none.
        """
        here = torch.tensor([g is not None for g in gradients.values()], device="cpu")
        anywhere = processes.sum(here.double()) > 0
        found = {
            name: torch.zeros_like(self.tensors[name]) if g is None else g
            for (name, g), there in zip(gradients.items(), anywhere, strict=True)
            if there
        }
        return dict(zip(found, processes.sums(*found.values()), strict=True))

    def squares(self, direction: Mapping[str, Tensor]) -> dict[str, float]:
        """The squared norm of a direction in parameter space, parameter by parameter.

        Args:
            direction: A tensor for each of some parameters, by name.

        Returns:
            The sums of all squares, taken in float64.
        """
        tensors = list(direction.values())
        return dict(zip(direction, dots(tensors, tensors), strict=True))

    def record(
        self, names: Sequence[str], sketch: Sketch | None = None, room: float = math.inf
    ) -> Recorded:
        """Run once, recording calls of submodules, uses of some parameters, and what is compared.

        Args:
            names: The parameters. What is computed from them carries a graph.
            sketch: Makes stand-ins for all tensors, none of which is kept then, those that the
                graph needs to go backward among them; None to keep all.
            room: Bytes that what is kept of submodules and activity may take.

        Returns:
            What was recorded.
        """
        theta = self.leaves(names)
        own = {name: self.tensors[name].clone() for name, _ in self.module.named_buffers()}
        versions = {name: t._version for name, t in own.items()}
        constants = {n: t for n, t in self.tensors.items() if n not in theta} | own
        recorder = Recorder(theta, constants.values(), held_by(self.module), sketch, room)
        discovery = Discovery(self._protected(), keep=sketch is None, rows_of=recorder.rows.of)
        returned = self._record({**self.tensors, **theta, **own}, recorder, discovery)
        self.batch.settle()
        self._steps_itself = discovery.differentiates
        self._written = [
            name
            for name, t in own.items()
            if t._version != versions[name] or not _same(t, self.tensors[name])
        ]
        if self._changing is not None:
            self._changing.put_back()
        used = {n for r in recorder.records for o in (r.weight, r.bias) if o for n in o.names}
        self._written += self._taken_anew(used)
        return Recorded(recorder, discovery, returned)

    def _protected(self) -> frozenset[int]:
        """Where numbers are that no step may write to, by address."""
        return frozenset()

    def _taken_anew(self, used: Container[str]) -> list[str]:
        """Parameters that the step has written to; they are as before, and are lent as copies.

        A target network that is brought up to date in the step is such. Weights that forward
        itself changes (``max_norm``, clamps) are measured as they are after it, and no other pass
        writes to them.

        Args:
            used: Names of the weights that act on data.

        Returns:
            Their names.
        """
        written = []
        for name, parameter in self.parameters.items():
            if address_of(self.tensors[name]) == address_of(parameter):  # no copy
                continue
            own = self._taken(parameter)
            if _same(own, self.tensors[name]):
                continue
            if name in used:
                self._keeps_weights = True
            else:
                with torch.no_grad():
                    self.tensors[name].copy_(own)
                written.append(name)
        return written

    def _record(
        self, tensors: Mapping[str, Tensor], recorder: Recorder, discovery: Discovery
    ) -> Any:  # noqa: ANN401
        with ExitStack() as stack:
            if recorder.sketch is not None:
                stack.enter_context(without_saved_tensors())
            stack.enter_context(recording(self.module, recorder))
            stack.enter_context(recorder)
            if self.step.is_watched:
                stack.enter_context(discovery)
            if self.together:
                stack.enter_context(WithoutMessages())
            held = ObjectState(self.module.modules())
            if not self._copies:
                stack.enter_context(guarded(self.parameters.values()))
            returned = self._call(tensors)
            self._changing = held.changed()
            return returned

    def collect(self, collector: Collector, names: Sequence[str], state: State) -> Tensor:
        """Run once more as when the uses of parameters were recorded, and read their activity.

        Args:
            collector: Reads it.
            names: The parameters that were recorded.
            state: Where the state is read.

        Returns:
            The state.
        """
        with without_saved_tensors(), recording(self.module, collector), collector:
            return self.run(self.leaves(names), state).detach().clone()

    def run(
        self, theta: Mapping[str, Tensor], state: State, intervention: Intervention = PLAIN
    ) -> Tensor:
        """Run with some parameters replaced, as far as the state.

        Args:
            theta: Values of the studied parameters; all others keep their copies.
            state: Where the state is read.
            intervention: What to change in the pass.

        Returns:
            The computed state, shape ``(B, T, n)``.
        """
        watch = LossWatch() if self._steps_itself else None
        return self._run(theta, state, intervention, watch, whole=not self.stops_early)[0]

    def run_with(
        self, moving: Substitution, state: State, intervention: Intervention = PLAIN
    ) -> Tensor:
        """Run as far as the state, with other parameters in the operations.

        Args:
            moving: What the operations are given in the place of the parameters.
            state: Where the state is read.
            intervention: What to change in the pass.

        Returns:
            The computed state, shape ``(B, T, n)``.
        """
        with moving:
            return self.run({}, state, intervention)

    def run_whole(
        self,
        theta: Mapping[str, Tensor],
        state: State,
        readings: Mapping[int, Reading],
        intervention: Intervention = PLAIN,
        *,
        shake: bool = False,
        tape: Tape | None = None,
    ) -> tuple[Tensor, Any, Following]:
        """Run the whole step with some parameters replaced.

        Args:
            theta: Values of the studied parameters; all others keep their copies.
            state: Where the state is read.
            readings: The comparisons to read.
            intervention: What to change in the pass.
            shake: Whether the loss goes on from slightly other outputs; see `Following`.
            tape: Records what is computed from the outputs.

        Returns:
            The computed state, what the step returned, and the comparisons.
        """
        watch = Following(readings, shake=shake, cut=intervention.given is not None, tape=tape)
        used = watch if self.step.is_watched else None
        return *self._run(theta, state, intervention, used, whole=True), watch

    def _run(
        self,
        theta: Mapping[str, Tensor],
        state: State,
        intervention: Intervention,
        watch: LossWatch | None,
        *,
        whole: bool,
    ) -> tuple[Tensor, Any]:
        parts: dict[str, list[Tensor]] = {path: [] for path in state.paths}
        missing = {source.path: max(len(source.spans), 1) for source in state.sources}
        seen: Counter[str] = Counter()
        at_operations = intervention.at_operations
        modes: list[FunctionMode] = [Injector(at_operations)] if at_operations else []
        modes += [watch] if watch is not None else []

        def follow(path: str) -> Hook:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ANN401
                call = Call(path, module, args, kwargs, output)
                with ExitStack() as paused:
                    for mode in modes:
                        paused.enter_context(mode.pause())
                    changed, computed = intervention.apply(call, seen[path], state)
                seen[path] += 1
                if computed is not None:
                    # What follows may write into it in place.
                    parts[path].append(computed.clone() if whole else computed)
                if not whole and all(seen[p] >= count for p, count in missing.items()):
                    raise _Enough
                return changed

            return hook

        returned = None
        with ExitStack() as stack:
            if intervention.changes:  # what is computed again going backward would be without it
                stack.enter_context(open_checkpoints(keep=False))
            if intervention.given is not None and not intervention.through_time:
                # What computes the state in vain need not be recorded for derivatives.
                for path in state.paths:
                    stack.enter_context(without_gradient(self.module.get_submodule(path)))
            for path in intervention.paths(state):
                submodule = self.module.get_submodule(path)
                instead = intervention.instead(path, submodule)
                if instead is not None:
                    stack.enter_context(instead_of_forward(submodule, instead))
                stack.enter_context(watched(submodule, follow(path)))
            for mode in modes:
                stack.enter_context(mode)
            if watch is not None and (watch.differentiates or self._steps_itself):
                stack.enter_context(torch.enable_grad())
            try:
                returned = self._call({**self.tensors, **theta})
            except _Enough as enough:  # what the pass has computed is let go of at once
                clear_frames(enough.__traceback__)
        if any(seen[path] != count for path, count in missing.items()):
            raise RuntimeError(
                f"the state {', '.join(missing)!r} was computed in {dict(missing)} calls in one "
                f"pass and in {dict(seen)} in the next: a probe needs a step that repeats itself"
            )
        joined = [source.together(parts[source.path]) for source in state.sources]
        return state.join(joined), returned

    def _call(self, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
        fresh = {name: tensors[name].clone() for name in self._written if name in tensors}
        named = {f"module.{name}": tensor for name, tensor in {**tensors, **fresh}.items()}
        keeping = WithoutWrites(tensors.values()) if self._keeps_weights else nullcontext()
        with self._as_at_first(self._again(named)), keeping:
            return functional_call(self._caller, named, (self.batch.lend(),))

    def _again(self, named: dict[str, Tensor]) -> Again:
        """How checkpointed parts of a pass are computed again: with the tensors of that pass."""
        part, dtype = _Again(self.module), self.dtype

        def again(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # noqa: ANN401
            with _default_dtype(dtype):
                return functional_call(part, named, (function, args, kwargs))

        return again

    @contextmanager
    def _as_at_first(self, again: Again | None = None) -> Iterator[None]:
        """Random states and what the module holds as at the first call.

        Args:
            again: How checkpointed parts are computed again; None: as by themselves.

        Yields:
            Nothing.
        """
        require_time()
        torch_state, numpy_state, python_state = self._noise
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if self._noise_there is not None:
            torch.cuda.set_rng_state(self._noise_there, self._device)
        if self._changing is not None:
            self._changing.put_back()
        with open_checkpoints(keep=self._same_dtype, again=again), _default_dtype(self.dtype):
            yield


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Have new tensors made in the arithmetic of the probe."""
    before = torch.get_default_dtype()
    if before == dtype:  # it belongs to all threads: the less it is touched, the better
        yield
        return
    try:
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)
