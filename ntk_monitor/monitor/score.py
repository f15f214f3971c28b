"""How far ahead the forecasts of a training have come true."""

from __future__ import annotations

from dataclasses import replace

from ntk_monitor.snapshot import Forecast, Snapshot

KEPT = 20
"""Forecasts that are remembered, and four times as many comparisons."""
RIGHT = 0.25
"""Relative difference up to which a loss is as it was forecast."""
OFTEN = 0.75
"""Share of comparisons that must be right up to a distance for forecasts to hold so far."""
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

    def _holds_for(self, forecast: Forecast) -> float:
        """The farthest distance up to which enough of what was said came true."""
        if len(self._found) < FEWEST:
            return forecast.valid_for
        farthest, right = 0.0, 0
        nearest = min(ahead for ahead, _ in self._found)
        for count, (ahead, is_right) in enumerate(sorted(self._found), start=1):
            right += is_right
            if right >= OFTEN * count:
                farthest = ahead
        return farthest or min(forecast.valid_for, nearest - 1)
