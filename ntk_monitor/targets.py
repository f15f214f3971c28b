"""The target's modes, and how visible each of them is to gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ntk_monitor.estimators import CoreGram, Estimate
from ntk_monitor.estimators.tall import tall_svd
from ntk_monitor.model import Linearization
from ntk_monitor.model.linearization import Preconditioner, squared_norm
from ntk_monitor.model.step import Comparison
from ntk_monitor.model.step.losses import Link, identity
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

    def error(self, i: int) -> Tensor:
        """The unit error ``e_i = u_i v_i*``, shape ``(B, T, o)``."""
        return self.patterns[i, ..., None] * self.directions[i]


class Target(NamedTuple):
    """A target in the layout of the outputs.

    Attributes:
        values: Shape ``(B, T, c)``; zero at rows and entries that do not count.
        classes: For class targets, which outputs the ``c`` columns are, those of the classes that
            occur in any process; None where they are all outputs.
        outputs: How many outputs ``o`` there are.
        entries: How many entries of the outputs count, in all processes.
        link: From outputs to what should equal the target.
    """

    values: Tensor
    classes: Tensor | None
    outputs: int
    entries: int
    link: Link


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


def target_like(comparison: Comparison, output: Tensor, lin: Linearization) -> Target:
    """Bring a target to the layout of its outputs.

    Args:
        comparison: The target, and the loss that compares it. Without a loss, values of the
            outputs' shape, or class indices for all but the last axis; a negative index (the -100
            of torch's losses) marks a row that does not count.
        output: The output, shape ``(B, T, o)``.
        lin: Knows the layout of the model, and which rows of the state are padding.

    Returns:
        The target: class indices as one-hot vectors over the classes that occur; what is yes or no
        less its mean, which a network that has learned nothing reaches.

    Raises:
        ValueError: If the shapes do not fit.
    """
    given, loss = comparison.target, comparison.head.loss
    assert given is not None
    target, classes = given, None
    counts = lin.counted(comparison)
    by_index = not target.is_floating_point() if loss is None else loss.kind == "classes"
    if by_index and not target.is_floating_point():
        if comparison.counts is not None:  # a class that is ignored may be none of the outputs
            target = target.where(comparison.counts.any(-1), -1)
        target, classes = _one_hot(target, output, lin)
    elif loss is None and output.shape[2] == 1 and target.numel() == output.numel():
        target = target.unsqueeze(-1) if target.shape[-1] != 1 else target
    target = target.to(output.device, output.dtype)
    columns = output.shape[2] if classes is None else len(classes)
    first = comparison.batch_first
    placed = lin.in_rows(target, batch_first=first) if target.ndim > 1 else target
    if not lin.ranks.all(placed.shape == (*output.shape[:2], columns)):
        raise ValueError(
            f"the target must have the shape of the outputs, {tuple(output.shape)} as (B, T, o), "
            f"or hold class indices for it; got {tuple(given.shape)} of {given.dtype}: pass "
            "target_fn, for example target_fn=lambda batch: batch['targets']"
        )
    valid = lin.valid
    if valid is not None and valid.shape == placed.shape[:2]:
        placed = placed.where(valid.unsqueeze(-1), 0)
        counts = None if counts is None else counts & valid.unsqueeze(-1)
    if counts is not None:
        placed = placed.where(counts if classes is None else counts.any(-1, keepdim=True), 0)
    if loss is not None and loss.kind == "bits":
        placed = _centred(placed, counts, lin.ranks)
    entries = _entries(placed, counts, classes, output.shape[2], valid)
    link = _guessed_link(classes, lin.ranks) if loss is None else loss.link
    return Target(placed, classes, output.shape[2], int(lin.ranks.total(entries)), link)


def _one_hot(target: Tensor, output: Tensor, lin: Linearization) -> tuple[Tensor, Tensor]:
    """Class indices as one-hot vectors over the classes that occur, and which these are."""
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
    return target.unsqueeze(-1) == present, present.to(output.device)


def _centred(placed: Tensor, counts: Tensor | None, ranks: Ranks) -> Tensor:
    """A target less each output's mean over what counts."""
    weights = torch.ones_like(placed) if counts is None else counts.to(placed.dtype)
    sums = ranks.sum(torch.stack([placed.double().sum((0, 1)), weights.double().sum((0, 1))]))
    mean = (sums[0] / sums[1].clamp_min(1)).to(placed.dtype)
    return (placed - mean) * weights


def _entries(
    placed: Tensor,
    counts: Tensor | None,
    classes: Tensor | None,
    outputs: int,
    valid: Tensor | None,
) -> int:
    """How many entries of the outputs count in this process."""
    if classes is not None:
        return int(placed.any(-1).sum()) * outputs
    if counts is not None:
        return int(counts.sum())
    return (placed.shape[:2].numel() if valid is None else int(valid.sum())) * outputs


def _guessed_link(classes: Tensor | None, ranks: Ranks) -> Link:
    """The link without a loss to tell it."""
    if classes is None:
        return identity

    def link(output: Tensor) -> Tensor:
        """Outputs as probabilities of classes, from these, their logarithms, or logits."""
        total = output.sum(-1)
        close = torch.allclose(total, torch.ones_like(total), atol=1e-3)
        if ranks.all(bool((output >= 0).all()) and close):
            return output
        return output.softmax(-1)

    return link


