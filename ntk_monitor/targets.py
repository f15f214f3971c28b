"""The target's modes, and how visible each of them is to gradient descent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ntk_monitor.estimators import CoreGram, Estimate
from ntk_monitor.estimators.tall import tall_svd
from ntk_monitor.model import Linearization
from ntk_monitor.model.linearization import Preconditioner, squared_norm
from ntk_monitor.ranks import ALONE, Ranks
from ntk_monitor.snapshot import TargetMode


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

    @property
    def errors(self) -> Tensor:
        """The unit errors ``e_i = u_i v_i*``, shape ``(m, B, T, o)``."""
        return self.patterns[..., None] * self.directions[:, None, None, :]


class Target(NamedTuple):
    """A target in the layout of the outputs.

    Attributes:
        values: Shape ``(B, T, c)``; zero at rows that do not count.
        classes: For class targets, which outputs the ``c`` columns are, those of the classes that
            occur in any process; None where they are all outputs.
        outputs: How many outputs ``o`` there are.
        rows: How many rows count, in all processes.
    """

    values: Tensor
    classes: Tensor | None
    outputs: int
    rows: int


def decompose(target: Target, modes: int, ranks: Ranks = ALONE) -> Decomposition:
    """Leading singular triples of a target, read as a (rows x outputs) matrix.

    Those of classes are known: a class has the indicator of its rows, at the root of their number;
    classes of as many rows come in their own order.

    Args:
        target: The target, this process's trials of it.
        modes: How many at most; modes that are zero to rounding are left out.
        ranks: The processes that have its trials.

    Returns:
        The triples.
    """
    values = target.values
    matrix = values.flatten(0, 1).double()
    if target.classes is None:
        U, sigma, Vh = tall_svd(matrix, ranks)
        rows = ranks.total(len(matrix))
        noise = torch.finfo(values.dtype).eps * max(rows, matrix.shape[1]) * sigma[:1]
        count = min(modes, int((sigma > noise).sum()))
        U, sigma, directions = U[:, :count], sigma[:count], Vh[:count]
    else:
        sizes, order = ranks.sum(matrix.sum(0)).sort(descending=True, stable=True)
        order = order[: min(modes, int((sizes > 0).sum()))]
        sigma = sizes[: len(order)].sqrt()
        U = matrix[:, order] / sigma
        directions = matrix.new_zeros(len(order), target.outputs)
        directions[torch.arange(len(order)), target.classes[order]] = 1
    return Decomposition(
        singular_values=sigma,
        patterns=U.T.reshape(len(sigma), *values.shape[:2]).to(values.dtype),
        directions=directions.to(values.dtype),
    )


def target_like(target: Tensor, output: Tensor, lin: Linearization) -> Target:
    """Bring a target to the layout of the output.

    Args:
        target: Values of the output's shape, or class indices for all but its last axis; a
            negative index (the -100 of torch's losses) marks a row that does not count.
        output: The output, shape ``(B, T, o)``.
        lin: Knows the layout of the model, and which rows of the state are padding.

    Returns:
        The target, class indices as one-hot vectors over the classes that occur.

    Raises:
        ValueError: If the shapes do not fit.
    """
    given, classes = target, None
    if not target.is_floating_point():
        occurring = torch.unique(target[target >= 0]).long()
        fits = not occurring.numel() or int(occurring[-1]) < output.shape[2]
        if not lin.ranks.all(fits):
            raise ValueError(
                f"class indices must lie in [0, {output.shape[2]}), or be negative for what does "
                f"not count; got values from {int(target.min())} to {int(target.max())}"
                + (" here, and others in another process" if fits else "")
                + ": pass target_fn"
            )
        here = torch.zeros(output.shape[2], dtype=torch.int64, device=target.device)
        here[occurring] = 1
        present = lin.ranks.sum(here).nonzero().flatten()
        target = target.unsqueeze(-1) == present
        classes = present.to(output.device)
    elif output.shape[2] == 1 and target.numel() == output.numel() and target.shape[-1] != 1:
        target = target.unsqueeze(-1)
    target = target.to(output.device, output.dtype)
    columns = output.shape[2] if classes is None else len(classes)
    placed = lin.in_rows(target) if target.ndim > 1 else target
    if not lin.ranks.all(placed.shape == (*output.shape[:2], columns)):
        raise ValueError(
            f"the target must have the shape of the outputs, {tuple(output.shape)} as (B, T, o), "
            f"or hold class indices for it; got {tuple(given.shape)} of {given.dtype}: pass "
            "target_fn, for example target_fn=lambda batch: batch['targets']"
        )
    if lin.valid is not None and lin.valid.shape == placed.shape[:2]:
        placed = placed.where(lin.valid.unsqueeze(-1), 0)
    counts = placed.any(-1) if classes is not None else lin.valid
    rows = placed.shape[:2].numel() if counts is None else int(counts.sum())
    return Target(placed, classes, output.shape[2], int(lin.ranks.total(rows)))


class PulledBack(NamedTuple):
    """What the model does with the unit errors of some modes; see `pull_back`."""

    decomposition: Decomposition
    learned: Sequence[float]
    gains: Sequence[float]
    core_overlaps: Sequence[float]
    output_gains: Sequence[float]
    preconditioned_gains: Sequence[float | None]
    outputs: int


def pull_back(
    target: Target,
    modes: int,
    lin: Linearization,
    core: CoreGram,
    *,
    derivatives: bool = True,
    preconditioner: Preconditioner | None = None,
) -> PulledBack:
    r"""Everything about the modes of a target that is exact.

    Args:
        target: The target; of classes, what has been learned is told by the probabilities that the
            outputs stand for.
        modes: How many modes at most.
        lin: The model.
        core: Its core.
        derivatives: Whether to take derivatives; without them gains are nan, and so are core
            overlaps where the target's rows are not the state's.
        preconditioner: The optimizer's ``D``.

    Returns:
        Learned fractions, gains ``||J* q_i||^2 / ||q_i||^2``, core overlaps, the squared norms
        ``||J_y* e_i||^2``, ``<J_y* e_i, D J_y* e_i>`` (None without a preconditioner), and the
        number of outputs. The cost is one product a mode.
    """
    ranks = lin.ranks
    decomposition = decompose(target, modes, ranks)
    errors = decomposition.errors
    output = lin.output
    if output is None or not len(errors):
        return PulledBack(decomposition, (), (), (), (), (), 0)
    reached = output.detach().double()
    if target.classes is not None:
        reached = _probabilities(reached, ranks)
    sums = ranks.sum((reached * errors.double()).sum((1, 2, 3)))
    same_rows = ranks.all(decomposition.patterns.shape[1:] == lin.state.shape[:2])
    overlaps = [
        core.overlap(u.flatten()) if same_rows else math.nan for u in decomposition.patterns
    ]
    gains, sizes = [math.nan] * len(overlaps), [math.nan] * len(overlaps)
    scaled_sizes: list[float | None] = [None] * len(overlaps)
    found = lin.pull_back_outputs(errors, preconditioner) if derivatives else ()
    for i, (q, gain, size, scaled) in enumerate(found):
        gains[i] = float(gain / ranks.sum(squared_norm(q)))
        sizes[i] = float(size)
        if preconditioner is not None:
            scaled_sizes[i] = float(scaled)
        if not same_rows:
            overlaps[i] = core.overlap(q.flatten(0, 1))
    return PulledBack(
        decomposition,
        (sums / decomposition.singular_values).tolist(),
        gains,
        overlaps,
        sizes,
        scaled_sizes,
        target.rows * output.shape[2],
    )


def _probabilities(output: Tensor, ranks: Ranks) -> Tensor:
    """Outputs as probabilities of classes, from these, their logarithms, or logits."""
    total = output.sum(-1)
    close = torch.allclose(total, torch.ones_like(total), atol=1e-3)
    if ranks.all(bool((output >= 0).all()) and close):
        return output
    return output.softmax(-1)


def target_modes(
    pulled: PulledBack, norm: Estimate, learning_rate: float | None
) -> tuple[TargetMode, ...]:
    """Put the exact numbers, the sampled norm and the learning rate together.

    Args:
        pulled: The exact numbers.
        norm: ``||A||_F``.
        learning_rate: Of the optimizer, or None.

    Returns:
        The target modes, from 1.
    """
    modes = []
    for i, gain in enumerate(pulled.gains):
        alignment = gain / norm.value if norm.value else float("nan")
        output_gain = pulled.output_gains[i]
        modes.append(
            TargetMode(
                index=i + 1,
                singular_value=float(pulled.decomposition.singular_values[i]),
                alignment=Estimate(alignment, alignment * norm.relative_error),
                gain=gain,
                learned=pulled.learned[i],
                core_overlap=pulled.core_overlaps[i],
                steps_to_learn=_steps(
                    pulled.outputs, learning_rate, None if math.isnan(output_gain) else output_gain
                ),
                preconditioned_steps_to_learn=_steps(
                    pulled.outputs, learning_rate, pulled.preconditioned_gains[i]
                ),
            )
        )
    return tuple(modes)


def _steps(outputs: int, learning_rate: float | None, gain: float | None) -> float | None:
    """``N / (2 lr gain)``."""
    if learning_rate is None or gain is None:
        return None
    rate = 2 * learning_rate * gain
    return outputs / rate if rate else math.inf
