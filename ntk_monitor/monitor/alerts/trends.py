"""Statistics of a series: its trend, for noise that lasts, and Holm's method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

LARGEST_LOG = 700.0
"""Stands for the logarithm of infinity, so that a series with it has a slope."""
LARGEST_PHI = 0.95
ROUNDING = 10 * float(np.finfo(float).eps)
"""Of a series' largest value: residuals below it are no noise to speak of."""
FEWEST_PROBES = 4
"""Probes that a trend needs: two for the line, and two to see how it errs."""
CLEARANCE = 3.0
"""How many times the noise of a series its needed change over the window must be: with less, the
answer is that the data do not suffice."""
LONGEST = 4
"""A window that does not suffice is doubled, up to so many times its length."""


class Trend(NamedTuple):
    """A straight line through a series, with what autocorrelated noise leaves of its certainty.

    Attributes:
        slope: Per unit of x.
        stderr: Its standard error.
        dof: Degrees of freedom of its t distribution.
        noise: Standard deviation about the line, of as many independent points as count.
    """

    slope: float
    stderr: float
    dof: float
    noise: float

    def probability_of(self, slope: float, *, at_least: bool) -> float:
        """P-value of the hypothesis that the true slope is at least, or at most, some value.

        Args:
            slope: The value.
            at_least: Which side the hypothesis is on.

        Returns:
            The probability of a line this far off, or farther, if the hypothesis just holds.
        """
        distance = self.slope - slope if at_least else slope - self.slope
        if self.stderr == 0:
            return float(distance >= 0)
        return float(special.stdtr(self.dof, distance / self.stderr))


def trend(x: Sequence[float], y: Sequence[float]) -> Trend:
    r"""Least squares, with a standard error that allows for noise that lasts.

    The noise of a training path is autocorrelated. The residuals' lag-1 autocorrelation
    :math:`\hat\varphi` is corrected for its bias about a fitted line and raised by its standard
    error, as a low one would feign certainty:
    :math:`\tilde\varphi = \hat\varphi + (2 + 4\hat\varphi)/W` and
    :math:`\varphi = \tilde\varphi + \sqrt{(1 - \tilde\varphi^2)/W}`. The variance of the slope is
    then multiplied by :math:`(1+\varphi)/(1-\varphi)`, and as many times fewer points count.

    Args:
        x: Where, at least `FEWEST_PROBES` different places.
        y: The values.

    Returns:
        The line.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    largest = float(np.abs(ys).max())
    xs, ys = xs - xs.mean(), ys - ys.mean()
    spread, count = float(xs @ xs), len(xs)
    slope = float(xs @ ys) / spread
    residuals = ys - slope * xs
    squares = float(residuals @ residuals)
    if squares <= (ROUNDING * largest) ** 2 * count:
        return Trend(slope, 0.0, count - 2, 0.0)
    raw = float(residuals[1:] @ residuals[:-1]) / squares
    phi = min(max(raw + (2 + 4 * raw) / count, -1.0), 1.0)
    phi = min(max(phi + math.sqrt((1 - phi**2) / count), 0.0), LARGEST_PHI)
    inflation = (1 + phi) / (1 - phi)
    noise = math.sqrt(squares / (count - 2) * inflation)
    return Trend(slope, noise / math.sqrt(spread), max(count / inflation, 3.0) - 2, noise)


def growth(
    x: Sequence[float], y: Sequence[float], needed: float, window: int, averaged: int = 1
) -> Trend | None:
    r"""The trend over the last ``window`` points, or over as many more as the noise demands.

    Rates that come and go, as those of one batch do, have logarithms far apart; the logarithms of
    their means :math:`\frac{1}{k}\sum_i e^{y_i}` over ``k`` points are not.

    Args:
        x: Where.
        y: The values; logarithms, where they are averaged.
        needed: The slope in question, per unit of x.
        window: How many points.
        averaged: Points that are averaged, ``k``; 1 for none.

    Returns:
        The trend over the shortest window, doubled up to `LONGEST` times, in which the needed
        change is `CLEARANCE` times the noise; None if there is none.
    """
    longest = window * LONGEST
    while True:
        xs, ys = x[-window:], y[-window:]
        if averaged > 1:
            xs, ys = means_of(xs, ys, averaged)
        if len(xs) >= FEWEST_PROBES:
            line = trend(xs, ys)
            if abs(needed) * (xs[-1] - xs[0]) >= CLEARANCE * line.noise:
                return line
        if window >= min(len(x), longest):
            return None
        window *= 2


def means_of(x: Sequence[float], y: Sequence[float], k: int) -> tuple[list[float], list[float]]:
    """Means over ``k`` points each, the latest in full: of ``x``, and in ``y`` of exponentials."""
    count = len(x) // k
    xs, ys = (np.asarray(each[len(x) - count * k :], float).reshape(count, k) for each in (x, y))
    return xs.mean(1).tolist(), (special.logsumexp(ys, axis=1) - math.log(k)).tolist()


def holm(p_values: Mapping[int, float], level: float) -> set[int]:
    """Which hypotheses are rejected, with a family-wise error of at most ``level``.

    Args:
        p_values: By name.
        level: The error.

    Returns:
        The names of those that are rejected.
    """
    rejected: set[int] = set()
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > level / (len(p_values) - rank):
            break
        rejected.add(name)
    return rejected
