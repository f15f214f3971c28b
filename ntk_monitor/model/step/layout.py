"""Where rows and features are in what a loss compares, by the rows of the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ntk_monitor.model.sites.placement import Numbering, Rows
from ntk_monitor.model.state.row_labels import Label, Labels, is_still


@dataclass(frozen=True)
class Layout:
    """How outputs, and targets laid out alike, become (B, T', o).

    Attributes:
        features: The axis of the features.
        trials: Of the others the axis of the trials; None where rows are in no order of axes.
        order: For each row of (B, T'), trial by trial, which of the rows it is, once trials come
            first; None for all in their order.
        shape: Of the axes but the features'.
        count: Trials.
    """

    features: int
    trials: int | None
    order: Tensor | None
    shape: tuple[int, ...]
    count: int

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor is laid out so, or has the same rows in one axis."""
        if tensor.ndim == len(self.shape) + 1:
            own = list(tensor.shape)
            del own[self.features]
            alike = tuple(own) == self.shape
            return alike or (self.order is None and self.trials is not None)
        return tensor.ndim == 2 and len(tensor) == prod(self.shape)

    def place(self, tensor: Tensor) -> Tensor:
        """Bring a tensor of this layout to rows trial by trial.

        Args:
            tensor: Of the outputs' shape, but for the number of features.

        Returns:
            Shape ``(B, T', o)``.
        """
        if tensor.ndim != len(self.shape) + 1:
            moved = tensor.reshape(*self.shape, tensor.shape[-1])
        else:
            moved = tensor.movedim(self.features, -1)
        if self.trials is not None:
            moved = moved.movedim(self.trials, 0)
        flat = moved.reshape(-1, moved.shape[-1])
        if self.order is not None:
            flat = flat[self.order.to(flat.device)]
        count = self.count if self.trials is None else moved.shape[0]
        return flat.reshape(count, -1, moved.shape[-1])

    def of_another(self) -> Layout | None:
        """The same of another batch; None where the order is this batch's alone."""
        return None if self.trials is None else replace(self, order=None)


def layout_of(labels: Labels, known: Sequence[Numbering], rows: Rows) -> Layout | None:
    """The layout of outputs whose rows are some of the state's.

    Args:
        labels: Of the outputs.
        known: The numbering of the state's rows.
        rows: The state's, ``(B, T)``.

    Returns:
        The layout; None where rows were lost, or trials have different numbers of them.
    """
    for numbering in known:
        label = labels.get(numbering.source)
        if label is None or numbering.is_shared:
            continue
        numbers = label[numbering.kind]
        features = _features(numbers)
        if features is None:
            continue
        single = numbers.movedim(features, -1)[..., 0]
        rows_here = single.flatten()
        (found,) = numbering.find([{numbering.source: Label(rows_here, rows_here, rows_here)}])
        if found is None:
            continue
        whole = _completed(found.reshape(single.shape), rows)
        layout = None if whole is None else _by_trial(whole, features, rows)
        if layout is not None:
            return layout
    return None


def _features(numbers: Tensor) -> int | None:
    """The axis along which all entries have the same row: the last wide one, if there is any."""
    still = [axis for axis in range(numbers.ndim) if is_still(numbers, axis)]
    wide = [axis for axis in still if numbers.shape[axis] > 1]
    if numbers.ndim < 2 or not still:
        return None
    return (wide or still)[-1]


def _completed(found: Tensor, rows: Rows) -> Tensor | None:
    """Rows of the state, with those of padding, which have no numbers, where the others leave room.

    Args:
        found: Which row of the state each is, `NONE` for padding.
        rows: The state's, ``(B, T)``.

    Returns:
        The same without gaps; None where they have no place.
    """
    if bool((found >= 0).all()):
        return found
    B, T = rows
    for axis in range(found.ndim):
        each = found.movedim(axis, 0)
        flat = each.reshape(len(each), -1)
        if flat.shape != (B, T):
            continue
        trials = _common(flat.where(flat < 0, flat // T))
        steps = _common(flat.where(flat < 0, flat % T).T)
        if trials is not None and steps is not None:
            whole = trials.unsqueeze(1) * T + steps
            return whole.reshape(each.shape).movedim(0, axis)
    return None


def _common(numbers: Tensor) -> Tensor | None:
    """The one number of each row, those that have none getting what is left, in order."""
    most = numbers.amax(1)
    if bool(((numbers != most.unsqueeze(1)) & (numbers >= 0)).any()):
        return None
    taken = most[most >= 0]
    left = torch.arange(len(most), device=most.device)
    left = left[~torch.isin(left, taken)]
    if len(left) != int((most < 0).sum()):
        return None
    return most.masked_scatter(most < 0, left)


def _by_trial(found: Tensor, features: int, rows: Rows) -> Layout | None:
    B, T = rows
    trial = found // T
    sizes = torch.bincount(trial.flatten(), minlength=B)
    if not bool((sizes == sizes[0]).all()) or len(torch.unique(found)) < found.numel():
        return None
    for axis in range(trial.ndim):
        each = trial.movedim(axis, 0).reshape(trial.shape[axis], -1)
        if bool((each == each[:, :1]).all()) and len(each) == B:
            wanted = found.movedim(axis, 0).flatten()
            order = wanted.argsort()
            still = bool((order == torch.arange(len(order), device=order.device)).all())
            return Layout(features, axis, None if still else order, tuple(found.shape), B)
    return Layout(features, None, found.flatten().argsort(), tuple(found.shape), B)
