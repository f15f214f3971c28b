"""Whether a target mode is stalled: statistics of a series, and a state for each mode.

Knows numbers only, no Trainer and no model, so that the same rule can be replayed on recorded runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy import special

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
LARGEST_LOG = 700.0
"""Stands for the logarithm of infinity, so that a series with it has a slope."""
SHORTEST = 0.1
"""Fewer steps to learn than that are as good as none."""
LARGEST_PHI = 0.95
ROUNDING = 10 * float(np.finfo(float).eps)
"""Of a series' largest value: residuals below it are no noise to speak of."""
FEWEST_PROBES = 4
"""Probes that a trend needs: two for the line, and two to see how it errs."""
FALLEN_BACK = 0.05
"""How far below the threshold a learned mode must fall to count as unlearned again."""
CLEARANCE = 3.0
"""How many times the noise of a series its needed change over the window must be: with less, the
answer is that the data do not suffice."""
AVERAGED = 4
"""Probes whose rates are averaged where single ones are too noisy."""
FEWEST_MEANS = 3
"""Such means that are looked at, at least, to see whether they seem to grow."""
LONGEST = 4
"""A window that does not suffice is doubled, up to so many times its length."""
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
            xs, ys = _means(xs, ys, averaged)
        if len(xs) >= FEWEST_PROBES:
            line = trend(xs, ys)
            if abs(needed) * (xs[-1] - xs[0]) >= CLEARANCE * line.noise:
                return line
        if window >= min(len(x), longest):
            return None
        window *= 2


def _means(x: Sequence[float], y: Sequence[float], k: int) -> tuple[list[float], list[float]]:
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
        xs, ys = _means(self.steps[-window:], self.log_rates[-window:], AVERAGED)
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

    def _size_of_steps(self, window: int) -> float:
        """What a step does to the learned fraction, by its own batch, whichever way."""
        return float(np.abs(self.rates[-window:]).mean())

    def is_in_vain(self, remaining: float, window: int) -> bool:
        """Whether steps do nothing for it, or little for the loss, but on the batch they are of.

        Args:
            remaining: Steps that remain.
            window: Probes that are looked at.

        Returns:
            True if so, by what came true of its rate where that says so certainly, and else by
            what steps do to other batches.
        """
        promised = self._size_of_steps(window) * remaining / max(1 - self.learned[-1], ROUNDING)
        if promised * OUT_OF_SIGHT < 1 and self.state != "unpredictable":
            return False  # too slow even for the batch that steps are of, and not just late
        realised = self.realised(window)
        if realised is not None:
            share, margin = realised[0], SURE * realised[1]
            if share - margin > NOTHING:
                return False
            if share + margin < NOTHING:
                return True
        return _little_transfers(self)

    @property
    def log_rates(self) -> list[float]:
        """Logarithms of the rates, which are one over the steps to learn."""
        return [-value for value in self.log_steps]

    @property
    def transfer(self) -> tuple[float, float] | None:
        """What is known of its transfer from the latest probes together."""
        return _pooled(self.transfers)

    @property
    def transfer_of_the_loss(self) -> tuple[float, float] | None:
        """Likewise of the loss."""
        return _pooled(self.of_the_loss)

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
        return cls(
            steps=[int(x) for x in state["steps"]],
            learned=[float(x) for x in state["learned"]],
            log_steps=[float(x) for x in state["log_steps"]],
            rates=[float(x) for x in state["rates"]],
            transfers=[(float(value), float(stderr)) for value, stderr in state["transfers"]],
            of_the_loss=[(float(value), float(stderr)) for value, stderr in state["of_the_loss"]],
            state=state["state"],
            proposed=state["proposed"],
            best=float(state["best"]),
            certain=bool(state["certain"]),
            **{k: int(state[k]) for k in ("moved", "agreeing", "rest")},
        )

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


class Evidence(NamedTuple):
    """What the series of a mode say against two hypotheses, and for their contraries.

    Attributes:
        in_time: P-value of "it will be in time": its rate grows as fast as the remaining steps
            need, or its learned fraction does. Small: it will not.
        too_late: P-value of the contrary. Small: it will.
        rising: P-value of "its learned fraction rises fast enough", alone.
        too_slow: P-value of the contrary of that.
    """

    in_time: float
    too_late: float
    rising: float
    too_slow: float