@dataclass(frozen=True)
class PulledMode:
    """One mode of a target, and what the model does with its unit error; see `pull_back`.

    Attributes:
        output: The head that it belongs to.
        singular_value: ``sigma``.
        share: Of its target's squared size.
        pattern: ``u``, of this process's trials, shape ``(B, T)``.
        learned: ``<y, e> / sigma``.
        gain: ``||J* q||^2 / ||q||^2``.
        core_overlap: ``||V* u||^2 / ||V||_op^2``.
        output_gain: ``||J_y* e||^2``; None where no derivative is taken.
        preconditioned_gain: ``<J_y* e, D J_y* e>``; None without a preconditioner.
        entries: How many entries of the outputs count.
    """

    output: str
    singular_value: float
    share: float
    pattern: Tensor
    learned: float
    gain: float
    core_overlap: float
    output_gain: float | None
    preconditioned_gain: float | None
    entries: int


def pull_back(
    targets: Mapping[int, Target],
    modes: int,
    lin: Linearization,
    core: CoreGram,
    *,
    derivatives: bool = True,
    preconditioner: Preconditioner | None = None,
) -> tuple[PulledMode, ...]:
    r"""Everything about the modes of targets that is exact.

    Args:
        targets: Targets by the number of the comparison; what has been learned of them is told by
            what their link makes of the outputs.
        modes: How many modes at most, of all targets together: those with the largest shares.
        lin: The model.
        core: Its core.
        derivatives: Whether to take derivatives; without them gains are nan, and so are core
            overlaps where the target's rows are not the state's.
        preconditioner: The optimizer's ``D``.

    Returns:
        The modes, the largest shares first. The cost is one product a mode.
    """
    ranks = lin.ranks
    chosen: list[tuple[float, int, int]] = []
    decompositions = {}
    for number, target in targets.items():
        found = decompositions[number] = decompose(target, modes, ranks)
        size = float(ranks.sum(target.values.double().square().sum()))
        shares = (found.singular_values.double().square() / size).tolist() if size else []
        chosen += [(share, number, i) for i, share in enumerate(shares)]
    chosen = sorted(chosen, key=lambda each: -each[0])[:modes]
    reached = {number: _reached(targets[number], lin, number) for _, number, _ in chosen}
    errors = [(number, decompositions[number].error(i)) for _, number, i in chosen]
    products = [(reached[number] * e.double()).sum() for number, e in errors]
    sums = ranks.sum(torch.stack(products)).tolist() if products else []
    pulled = iter(lin.pull_back_outputs(errors, preconditioner) if derivatives else ())
    return tuple(
        _pulled_mode(
            lin.comparisons[number].head.name,
            share,
            (targets[number], decompositions[number], i),
            total / float(decompositions[number].singular_values[i]),
            core,
            ranks,
            next(pulled, None),
            rows=lin.state.shape[:2],
            preconditioned=preconditioner is not None,
        )
        for (share, number, i), total in zip(chosen, sums, strict=True)
    )


def _reached(target: Target, lin: Linearization, number: int) -> Tensor:
    """What should equal the target, (B, T, o) in float64."""
    comparison = lin.comparisons[number]
    output = lin.placed_output(comparison)
    assert output is not None
    reached = target.link(output.detach().double())
    counts = lin.counted(comparison)
    return reached if counts is None else reached * counts


def _pulled_mode(
    output: str,
    share: float,
    mode: tuple[Target, Decomposition, int],
    learned: float,
    core: CoreGram,
    ranks: Ranks,
    pulled: tuple[Tensor, float, float, float] | None,
    *,
    rows: Sequence[int],
    preconditioned: bool,
) -> PulledMode:
    """One mode, with what was pulled back of its error."""
    target, decomposition, i = mode
    pattern = decomposition.patterns[i]
    same_rows = ranks.all(pattern.shape == tuple(rows))
    overlap = core.overlap(pattern.flatten()) if same_rows else math.nan
    gain, size, scaled = math.nan, None, None
    if pulled is not None:
        q, squared, output_gain, scaled_gain = pulled
        gain = float(squared / ranks.sum(squared_norm(q)))
        size, scaled = float(output_gain), float(scaled_gain) if preconditioned else None
        overlap = overlap if same_rows else core.overlap(q.flatten(0, 1))
    return PulledMode(
        output,
        float(decomposition.singular_values[i]),
        share,
        pattern,
        learned,
        gain,
        overlap,
        size,
        scaled,
        target.entries,
    )


def target_modes(
    pulled: Sequence[PulledMode], norm: Estimate, learning_rate: float | None
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
    for i, mode in enumerate(pulled, start=1):
        alignment = mode.gain / norm.value if norm.value else float("nan")
        modes.append(
            TargetMode(
                index=i,
                singular_value=mode.singular_value,
                alignment=Estimate(alignment, alignment * norm.relative_error),
                gain=mode.gain,
                learned=mode.learned,
                core_overlap=mode.core_overlap,
                steps_to_learn=_steps(mode.entries, learning_rate, mode.output_gain),
                preconditioned_steps_to_learn=_steps(
                    mode.entries, learning_rate, mode.preconditioned_gain
                ),
                output=mode.output,
                share=mode.share,
            )
        )
    return tuple(modes)


def stacked_patterns(pulled: Sequence[PulledMode]) -> Tensor:
    """The patterns of some modes in one tensor.

    Args:
        pulled: The modes, one at least.

    Returns:
        Shape ``(modes, B, T)``, zero beyond the rows of targets that have fewer.
    """
    patterns = [mode.pattern for mode in pulled]
    B, T = (max(pattern.shape[axis] for pattern in patterns) for axis in (0, 1))
    pad = torch.nn.functional.pad
    return torch.stack([pad(p, (0, T - p.shape[1], 0, B - p.shape[0])) for p in patterns])


def _steps(entries: int, learning_rate: float | None, gain: float | None) -> float | None:
    """``N / (2 lr gain)``."""
    if learning_rate is None or gain is None or math.isnan(gain):
        return None
    rate = 2 * learning_rate * gain
    return entries / rate if rate else math.inf
