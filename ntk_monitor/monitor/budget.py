"""What a training can pay for: how many probes more, and how many of them whole."""

from __future__ import annotations

import math
from typing import NamedTuple

WHOLE_EVERY = 8
"""Where the time is short, one of so many probes is a whole one."""
SERIES = 8
"""Whole probes that half of the allowance should pay for: a number that is followed says more than
one number that is accurate, so where whole probes would be fewer, each is smaller."""
FEWEST_PRODUCTS = 16
"""Products that a whole probe may have however short the training."""
SLACK = 1.5
"""What is kept for the last probe, in what it should take: times vary."""
PASSES = 4
"""What a probe takes beside its products, in products."""


class Outlook(NamedTuple):
    """What is to come before the last probe, and the last one.

    Attributes:
        probes: How many, the whole ones among them.
        whole: How many of these are whole.
        seconds: What all of them take.
    """

    probes: float
    whole: float
    seconds: float


def outlook(left: float, slots: float, made: int, cheap: float, whole: float) -> Outlook:
    """Divide the seconds that are left among the probes to come.

    A whole probe at the end comes first, unless the cheap ones could then be no series; then cheap
    ones, with a whole one among every `WHOLE_EVERY`; then more whole ones.

    Args:
        left: Seconds that may still be spent.
        slots: Planned probes to come, that at the end included.
        made: Probes that were taken already.
        cheap: Seconds that a cheap probe takes.
        whole: Seconds that a whole one takes.

    Returns:
        What can be paid for.
    """
    slots = max(slots - 1, 0)
    series = min(slots, max(SERIES - made, 0))
    ends_whole = left >= SLACK * whole + series * cheap
    last = whole if ends_whole else cheap
    left -= SLACK * last
    if left < cheap or not slots:
        return Outlook(0, 0, last)
    mean = ((WHOLE_EVERY - 1) * cheap + whole) / WHOLE_EVERY if ends_whole else cheap
    probes = min(slots, max(_whole_number(left, mean), 1))
    dearer = max(whole - cheap, 0.0)
    wholes = min(probes, _whole_number(left - probes * cheap, dearer)) if ends_whole else 0
    return Outlook(probes, wholes, last + probes * cheap + wholes * dearer)


def is_turn(now: float, last: float, end: float, more: float) -> bool:
    """Whether the next of some things that are spread evenly is due.

    Args:
        now: Where we are.
        last: Where the last one was.
        end: Where there will be one in any case.
        more: How many there are to be between.

    Returns:
        True if it is.
    """
    return (now - last) * (more + 1) >= end - last


def products_of_whole(seconds: float, per_product: float, most: int) -> int:
    """How many products a whole probe may have, so that it is affordable several times.

    Args:
        seconds: The allowance of the whole training.
        per_product: Seconds that a product takes.
        most: The setting.

    Returns:
        Products.
    """
    if per_product <= 0 or math.isinf(seconds):
        return most
    affordable = seconds / (2 * SERIES) / per_product - PASSES
    return int(min(max(affordable, FEWEST_PRODUCTS), most))


def _whole_number(seconds: float, each: float) -> float:
    """How many things of a price can be had."""
    if each <= 0 or math.isinf(seconds):
        return math.inf
    return max(seconds // each, 0)
