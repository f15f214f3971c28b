"""Targets as matrices, and their decomposition into modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ntk_monitor.estimators.kernel.tsqr import tall_svd
from ntk_monitor.model import Linearization
from ntk_monitor.model.step import Comparison
from ntk_monitor.model.step.losses import Kind, Link, Loss, identity
from ntk_monitor.processes import ALONE, Processes


@dataclass(frozen=True)
class Decomposition:
    """Leading singular triples of a target.

    Attributes:
        singular_values: ``sigma_i``, descending, shape ``(m,)``.
        patterns: ``u_i`` over trials and time, of this process's trials, shape ``(m, B, T)``.
        directions: ``v_i`` over outputs, shape ``(m, o)``.
    """

    singular_values: Tensor
    patterns: Tensor
    directions: Tensor

    def error(self, i: int) -> Tensor:
        """The unit error ``e_i = u_i v_i*``, shape ``(B, T, o)``."""
        return self.patterns[i, ..., None] * self.directions[i]


class Target(NamedTuple):
    """A target in the layout of the outputs.

    Attributes:
        values: Each column less its mean over what counts, which the best constant output reaches;
            shape ``(B, T, c)``, zero at rows and entries that do not count.
        given: The same with its mean.
        counts: Which entries count, of the same shape, as zeros and ones.
        classes: For class targets, which outputs the ``c`` columns are, those of the classes that
            occur in any process; None where they are all outputs.
        outputs: How many outputs ``o`` there are.
        kind: What the target is; see `Loss`.
        link: From outputs to what should equal the target.
        reach: What the loss wants of the target: less than 1 where labels are smoothed.
    """

    values: Tensor
    given: Tensor
    counts: Tensor
    classes: Tensor | None
    outputs: int
    kind: Kind
    link: Link
    reach: float


def decompose(target: Target, modes: int, processes: Processes = ALONE) -> Decomposition:
    """Leading singular triples of a target, read as a (rows x outputs) matrix.

    Those of classes are taken class by class: a class has the indicator of its rows less its
    frequency, those of most variance first, and of as much in their own order.

    Args:
        target: The target, this process's trials of it.
        modes: How many at most; modes that are zero to rounding are left out.
        processes: The processes that have its trials.

    Returns:
        The triples.
    """
    values = target.values
    matrix = values.flatten(0, 1).double()
    if target.classes is None:
        U, sigma, Vh = tall_svd(matrix, processes)
        rows = processes.total(len(matrix))
        noise = torch.finfo(values.dtype).eps * max(rows, matrix.shape[1]) * sigma[:1]
        count = min(modes, int((sigma > noise).sum()))
        U, sigma, directions = U[:, :count], sigma[:count], Vh[:count]
    else:
        counted = processes.sum(target.counts.flatten(0, 1).double().sum(0))
        sizes = processes.sum(target.given.flatten(0, 1).double().sum(0))
        # Of numbers that are whole for classes, so that no rounding decides the order.
        variances, order = (sizes * (counted - sizes)).sort(descending=True, stable=True)
        order = order[: min(modes, int((variances > 0).sum()))]
        sigma = processes.sum(matrix[:, order].square().sum(0)).sqrt()
        U = matrix[:, order] / sigma
        directions = matrix.new_zeros(len(order), target.outputs)
        directions[torch.arange(len(order)), target.classes[order]] = 1
    return Decomposition(
        singular_values=sigma,
        patterns=U.T.reshape(len(sigma), *values.shape[:2]).to(values.dtype),
        directions=directions.to(values.dtype),
    )


def target_like(comparison: Comparison, output: Tensor, lin: Linearization) -> Target:
    """Bring a target to the layout of its outputs.

    Args:
        comparison: The target, and the loss that compares it. Without a loss, values of the
            outputs' shape, or class indices for all but the last axis; a negative index (the -100
            of torch's losses) marks a row that does not count.
        output: The output, shape ``(B, T, o)``.
        lin: Knows the layout of the model, and which rows of the state are padding.

    Returns:
        The target: class indices as one-hot vectors over the classes that occur, each column less
        its mean.

    Raises:
        ValueError: If the shapes do not fit.
    """
    given, loss = comparison.target, comparison.head.loss
    assert given is not None
    target, classes = given, None
    counts = lin.counted(comparison)
    by_index = not target.is_floating_point() if loss is None else loss.kind == "classes"
    if (by_index or loss is None) and _is_one_hot(target, output, counts):
        target, by_index = target.argmax(-1), True  # the same, written in another way
    if by_index and not target.is_floating_point():
        if comparison.counts is not None:  # a class that is ignored may be none of the outputs
            target = target.where(comparison.counts.any(-1), -1)
        target, classes = _one_hot(target, output, lin)
    elif loss is None and output.shape[2] == 1 and target.numel() == output.numel():
        target = target.unsqueeze(-1) if target.shape[-1] != 1 else target
    target = target.to(output.device, output.dtype)
    columns = output.shape[2] if classes is None else len(classes)
    placed = lin.in_rows(target, comparison) if target.ndim > 1 else target
    if not lin.processes.all(placed.shape == (*output.shape[:2], columns)):
        raise ValueError(
            f"the target must have the shape of the outputs, {tuple(output.shape)} as (B, T, o), "
            f"or hold class indices for it; got {tuple(given.shape)} of {given.dtype}: pass "
            "target_fn, for example target_fn=lambda batch: batch['targets']"
        )
    valid = lin.valid
    counted = torch.ones_like(placed, dtype=torch.bool)
    if valid is not None and valid.shape == placed.shape[:2]:
        counted = counted & valid.unsqueeze(-1)
    if counts is not None:
        counted = counted & (counts if classes is None else counts.any(-1, keepdim=True))
    if classes is not None:  # a negative index marks what does not count
        counted = counted & placed.any(-1, keepdim=True)
    placed = placed.where(counted, 0)
    kind, link = _kind_of(loss, classes, placed, output, lin.processes)
    values, ones = _centred(placed, counted, lin.processes), counted.to(placed.dtype)
    return Target(values, placed, ones, classes, output.shape[2], kind, link, comparison.reach)


def _is_one_hot(target: Tensor, output: Tensor, counts: Tensor | None) -> bool:
    """Whether distributions over classes are all certain, and all of them count."""
    classes = output.shape[2]
    distributions = target.is_floating_point() and target.shape[-1] == classes > 1
    if not distributions or (counts is not None and not bool(counts.all())):
        return False
    return bool(((target == 0) | (target == 1)).all() and (target.sum(-1) == 1).all())


def _one_hot(target: Tensor, output: Tensor, lin: Linearization) -> tuple[Tensor, Tensor]:
    """Class indices as one-hot vectors over the classes that occur, and which these are."""
    occurring = torch.unique(target[target >= 0]).long()
    fits = not occurring.numel() or int(occurring[-1]) < output.shape[2]
    if not lin.processes.all(fits):
        raise ValueError(
            f"class indices must lie in [0, {output.shape[2]}), or be negative for what does "
            f"not count; got values from {int(target.min())} to {int(target.max())}"
            + (" here, and others in another process" if fits else "")
            + ": pass target_fn"
        )
    here = torch.zeros(output.shape[2], dtype=torch.int64, device=target.device)
    here[occurring] = 1
    present = lin.processes.sum(here).nonzero().flatten()
    return target.unsqueeze(-1) == present, present.to(output.device)


def _centred(placed: Tensor, counted: Tensor, processes: Processes) -> Tensor:
    """A target less each column's mean over what counts."""
    weights = counted.to(placed.dtype)
    sums = processes.sum(torch.stack([placed.double().sum((0, 1)), weights.double().sum((0, 1))]))
    mean = sums[0] / sums[1].clamp_min(1)
    size = processes.sum(placed.double().square().sum((0, 1))) / sums[1].clamp_min(1)
    noise = torch.finfo(placed.dtype).eps * size.sqrt()
    mean = mean.where(mean.abs() > 10 * noise, 0)  # a target without a mean stays as it is
    centred = (placed - mean.to(placed.dtype)) * weights
    largest = processes.sum(centred.double().square().sum((0, 1))).sqrt()
    same = largest <= 10 * noise * sums[1].sqrt()  # it is zero then, whatever is rounded
    return centred.where(~same, 0)


