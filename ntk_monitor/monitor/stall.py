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
    "warming up", "insufficient data", "learning", "learned", "stalled", "recovered"
]
LARGEST_LOG = 700.0
"""Stands for the logarithm of infinity, so that a series with it has a slope."""
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
LONGEST = 4
"""A window that does not suffice is doubled, up to so many times its length."""
FLAT_TIMES = 2.0
"""How many times its steps to learn a mode may stand still: then gradient descent sees it, and
something else holds it."""
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


def growth(x: Sequence[float], y: Sequence[float], needed: float, window: int) -> Trend | None:
    """The trend over the last ``window`` points, or over as many more as the noise demands.

    Args:
        x: Where.
        y: The values.
        needed: The slope in question, per unit of x.
        window: How many points.

    Returns:
        The trend over the shortest window, doubled up to `LONGEST` times, in which the needed
        change is `CLEARANCE` times the noise; None if there is none.
    """
    longest = window * LONGEST
    while True:
        xs, ys = x[-window:], y[-window:]
        if len(xs) < FEWEST_PROBES:
            return None
        line = trend(xs, ys)
        if abs(needed) * (xs[-1] - xs[0]) >= CLEARANCE * line.noise:
            return line
        if window >= min(len(x), longest):
            return None
        window *= 2


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
        steps: Its steps to learn.
        preconditioned: Whether those are of the preconditioned kernel.
    """

    mode: int
    learned: float
    steps: float
    preconditioned: bool = False


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
        preconditioned: Of which kernel; a series of the other one begins anew.
        best: Smallest distance of the learned fraction from 1 that counted as progress.
        moved: The step of that.
        state: Its state.
        proposed: The state that the latest probes propose.
        agreeing: How many of them in a row.
        rest: Probes to come in which no stall is called.
        flat: Probes in a row at which it stood still although within reach.
    """

    steps: list[int] = field(default_factory=list)
    learned: list[float] = field(default_factory=list)
    log_steps: list[float] = field(default_factory=list)
    preconditioned: bool = False
    best: float = math.inf
    moved: int = 0
    state: ModeState = "warming up"
    proposed: ModeState = "warming up"
    agreeing: int = 0
    rest: int = 0
    flat: int = 0

    @property
    def stood_still(self) -> float:
        """Steps since the mode moved, in its present steps to learn."""
        return (self.steps[-1] - self.moved) / math.exp(self.log_steps[-1])

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
            state=state["state"],
            proposed=state["proposed"],
            preconditioned=bool(state["preconditioned"]),
            best=float(state["best"]),
            **{k: int(state[k]) for k in ("moved", "agreeing", "rest", "flat")},
        )

    def add(self, step: int, reading: Reading, kept: int) -> None:
        """Add a probe, keeping the last ``kept``."""
        if reading.preconditioned != self.preconditioned:
            self.steps, self.learned, self.log_steps = [], [], []
            self.preconditioned = reading.preconditioned
        if abs(1 - reading.learned) < self.best - PROGRESS:
            self.best, self.moved = abs(1 - reading.learned), step
        log_steps = min(math.log(reading.steps), LARGEST_LOG)
        self.steps = [*self.steps, step][-kept:]
        self.learned = [*self.learned, reading.learned][-kept:]
        self.log_steps = [*self.log_steps, log_steps][-kept:]
        self.rest = max(self.rest - 1, 0)


class Evidence(NamedTuple):
    """What the series of a mode say against two hypotheses, and for their contraries.

    Attributes:
        in_time: P-value of "it will be in time": its rate grows as fast as the remaining steps
            need, or its learned fraction does. Small: it will not.
        too_late: P-value of the contrary. Small: it will.
        moving: P-value of "its learned fraction rises fast enough", alone.
    """

    in_time: float
    too_late: float
    moving: float


