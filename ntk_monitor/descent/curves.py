"""Curves of a forecast: of several courses one, with what they leave of certainty."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ntk_monitor.descent.forecast import BELIEVED, Vector, moved_by
from ntk_monitor.descent.lossmap import LossMap
from ntk_monitor.descent.times import Times
from ntk_monitor.estimators import Estimate

LOSS_AGREES = 0.25
"""Relative difference of two forecasts of a loss up to which they agree."""


class Changed(NamedTuple):
    """What becomes of a mode with one thing changed, by what that is."""

    steps: dict[str, float]
    rates: dict[str, float]


class Curves(NamedTuple):
    """Steps ahead, the loss and the learned fractions at each."""

    steps: Vector
    losses: Vector
    learned: Vector

    def followed_by(self, other: Curves) -> Curves:
        """These as far as the others begin, and then those.

        Args:
            other: From the last of these steps on.

        Returns:
            All of them.
        """
        return Curves(
            np.concatenate([self.steps[:-1], self.steps[-1] + other.steps]),
            np.concatenate([self.losses[:-1], other.losses]),
            np.concatenate([self.learned[:-1], other.learned]),
        )


def outputs_at(observed: LossMap, here: Tensor, p: Vector) -> Tensor:
    """The outputs at a place of a small space, where a step may be below their own rounding."""
    return observed.outputs.double() - moved_by(p, here)


def summed(by_trial: Tensor, processes: Any) -> tuple[float, float]:  # noqa: ANN401
    """The sum over all trials, and its standard error."""
    n = by_trial.new_tensor(len(by_trial))
    sums = torch.stack([by_trial.sum(), by_trial.square().sum(), n])
    total, squares, count = processes.sum(sums).tolist()
    if count < 2:
        return total, math.inf
    variance = max(squares / count - (total / count) ** 2, 0.0) * count / (count - 1)
    return total, math.sqrt(count * variance)


def band(found: Times, transfer: Estimate | None) -> tuple[float, float]:
    """Between which numbers steps to learn lie, what another batch leaves of the rate included."""
    latest = found.latest
    if transfer is not None and math.isfinite(transfer.stderr):
        share = transfer.value - 2 * transfer.stderr
        if share < 1:
            latest = max(latest, found.steps / share if share > 0 else math.inf)
    return found.soonest, latest


def agree_until(full: Curves, less: Vector) -> float:
    """Steps ahead up to which two forecasts of the loss agree; all that are believed if they do."""
    count = min(len(full.steps), len(less))
    a, b = full.losses[:count], less[:count]
    apart = np.flatnonzero(~(np.abs(a - b) <= LOSS_AGREES * np.abs(a) + 1e-12))
    if len(apart):
        return float(full.steps[max(int(apart[0]) - 1, 0)])
    return float(min(full.steps[-1], BELIEVED))
