"""The pass after the recorded one: it must repeat it, and tells what the loss depends on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ntk_monitor.model.derivatives.forward_map import ForwardMap
from ntk_monitor.model.passes import Found
from ntk_monitor.model.sites.placement import numberings
from ntk_monitor.model.state.row_labels import Labels
from ntk_monitor.model.step import Comparison, ForwardStep, Head, StepError, StepFunction
from ntk_monitor.model.step.comparison import compared, rows_compared
from ntk_monitor.model.step.heads import leads_there
from ntk_monitor.model.step.layout import Layout, layout_of
from ntk_monitor.model.step.losses import BY_HAND, Loss
from ntk_monitor.model.step.watch import Following

logger = logging.getLogger(__name__)


def second_pass(
    forward: ForwardMap,
    found: Found,
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
            if plain is None:
                return returned, ()
            (layout,) = _layouts([found.loss.rows], found)
            return returned, (replace(plain, layout=layout),)
        _require_same_comparisons(found.loss.sums, watch.sums, step)
        gradients = _gradients(step, returned, watch)
    seen = {
        number: one.each(Tensor.detach)._replace(
            counts=counts_of(gradients.get(number), readings[number].loss)
        )
        for number, one in watch.seen.items()
    }
    heads = [h for h in found.loss.compares.heads if _is_led_there(h, watch, gradients)]
    layouts = _layouts((rows_compared(h, found.loss.compares.rows, seen) for h in heads), found)
    comparisons = tuple(
        replace(compared(head, seen), layout=layout)
        for head, layout in zip(heads, layouts, strict=True)
    )
    outputs = tuple(c.output for c in comparisons)
    return outputs[0] if len(outputs) == 1 else outputs, comparisons


def _layouts(several: Iterable[Labels], found: Found) -> Iterator[Layout | None]:
    """Where rows and features of some outputs are."""
    known = list(numberings(found.labels, found.rows))
    return (layout_of(labels, known, found.rows) for labels in several)


def _gradients(step: StepFunction, returned: Any, watch: Following) -> dict[int, Tensor]:  # noqa: ANN401
    """The derivatives of the loss in outputs slightly moved, by the comparison's number."""
    loss = step.loss(returned, watch.meant)
    if loss is None or not loss.requires_grad or not watch.shaken:
        return {}
    found = torch.autograd.grad(loss, list(watch.shaken.values()), allow_unused=True)
    pairs = zip(watch.shaken, found, strict=True)
    return {number: gradient for number, gradient in pairs if gradient is not None}


def counts_of(gradient: Tensor | None, loss: Loss) -> Tensor | None:
    """Of which entries of its outputs a loss depends.

    Args:
        gradient: The loss's derivative in the outputs; None where it is not known.
        loss: The loss.

    Returns:
        Of the outputs' shape; None where that is not known.
    """
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
    if isinstance(step, ForwardStep):
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