class StallWatch:
    """The states of all target modes, from probe to probe.

    A mode is stalled if, at ``patience`` probes in a row, it is not learned, needs more steps than
    remain, and both the upper confidence bound of the growth of its rate (the inverse of its steps
    to learn) and that of its learned fraction lie below what the remaining steps need. This is a
    test of equivalence: that a trend is not significant says nothing, that it is certainly too slow
    does. A loss that stands still while the rate grows is healthy; a mode that has stood still for
    twice its steps to learn is one that gradient descent sees, and no stall. The bounds hold
    for all modes of a probe together (Holm).

    Attributes:
        rule: The settings.
        watches: The modes' pasts and states.
        halted: Modes that the latest probe has found to stand still although gradient descent sees
            them, each once for every time that it comes to that.
    """

    def __init__(self, rule: StallRule) -> None:
        """Begin with no mode."""
        self.rule = rule
        self.watches: dict[int, ModeWatch] = {}
        self.halted: set[int] = set()

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
            readings: What it says of each mode; modes without a finite learned fraction, or with
                no positive steps to learn, are left out.
            remaining: Steps that remain.
            early: Whether the training is still warming up, so that there is no verdict.
            last: Whether no probe is to come; whatever is not learned would then be out of reach,
                so that no new stall is called.

        Returns:
            The modes whose state changed, with the state before.
        """
        self.halted = set()
        evidence: dict[int, Evidence | None] = {}
        remaining = max(remaining, 1.0)
        for reading in readings:
            if not math.isfinite(reading.learned) or not reading.steps > 0:
                continue
            watch = self.watches.setdefault(reading.mode, ModeWatch())
            if watch.steps and step <= watch.steps[-1]:
                continue
            watch.add(step, reading, self.rule.window * LONGEST)
            evidence[reading.mode] = None if early else self._evidence(watch, remaining)
        out_of_reach = {
            i: found.in_time
            for i, found in evidence.items()
            if found is not None and self.watches[i].log_steps[-1] > math.log(remaining)
        }
        # A stall stays one when it comes to stand still: time has passed, and nothing else.
        tested = {
            i: p
            for i, p in out_of_reach.items()
            if self.watches[i].stood_still < FLAT_TIMES or self.watches[i].state == "stalled"
        }
        too_slow = holm(tested, self.rule.level)
        before = self.states
        for i, found in evidence.items():
            watch = self.watches[i]
            proposal = self._proposal(watch, found, stalled=i in too_slow, tested=i in tested)
            self._propose(watch, proposal, last=last)
            self._look_for_standstill(watch, found)
            if watch.flat == self.rule.patience:
                self.halted.add(i)
        return {i: before[i] for i in evidence if before[i] != self.watches[i].state}

    def _evidence(self, watch: ModeWatch, remaining: float) -> Evidence | None:
        if len(watch.steps) < FEWEST_PROBES:
            return None
        rates = [-value for value in watch.log_steps]
        needed = (watch.log_steps[-1] - math.log(remaining)) / remaining
        rate = _p_values(watch.steps, rates, needed, self.rule.window)
        rise = (self.rule.learned_threshold - watch.learned[-1]) / remaining
        learned = _p_values(watch.steps, watch.learned, rise, self.rule.window)
        return Evidence(max(rate[0], learned[0]), min(rate[1], learned[1]), learned[0])

    def _proposal(
        self, watch: ModeWatch, found: Evidence | None, *, stalled: bool, tested: bool
    ) -> ModeState:
        error = 1 - self.rule.learned_threshold
        if watch.state == "learned":
            error += FALLEN_BACK
        if abs(1 - watch.learned[-1]) <= error + ROUNDING:
            return "learned"
        if found is None:  # nothing is known now: no change
            return watch.state
        if stalled:
            return "stalled"
        undecided = tested and found.too_late > self.rule.level
        return "insufficient data" if undecided else "learning"

    def _propose(self, watch: ModeWatch, proposal: ModeState, *, last: bool) -> None:
        """Take a proposal over once enough probes in a row agree."""
        if proposal == "stalled" and (watch.rest or last) and watch.state != "stalled":
            proposal = watch.proposed if watch.proposed != "stalled" else "insufficient data"
        watch.agreeing = watch.agreeing + 1 if proposal == watch.proposed else 1
        watch.proposed = proposal
        at_once = proposal == "learned" or (watch.state == "warming up" and proposal != "stalled")
        if proposal == watch.state or not (at_once or watch.agreeing >= self.rule.patience):
            return
        if watch.state in {"stalled", "recovered"}:
            if proposal == "insufficient data":
                return  # not knowing is no change
            if proposal == "learning" and watch.state == "recovered":
                return
            proposal = "recovered" if proposal == "learning" else proposal
        if watch.state == "stalled":
            watch.rest = self.rule.cooldown + 1
        watch.state = proposal

    def _look_for_standstill(self, watch: ModeWatch, found: Evidence | None) -> None:
        """Count the probes at which a mode that gradient descent sees stood still."""
        still = (
            found is not None
            and watch.state != "stalled"
            and watch.stood_still >= FLAT_TIMES
            and watch.learned[-1] < self.rule.learned_threshold
            and found.moving < self.rule.level
        )
        watch.flat = watch.flat + 1 if still else 0


def _p_values(
    x: Sequence[float], y: Sequence[float], needed: float, window: int
) -> tuple[float, float]:
    """P-values of a slope of at least, and of at most, what is needed; 1 where nothing is known."""
    line = growth(x, y, needed, window)
    if line is None:
        return 1.0, 1.0
    return (
        line.probability_of(needed, at_least=True),
        line.probability_of(needed, at_least=False),
    )
