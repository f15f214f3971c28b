"""From a module and a batch to operators."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ntk_monitor.model.batch import (
    ForwardFn,
    MaskFn,
    TargetFn,
    cast_batch,
    default_mask,
)
from ntk_monitor.model.compiled import plain_module
from ntk_monitor.model.derivative import Derivative, Quiet, pulling
from ntk_monitor.model.forward import ForwardMap
from ntk_monitor.model.inplace import InPlaceJacobian
from ntk_monitor.model.kernels import Kernels
from ntk_monitor.model.linearization import Linearization
from ntk_monitor.model.memory import room
from ntk_monitor.model.parameters import (
    ParameterFilter,
    ParameterSpace,
    select_parameters,
    without_match,
)
from ntk_monitor.model.products import AUTOMATIC, IN_PLACE, TangentProducts, make_products
from ntk_monitor.model.quiet import quiet
from ntk_monitor.model.real import RealForward, ShardedForward
from ntk_monitor.model.spread import is_sharded, require_precision
from ntk_monitor.model.state import StatePath
from ntk_monitor.model.step import (
    Comparison,
    ForwardStep,
    Head,
    LossFn,
    StepError,
    StepFunction,
    step_function,
)
from ntk_monitor.model.step.comparison import Seen, compared
from ntk_monitor.model.step.discovery import leads_there
from ntk_monitor.model.step.losses import BY_HAND, Loss
from ntk_monitor.model.step.watch import Following
from ntk_monitor.model.survey import Consumer, Question, Survey, UnregisteredError, survey
from ntk_monitor.ranks import ALONE, Ranks, checksum

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
    ranks: Ranks = ALONE,
    max_memory: int | None = None,
    consume: Consumer | None = None,
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
        method: One of `METHODS`, or several, of which the first that works on the model is taken;
            ``"auto"`` for all but ``"in-place"``, which stands alone.
        dtype: Arithmetic of the linearisation; None keeps the model's.
        chunk_size: Tangents carried at once by forward mode; by default at most 16, fewer where
            they would take more than a tenth of the free memory. Out of memory, it is halved once.
        accuracy: Relative agreement that the step of finite differences must show.
        mask_fn: ``batch -> mask``: which rows of the state there are, (B, T), the others being
            padding, or the lengths, (B,); by default the batch's ``attention_mask``, if it has one
            with the state's rows. Packed sequences need none.
        ranks: The processes that do the same on batches of their own, all with the same parameters;
            the products of the result are this process's alone.
        max_memory: Bytes that activations and activity which are kept to find the weight sites may
            take; by default half of the free memory. What needs more is done in further forward
            passes that keep neither. ``"in-place"`` does so always.
        consume: Takes the activity ``V`` of each site, (k, m), as soon as it is known; the result
            is then without sites.

    Returns:
        The state, the outputs, the weight sites, and the operators.

    Raises:
        ValueError: If an argument does not fit the model, named parameters do not reach the state,
            two passes differ, or the module keeps parameters where no copies can take their place
            and another method than ``"in-place"`` was asked for.
    """
    settings: dict[str, Any] = {
        "state": state,
        "parameters": parameters,
        "forward_fn": forward_fn,
        "target_fn": target_fn,
        "loss_fn": loss_fn,
        "method": method,
        "dtype": dtype,
        "chunk_size": chunk_size,
        "accuracy": accuracy,
        "mask_fn": mask_fn,
        "ranks": ranks,
        "max_memory": max_memory,
        "consume": consume,
    }
    module = plain_module(module)
    try:
        return _linearize(module, batch, **settings)
    except UnregisteredError as error:
        reason = error
    if method != "auto" and (isinstance(method, str) or len(method) == 1):
        raise ValueError(str(reason)) from reason
    logger.info("method %s: %s", IN_PLACE, reason)
    return _linearize(module, batch, **{**settings, "method": IN_PLACE, "dtype": None})


