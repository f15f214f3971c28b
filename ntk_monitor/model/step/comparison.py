"""What a loss compares, in one forward pass and in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ntk_monitor.model.state.row_labels import NOTHING, Label, Labels
from ntk_monitor.model.step.layout import Layout
from ntk_monitor.model.step.losses import Loss

Joined = Literal["alone", "steps", "rows", "features", "parts"]
"""How the outputs of several comparisons are one: not, as successive time steps, as more rows, side
by side on an axis of their own, or as parts of the features that they have been before."""


class Seen(NamedTuple):
    """One comparison in one pass, as the loss was given it.

    Attributes:
        output: ``y``.
        target: What it is compared with; None for an output without a loss.
        counts: Of which entries of the output the loss depends; None for all.
        reach: Share of the target that the loss asks for; less than 1 where labels are smoothed.
    """

    output: Tensor
    target: Tensor | None
    counts: Tensor | None = None
    reach: float = 1.0

    def each(self, change: Callable[[Tensor], Tensor]) -> Seen:
        """The same with all tensors changed alike."""
        output, target, counts = (None if x is None else change(x) for x in self[:3])
        assert output is not None
        return self._replace(output=output, target=target, counts=counts)


@dataclass(frozen=True)
class Head:
    """One output of the model, with the loss that compares it with a target.

    Attributes:
        name: The module that computes it.
        loss: What its loss does; None for an output without a loss.
        numbers: Which comparisons of a pass, more than one where the same module is compared again
            and again.
        joined: How these are one.
        is_column: Whether the outputs are one feature, and all their axes are rows.
        whole: The outputs' shape before they were flattened; None if they were not.
    """

    name: str
    loss: Loss | None = None
    numbers: tuple[int, ...] = ()
    joined: Joined = "alone"
    is_column: bool = False
    whole: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Comparison:
    """A head in one pass.

    Attributes:
        head: The head.
        output: ``y``, features or classes on the last axis; None where there is none.
        target: In the layout of the outputs; class indices without the last axis; None for none.
        counts: Of which entries the loss depends, in the layout of the outputs; None for all.
        batch_first: Whether the layout is known to be ``(B, ..., o)``, whatever the model's.
        reach: As in `Seen`.
        layout: Where rows and features are; None where that is not known by the state's rows.
    """

    head: Head
    output: Tensor | None
    target: Tensor | None = None
    counts: Tensor | None = None
    batch_first: bool = False
    reach: float = 1.0
    layout: Layout | None = None


def rows_compared(head: Head, rows: Mapping[int, Labels], seen: Mapping[int, Seen]) -> Labels:
    """The rows of a head's outputs, laid out as these are.

    Args:
        head: The head.
        rows: Of each comparison of the pass.
        seen: All of them, of which the outputs' shapes count.

    Returns:
        Their numbers in the shape of `Comparison.output`.
    """
    known = [rows.get(number, NOTHING) for number in head.numbers]
    found: dict[int, Label] = {}
    for source in known[0] if known else ():
        if not all(source in labels for labels in known):
            continue

        def laid_out(kind: int, source: int = source) -> Tensor:
            numbers = {
                number: seen[number]._replace(output=labels[source][kind], counts=None)
                for number, labels in zip(head.numbers, known, strict=True)
            }
            output = compared(head, numbers).output
            assert output is not None
            return output

        found[source] = Label(laid_out(0), laid_out(1), laid_out(2))
    return found


def compared(head: Head, seen: Mapping[int, Seen]) -> Comparison:
    """A head in one pass.

    Args:
        head: The head.
        seen: All comparisons of the pass, by number.

    Returns:
        The comparison.

    Raises:
        RuntimeError: If the pass did not make one of the head's comparisons.
    """
    assert head.loss is not None
    if any(number not in seen for number in head.numbers):
        raise RuntimeError(
            f"the loss of {head.name!r} was seen in one call of the step and not in the next: a "
            "probe needs a step that repeats itself"
        )
    moved = head.loss.kind == "classes" and seen[head.numbers[0]].output.ndim > 2
    whole = [_unflattened(seen[number], head) for number in head.numbers]
    parts = [_laid_out(each, head.loss, is_column=head.is_column) for each in whole]
    output = _joined([part.output for part in parts], head.joined)
    targets = [part.target for part in parts if part.target is not None]
    indices = bool(targets) and targets[0].ndim < parts[0].output.ndim
    if indices:  # with a last axis, as outputs have one
        targets = [target.unsqueeze(-1) for target in targets]
    target = _joined(targets, head.joined) if targets else None
    masks = [part.counts for part in parts if part.counts is not None]
    counts = _joined(masks, head.joined) if len(masks) == len(parts) else None
    return Comparison(
        head,
        output,
        target.squeeze(-1) if indices and target is not None else target,
        None if counts is None or bool(counts.all()) else counts,
        batch_first=head.joined == "steps" or (head.joined == "alone" and moved),
        reach=whole[0].reach,
    )


def _laid_out(seen: Seen, loss: Loss, *, is_column: bool) -> Seen:
    """One comparison with features or classes on the last axis, two axes or more."""
    y, t = seen.output, seen.target
    assert t is not None
    if loss.kind == "classes":
        if y.ndim == 1:
            return seen.each(lambda x: x.unsqueeze(0))
        second = y.ndim > 2 and loss.classes_second  # class indices have no such axis
        return seen.each(lambda x: x.movedim(1, -1) if second and x.ndim == y.ndim else x)
    shape = torch.broadcast_tensors(y, t)[0].shape  # type: ignore[no-untyped-call]
    whole = seen.each(lambda x: x.expand(shape))  # as the loss does it
    if is_column and len(shape) == 2:
        return whole.each(lambda x: x.unsqueeze(-1))
    return whole if len(shape) > 1 else whole.each(lambda x: x.reshape(-1, 1))


def _unflattened(seen: Seen, head: Head) -> Seen:
    """One comparison in the shape that it had before the loss was given it in fewer axes."""
    whole, y, t = head.whole, seen.output, seen.target
    assert head.loss is not None
    if whole is None or t is None or prod(whole) != y.numel():
        return seen
    classes = head.loss.kind == "classes"
    if classes and (y.ndim != 2 or y.shape[1] != whole[-1] or t.numel() * whole[-1] != y.numel()):
        return seen
    if classes:
        second = head.loss.classes_second
        rows = seen._replace(target=None).each(lambda x: x.reshape(whole))
        rows = rows.each(lambda x: x.movedim(-1, 1)) if second else rows
        return rows._replace(target=t.reshape(whole[:-1]))
    return seen if t.shape != y.shape else seen.each(lambda x: x.reshape(whole))


def _joined(tensors: Sequence[Tensor], how: Joined) -> Tensor:
    if how == "alone":
        return tensors[0]
    if how == "steps":
        return torch.stack(list(tensors), dim=1)
    if how == "parts":
        return torch.cat(list(tensors), dim=-1)
    if how == "features":
        side_by_side = torch.cat if tensors[0].shape[-1] == 1 else torch.stack
        return side_by_side(list(tensors), dim=-1)
    return torch.cat([t.reshape(-1, t.shape[-1]) for t in tensors])