class StallWatch:
    """The states of all target modes, from probe to probe.

    A mode whose steps to learn are more than remain is stalled if, at ``patience`` probes in a row,
    both the upper confidence bound of the growth of its rate (the inverse of its steps to learn)
    and that of its learned fraction lie below what the remaining steps need. This is a
    test of equivalence: that a trend is not significant says nothing, that it is certainly too slow
    does. A loss that stands still while the rate grows is healthy.

    A mode that has fewer steps to learn than remain, by the batch that is probed, is being learned
    only if it moves, or if a step on one batch certainly does something for it on another. Where it
    has stood still for twice its steps to learn, and certainly does not rise fast enough, it is
    stalled.

    It is unpredictable in place of stalled where nothing tells what holds it back, and steps do
    little but on the batch they are of: what they promise does not add up, or does not transfer.
    The bounds hold for all modes of a probe together (Holm).

    Attributes:
        rule: The settings.
        watches: The modes' pasts and states.
    """

    def __init__(self, rule: StallRule) -> None:
        """Begin with no mode."""
        self.rule = rule
        self.watches: dict[int, ModeWatch] = {}

    @property
    def unsure(self) -> frozenset[int]:
        """The modes that are stalled or unpredictable, and only stand still."""
        judged = {"stalled", "unpredictable"}
        watches = self.watches.items()
        return frozenset(i for i, w in watches if w.state in judged and not w.certain)

    @property
    def states(self) -> dict[int, ModeState]:
        """The modes' states."""
        return {i: watch.state for i, watch in sorted(self.watches.items())}

    def update(
        self,
        step: int,
        readings: Iterable[Reading],
        remaining: float,
        *,
        early: bool = False,
        last: bool = False,
    ) -> dict[int, ModeState]:
        """Add a probe.

        Args:
            step: Where it was taken; a probe at or before the last step is left out.
            readings: What it says of each mode; one without a finite learned fraction, or with
                steps to learn that are no number, changes nothing, and a mode that never had
                another is not judged.
            remaining: Steps that remain.
            early: Whether the training is still warming up, so that there is no verdict.
            last: Whether no probe is to come; whatever is not learned would then be out of reach,
                so that no new stall is called.

        Returns:
            The modes whose state changed, with the state before.
        """
        evidence: dict[int, Evidence | None] = {}
        explained: dict[int, bool] = {}
        remaining = max(remaining, 1.0)
        for reading in readings:
            watch = self.watches.setdefault(reading.mode, ModeWatch())
            known = math.isfinite(reading.learned) and not math.isnan(reading.steps)
            if not known or watch.state == "not judged":
                fresh = watch.state in {"warming up", "not judged"}
                watch.state = ("warming up" if known else "not judged") if fresh else watch.state
            if not known:
                continue
            if watch.steps and step <= watch.steps[-1]:
                continue
            watch.add(step, reading, self.rule.window * LONGEST)
            evidence[reading.mode] = None if early else self._evidence(watch, remaining)
            explained[reading.mode] = reading.explained
        tested: dict[int, float] = {}
        for i, found in evidence.items():
            if found is not None and self._is_out_of_reach(self.watches[i], remaining):
                tested[i] = found.in_time
            elif found is not None and self.watches[i].has_stood_still(remaining):
                tested[i] = found.rising
        too_slow = holm(tested, self.rule.level)
        before = self.states
        for i, found in evidence.items():
            watch = self.watches[i]
            proposal = self._proposal(watch, found, remaining, i in too_slow, explained[i])
            self._propose(watch, proposal, last=last)
        return {i: before[i] for i in evidence if before[i] != self.watches[i].state}

    def _is_out_of_reach(self, watch: ModeWatch, remaining: float) -> bool:
        return watch.log_steps[-1] > math.log(remaining)

    def _evidence(self, watch: ModeWatch, remaining: float) -> Evidence | None:
        if len(watch.steps) < FEWEST_PROBES:
            return None
        rates = watch.log_rates
        needed = (watch.log_steps[-1] - math.log(remaining)) / remaining
        window = self.rule.window
        line = growth(watch.steps, rates, needed, window)
        line = line or growth(watch.steps, rates, needed, window, AVERAGED)
        rate = _p_values(line, needed)
        rise = (self.rule.learned_threshold - watch.learned[-1]) / remaining
        learned = _p_values(growth(watch.steps, watch.learned, rise, window), rise)
        watch.certain = rate[0] <= self.rule.level
        if watch.seems_to_stay(needed, remaining, window):
            rate = (min(rate[0], learned[0]), rate[1])
        return Evidence(max(rate[0], learned[0]), min(rate[1], learned[1]), *learned)

    def _proposal(
        self,
        watch: ModeWatch,
        found: Evidence | None,
        remaining: float,
        too_slow: bool,
        explained: bool,
    ) -> ModeState:
        error = 1 - self.rule.learned_threshold
        if watch.state == "learned":
            error += FALLEN_BACK
        if abs(1 - watch.learned[-1]) <= error + ROUNDING:
            return "learned"
        if found is None:  # nothing is known now: no change
            return watch.state
        in_vain = watch.is_in_vain(remaining, self.rule.window)
        if self._is_out_of_reach(watch, remaining):
            in_time = found.too_late <= self.rule.level
        else:
            in_time = found.too_slow <= self.rule.level or _transfers(watch, remaining)
            too_slow = too_slow and not in_time
            in_vain = in_vain or not _teaches(watch)
        if too_slow:
            return "unpredictable" if in_vain and not explained else "stalled"
        return "learning" if in_time else "insufficient data"

    def _propose(self, watch: ModeWatch, proposal: ModeState, *, last: bool) -> None:
        """Take a proposal over once enough probes in a row agree."""
        verdicts = {"stalled", "unpredictable"}
        if proposal in verdicts and (watch.rest or last) and watch.state != proposal:
            proposal = watch.proposed if watch.proposed not in verdicts else "insufficient data"
        watch.agreeing = watch.agreeing + 1 if proposal == watch.proposed else 1
        watch.proposed = proposal
        at_once = proposal == "learned" or (
            watch.state == "warming up" and proposal not in verdicts
        )
        if proposal == watch.state or not (at_once or watch.agreeing >= self.rule.patience):
            return
        if watch.state in {"stalled", "recovered", "unpredictable"}:
            if proposal == "insufficient data":
                return  # not knowing is no change
            if proposal == "learning" and watch.state == "recovered":
                return
            if watch.state == "stalled" and proposal == "learning":
                proposal = "recovered"
        if watch.state == "stalled":
            watch.rest = self.rule.cooldown + 1
        watch.state = proposal


