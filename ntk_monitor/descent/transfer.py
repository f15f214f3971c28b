"""What a step made on some trials does to others, with a standard error."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ntk_monitor.estimators import Estimate

Effects = NDArray[np.float64]


def shared(effects: Effects) -> tuple[float, float]:
    r"""What steps on parts of a batch do to its other parts, scaled to the whole batch.

    Args:
        effects: What a step on the ``a``-th part does to something on the ``b``-th, shape
            ``(C, C)``, of three parts at least.

    Returns:
        :math:`\frac{C}{C-1} \sum_{a \ne b} M_{ab}`, which is unbiased for what a batch does to
        another one of its size, and its standard error, by the jackknife over parts.
    """
    C = len(effects)
    whole = _between(effects)
    without = np.array([
        _between(np.delete(np.delete(effects, c, 0), c, 1)) * (C / (C - 1)) ** 2 for c in range(C)
    ])
    spread = float(((without - without.mean()) ** 2).sum())
    return whole, math.sqrt((C - 1) / C * spread)


def _between(effects: Effects) -> float:
    C = len(effects)
    return float(C / (C - 1) * (effects.sum() - np.trace(effects)))


def over_own(effects: Effects, other: tuple[float, float] | None = None) -> Estimate | None:
    """What steps do to other trials, over what they do to their own batch.

    Args:
        effects: As in `shared`; a single part where there is one.
        other: What the step on the whole batch does to another batch, and its standard error.

    Returns:
        The share; None where neither is known, or nothing happens at all.
    """
    own = float(effects.sum())
    known = [shared(effects)] if len(effects) > 2 else []
    known += [other] if other is not None else []
    if not known or own == 0:
        return None
    value = sum(each[0] for each in known) / len(known)
    stderr = math.sqrt(sum(each[1] ** 2 for each in known)) / math.sqrt(len(known))
    return Estimate(value / own, stderr / abs(own))
