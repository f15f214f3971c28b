"""Whether a target mode is stalled: its series, and its state.

Knows numbers only, no Trainer and no model, so that the same rule can be replayed on recorded runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from ntk_monitor.descent.prediction import WHOLE
from ntk_monitor.monitor.alerts.trends import FEWEST_PROBES, LARGEST_LOG, ROUNDING, means_of, trend

ModeState = Literal[
    "warming up",
    "insufficient data",
    "learning",
    "learned",
    "stalled",
    "recovered",
    "unpredictable",
    "not judged",
]
SHORTEST = 0.1
"""Fewer steps to learn than that are as good as none."""
AVERAGED = 4
"""Probes whose rates are averaged where single ones are too noisy."""
FEWEST_MEANS = 3
"""Such means that are looked at, at least, to see whether they seem to grow."""
FLAT_TIMES = 2.0
"""How many times its steps to learn a mode may stand still: then what a step on this batch does is
not what training does."""
FLAT_SHARE = 0.1
"""Share of the remaining steps that it must have stood still for besides."""
POOLED = 20
"""Probes whose transfers are taken together."""
INDEPENDENT = 8
"""How many of them are worth as much as independent ones, at most: the other batch is a new one at
each probe, and the probed one the same."""
SURE = 2.0
"""Standard errors by which a transfer must differ from nothing."""
NOTHING = 0.45
"""Transfer below which a step on one batch is of no use for another."""
LITTLE = 0.6
"""Transfer of the loss, with a standard error, below which a mode that is too slow, and of which
nothing tells why, is unpredictable."""
FLAT_LONG = 0.36
"""Share of the remaining steps after which a mode that stands still, and would need more than they
are, is too slow if its rate does not seem to grow: certainty is no longer asked for."""
SLACK = 2.0
"""How many times the growth that is seen of such a rate is taken to be possible."""
OUT_OF_SIGHT = 100.0
"""How many times the remaining steps a mode may need, by its own batch's rate, for it to count what
steps teach other batches: one that is slower than that is too slow, whatever they teach."""
PROGRESS = 0.05
"""Approach of the learned fraction to 1, over its best, that counts as not standing still."""


@dataclass(frozen=True)
class Reading:
    """What a probe says of a target mode.

    Attributes:
        mode: Which, from 1.
        learned: Its learned fraction.
        steps: Its steps to learn; inf where it never will be.
        transfer: What a step on one batch does for it on another, over what it does on its own, and
            the standard error; None where that is not known.
        of_the_loss: The same for the loss, which is known better.
        explained: Whether its numbers tell what holds it back.
        rate: What its learned fraction gains at a step, by the batch that is probed; nan where that
            is not known.
    """

    mode: int
    learned: float
    steps: float
    transfer: tuple[float, float] | None = None
    of_the_loss: tuple[float, float] | None = None
    explained: bool = False
    rate: float = math.nan


@dataclass(frozen=True)
class StallRule:
    """When a mode counts as stalled.

    Attributes:
        patience: Probes in a row that must agree before a state changes.
        learned_threshold: Learned fraction from which a mode counts as learned.
        window: Probes over which a trend is taken, where the noise does not demand more.
        level: Probability of calling a mode stalled that grows just fast enough, over all modes of
            a probe.
        cooldown: Probes after a recovery in which no new stall is called.
    """

    patience: int = 3
    learned_threshold: float = 0.9
    window: int = 20
    level: float = 0.05
    cooldown: int = 10


@dataclass
class ModeWatch:
    """The recent past of one target mode.

    Attributes:
        steps: Where it was probed.
        learned: Learned fractions there.
        log_steps: Logarithms of the steps to learn there.
        rates: What the learned fraction gains at a step there, by the batch that is probed.
        transfers: Transfers and their standard errors there, where they were known.
        of_the_loss: Likewise those of the loss.
        best: Smallest distance of the learned fraction from 1 that counted as progress.
        moved: The step of that.
        state: Its state.
        proposed: The state that the latest probes propose.
        agreeing: How many of them in a row.
        rest: Probes to come in which no stall is called.
        certain: Whether the latest probe says with certainty that it is too slow.
    """

    steps: list[int] = field(default_factory=list)
    learned: list[float] = field(default_factory=list)
    log_steps: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    transfers: list[tuple[float, float]] = field(default_factory=list)
    of_the_loss: list[tuple[float, float]] = field(default_factory=list)
    best: float = math.inf
    moved: int = 0
    state: ModeState = "warming up"
    proposed: ModeState = "warming up"
    agreeing: int = 0
    rest: int = 0
    certain: bool = True

    def has_stood_still(self, remaining: float) -> bool:
        """Whether it did not move in much more than its present steps to learn."""
        still = self.steps[-1] - self.moved
        long = FLAT_TIMES * math.exp(self.log_steps[-1])
        return still >= max(long, FLAT_SHARE * remaining)

    def seems_to_stay(self, needed: float, remaining: float, window: int) -> bool:
        """Whether it did not move for long, and its rate does not seem to grow as is needed.

        Args:
            needed: The growth in question, of the logarithm.
            remaining: Steps that remain.
            window: Probes of which the rates' means are looked at.

        Returns:
            True if so; False where there are not enough probes.
        """
        if self.steps[-1] - self.moved < FLAT_LONG * remaining:
            return False
        xs, ys = means_of(self.steps[-window:], self.log_rates[-window:], AVERAGED)
        if len(xs) < FEWEST_MEANS:
            return False
        x, y = np.asarray(xs) - np.mean(xs), np.asarray(ys)
        lacking = (-math.log(remaining) - ys[-1]) / remaining  # of the latest mean
        return bool(SLACK * (x @ y) / (x @ x) < max(needed, lacking))

    def realised(self, window: int) -> tuple[float, float] | None:
        """What of its steps adds up: how fast it moved, over the size of what they do to it.

        The latter is what the batch that is probed says. Of training on other batches the share is
        what a step on one does for the others, measured on all of them: 1 where only the rate is
        small, 0 where steps fit their own batches alone, or take back what others gave.

        Args:
            window: Probes that are looked at.

        Returns:
            The share and its standard error; None where too little is known.
        """
        size = self._size_of_steps(window)
        if len(self.steps) < FEWEST_PROBES or not (math.isfinite(size) and size > 0):
            return None
        line = trend(self.steps[-window:], self.learned[-window:])
        return line.slope / size, line.stderr / size

    def is_on_its_way(self, missing: float, remaining: float, window: int) -> bool:
        """Whether it certainly rises, and would be learned in a training of twice the length.

        So long as it goes on rising as it does: what it lacks are steps, and it is no noise.

        Args:
            missing: What its learned fraction lacks.
            remaining: Steps that remain.
            window: Probes of which the trend is taken.

        Returns:
            True if so; False where there are not enough probes.
        """
        if len(self.steps) < FEWEST_PROBES:
            return False
        line = trend(self.steps[-window:], self.learned[-window:])
        whole = self.steps[-1] + remaining
        return line.slope > SURE * line.stderr and line.slope * (remaining + whole) >= missing

    def _size_of_steps(self, window: int) -> float:
        """What a step does to the learned fraction, by its own batch, whichever way."""
        return float(np.abs(self.rates[-window:]).mean())

    @property
    def sees_every_step(self) -> bool:
        """Whether every step is made on the batch that is probed, so that there are no others."""
        return bool(self.of_the_loss) and self.of_the_loss[-1] == (WHOLE.value, WHOLE.stderr)

    def is_in_vain(self, remaining: float, window: int) -> bool:
        """Whether steps do nothing for it, or little for the loss, but on the batch they are of.

        Args:
            remaining: Steps that remain.
            window: Probes that are looked at.

        Returns:
            True if so, by what came true of its rate where that says so certainly, and else by
            what steps do to other batches.
        """
        called, own = self.state == "unpredictable", self.transfer
        surely = own is not None and own[0] + SURE * own[1] < NOTHING
        # Late in a training little is promised in any case: of what was called so, ask it of all.
        steps = remaining + (self.steps[-1] if called else 0)
        promised = self._size_of_steps(window) * steps / max(1 - self.learned[-1], ROUNDING)
        if promised * OUT_OF_SIGHT < 1:
            return called and surely  # too slow even for the batch that steps are of
        realised = self.realised(window)
        if realised is not None:
            share, margin = realised[0], SURE * realised[1]
            if share - margin > NOTHING:
                return False
            if share + margin < NOTHING:
                return True
        if surely:
            return True
        whole = _pooled(self.of_the_loss)
        return whole is not None and whole[0] + whole[1] < LITTLE

    @property
    def log_rates(self) -> list[float]:
        """Logarithms of the rates, which are one over the steps to learn."""
        return [-value for value in self.log_steps]

    @property
    def transfer(self) -> tuple[float, float] | None:
        """What is known of its transfer from the latest probes together."""
        return _pooled(self.transfers)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ModeWatch:
        """Read what ``vars`` of a watch gave, checking it.

        Args:
            state: The fields.

        Returns:
            The watch.

        Raises:
            ValueError: If a state has an unknown name.
        """
        for name in (state["state"], state["proposed"]):
            if name not in get_args(ModeState):
                raise ValueError(f"{name!r} is no state of a mode")
        return msgspec.convert({each.name: state[each.name] for each in fields(cls)}, cls)

    def add(self, step: int, reading: Reading, kept: int) -> None:
        """Add a probe, keeping the last ``kept``."""
        if abs(1 - reading.learned) < self.best - PROGRESS:
            self.best, self.moved = abs(1 - reading.learned), step
        log_steps = min(math.log(max(reading.steps, SHORTEST)), LARGEST_LOG)
        self.steps = [*self.steps, step][-kept:]
        self.learned = [*self.learned, reading.learned][-kept:]
        self.log_steps = [*self.log_steps, log_steps][-kept:]
        self.rates = [*self.rates, reading.rate][-kept:]
        if reading.transfer is not None:
            self.transfers = [*self.transfers, reading.transfer][-POOLED:]
        if reading.of_the_loss is not None:
            self.of_the_loss = [*self.of_the_loss, reading.of_the_loss][-POOLED:]
        self.rest = max(self.rest - 1, 0)


def _pooled(readings: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """A mean of the latest readings, and its standard error."""
    latest = [each for each in readings[-POOLED:] if all(map(math.isfinite, each))]
    if not latest:
        return None
    weights = [1 / max(stderr, 1e-6) ** 2 for _, stderr in latest]
    mean = sum(w * value for w, (value, _) in zip(weights, latest, strict=True)) / sum(weights)
    # Probes of one batch err alike: many of them are worth no more than a few.
    return mean, math.sqrt(len(latest) / sum(weights) / min(len(latest), INDEPENDENT))
