"""From a module and a batch to operators."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ntk_monitor.model.batch.copies import cast_batch
from ntk_monitor.model.batch.reading import (
    ForwardFn,
    MaskFn,
    TargetFn,
    default_mask,
    require_tensors,
)
from ntk_monitor.model.derivatives.adjoint import Quiet
from ntk_monitor.model.derivatives.derivative import Products
from ntk_monitor.model.derivatives.finite_difference import FiniteDifference
from ntk_monitor.model.derivatives.forward_map import ForwardMap
from ntk_monitor.model.derivatives.jacobian import ParameterJacobian
from ntk_monitor.model.derivatives.live_forward_map import LiveForwardMap, ShardedForwardMap
from ntk_monitor.model.derivatives.products import AUTOMATIC, IN_PLACE, make_products
from ntk_monitor.model.derivatives.substitution import Substitution
from ntk_monitor.model.discovery import discover
from ntk_monitor.model.isolation.kernels import Kernels
from ntk_monitor.model.isolation.memory import room
from ntk_monitor.model.isolation.quiet import quiet
from ntk_monitor.model.isolation.write_guard import WriteError
from ntk_monitor.model.linearization import Linearization
from ntk_monitor.model.parameters.pieces import share_memory
from ntk_monitor.model.parameters.selection import (
    ParameterFilter,
    ParameterSpace,
    select_parameters,
    without_match,
)
from ntk_monitor.model.parameters.sharding import is_sharded, require_precision
from ntk_monitor.model.parameters.unwrapping import plain_module
from ntk_monitor.model.passes import Consumer, Found, Question, UnregisteredError
from ntk_monitor.model.second_pass import second_pass
from ntk_monitor.model.state.finding import StatePath, require_paths
from ntk_monitor.model.step import LossFn, StepFunction, step_function
from ntk_monitor.processes import ALONE, Processes, checksum

logger = logging.getLogger(__name__)


def linearize(
    module: nn.Module,
    batch: Any,  # noqa: ANN401
    *,
    state: StatePath = "auto",
    parameters: ParameterFilter = None,
    forward_fn: ForwardFn | None = None,
    target_fn: TargetFn | None = None,
    loss_fn: LossFn | None = None,
    method: str | Sequence[str] = "auto",
    dtype: torch.dtype | None = torch.float32,
    chunk_size: int | None = None,
    accuracy: float = 0.01,
    mask_fn: MaskFn | None = None,
    processes: Processes = ALONE,
    max_memory: int | None = None,
    consume: Consumer | None = None,
    copies: bool = True,
) -> Linearization:
    """Linearise the state of a model in its parameters, on one batch.

    Two forward passes, one of them recorded for derivatives; the module is left as it was.

    Args:
        module: The model.
        batch: What to call it on.
        state: Path of the module whose output is the state, or several whose features are put
            side by side; ``"auto"`` takes the last recurrent layer on the way to the loss, else the
            last module before the readout whose rows are those on which most weights act.
        parameters: Names, glob patterns or a predicate of (name, parameter); by default all that
            require a gradient.
        forward_fn: ``(module, batch) -> outputs``, to look at a forward pass in place of the step.
        target_fn: ``batch -> target``, likewise.
        loss_fn: ``(module, batch) -> loss``, what training minimises; by default a
            LightningModule's ``training_step``, or the loss that the module itself returns.
        method: One of ``METHODS``, or several, of which the first that works on the model is taken;
            ``"auto"`` for all but ``"in-place"``, which stands alone.
        dtype: Arithmetic of the linearisation; None keeps the model's.
        chunk_size: Tangents carried at once by forward mode; by default at most 16, fewer where
            they would take more than a tenth of the free memory. Out of memory, it is halved once.
        accuracy: Relative agreement that the step of finite differences must show.
        mask_fn: ``batch -> mask``: which rows of the state there are, (B, T), the others being
            padding, or the lengths, (B,); by default the batch's ``attention_mask``, if it has one
            with the state's rows. Packed sequences need none.
        processes: Those that do the same on batches of their own, all with the same parameters; the
            products of the result are this process's alone.
        max_memory: Bytes that activations and activity which are kept to find the weight sites may
            take; by default half of the free memory. What needs more is done in further forward
            passes that keep neither. ``"in-place"`` does so always.
        consume: Takes the activity ``V`` of each site, (k, m), as soon as it is known; the result
            is then without sites.
        copies: Whether to copy the parameters, so that training may go on while the operators are
            in use. Without, no operator may be used after the parameters have changed; where the
            step itself writes to them, or two of them share memory, they are copied all the same.

    Returns:
        The state, the outputs, the weight sites, and the operators.

    Raises:
        ValueError: If an argument does not fit the model, named parameters do not reach the state,
            two passes differ, or the module keeps parameters where no copies can take their place
            and another method than ``"in-place"`` was asked for.
    """
    require_paths(state)
    require_tensors(module, batch)
    copies = copies or share_memory(dict(module.named_parameters()))
    module = plain_module(module)

    def context(kernels: Kernels) -> AbstractContextManager[None]:
        return quiet(module, kernels=kernels)

    def attempt(
        method: str | Sequence[str], dtype: torch.dtype | None, *, copies: bool
    ) -> Linearization:
        """Do so with one choice of methods."""
        sharded = is_sharded(module)
        wanted = _wanted(module, method, sharded=sharded)
        in_place = IN_PLACE in wanted
        with context("reversible"):
            _require_real(module)
            trained = select_parameters(module, None)
            names = select_parameters(module, parameters)
            reference = dict(module.named_parameters())[names[0]]
            dtype = reference.dtype if dtype is None else dtype
            if in_place:
                _require_dtype(module, names, dtype)
            batch_here = cast_batch(batch, dtype, reference.device)
            step = step_function(
                module, forward_fn=forward_fn, target_fn=target_fn, loss_fn=loss_fn
            )
            forward = _forward_map(
                module, batch_here, step, dtype, processes, in_place=in_place, copies=copies
            )
            mask = (default_mask if mask_fn is None else mask_fn)(batch)
            chosen = parameters is not None
            question = Question(
                forward, names, chosen, state, mask, mask_fn is not None, processes, consume
            )
            found = discover(question, sketched=in_place, room=room(max_memory, reference.device))
            idle = without_match(parameters, found.reached)
            if idle:
                raise ValueError(
                    f"parameters={idle} do not act on the state {', '.join(found.where.paths)!r}: "
                    "leave them out, or choose a later module with state=..."
                )
            outputs, comparisons = second_pass(forward, found, batch, recorded=not in_place)
            if sharded:
                _require_whole(found, processes)
        if in_place and not found.reached:  # a frozen body
            wanted = AUTOMATIC
        found = found._replace(
            chunk_size=found.chunk_size if chunk_size is None else chunk_size,
            by_trial=() if in_place else found.by_trial,
            labels={},
        )
        return Linearization(
            state=found.h,
            outputs=outputs,
            comparisons=comparisons,
            loss=found.loss.value,
            sites=found.sites,
            coverage=found.coverage,
            jacobian=_jacobian(forward, found, context, wanted, accuracy, processes),
            parameters=found.reached,
            processes=processes,
            _forward=forward,
            _state=found.where,
            _found=found,
            _trained=trained,
            _compares=found.loss.compares,
            _batch=batch,
            _accuracy=accuracy,
        )

    try:
        try:
            return attempt(method, dtype, copies=copies)
        except WriteError:
            logger.info("the step writes to parameters: they are copied")
            return attempt(method, dtype, copies=True)
    except UnregisteredError as error:
        reason = error
    if method != "auto" and (isinstance(method, str) or len(method) == 1):
        raise ValueError(str(reason)) from reason
    logger.info("method %s: %s", IN_PLACE, reason)
    return attempt(IN_PLACE, None, copies=copies)


def _forward_map(
    module: nn.Module,
    batch: object,
    step: StepFunction,
    dtype: torch.dtype,
    processes: Processes,
    *,
    in_place: bool,
    copies: bool,
) -> ForwardMap:
    if is_sharded(module):
        require_precision(module, dtype)
        return ShardedForwardMap(module, batch, step, dtype, processes)
    if in_place:
        forward: ForwardMap = LiveForwardMap(module, batch, step, dtype)
    else:
        forward = ForwardMap(module, batch, step, dtype, copies=copies)
    forward.together = processes.everyone.size > 1
    return forward


def _wanted(module: nn.Module, method: str | Sequence[str], *, sharded: bool) -> Sequence[str]:
    """The methods that are asked for.

    Returns:
        Their names.

    Raises:
        ValueError: If they do not go with the module, or with one another.
    """
    if method == "auto":
        return (IN_PLACE,) if sharded else AUTOMATIC
    wanted = (method,) if isinstance(method, str) else method
    if sharded and IN_PLACE not in wanted:
        raise ValueError(
            f"the parameters of {type(module).__name__} are sharded, so that no process has all of "
            f"them: method={IN_PLACE!r} works on the parts, got method={method!r}"
        )
    if IN_PLACE in wanted and len(wanted) > 1:
        raise ValueError(f"method={IN_PLACE!r} does not go with others, got {tuple(wanted)}")
    return wanted


def _require_real(module: nn.Module) -> None:
    """Refuse complex parameters.

    Raises:
        ValueError: If there are any.
    """
    found = [name for name, p in module.named_parameters() if p.is_complex()]
    if found:
        raise ValueError(
            f"the parameters {', '.join(found[:3])} of {type(module).__name__} are complex, and a "
            "probe works in real arithmetic: keep real and imaginary parts, and put them together "
            "in forward with torch.view_as_complex"
        )


def _require_dtype(module: nn.Module, names: Sequence[str], dtype: torch.dtype) -> None:
    """Refuse another arithmetic than the parameters' own.

    Raises:
        ValueError: If it is another.
    """
    found = {n: p.dtype for n, p in module.named_parameters() if n in names and p.dtype != dtype}
    if found:
        name, own = next(iter(found.items()))
        raise ValueError(
            f"method={IN_PLACE!r} works in the arithmetic of the model's own parameters: "
            f"{name!r} is of {own}, and dtype={dtype} was asked for. Pass dtype=None, choose "
            "parameters=... of one floating type, or take another method"
        )


def _jacobian(
    forward: ForwardMap,
    found: Found,
    context: Quiet,
    wanted: Sequence[str],
    accuracy: float,
    processes: Processes,
) -> ParameterJacobian:
    """The Jacobian with the methods that are wanted, each made when it is needed."""
    theta = {name: forward.tensors[name] for name in found.reached}
    space = ParameterSpace({name: t.shape for name, t in theta.items()})
    live = isinstance(forward, LiveForwardMap)
    whole = [t for t in theta.values() if not isinstance(t, DTensor)]
    _require_alike(whole, processes.everyone if live else processes)

    @cache
    def flat() -> Tensor:
        return space.join(list(theta.values())) if theta else found.h.new_zeros(0)

    def state_at(theta: Tensor) -> Tensor:
        if not found.reached:  # a frozen body
            return found.h + theta.sum()
        return forward.run(space.split(theta), found.where)

    def state_with(moving: Substitution) -> Tensor:
        return forward.run_with(moving, found.where)

    def make(name: str) -> Products:
        if name not in {"finite-difference", IN_PLACE} or not theta:
            return lambda: make_products(name, state_at, flat(), found.chunk_size)
        spread, rows = forward.spread(theta.values()), found.untrained
        return FiniteDifference(theta, state_with, rows, accuracy, spread, processes, found.here)

    methods = {name: make(name) for name in wanted}
    return ParameterJacobian(
        forward, found.reached, found.where, found.h, methods, context, found.untrained, processes
    )


def _require_alike(parameters: Sequence[Tensor], processes: Processes) -> None:
    """Refuse parameters that every process has, and not the same."""
    if processes.size > 1 and parameters:
        processes.require_same(
            "their parameters",
            checksum(*parameters),
            "data-parallel training keeps them the same to the bit; does something change them "
            "in one process only?",
        )


def _require_whole(found: Found, processes: Processes) -> None:
    """Refuse a state of which processes with the same batch have other parts.

    Raises:
        ValueError: If they do.
    """
    everyone = processes.everyone
    batches, states = everyone.each(processes.index), everyone.each(checksum(found.h) % 2**52)
    if len(set(zip(batches, states, strict=True))) > len(set(batches)):
        raise ValueError(
            f"the state {', '.join(found.where.paths)!r} differs between processes with the same "
            "batch: tensor parallelism gives each some of its features. Choose with state=... a "
            "module whose output is whole in each process"
        )