def _linearize(
    module: nn.Module,
    batch: Any,  # noqa: ANN401
    *,
    state: StatePath,
    parameters: ParameterFilter,
    forward_fn: ForwardFn | None,
    target_fn: TargetFn | None,
    loss_fn: LossFn | None,
    method: str | Sequence[str],
    dtype: torch.dtype | None,
    chunk_size: int | None,
    accuracy: float,
    mask_fn: MaskFn | None,
    ranks: Ranks,
    max_memory: int | None,
    consume: Consumer | None,
) -> Linearization:
    """Do what `linearize` says, with one choice of methods.

    Returns:
        As there.

    Raises:
        ValueError: As there.
    """
    wanted = AUTOMATIC if method == "auto" else (method,) if isinstance(method, str) else method
    sharded = is_sharded(module)
    if sharded and method == "auto":
        wanted = (IN_PLACE,)
    in_place = IN_PLACE in wanted
    if sharded and not in_place:
        raise ValueError(
            f"the parameters of {type(module).__name__} are sharded, so that no process has all of "
            f"them: method={IN_PLACE!r} works on the parts, got method={method!r}"
        )
    if in_place and len(wanted) > 1:
        raise ValueError(f"method={IN_PLACE!r} does not go with others, got {tuple(wanted)}")

    def context(kernels: Kernels) -> AbstractContextManager[None]:
        return quiet(module, kernels=kernels)

    with context("reversible"):
        trained = select_parameters(module, None)
        names = select_parameters(module, parameters)
        reference = dict(module.named_parameters())[names[0]]
        dtype = reference.dtype if dtype is None else dtype
        if in_place:
            _require_dtype(module, names, dtype)
        batch_here = cast_batch(batch, dtype, reference.device)
        step = step_function(module, forward_fn=forward_fn, target_fn=target_fn, loss_fn=loss_fn)
        forward: ForwardMap
        if sharded:
            require_precision(module, dtype)
            forward = ShardedForward(module, batch_here, step, dtype, ranks)
        else:
            kind = RealForward if in_place else ForwardMap
            forward = kind(module, batch_here, step, dtype)
        forward.together = ranks.everyone.size > 1 and not sharded
        mask = (default_mask if mask_fn is None else mask_fn)(batch)
        chosen = parameters is not None
        question = Question(
            forward, names, chosen, state, mask, mask_fn is not None, ranks, consume
        )
        found = survey(question, sketched=in_place, room=room(max_memory, reference.device))
        idle = without_match(parameters, found.reached)
        if idle:
            raise ValueError(
                f"parameters={idle} do not act on the state {', '.join(found.where.paths)!r}: "
                "leave them out, or choose a later module with state=..."
            )
        outputs, comparisons = _again(forward, found, batch, recorded=not in_place)
        if sharded:
            _require_whole(found, ranks)
        if in_place:
            theta = (forward.tensors[name] for name in found.reached)
            _require_alike([t for t in theta if not isinstance(t, DTensor)], ranks.everyone)
    chunk_size = found.chunk_size if chunk_size is None else chunk_size
    jacobian: Derivative
    if isinstance(forward, RealForward) and found.reached:
        jacobian = InPlaceJacobian(
            forward,
            found.reached,
            found.where,
            found.h,
            context,
            found.untrained,
            accuracy,
            ranks,
        )
    else:
        wanted = AUTOMATIC if in_place else wanted
        jacobian = _copied(forward, found, context, wanted, chunk_size, accuracy, ranks)
    return Linearization(
        state=found.h,
        outputs=outputs,
        comparisons=comparisons,
        loss=found.loss.value,
        sites=found.sites,
        coverage=found.coverage,
        jacobian=jacobian,
        parameters=found.reached,
        ranks=ranks,
        _forward=forward,
        _state=found.where,
        _recurrence=found.recurrence,
        _trained=trained,
        _space=ParameterSpace({name: forward.tensors[name].shape for name in found.reached}),
        _chunk_size=chunk_size,
        _compares=found.loss.compares,
        _batch=batch,
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


def _copied(
    forward: ForwardMap,
    found: Survey,
    context: Quiet,
    wanted: Sequence[str],
    chunk_size: int,
    accuracy: float,
    ranks: Ranks,
) -> Derivative:
    """The Jacobian over a copy of the parameters in one flat vector."""
    theta = {name: forward.tensors[name] for name in found.reached}
    space = ParameterSpace({name: theta[name].shape for name in found.reached})
    h = found.h
    flat = space.join([theta.pop(name) for name in found.reached]) if theta else h.new_zeros(0)
    forward.tensors.update(space.split(flat))  # one copy, not two
    _require_alike([flat], ranks)

    def state_at(theta: Tensor) -> Tensor:
        if not found.reached:  # a frozen body
            return h + theta.sum()
        return forward.run(space.split(theta), found.where)

    methods: dict[str, TangentProducts] = {
        name: make_products(name, state_at, flat, chunk_size, accuracy, ranks) for name in wanted
    }
    pull = pulling(state_at, flat)
    untrained = space.rows(found.untrained)
    return Derivative("J", (space.size,), found.h, methods, context, pull, untrained, ranks)


def _require_alike(parameters: Sequence[Tensor], ranks: Ranks) -> None:
    """Refuse parameters that every process has, and not the same."""
    if ranks.size > 1 and parameters:
        ranks.require_same(
            "their parameters",
            checksum(*parameters),
            "data-parallel training keeps them the same to the bit; does something change them "
            "in one process only?",
        )


def _require_whole(found: Survey, ranks: Ranks) -> None:
    """Refuse a state of which processes with the same batch have other parts.

    Raises:
        ValueError: If they do.
    """
    everyone = ranks.everyone
    batches, states = everyone.each(ranks.index), everyone.each(checksum(found.h) % 2**52)
    if len(set(zip(batches, states, strict=True))) > len(set(batches)):
        raise ValueError(
            f"the state {', '.join(found.where.paths)!r} differs between processes with the same "
            "batch: tensor parallelism gives each some of its features. Choose with state=... a "
            "module whose output is whole in each process"
        )


def _again(
    forward: ForwardMap,
    found: Survey,
    batch: Any,  # noqa: ANN401
    *,
    recorded: bool,
) -> tuple[Any, tuple[Comparison, ...]]:
    """A second pass, which must repeat the first, and tells what the loss depends on.

    Args:
        forward: The model.
        found: What the first pass told.
        batch: The caller's.
        recorded: Whether the whole pass may be recorded for derivatives, as far as it has leaves.

    Returns:
        The outputs, and what is compared.
    """
    readings = found.loss.compares.readings
    step = forward.step
    with torch.enable_grad() if recorded else torch.no_grad():
        try:
            again, returned, watch = forward.run_whole({}, found.where, readings, shake=True)
        except Exception as error:
            if not readings or isinstance(error, (StepError, TimeoutError)):
                raise
            # What follows the loss function may refuse outputs that are not the model's.
            logger.info("what counts in the loss cannot be told: %r", error)
            again, returned, watch = forward.run_whole({}, found.where, readings)
        _require_same(found.h, again.detach(), step)
        if found.loss.value is None:
            plain = step.plain_output(returned, batch)
            return returned, () if plain is None else (plain,)
        _require_same_comparisons(found.loss.sums, watch.sums, step)
        gradients = _gradients(step, returned, watch)
    seen = {
        number: Seen(
            one.output.detach(),
            None if one.target is None else one.target.detach(),
            _counts(gradients.get(number), readings[number].loss),
        )
        for number, one in watch.seen.items()
    }
    heads = [h for h in found.loss.compares.heads if _is_led_there(h, watch, gradients)]
    comparisons = tuple(compared(head, seen) for head in heads)
    outputs = tuple(c.output for c in comparisons)
    return outputs[0] if len(outputs) == 1 else outputs, comparisons


def _gradients(step: StepFunction, returned: Any, watch: Following) -> dict[int, Tensor]:  # noqa: ANN401
    """The derivatives of the loss in outputs slightly moved, by the comparison's number."""
    loss = step.loss(returned, watch.meant)
    if loss is None or not loss.requires_grad or not watch.shaken:
        return {}
    found = torch.autograd.grad(loss, list(watch.shaken.values()), allow_unused=True)
    pairs = zip(watch.shaken, found, strict=True)
    return {number: gradient for number, gradient in pairs if gradient is not None}


def _counts(gradient: Tensor | None, loss: Loss) -> Tensor | None:
    """Of which entries of its outputs a loss depends; None where that is not known."""
    if gradient is None or loss.counts == "all":
        return None
    counts = (gradient != 0) | gradient.isnan()
    if loss.counts == "entries" or counts.ndim == 0:
        return counts
    classes = 1 if loss.kind == "classes" and loss.classes_second and counts.ndim > 2 else -1
    return counts.any(classes, keepdim=True).expand_as(counts)


def _is_led_there(head: Head, watch: Following, gradients: Mapping[int, Tensor]) -> bool:
    """Whether a loss by hand leads outputs that are slightly off their target back to it."""
    if head.loss is not BY_HAND["difference"]:
        return True
    found = [(n, gradients[n]) for n in head.numbers if n in gradients]
    targets = {n: seen.target for n, seen in watch.seen.items() if seen.target is not None}
    return all(leads_there(watch.shaken[n].detach() - targets[n], g) for n, g in found)


def _require_same_comparisons(
    first: Mapping[int, Tensor], second: Mapping[int, Tensor], step: StepFunction
) -> None:
    """Refuse a step whose loss compares something else at a second call.

    Raises:
        StepError: If it does.
    """
    for number in first.keys() & second.keys():
        before, after = first[number], second[number]
        gap = ((after - before).abs() / before.abs().clamp_min(1e-30)).nan_to_num()
        if bool((gap > math.sqrt(torch.finfo(torch.float32).eps)).any()):
            what = "outputs differ" if bool(gap[0] > gap[1]) else "target differs"
            raise StepError(
                f"the {what} by {float(gap.max()):.2g} of the size between two calls of "
                f"{step.name} on one batch: {_remedy(step)}"
            )


def _remedy(step: StepFunction) -> str:
    if not step.is_watched or isinstance(step, ForwardStep):
        return (
            "a probe needs a forward pass that repeats itself: draw noise with torch's, numpy's or "
            "python's global generators or one that the module keeps, and keep nothing outside the "
            "module from call to call (or reset it in forward_fn)"
        )
    return (
        "a probe needs a step that repeats itself, and this one draws from something outside the "
        "module and its batch (a replay buffer, an environment, a counter): keep that in the "
        "module, or probe the forward pass in its place, with "
        "forward_fn=lambda module, batch: module(...) and target_fn=lambda batch: ..."
    )


def _require_same(h: Tensor, again: Tensor, step: StepFunction) -> None:
    """Refuse a pass that does not repeat itself.

    Raises:
        ValueError: If two passes give states that differ by more than rounding.
    """
    where = "forward passes" if isinstance(step, ForwardStep) else f"calls of {step.name}"
    if again.shape != h.shape:
        raise ValueError(
            f"the state has shape {tuple(h.shape)} in one of two {where} on one batch and "
            f"{tuple(again.shape)} in the other: {_remedy(step)}"
        )
    gap = torch.linalg.vector_norm(again - h)
    limit = math.sqrt(torch.finfo(h.dtype).eps) * torch.linalg.vector_norm(h)
    if bool(gap > limit):
        raise ValueError(
            f"the state differs by {float(gap / torch.linalg.vector_norm(h)):.2g} of its size "
            f"between two {where}: {_remedy(step)}"
        )
