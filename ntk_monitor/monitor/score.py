"""How far ahead the forecasts of a training have come true, and how fast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ntk_monitor.descent import crossing
from ntk_monitor.snapshot import Forecast, Snapshot, TargetMode

KEPT = 20
"""Forecasts that are remembered, and four times as many comparisons."""
RIGHT = 0.25
"""Relative difference up to which a loss is as it was forecast."""
OFTEN = 0.75
"""Share of comparisons at a distance, down to half of it, that must be right for forecasts to hold
as far."""
FEWEST = 3
"""Comparisons that say something."""
RECENT = 1 / 3
"""Share of the steps so far, the latest, in which it is looked at how fast forecasts come true."""
SLOWEST = 100.0
"""What forecasts are taken to be slower by at most."""
NEAR = 3.0
"""Steps ahead that are taken to come as they are forecast."""

Vector = NDArray[np.float64]


class Said(NamedTuple):
    """A forecast of the training.

    Attributes:
        step: The optimizer step at which it was made.
        forecast: What it was, whatever earlier ones came to.
        slowing: What the time in its loss was then stretched by.
    """

    step: int
    forecast: Forecast
    slowing: float = 1.0


class Score:
    """Compares earlier forecasts with what came, and corrects the next one by it."""

    def __init__(self) -> None:
        """Begin with nothing to compare."""
        self._said: list[Said] = []
        self._found: list[tuple[float, bool]] = []

    def kept(self, snapshot: Snapshot, step: int) -> Snapshot:
        r"""Compare a snapshot with what was forecast of it, and remember its own forecast.

        Steps on other batches undo a part of what a step does to the one that is probed, and speed
        is lost as the kernel changes: in the latest third of the training so far things took
        ``s >= 1`` times as many steps as forecasts gave them. That may be so in the coming steps,
        or not, so that time in the new forecast is stretched by :math:`\sqrt{s}`, beyond the next
        few steps: of the loss, and of each target mode by its own ``s``. Steps to learn are
        stretched likewise; their band reaches from those of the forecast to ``s`` times as many.

        Args:
            snapshot: A measurement of the training.
            step: The optimizer step at which it was made.

        Returns:
            The same, its forecast corrected, and knowing for how many steps earlier ones have come
            true.
        """
        if snapshot.loss is not None:
            self._compare(snapshot.loss, step)
        forecast = snapshot.forecast
        if forecast is None or not len(forecast.steps):
            return snapshot
        recent = [said for said in self._said if said.step >= (1 - RECENT) * step]
        recent = [*(recent or self._said[-1:]), Said(step, forecast)]
        slower = _slower(recent)
        self._said = [*self._said, Said(step, forecast, math.sqrt(slower[0]))][-KEPT:]
        forecast = _stretched(forecast, np.sqrt(slower))
        factors = itertools.chain(slower[1:], itertools.repeat(1.0))
        return replace(
            snapshot,
            forecast=replace(forecast, valid_for=self._holds_for(forecast)),
            target_modes=tuple(map(_later, snapshot.target_modes, factors)),
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to know, in plain types."""
        return {
            "said": [
                [step, [row.tolist() for row in _rows(forecast)], slowing]
                for step, forecast, slowing in self._said
            ],
            "found": [list(each) for each in self._found],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Args:
            state: What `state_dict` gave.
        """
        said = [
            Said(int(step), _forecast(rows), float(slowing))
            for step, rows, slowing in state["said"]
        ]
        found = [(float(ahead), bool(right)) for ahead, right in state["found"]]
        self._said, self._found = said[-KEPT:], found[-4 * KEPT :]

    def _compare(self, loss: float, step: int) -> None:
        """Note which earlier forecasts of this loss were right, and how far ahead they were."""
        for said in self._said:
            ahead = step - said.step
            then = float(_sooner(np.array(float(ahead)), said.slowing))
            expected = said.forecast.loss_in(then) if ahead > 0 else None
            if expected is not None:
                right = abs(expected - loss) <= RIGHT * abs(loss)
                self._found.append((ahead, right))
        self._found = self._found[-4 * KEPT :]

    def _holds_for(self, forecast: Forecast) -> float:
        """The farthest distance up to which enough of what was said came true."""
        if len(self._found) < FEWEST:
            return forecast.valid_for
        distances = sorted({ahead for ahead, _ in self._found})
        farthest = min(forecast.valid_for, distances[0] - 1)
        for distance in distances:
            near = [right for ahead, right in self._found if distance / 2 <= ahead <= distance]
            if sum(near) < OFTEN * len(near):
                break
            farthest = distance
        return farthest


def _curves(forecast: Forecast) -> Vector:
    """What should rise: the loss, negative, and the learned fractions; shape ``(h, 1 + modes)``."""
    return np.column_stack([-forecast.loss.numpy(), forecast.learned.numpy()])


def _slower(said: Sequence[Said]) -> list[float]:
    """How many times the steps went by, from one forecast to the next, that forecasts gave them.

    Args:
        said: Forecasts, in order; each begins where the one before it should have led.

    Returns:
        A factor for each curve of the last: 1 where things came in time or before it, or where
        nothing is known.
    """
    count = _curves(said[-1].forecast).shape[1]
    passed, given = [0.0] * count, [0.0] * count
    for before, after in itertools.pairwise(said):
        steps, ahead = after.step - before.step, before.forecast.steps.numpy()
        there = zip(_curves(before.forecast).T, _curves(after.forecast)[0], strict=False)
        for i, (curve, then) in enumerate(itertools.islice(there, count)):
            passed[i] += steps
            given[i] += min(crossing(ahead, curve, float(then)), steps)
    return [
        min(p / g, SLOWEST) if g > 0 else SLOWEST if p > 0 else 1.0
        for p, g in zip(passed, given, strict=True)
    ]


def _stretched(forecast: Forecast, factors: Vector) -> Forecast:
    """A forecast in which all takes so many times as long: the loss, and each target mode."""
    steps, *curves = (row.numpy() for row in _rows(forecast))
    loss, *learned = (
        torch.from_numpy(np.interp(_sooner(steps, factor), steps, curve))
        for factor, curve in zip(factors, curves, strict=True)
    )
    return replace(forecast, loss=loss, learned=_beside(learned, forecast.steps))


def _sooner(steps: Vector, factor: float) -> Vector:
    """When a forecast gives what comes after some steps, if all beyond `NEAR` takes longer."""
    found: Vector = np.minimum(steps, NEAR + (steps - NEAR) / factor)
    return found


def _later(mode: TargetMode, slower: float) -> TargetMode:
    """A target mode whose steps to learn know how fast earlier forecasts of it came true."""
    if mode.steps_to_learn is None or mode.steps_band is None:
        return mode
    low, high = mode.steps_band
    near = min(mode.steps_to_learn, NEAR)
    far = mode.steps_to_learn - near
    band = (low, max(high, near + far * slower))
    return replace(mode, steps_to_learn=near + far * math.sqrt(slower), steps_band=band)


def _rows(forecast: Forecast) -> list[torch.Tensor]:
    """What is remembered of a forecast: its steps, the loss, and the target modes."""
    return [forecast.steps, forecast.loss, *forecast.learned.T]


def _forecast(rows: Sequence[Sequence[float]]) -> Forecast:
    """A forecast from its rows; of unequal lengths they raise a ValueError."""
    steps, loss, *learned = torch.tensor(rows, dtype=torch.float64)
    return Forecast(steps, loss, _beside(learned, steps), math.nan)


def _beside(columns: Sequence[torch.Tensor], steps: torch.Tensor) -> torch.Tensor:
    return torch.stack(list(columns), dim=1) if columns else steps.new_zeros(len(steps), 0)
