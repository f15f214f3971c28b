"""Whether a loss moves: a robust line through its last values, with what noise leaves of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

FEWEST = 8
"""Probes without which nothing is said of a loss's motion."""
MOST = 400
"""Values that a line is put through, at most; of more, evenly spaced ones."""
SHARE = 0.2
"""Share of the steps so far that a loss must have stood still for to be called flat."""
LEAST = 0.01
"""Fall, relative to the loss, that is too small to count."""
LARGEST = 0.1
"""The largest that is hidden by noise and still called flat."""
NOISES = 2.0
"""Standard deviations of the noise within which a loss has not moved."""
WIDE = 1.0
"""Width of a relative change, from its least to its most, from which it says nothing."""
LEVEL = 0.05
"""Probability that an interval misses."""
NORMAL = 1.4826
"""Standard deviation of a normal distribution, in median absolute deviations."""
CUT = 3.0
"""Standard deviations beyond which a residual counts as one of so many."""
LARGEST_PHI = 0.9
PARAMETERS = 3
"""Of a parabola."""

Array = NDArray[np.float64]
Point = tuple[int, float]


class Fall(NamedTuple):
    """By how much a loss falls over some steps, relative to its size there.

    Attributes:
        value: The fall; negative where it rises.
        low: The least that it is, 95 % sure.
        high: The most.
        noise: Standard deviation about the course of it.
    """

    value: float
    low: float
    high: float
    noise: float


class Motion(NamedTuple):
    """What a loss does.

    Attributes:
        state: ``"flat"``, ``"falling"``, ``"rising"``, ``"hidden"`` where noise hides which, or
            ``"unknown"`` where there are too few probes.
        since: The step since when it is flat.
        fall: By how much it has fallen: since then, or in the last third of the steps.
        of_before: Whether a flat one's fall is relative to what it fell before, not to its size.
    """

    state: str
    since: int | None = None
    fall: Fall | None = None
    of_before: bool = False

    @property
    def text(self) -> str:
        """A sentence with its certainty; nothing where nothing is known."""
        if self.fall is None:
            return ""
        value, low, high, _ = self.fall
        sure = f"{1 - LEVEL:.0%} sure".replace("%", " %")
        if self.state == "flat":
            most = _up(max(abs(low), abs(high)))
            if self.of_before:
                return (
                    f"The loss is almost all gone: since step {self.since} it has fallen by less "
                    f"than {most} of what it fell before ({sure})."
                )
            return f"The loss has not moved since step {self.since}: by less than {most} ({sure})."
        if self.state == "hidden":
            if high - low > WIDE:
                return "Whether the loss still falls is hidden in its noise."
            return (
                f"Whether the loss still falls is hidden in its noise: by {_percent(low)} to "
                f"{_percent(high)} in the last third of the steps ({sure})."
            )
        sign, verb = (1, "still falling") if self.state == "falling" else (-1, "rising")
        ends = sorted((sign * low, sign * high))
        return (
            f"The loss is {verb}: by {_percent(sign * value)} in the last third of the steps "
            f"({_percent(ends[0])} to {_percent(ends[1])}, {sure})."
        )


def motion_of(losses: Sequence[Point]) -> Motion:
    """What a loss does, by its values at the probes of a training.

    It is flat since the first probe after which its running median stayed within its own noise of
    where it is now, if the line through the values since then neither falls nor rises by more:
    this is a test of equivalence, and few or noisy probes do not pass it. Else the line through the
    last third of the steps says whether it falls. Lines are Theil and Sen's, which a few outliers
    do not turn; their error allows for noise that lasts.

    Args:
        losses: Steps, ascending, and losses; those that are not finite are left out.

    Returns:
        What is known.
    """
    points = [(step, value) for step, value in losses if math.isfinite(value)]
    if len(points) < FEWEST:
        return Motion("unknown")
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST)).round().astype(int))
    steps, values = (np.asarray(each, float)[kept] for each in zip(*points, strict=True))
    flat = _flat(steps, values)
    if flat is not None:
        return flat
    last = steps >= steps[-1] - (steps[-1] - steps[0]) / 3
    last[-FEWEST:] = True
    fall = fall_of(steps[last], values[last], float(np.median(np.abs(values[last]))))
    state = "falling" if fall.low > 0 else "rising" if fall.high < 0 else "hidden"
    return Motion(state, None, fall)