def _teaches(watch: ModeWatch) -> bool:
    """Whether steps on one batch certainly do much for another."""
    known = watch.transfer
    return known is not None and known[0] - SURE * known[1] > NOTHING


def _transfers(watch: ModeWatch, remaining: float) -> bool:
    """Whether steps on one batch certainly teach another, and the mode has not stood still."""
    known = watch.transfer
    return (
        known is not None
        and known[0] - SURE * known[1] > 0
        and not watch.has_stood_still(remaining)
    )


def _little_transfers(watch: ModeWatch) -> bool:
    """Whether steps on one batch do next to nothing for another, or little for all its loss."""
    own, whole = watch.transfer, watch.transfer_of_the_loss
    if own is not None and own[0] + SURE * own[1] < NOTHING:
        return True
    return whole is not None and whole[0] + whole[1] < LITTLE


def _pooled(readings: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """A mean of the latest readings, and its standard error."""
    latest = [each for each in readings[-POOLED:] if all(map(math.isfinite, each))]
    if not latest:
        return None
    weights = [1 / max(stderr, 1e-6) ** 2 for _, stderr in latest]
    mean = sum(w * value for w, (value, _) in zip(weights, latest, strict=True)) / sum(weights)
    # Probes of one batch err alike: many of them are worth no more than a few.
    return mean, math.sqrt(len(latest) / sum(weights) / min(len(latest), INDEPENDENT))


def _p_values(line: Trend | None, needed: float) -> tuple[float, float]:
    """P-values of a slope of at least, and of at most, what is needed; 1 where nothing is known."""
    if line is None:
        return 1.0, 1.0
    return (
        line.probability_of(needed, at_least=True),
        line.probability_of(needed, at_least=False),
    )