def _kind_of(
    loss: Loss | None, classes: Tensor | None, placed: Tensor, output: Tensor, processes: Processes
) -> tuple[Kind, Link]:
    """What a target is and how outputs become it; without a loss, as the numbers have it."""
    if loss is not None:
        return loss.kind, loss.link
    if classes is not None:
        return "classes", _guessed_link(processes)
    y, t = output.detach().double(), placed.double()
    if not processes.all(bool(((t == 0) | (t == 1)).all())) or not processes.total(float(t.sum())):
        return "values", identity
    errors = torch.stack([(y - t).square().sum(), (y.sigmoid() - t).square().sum()])
    plain, logits = processes.sum(errors).tolist()
    return ("bits", torch.sigmoid) if logits < plain else ("values", identity)


def _guessed_link(processes: Processes) -> Link:
    """The link of classes without a loss to tell it."""

    def link(output: Tensor) -> Tensor:
        """Outputs as probabilities of classes, from these, their logarithms, or logits."""
        total = output.sum(-1)
        close = torch.allclose(total, torch.ones_like(total), atol=1e-3)
        if processes.all(bool((output >= 0).all()) and close):
            return output
        return output.softmax(-1)

    return link


def varies(target: Target, processes: Processes = ALONE) -> bool:
    """Whether a target is not the same in all rows that count; only then it has modes.

    Args:
        target: The target, this process's trials of it.
        processes: The processes that have its trials.

    Returns:
        True if it is not.
    """
    return processes.total(float(target.values.abs().sum())) != 0  # one that is nan varies


def component(target: Target, direction: Tensor) -> Tensor:
    """A target along one direction of the outputs.

    Args:
        target: The target.
        direction: ``v``, shape ``(o,)``.

    Returns:
        Shape ``(B, T)``.
    """
    chosen = direction if target.classes is None else direction[target.classes]
    return target.values @ chosen.to(target.values.dtype)