def fall_of(steps: Array, values: Array, scale: float) -> Fall:
    """The fall of a loss, by a line through its values.

    Args:
        steps: Where, ascending, at least three.
        values: The losses.
        scale: What it is relative to.

    Returns:
        The fall from the first step to the last.
    """
    count, span = len(steps), steps[-1] - steps[0]
    first, second = np.triu_indices(count, 1)
    slope = float(np.median((values[second] - values[first]) / (steps[second] - steps[first])))
    residuals = _residuals(steps, _without_outliers(values, slope * steps))
    inflation = _inflation(residuals)
    noise = math.sqrt(float(residuals @ residuals) / (count - PARAMETERS))
    spread = math.sqrt(float(((steps - steps.mean()) ** 2).sum()))
    error = noise * math.sqrt(inflation) / spread * span
    dof = max(count / inflation, PARAMETERS + 1.0) - PARAMETERS
    half = float(special.stdtrit(dof, 1 - LEVEL / 2)) * error
    scale = max(scale, float(np.finfo(float).tiny))
    value = -slope * span
    return Fall(*(float(x) / scale for x in (value, value - half, value + half, noise)))


def _without_outliers(values: Array, line: Array) -> Array:
    """The values, those that are far from a line moved towards it."""
    line = line + np.median(values - line)
    most = 2 * CUT * NORMAL * float(np.median(np.abs(values - line)))
    return np.clip(values, line - most, line + most)


def _residuals(steps: Array, values: Array) -> Array:
    """What is left of a parabola, such that the bend of a curve is no noise; outliers are cut."""
    places = (steps - steps.mean()) / (steps[-1] - steps[0])
    residuals: Array = values - np.polyval(np.polyfit(places, values, PARAMETERS - 1), places)
    most = CUT * NORMAL * float(np.median(np.abs(residuals)))
    return np.clip(residuals, -most, most)


def _inflation(residuals: Array) -> float:
    """How many times fewer values count, by their correlation with the next."""
    squares = float(residuals @ residuals)
    if squares == 0:
        return 1.0
    count = len(residuals)
    raw = float(residuals[1:] @ residuals[:-1]) / squares
    phi = min(max(raw + (PARAMETERS + 4 * raw) / count, 0.0), LARGEST_PHI)
    return (1 + phi) / (1 - phi)


def _flat(steps: Array, values: Array) -> Motion | None:
    """Since when the loss is flat, if it is."""
    half = values[len(values) // 2 :]
    level = float(np.median(half))
    # Of a loss that has fallen to next to nothing, what is left is no matter.
    before = float(np.median(values[:3])) - level
    scale = max(abs(level), before)
    noise = NORMAL * float(np.median(np.abs(half - level)))
    within = max(CUT * noise, LEAST * scale)
    smooth = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    away = np.flatnonzero(np.abs(smooth - level) > within)
    start = int(away[-1]) + 2 if len(away) else 0
    while start < len(values) - 1 and abs(values[start] - level) > within:
        start += 1
    hidden = LARGEST
    least = SHARE * (steps[-1] - steps[0])  # what follows is a good part of the steps so far
    while len(steps) - start >= FEWEST and steps[-1] - steps[start] >= least:
        fall = fall_of(steps[start:], values[start:], scale)
        allowed = max(LEAST, min(NOISES * fall.noise, hidden))
        if max(fall.high, -fall.low) <= allowed:
            return Motion("flat", int(steps[start]), fall, before > abs(level))
        start += max((len(steps) - start) // 3, 1)  # the end of a fall may still be in it;
        hidden = 0.0  # what noise hides in fewer probes, it need not have hidden in more
    return None


def _percent(share: float) -> str:
    return f"{float(f'{100 * share:z.2g}'):.10g} %"


def _up(share: float) -> str:
    """A share in percent, rounded up."""
    return f"{max(math.ceil(1000 * share) / 10, 0.1):.2g} %"
