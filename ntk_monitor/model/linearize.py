"""From a module and a batch to operators, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ntk_monitor.model.batch import (
    ForwardFn,
    cast_batch,
    default_forward,
    first_tensor,
)
from ntk_monitor.model.derivative import Derivative
from ntk_monitor.model.forward import ForwardMap
from ntk_monitor.model.linearization import Linearization
from ntk_monitor.model.memory import free_memory
from ntk_monitor.model.parameters import ParameterFilter, ParameterSpace, select_parameters
from ntk_monitor.model.products import METHODS, TangentProducts, make_products
from ntk_monitor.model.quiet import Kernels, quiet
from ntk_monitor.model.sites import find_sites
from ntk_monitor.model.state import Call, StateSource, find_state, is_time_first

MAX_CHUNK = 16
"""Most tangents carried at once: beyond, products hardly become cheaper."""
MEMORY_SHARE = 0.1
"""Share of the free memory that the tangents of one pass may take."""


def linearize(
    module: nn.Module,
    batch: Any,  # noqa: ANN401
    *,
    state: str = "auto",
    parameters: ParameterFilter = None,
    forward_fn: ForwardFn | None = None,
    method: str | Sequence[str] = "auto",
    dtype: torch.dtype | None = torch.float32,
    chunk_size: int | None = None,
    accuracy: float = 0.01,
) -> Linearization:
    """Linearise the state of a model in its parameters, on one batch.

    Three forward passes; the module is left as it was.

    Args:
        module: The model.
        batch: What to call it on.
        state: Path of the module whose output is the state; ``"auto"`` takes the last recurrent
            layer called, else the module before the readout.
        parameters: Names, glob patterns or a predicate of (name, parameter); by default all that
            require a gradient.
        forward_fn: ``(module, batch) -> outputs``.
        method: One of `METHODS`, or several, of which the first that works on the model is taken;
            ``"auto"`` for all of them.
        dtype: Arithmetic of the linearisation; None keeps the model's.
        chunk_size: Tangents carried at once by forward mode; by default at most 16, fewer where
            they would take more than a tenth of the free memory. Out of memory, it is halved.
        accuracy: Relative agreement that the step of finite differences must show.

    Returns:
        The state, the outputs, the weight sites, and the operators.

    Raises:
        ValueError: If an argument does not fit the model, or no studied parameter reaches the
            state.
    """
    trained = select_parameters(module, None)
    names = select_parameters(module, parameters)
    reference = dict(module.named_parameters())[names[0]]
    dtype = reference.dtype if dtype is None else dtype
    forward_fn = default_forward if forward_fn is None else forward_fn

    def context(kernels: Kernels) -> AbstractContextManager[None]:
        return quiet(module, kernels=kernels)

    with context("reversible"):
        forward = ForwardMap(module, cast_batch(batch, dtype, reference.device), forward_fn, dtype)
        source = find_state(module, state, forward.record()[0])
        theta = {name: forward.tensors[name].detach().requires_grad_() for name in names}
        h = forward.run(theta, source)[0]
        reached = _reached(h, theta)
        h = h.detach()  # no graph beside the recorded calls: either takes a training step's memory
        if not reached:
            raise ValueError(
                f"no studied parameter reaches the state {source.path!r}, so gradient descent "
                "cannot move it: choose a later module with state=..., or other parameters"
            )
        calls, outputs = forward.record()
        rows = (h.shape[0], h.shape[1])
        time_first = is_time_first(module)
        sites, coverage = forward.holding(
            partial(find_sites, module, calls, reached, rows, time_first=time_first)
        )
        recurrence = _find_recurrence(source, calls, h)
        if chunk_size is None:
            chunk_size = _affordable_chunk(calls, h)
        del calls
    space = ParameterSpace({name: theta[name].shape for name in reached})
    flat = space.join([theta.pop(name).detach() for name in reached])
    forward.tensors.update(space.split(flat))  # one copy, not two

    def state_at(theta: Tensor) -> Tensor:
        return forward.run(space.split(theta), source)[0]

    wanted = METHODS if method == "auto" else (method,) if isinstance(method, str) else method
    methods: dict[str, TangentProducts] = {
        name: make_products(name, state_at, flat, chunk_size, accuracy) for name in wanted
    }
    jacobian = Derivative("J", state_at, flat, h, methods, context)
    return Linearization(
        state=h,
        outputs=outputs,
        sites=sites,
        coverage=coverage,
        jacobian=jacobian,
        parameters=reached,
        _forward=forward,
        _source=source,
        _recurrence=recurrence,
        _trained=trained,
        _space=space,
        _chunk_size=chunk_size,
    )


def _affordable_chunk(calls: Sequence[Call], h: Tensor) -> int:
    """How many tangents fit in memory, judged by the activations of a forward pass."""
    outputs = [first_tensor(call.output) for call in calls]
    size = 2 * sum(t.numel() * t.element_size() for t in outputs if t is not None)
    most = MEMORY_SHARE * free_memory(h.device) / max(size, 1)
    return int(max(1, min(MAX_CHUNK, most)))


def _find_recurrence(source: StateSource, calls: Sequence[Call], h: Tensor) -> StateSource | None:
    # The state's own module if it is a recurrent layer or a cell; else a submodule of it that is
    # called once per time step and returns just the state; None if there is no such module.
    if source.recurrent or source.calls > 1:
        return source
    steps: dict[str, list[Tensor]] = {}
    for call in calls:
        output = first_tensor(call.output)
        if call.path.startswith(f"{source.path}.") and output is not None and output.ndim == 2:
            steps.setdefault(call.path, []).append(output)
    for path, outputs in steps.items():
        fits = len(outputs) == h.shape[1] > 1 and outputs[0].shape == h[:, 0].shape
        if fits and torch.equal(torch.stack(outputs, dim=1), h):
            return StateSource(path, calls=len(outputs))
    return None


def _reached(h: Tensor, theta: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of the parameters from which the graph of ``h`` starts; costs no product."""
    by_id = {id(leaf): name for name, leaf in theta.items()}
    found: set[str] = set()
    seen: set[Any] = set()
    stack = [h.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in by_id:
            found.add(by_id[id(variable)])
        stack.extend(parent for parent, _ in node.next_functions)
    return tuple(name for name in theta if name in found)
