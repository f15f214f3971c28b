"""All target modes of a training, judged together at each probe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from ntk_monitor.monitor.alerts.rule import (
    AVERAGED,
    NOTHING,
    SURE,
    ModeState,
    ModeWatch,
    Reading,
    StallRule,
)
from ntk_monitor.monitor.alerts.trends import FEWEST_PROBES, LONGEST, ROUNDING, Trend, growth, holm

VERDICTS = frozenset({"stalled", "unpredictable"})
"""The states of a mode that is not learned in time."""
FALLEN_BACK = 0.05
"""How far below the threshold a learned mode must fall to count as unlearned again."""


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
        watches = self.watches.items()
        return frozenset(i for i, w in watches if w.state in VERDICTS and not w.certain)

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
            if watch.state in {"warming up", "not judged"}:
                watch.state = "warming up" if known else "not judged"
            if not known or (watch.steps and step <= watch.steps[-1]):
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
            moves = _teaches(watch, 0.0) and not watch.has_stood_still(remaining)
            in_time = found.too_slow <= self.rule.level or moves
            too_slow = too_slow and not in_time
            in_vain = in_vain or not _teaches(watch, NOTHING)
        if too_slow:
            if not in_vain or watch.sees_every_step or explained:
                return "stalled"
            missing = self.rule.learned_threshold - watch.learned[-1]
            rises = watch.is_on_its_way(missing, remaining, self.rule.window)
            return "insufficient data" if rises else "unpredictable"
        return "learning" if in_time else "insufficient data"

    def _propose(self, watch: ModeWatch, proposal: ModeState, *, last: bool) -> None:
        """Take a proposal over once enough probes in a row agree."""
        if proposal in VERDICTS and (watch.rest or last) and watch.state != proposal:
            proposal = watch.proposed if watch.proposed not in VERDICTS else "insufficient data"
        watch.agreeing = watch.agreeing + 1 if proposal == watch.proposed else 1
        watch.proposed = proposal
        at_once = proposal == "learned" or (
            watch.state == "warming up" and proposal not in VERDICTS
        )
        if proposal == watch.state or not (at_once or watch.agreeing >= self.rule.patience):
            return
        if proposal == "insufficient data" and watch.state in VERDICTS | {"recovered"}:
            return  # not knowing is no change
        if proposal == "learning" and watch.state == "recovered":
            return
        if watch.state == "stalled":
            watch.rest = self.rule.cooldown + 1
            proposal = "recovered" if proposal == "learning" else proposal
        watch.state = proposal


def _teaches(watch: ModeWatch, least: float) -> bool:
    """Whether steps on one batch certainly do more than so much for another."""
    known = watch.transfer
    return known is not None and known[0] - SURE * known[1] > least


def _p_values(line: Trend | None, needed: float) -> tuple[float, float]:
    """P-values of a slope of at least, and of at most, what is needed; 1 where nothing is known."""
    if line is None:
        return 1.0, 1.0
    return (line.probability_of(needed, at_least=True), line.probability_of(needed, at_least=False))
