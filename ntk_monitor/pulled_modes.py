"""Target modes pulled back to the state: gains, overlaps, and what is reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ntk_monitor.estimators import CoreGram, Estimate
from ntk_monitor.model import Linearization
from ntk_monitor.model.linearization import squared_norm
from ntk_monitor.snapshot import PredictedMode, TargetMode
from ntk_monitor.targets import Target, decompose

OUTPUTS = 8
"""How many outputs of a mode are named."""


@dataclass(frozen=True)
class PulledMode:
    """One mode of a target, and what the model does with its unit error; see `pull_back`.

    Attributes:
        number: Which of the comparisons it belongs to.
        output: The head of that.
        singular_value: ``sigma``.
        share: Of its target's squared size.
        pattern: ``u``, of this process's trials, shape ``(B, T)``.
        direction: ``v``, shape ``(o,)``.
        learned: ``<y, e> / sigma``.
        gain: ``||J* q||^2 / ||q||^2``.
        core_overlap: ``||V* u||^2 / ||V||_op^2``.
        readout: ``||q||^2``.
        by_site: What each weight site, and each parameter without one, has of the gain.
    """

    number: int
    output: str
    singular_value: float
    share: float
    pattern: Tensor
    direction: Tensor
    learned: float
    gain: float
    core_overlap: float
    readout: float
    by_site: tuple[tuple[str, float], ...] = ()


def pull_back(
    targets: Mapping[int, Target],
    modes: int,
    lin: Linearization,
    core: CoreGram,
    *,
    derivatives: bool = True,
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

    Returns:
        The modes, the largest shares first. The cost is one product a mode.
    """
    processes = lin.processes
    chosen: list[tuple[float, int, int]] = []
    decompositions = {}
    for number, target in targets.items():
        every = decompositions[number] = decompose(target, modes, processes)
        size = float(processes.sum(target.values.double().square().sum()))
        shares = (every.singular_values.double().square() / size).tolist() if size else []
        chosen += [(share, number, i) for i, share in enumerate(shares)]
    chosen = sorted(chosen, key=lambda each: -each[0])[:modes]
    reached = {number: _reached(targets[number], lin, number) for _, number, _ in chosen}
    errors = [(number, decompositions[number].error(i)) for _, number, i in chosen]
    products = [(reached[n] * e.double()).sum() / targets[n].reach for n, e in errors]
    sums = processes.sum(torch.stack(products)).tolist() if products else []
    pulled = iter(lin.pull_back_outputs(errors) if derivatives else ())
    found = []
    for (share, number, i), total in zip(chosen, sums, strict=True):
        modes_of, name = decompositions[number], lin.comparisons[number].head.name
        sigma, pattern = float(modes_of.singular_values[i]), modes_of.patterns[i]
        here = _at_the_state(pattern, next(pulled, None), lin, core)
        direction, learned = modes_of.directions[i], total / sigma
        found.append(PulledMode(number, name, sigma, share, pattern, direction, learned, *here))
    return tuple(found)


def _reached(target: Target, lin: Linearization, number: int) -> Tensor:
    """What should equal the target, (B, T, o) in float64."""
    comparison = lin.comparisons[number]
    output = lin.placed_output(comparison)
    assert output is not None
    reached = target.link(output.detach().double())
    counts = lin.counted(comparison)
    return reached if counts is None else reached * counts


def _at_the_state(
    pattern: Tensor,
    pulled: tuple[Tensor, dict[str, float]] | None,
    lin: Linearization,
    core: CoreGram,
) -> tuple[float, float, float, tuple[tuple[str, float], ...]]:
    """Gain, core overlap, readout and weight sites of a mode, by what was pulled back of it."""
    processes = lin.processes
    same_rows = processes.all(pattern.shape == lin.state.shape[:2])
    overlap = core.overlap(pattern.flatten()) if same_rows else math.nan
    if pulled is None:
        return math.nan, overlap, math.nan, ()
    q, squares = pulled
    readout, squared = float(processes.sum(squared_norm(q))), float(sum(squares.values()))
    shares = [(name, square / squared) for name, square in squares.items()] if squared else []
    gain = squared / readout if readout else math.nan
    overlap = overlap if same_rows else core.overlap(q.flatten(0, 1))
    return gain, overlap, readout, tuple(sorted(shares, key=lambda each: -each[1]))


def target_modes(
    pulled: Sequence[PulledMode], norm: Estimate, predicted: Sequence[PredictedMode] = ()
) -> tuple[TargetMode, ...]:
    """Put the exact numbers, the sampled norm and what is to come together.

    Args:
        pulled: The exact numbers.
        norm: ``||A||_F``.
        predicted: What becomes of each mode in the coming steps; none where that is not known.

    Returns:
        The target modes, from 1.
    """
    modes = []
    for i, mode in enumerate(pulled, start=1):
        alignment = mode.gain / norm.value if norm.value else float("nan")
        exact = TargetMode(
            index=i,
            singular_value=mode.singular_value,
            alignment=Estimate(alignment, alignment * norm.relative_error),
            gain=mode.gain,
            learned=mode.learned,
            core_overlap=mode.core_overlap,
            output=mode.output,
            share=mode.share,
            readout=mode.readout,
            by_site=mode.by_site,
            by_output=_largest(mode.direction),
        )
        modes.append(replace(exact, **vars(predicted[i - 1])) if predicted else exact)
    return tuple(modes)


def _largest(direction: Tensor) -> tuple[tuple[int, float], ...]:
    """The outputs that a mode is made of, with their entries; those that are zero are left out."""
    order = direction.abs().argsort(descending=True, stable=True)[:OUTPUTS].tolist()
    entries = direction.tolist()
    least = 1e-3 * abs(entries[order[0]]) if order else 0.0
    return tuple((i, entries[i]) for i in order if abs(entries[i]) > least)


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
