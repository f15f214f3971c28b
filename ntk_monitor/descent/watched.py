"""What a forecast follows: the heads of a loss, and the target modes on each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ntk_monitor.descent.forecast import Vector
from ntk_monitor.descent.lossmap import LossMap
from ntk_monitor.model import Linearization
from ntk_monitor.pulled_modes import PulledMode
from ntk_monitor.targets import Target, component, target_like


class Watched(NamedTuple):
    """The target modes of a batch, as functions of its outputs.

    Attributes:
        loss_map: The batch's.
        targets: By the number of the comparison.
        numbers: Of each mode.
        errors: ``e_i`` of each mode, this process's rows, (B, T, o) in float64.
        sizes: ``sigma_i`` of each mode, times what the loss asks of it.
    """

    loss_map: LossMap
    targets: Mapping[int, Target]
    numbers: tuple[int, ...]
    errors: tuple[Tensor, ...]
    sizes: tuple[float, ...]

    def learned(self, points: Iterable[Tensor]) -> Vector:
        """The learned fraction of each mode in some outputs, shape ``(points, modes)``."""
        return self._of_all([self._by_trial(flat) for flat in points])

    def _of_all(self, by_trial: Sequence[Sequence[Tensor]]) -> Vector:
        """Numbers of all trials together, for each of some sets of them, shape ``(k, modes)``."""
        if not self.numbers:
            return np.zeros((len(by_trial), 0))
        sums = torch.stack([torch.stack([x.sum() for x in each]) for each in by_trial])
        found: Vector = self.loss_map.processes.sum(sums).cpu().numpy()
        return found

    def _by_trial(self, flat: Tensor) -> list[Tensor]:
        """What each trial of this process adds to the learned fractions, (B,) for each mode."""
        linked: dict[int, Tensor] = {}
        for number in self.numbers:
            if number not in linked:
                placed = self.loss_map.placed(number, flat.double())
                assert placed is not None
                linked[number] = self.targets[number].link(placed)
        return [
            (linked[number] * e).sum((1, 2)) / size
            for number, e, size in zip(self.numbers, self.errors, self.sizes, strict=True)
        ]

    def moved_by(self, change: Tensor) -> list[Tensor]:
        """What a small change of the outputs makes of them, trial by trial.

        Args:
            change: Of the outputs, shape ``(N,)``.

        Returns:
            The derivative along it, (B,) for each mode, in float64.
        """
        y, change = self.loss_map.outputs.double(), change.double()
        longest = float(change.abs().max()) if len(change) else 0.0
        if not longest or not math.isfinite(longest):
            return [x * longest for x in self._by_trial(y)]
        epsilon = 1e-4 / longest
        ahead, behind = (self._by_trial(y + s * epsilon * change) for s in (1, -1))
        return [(a - b) / (2 * epsilon) for a, b in zip(ahead, behind, strict=True)]

    def rates(self, change: Tensor) -> Vector:
        """The same, of all trials together, shape ``(modes,)``."""
        found: Vector = self._of_all([self.moved_by(change)])[0]
        return found


def watched(
    loss_map: LossMap, targets: Mapping[int, Target], pulled: Sequence[PulledMode]
) -> Watched:
    """The target modes of the batch that is probed.

    Args:
        loss_map: The batch's.
        targets: Its targets.
        pulled: Its modes.

    Returns:
        Them as functions of the outputs.
    """
    return Watched(
        loss_map,
        targets,
        tuple(mode.number for mode in pulled),
        tuple((m.pattern[..., None] * m.direction).double() for m in pulled),
        tuple(m.singular_value * targets[m.number].reach for m in pulled),
    )


def counterparts(
    loss_map: LossMap, lin: Linearization, pulled: Sequence[PulledMode]
) -> Watched | None:
    """The same modes in another batch: its target along the same directions of the outputs.

    Args:
        loss_map: The other batch's.
        lin: The model on it.
        pulled: The modes.

    Returns:
        Them as functions of its outputs; None where its targets do not fit.
    """
    targets: dict[int, Target] = {}
    errors, sizes = [], []
    for mode in pulled:
        if mode.number not in targets:
            comparison = lin.comparisons[mode.number]
            output = lin.placed_output(comparison)
            if comparison.target is None or output is None:
                return None
            try:
                targets[mode.number] = target_like(comparison, output, lin)
            except ValueError:
                return None
        pattern = component(targets[mode.number], mode.direction).double()
        size = math.sqrt(float(lin.processes.sum(pattern.square().sum())))
        scale = size if size > 0 else math.inf
        errors.append(pattern[..., None] / scale * mode.direction.double())
        sizes.append(scale * targets[mode.number].reach)
    return Watched(loss_map, targets, tuple(m.number for m in pulled), tuple(errors), tuple(sizes))
