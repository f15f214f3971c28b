"""Learning rates to come, read ahead on copies of the schedulers."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ntk_monitor.descent.shadow import shadow_of


class Scheduled(NamedTuple):
    """A scheduler, and when it steps.

    Attributes:
        scheduler: One of torch's.
        every: Optimizer steps from one of its steps to the next.
        first: Optimizer steps to come until its next one, from 1.
    """

    scheduler: Any
    every: int = 1
    first: int = 1


def read_ahead(schedulers: Sequence[Scheduled], steps: int) -> dict[int, list[float]]:
    """The learning rates of coming optimizer steps.

    Args:
        schedulers: The schedulers; one that waits for a metric, or cannot be copied, is taken to
            leave its rates as they are.
        steps: For how many steps.

    Returns:
        For each group of parameters, by its id, its rates; the first is the present one. Groups
        that no scheduler has are left out.
    """
    found: dict[int, list[float]] = {}
    for each in schedulers:
        scheduler = each.scheduler
        foreseen = isinstance(scheduler, LRScheduler) and not isinstance(
            scheduler, ReduceLROnPlateau
        )
        if foreseen and isinstance(getattr(scheduler, "optimizer", None), Optimizer):
            try:
                found.update(_ahead(each, steps))
            except Exception:  # one of the user's, which needs more than itself
                continue
    return found


def _ahead(each: Scheduled, steps: int) -> dict[int, list[float]]:
    optimizer: Optimizer = each.scheduler.optimizer
    shadow = shadow_of(optimizer, None)
    scheduler = copy.deepcopy(each.scheduler, {id(optimizer): shadow})
    rates: list[list[float]] = [[float(g["lr"])] for g in shadow.param_groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(1, steps):
            if step >= each.first and (step - each.first) % each.every == 0:
                scheduler.step()
            for own, group in zip(rates, shadow.param_groups, strict=True):
                own.append(float(group["lr"]))
    return dict(zip(map(id, optimizer.param_groups), rates, strict=True))


MOST_READ = 20_000
"""Steps that are read ahead; the last rate read stands for all that follow."""


class Ahead:
    """The learning rates to come of one training, read when they are first asked for.

    They are read again when the present ones are not what was foreseen.
    """

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._read: dict[int, list[float]] = {}
        self._since = 0

    def rates(
        self,
        optimizers: Sequence[Optimizer],
        schedulers: Callable[[], Sequence[Scheduled]],
        step: int,
        remaining: float,
    ) -> dict[int, list[float]]:
        """The rates from a step on.

        Args:
            optimizers: Whose.
            schedulers: Gives their schedulers.
            step: Optimizer steps so far.
            remaining: Steps to come.

        Returns:
            For each group of parameters, by its id, its rates; the first is the present one.
        """
        now = {
            id(group): float(group["lr"])
            for optimizer in optimizers
            for group in optimizer.param_groups
            if group.get("lr") is not None
        }
        if not self._foresaw(now, step - self._since):
            self._read = read_ahead(schedulers(), int(min(remaining, MOST_READ)) + 1)
            self._since = step
        gone = step - self._since
        return {key: rates[gone:] for key, rates in self._read.items() if len(rates) > gone}

    def _foresaw(self, now: Mapping[int, float], gone: int) -> bool:
        if not self._read or gone < 0:
            return False
        ended = (rates[min(gone, len(rates) - 1)] for rates in self._read.values())
        expected = dict(zip(self._read, ended, strict=True))
        return all(math.isclose(expected[key], now.get(key, math.nan)) for key in expected)
