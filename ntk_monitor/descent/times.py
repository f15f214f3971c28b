"""Steps until a learned fraction is reached, read off a forecast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ntk_monitor.descent.forecast import BELIEVED, Vector

GROWTH = 1.3
"""What the speed of learning may grow by in a third of the steps in which it is believed."""
ROUNDING = 1e-9
"""Below it a rise is none, and growth is as good as none."""
FARTHEST = 1e12
"""Steps beyond which a mode is never learned."""


class Times(NamedTuple):
    """When a mode is learned.

    Attributes:
        steps: Steps ahead; inf for never.
        soonest: If it goes on as fast as it does where the forecast is believed.
        latest: If the model stays as it is there.
    """

    steps: float
    soonest: float
    latest: float


def times(
    steps: Vector, learned: Vector, threshold: float, rates_until: Callable[[float], float]
) -> Times:
    """The first step at which a learned fraction reaches a threshold.

    Within the steps for which a forecast is believed that is read off it. Beyond, a model that
    stays linear is slower than what happens, since features are learned as well, and one whose
    speed goes on to change as it did is faster; the geometric mean of both lies in between.

    Args:
        steps: Steps ahead.
        learned: The learned fraction at each.
        threshold: Of it.
        rates_until: The sum of learning rates up to a step ahead.

    Returns:
        The times.
    """
    near = crossing(steps, learned, threshold)
    if near <= BELIEVED:
        return Times(near, near, near)
    going_on = _going_on(steps, learned, threshold, rates_until)
    soonest, latest = min(going_on, near), max(going_on, near)
    steps_to_it = soonest if math.isinf(latest) else math.sqrt(soonest * latest)
    return Times(steps_to_it, soonest, latest)


def _going_on(
    steps: Vector, learned: Vector, threshold: float, rates_until: Callable[[float], float]
) -> float:
    """The step reached if speed goes on to change as it does where the forecast is believed.

    It may grow, as it does while features are learned, by `GROWTH` at most in a third of that time;
    one that falls is taken to stay. Time is counted in learning rates.

    Returns:
        The step; inf if it is never reached.
    """
    end = min(BELIEVED, float(steps[-1]))
    marks = [end * share for share in (0, 1 / 3, 2 / 3, 1)]
    c = [float(np.interp(mark, steps, learned)) for mark in marks]
    u = [rates_until(mark) for mark in marks]
    if min(b - a for a, b in itertools.pairwise(u)) <= 0 or max(c) - min(c) <= ROUNDING:
        return math.inf
    before, now = (c[2] - c[1]) / (u[2] - u[1]), (c[3] - c[2]) / (u[3] - u[2])
    if now <= 0:  # it comes and goes: a third of its mean speed
        before = now = (c[3] - c[0]) / (u[3] - u[0]) / 3
        if now <= 0:
            return math.inf
    growth = math.log(min(max(now / before, 1.0), GROWTH) if before > 0 else GROWTH)
    growth /= u[3] - u[2]
    left = (threshold - c[3]) / now
    left = math.log1p(left * growth) / growth if growth * left > ROUNDING else left
    return _inverse(rates_until, u[3] + left, end)


def _inverse(rates_until: Callable[[float], float], wanted: float, begin: float) -> float:
    """The step up to which the rates add up to something; inf if they never do."""
    low, high = begin, max(2 * begin, 1.0)
    while rates_until(high) < wanted:
        low, high = high, 2 * high
        if high > FARTHEST:
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rates_until(middle) < wanted else (low, middle)
    return high


def crossing(steps: Vector, learned: Vector, threshold: float) -> float:
    """The first step at which a learned fraction reaches a threshold, within those given.

    Args:
        steps: Steps ahead.
        learned: The learned fraction at each.
        threshold: Of it.

    Returns:
        The step, between those that are given by straight lines; 0 if it is there already, inf if
        it never is.
    """
    above = np.flatnonzero(np.asarray(learned) >= threshold)
    if not len(above):
        return math.inf
    i = int(above[0])
    if i == 0:
        return 0.0
    before, after = float(learned[i - 1]), float(learned[i])
    share = (threshold - before) / (after - before)
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))
