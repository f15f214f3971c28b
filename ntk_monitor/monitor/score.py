"""How far ahead the forecasts of a training have come true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ntk_monitor.snapshot import Forecast, Snapshot

KEPT = 20
"""Forecasts that are remembered, and four times as many comparisons."""
RIGHT = 0.25
"""Relative difference up to which a loss is as it was forecast."""
OFTEN = 0.75
"""Share of comparisons at a distance, down to half of it, that must be right for forecasts to hold
as far."""
FEWEST = 3
"""Comparisons that say something."""


class Score:
    """Compares earlier forecasts with the losses that came."""

    def __init__(self) -> None:
        """Begin with nothing to compare."""
        self._forecasts: list[tuple[int, Forecast]] = []
        self._found: list[tuple[float, bool]] = []

    def kept(self, snapshot: Snapshot, step: int) -> Snapshot:
        """Compare a snapshot's loss with what was forecast of it, and remember its own forecast.

        Args:
            snapshot: A measurement of the training.
            step: The optimizer step at which it was made.

        Returns:
            The same, its forecast knowing for how many steps earlier ones have come true.
        """
        if snapshot.loss is not None:
            for when, forecast in self._forecasts:
                ahead = step - when
                said = forecast.loss_in(ahead) if ahead > 0 else None
                if said is not None:
                    right = abs(said - snapshot.loss) <= RIGHT * abs(snapshot.loss)
                    self._found.append((ahead, right))
            self._found = self._found[-4 * KEPT :]
        if snapshot.forecast is None:
            return snapshot
        forecast = replace(snapshot.forecast, valid_for=self._holds_for(snapshot.forecast))
        self._forecasts = [*self._forecasts, (step, forecast)][-KEPT:]
        return replace(snapshot, forecast=forecast)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to know, in plain types."""
        return {
            "forecasts": [
                [when, forecast.steps.tolist(), forecast.loss.tolist()]
                for when, forecast in self._forecasts
            ],
            "found": [list(each) for each in self._found],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Args:
            state: What `state_dict` gave; without a word of it nothing was kept.
        """
        forecasts = [
            (int(when), Forecast(_tensor(steps), _tensor(losses), torch.zeros(len(steps), 0), 0.0))
            for when, steps, losses in state.get("forecasts", ())
        ]
        found = [(float(ahead), bool(right)) for ahead, right in state.get("found", ())]
        self._forecasts, self._found = forecasts[-KEPT:], found[-4 * KEPT :]

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


def _tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
