"""What the coming steps of a training do: rates, the forecast, transfer, instruments."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ntk_monitor.descent.curves import Changed, Curves, agree_until, band, outputs_at, summed
from ntk_monitor.descent.forecast import (
    BELIEVED,
    MOST_ENTRIES,
    Course,
    Path,
    Vector,
    moved_by,
)
from ntk_monitor.descent.leg import Leg
from ntk_monitor.descent.lossmap import LossMap, NoLossError
from ntk_monitor.descent.optimizers import NO_CLIPPING, Descent
from ntk_monitor.descent.times import times
from ntk_monitor.descent.transfer import Effects, over_own, shared
from ntk_monitor.descent.walk import Walk, walk
from ntk_monitor.descent.watched import Watched, counterparts, watched
from ntk_monitor.estimators import Estimate
from ntk_monitor.model import Linearization
from ntk_monitor.model.isolation.memory import room
from ntk_monitor.pulled_modes import PulledMode
from ntk_monitor.snapshot import Forecast, Instruments, PredictedMode
from ntk_monitor.targets import Target, target_like

logger = logging.getLogger(__name__)

LEG = 10
"""Steps ahead at which the model is linearised anew."""
PARTS = 4
"""Parts of a batch between which transfer is measured."""
LEARNED = 0.9
"""Learned fraction from which a mode counts as learned."""
UNBOUNDED = 10_000.0
"""Steps ahead of a forecast where nobody says how many remain."""
DOUBT = 0.3
"""How far from 1 transfer is expected to be, where it is not measured any better."""
LEAST = 0.02
"""Share of a step that is taken to be of use at least."""
SAME = 1e-5
"""Relative difference below which a second batch holds the same data as the first."""
BEYOND = 10.0
"""How many times the steps that remain a forecast goes, so that a trend can be seen in it."""
COPIES = 30
"""Vectors of the outputs that a forecast holds at once, at most."""
NOTHING_STEPPED = (
    "the optimizers step none of the parameters on which the loss depends, so that nothing is "
    "learned: pass them this model's own, as in configure_optimizers with self.parameters()"
)
WHOLE = Estimate(1.0, 0.0)
"""Transfer where every step is made on the batch that is probed."""
AS_IT_IS = "as it is"
"""The change that is none."""
ADAM_RATE = 1e-3
"""Adam's default learning rate."""


Effect = tuple[float, float]
"""What a step does to something, with its standard error."""


@dataclass(frozen=True)
class Predicted:
    """What the coming steps do; see `Snapshot` and `TargetMode`.

    Attributes:
        loss: The loss.
        transfer: Of the loss.
        forecast: None without an optimizer.
        instruments: Gradient and update.
        modes: One for each target mode; none without an optimizer.
        remarks: What was not measured.
        by_graph: See `LossMap`; known after the first products.
    """

    loss: float | None = None
    transfer: Estimate | None = None
    forecast: Forecast | None = None
    instruments: Instruments | None = None
    modes: tuple[PredictedMode, ...] = ()
    remarks: tuple[str, ...] = ()
    by_graph: bool | None = None


class Setting(NamedTuple):
    """What a prediction is asked for.

    Attributes:
        descent: How the training steps; None where that is not known.
        horizon: Steps that remain, or inf.
        second: Another batch of the training; None for none.
        source: A batch of the training, where the one that is probed is none; None where it is.
        by_graph: What is known of it from an earlier prediction; see `LossMap`.
    """

    descent: Descent | None
    horizon: float = math.inf
    second: Any = None
    source: Any = None
    by_graph: bool | None = None


def predict(
    lin: Linearization,
    targets: Mapping[int, Target],
    pulled: Sequence[PulledMode],
    setting: Setting,
) -> Predicted:
    """What the coming steps of a training do.

    Args:
        lin: The model on the batch that is probed.
        targets: Its targets.
        pulled: Its modes.
        setting: How it trains.

    Returns:
        The prediction; what could not be had is left out, with a remark.
    """
    known = setting.by_graph
    try:
        observed = LossMap(lin, _guess(lin, targets), by_graph=known)
    except NoLossError as error:
        return Predicted(loss=lin.loss, remarks=_told(lin, error))
    with ExitStack() as stack:
        source = stack.enter_context(closing(observed))
        bytes_taken = COPIES * observed.outputs.nbytes if setting.descent is not None else 0
        if not lin.processes.all(bytes_taken <= room(None, observed.outputs.device)):
            told = (
                f"there is no forecast of this training: with {observed.outputs.numel():,} outputs "
                f"it would take {bytes_taken / 1e9:.3g} GB, more than half of the free memory; "
                "probe a batch of fewer trials or steps"
            )
            return Predicted(loss=observed.loss, remarks=(told,), by_graph=known)
        modes = watched(observed, targets, pulled)
        if setting.source is not None:
            other = lin.on(setting.source)
            guess = _guess(other, _targets_of(other))
            source = stack.enter_context(closing(LossMap(other, guess, by_graph=known)))
        found = _Prediction(source, observed, modes, lin, pulled, setting).predicted()
        return replace(found, by_graph=source.by_graph)


def _told(lin: Linearization, error: Exception) -> tuple[str, ...]:
    """Why there is no forecast; nothing where there are no targets, of which it is told already."""
    if lin.loss is None or not lin.comparisons:
        return ()
    return (
        f"there is no forecast: {error}; pass loss_fn=lambda module, batch: ... with the loss that "
        "training minimises",
    )


def _targets_of(lin: Linearization) -> dict[int, Target]:
    found = {}
    for number, comparison in enumerate(lin.comparisons):
        output = lin.placed_output(comparison)
        if comparison.target is not None and output is not None:
            found[number] = target_like(comparison, output, lin)
    return found


def _guess(lin: Linearization, targets: Mapping[int, Target]) -> Callable[[Tensor], Tensor] | None:
    """The loss of a forward pass with a target: mean squared error or cross-entropy."""
    if lin.loss is not None:
        return None
    if not targets:
        raise NoLossError("no loss is known")
    target, comparison = targets[0], lin.comparisons[0]
    processes = lin.processes
    counted = target.counts[..., 0] if target.kind == "classes" else target.counts
    # What every process divides by, so that their mean is that of all rows.
    each = max(processes.total(float(counted.sum())) / processes.size, 1.0 / processes.size)

    def loss(output: Tensor) -> Tensor:
        placed = lin.placed_output(comparison, output)
        assert placed is not None
        if target.kind == "values":
            return ((placed - target.given).square() * counted).sum() / each
        p = target.link(placed).clamp(1e-7, 1 - 1e-7)
        if target.kind == "bits":
            chances = target.given * p.log() + (1 - target.given) * (1 - p).log()
            return -(chances * counted).sum() / each
        assert target.classes is not None
        chosen = (p[..., target.classes] * target.given).sum(-1)
        return -(torch.where(counted > 0, chosen, 1.0).log()).sum() / each

    return loss


@dataclass
class _Prediction:
    """One prediction in the making."""

    source: LossMap
    observed: LossMap
    modes: Watched
    lin: Linearization
    pulled: Sequence[PulledMode]
    setting: Setting
    elsewhere: bool = False  # whether steps are made on other batches as well
    repeats: bool = False  # whether they are all made on this one

    def __post_init__(self) -> None:
        self.processes = self.source.processes

    def predicted(self) -> Predicted:
        """All of it."""
        source, descent = self.source, self.setting.descent
        norm = float(torch.linalg.vector_norm(source.gradient, dtype=torch.float64))
        if descent is None or not math.isfinite(norm):
            instruments = Instruments(norm, None, math.nan)
            return Predicted(loss=self.observed.loss, instruments=instruments)
        self.leg = Leg(source, descent)
        pieces = self._pieces(self._labels())
        self.through = torch.stack([g for _, g, _ in pieces]).sum(0)
        change = torch.stack([change for *_, change in pieces]).sum(0)
        leg = self.leg.grown(self.through, change)
        course, course_here = leg.course, self._here(leg, self.observed)
        transfer, mode_transfers = self._transfers(*self._effects(pieces))
        reach = self.setting.horizon
        horizon = BEYOND * reach if math.isfinite(reach) else UNBOUNDED
        walked = self._walked(int(min(horizon, BELIEVED))) if self.repeats else None
        if walked is None:
            full = self._forecast(leg, course_here, horizon)
            until = agree_until(full, self._without_the_last(course, course_here))
        else:
            full = self._after_walking(walked, horizon)
            until = float(min(full.steps[-1], BELIEVED))
        rates = self.modes.rates(-moved_by(course.run(1).places[-1], course_here))
        found = [times(full.steps, c, LEARNED, descent.rates_until) for c in full.learned.T]
        others = self._with_changes(course, course_here, [when.steps for when in found], full)
        all_of = zip(full.learned[0], rates, found, mode_transfers, others, strict=True)
        predicted = tuple(
            PredictedMode(
                float(now), float(rate), when.steps, band(when, transfer), transfer,
                tuple(changed.steps.items()), tuple(changed.rates.items()),
            )
            for now, rate, when, transfer, changed in all_of
        )  # fmt: skip
        losses = self._among_others(full, transfer)
        steps_ahead, loss, learned = map(torch.from_numpy, (full.steps, losses, full.learned))
        forecast = Forecast(steps_ahead, loss, learned, until)
        instruments = Instruments(
            norm,
            self._signal_to_noise(pieces),
            self._relative_update(),
            course.headroom(),
            math.nan if descent.learning_rate is None else descent.learning_rate,
            self.leg.clip_coefficient,
            descent.largest_ahead(reach),
        )
        remarks = () if self.leg.stepped else (NOTHING_STEPPED,)
        return Predicted(self.observed.loss, transfer, forecast, instruments, predicted, remarks)

    def _labels(self) -> Tensor:
        """Which part of the batch each output belongs to; -1 for those that no row has."""
        trials = self.source.trials()
        here = int(trials.max()) + 1 if len(trials) else 0
        everywhere = self.processes.counts(here)
        self.before = self.processes.own(everywhere).start  # so that parts are of all trials
        self.count = min(PARTS, sum(everywhere))
        if self.count < 3:
            self.count = 1
        return torch.where(trials < 0, trials, (trials + self.before) % self.count)

    def _pieces(self, labels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each part its error, the gradient of that, and what a step along it does."""
        source = self.source
        parts = [(labels == c) | ((labels < 0) & (c == 0)) for c in range(self.count)]
        errors = [torch.where(part, source.error, 0.0) for part in parts]
        pulled = source.pulls(errors)
        moved = source.push([self.leg.scaled(g) for g in pulled])
        return list(zip(errors, pulled, moved, strict=True))

    def _here(self, leg: Leg, observed: LossMap) -> Tensor:
        """What the directions of a leg do to the outputs of the batch that is probed."""
        if self.observed is self.source:
            return leg.course.directions
        return observed.push(leg.tangents)

    def _forecast(self, leg: Leg, here: Tensor, horizon: float) -> Curves:
        """The curves, with the model linearised anew after some steps."""
        if horizon <= LEG:
            return self._curves(leg.course.run(horizon), here, self.observed)
        path = leg.course.run(LEG)
        begun = self._curves(path, here, self.observed)
        if begun.steps[-1] < LEG:
            return begun
        source, descent = leg.after(path)
        with closing(source):
            rest = self._flowing(source, descent, horizon - LEG, BELIEVED - LEG)
        return begun.followed_by(rest)

    def _walked(self, count: int) -> Walk | None:
        """The next steps as the optimizers take them, on the batch that all of them have."""
        small = self.observed.outputs.numel() <= MOST_ENTRIES
        if not self.processes.all(small) or count < 1:
            return None
        try:
            found = walk(self.source, self.observed, self.leg.descent, count)
        except Exception as error:  # an optimizer that needs more than gradients
            if self.processes.size > 1:
                raise
            logger.info("no steps are taken on copies: %s", error)
            return None
        return found if len(found.losses) > 1 else None

    def _after_walking(self, walked: Walk, horizon: float) -> Curves:
        """The curves of steps that were taken, and of those after them."""
        count = len(walked.losses) - 1
        learned = self.modes.learned(y.double() for y in walked.outputs)
        begun = Curves(np.arange(count + 1.0), np.array(walked.losses), learned)
        with closing(walked.end):
            if count < BELIEVED or horizon <= count or not math.isfinite(walked.losses[-1]):
                return begun
            return begun.followed_by(self._flowing(walked.end, walked.descent, horizon - count, 1))

    def _flowing(self, source: LossMap, descent: Descent, horizon: float, single: int) -> Curves:
        """The curves from some steps ahead on, by one linearisation there."""
        leg = Leg(source, descent).grown()
        with ExitStack() as stack:
            observed = source
            if self.observed is not self.source:
                observed = stack.enter_context(closing(self.observed.moved(source.theta)))
            path = leg.course.run(horizon, single)
            return self._curves(path, self._here(leg, observed), observed)

    def _among_others(self, curves: Curves, transfer: Estimate | None) -> Vector:
        """The losses where other batches' steps do to this one what transfer leaves of its own.

        So much is learned later: time, counted in learning rates, goes by more slowly. Transfer
        that is uncertain is drawn towards 1.

        Args:
            curves: Of steps on this batch.
            transfer: What of them other batches' steps do.

        Returns:
            The losses at the same steps.
        """
        if not self.elsewhere or transfer is None:
            return curves.losses
        known, expected = max(transfer.stderr, LEAST) ** -2, DOUBT**-2
        share = (known * transfer.value + expected) / (known + expected)
        passed = np.array([self.leg.descent.rates_until(float(t)) for t in curves.steps])
        slower: Vector = np.interp(min(max(share, LEAST), 1.0) * passed, passed, curves.losses)
        return slower

    def _effects(
        self, pieces: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Effects, list[Effects]]:
        """What a step on each part does to the loss, and to each mode, of each part."""
        C = self.count
        loss = torch.stack([
            torch.stack([(error * change).double().sum() for error, *_ in pieces])
            for *_, change in pieces
        ])
        found = [loss]
        if self.observed is self.source:
            moved = [self.modes.moved_by(-change) for *_, change in pieces]
            parts = [slice((c - self.before) % C, None, C) for c in range(C)]
            found += [
                torch.stack([torch.stack([x[part].sum() for part in parts]) for x in by_trial])
                for by_trial in zip(*moved, strict=True)
            ]
        joined = self.processes.sum(torch.stack(found)).cpu().numpy()
        return joined[0], list(joined[1:])

    def _transfers(
        self, effects: Effects, on_modes: list[Effects]
    ) -> tuple[Estimate | None, list[Estimate | None]]:
        if self.observed is not self.source:
            return self._from_training(effects)
        other, others = self._on_the_second()
        self.elsewhere = other is not None and not self.repeats
        if self.repeats:  # there are no other trials for which a step could be of no use
            return WHOLE, [WHOLE] * len(on_modes)
        modes = [over_own(each, others[i] if others else None) for i, each in enumerate(on_modes)]
        return over_own(effects, other), modes

    def _from_training(self, effects: Effects) -> tuple[Estimate | None, list[Estimate | None]]:
        """What the training's own step does to the batch that is probed, over its own effect."""
        change = self.observed.push([self.leg.scaled(self.through)])[0]
        other = self._on(self.observed, change)
        own = float(effects.sum())
        loss = Estimate(other[0] / own, other[1] / abs(own)) if own else None
        return loss, [None] * len(self.pulled)

    def _on(self, loss_map: LossMap, change: Tensor) -> Effect:
        """What a change of the outputs does to the loss, with the spread over trials."""
        trials = loss_map.trials()
        by_trial = torch.zeros(int(trials.max()) + 2, dtype=torch.float64, device=change.device)
        by_trial.index_add_(0, trials + 1, (loss_map.error * change).double())
        return summed(by_trial[1:], self.processes)

    def _on_the_second(self) -> tuple[Effect | None, list[Effect | None]]:
        """What the step on this batch does to another one, or None for what that one lacks."""
        if not self.processes.all(self.setting.second is not None):
            return None, []
        try:
            lin = self.lin.on(self.setting.second)
            guess = _guess(lin, _targets_of(lin))
            second = LossMap(lin, guess, by_graph=self.source.by_graph)
        except (NoLossError, ValueError, RuntimeError):
            if self.processes.size > 1:
                raise
            return None, []  # another batch may be of another shape than the step was seen with
        with closing(second):
            return self._on_another(second, lin)

    def _on_another(
        self, second: LossMap, lin: Linearization
    ) -> tuple[Effect, list[Effect | None]]:
        """The same, when the other batch is known."""
        self.repeats = self._is_the_same(second)
        known = tuple(second.counted(number) for number in range(len(lin.comparisons)))
        lin = replace(lin, comparisons=known)
        change = second.push([self.leg.scaled(self.through)])[0]
        modes = counterparts(second, lin, self.pulled)
        if modes is None:
            return self._on(second, change), []
        return self._on(second, change), [
            summed(x, self.processes) if math.isfinite(size) else None
            for x, size in zip(modes.moved_by(-change), modes.sizes, strict=True)
        ]

    def _is_the_same(self, second: LossMap) -> bool:
        """Whether another batch holds the same data, in whichever order."""

        def size_of(error: Tensor) -> float:
            return math.sqrt(float(self.processes.sum(error.double().square().sum())))

        pairs = (
            (second.loss, self.source.loss),
            (size_of(second.error), size_of(self.source.error)),
        )
        return all(abs(other - own) <= SAME * abs(own) for other, own in pairs)

    def _curves(self, path: Path, here: Tensor, observed: LossMap) -> Curves:
        losses, here = self._losses_along(path, here, observed), here.double()
        learned = self.modes.learned(outputs_at(observed, here, p) for p in path.places)
        return Curves(path.steps, losses, learned)

    def _losses_along(self, path: Path, here: Tensor, observed: LossMap) -> Vector:
        if self.observed is self.source:
            return path.losses
        here = here.double()
        moved = (outputs_at(observed, here, p).to(observed.outputs.dtype) for p in path.places)
        return observed.evaluate(moved)[0]

    def _without_the_last(self, course: Course, here: Tensor) -> Vector:
        """The losses by two directions less."""
        fewer = course.shallower(len(course.basis) - 2)
        if here is not course.directions:
            drifts = len(course.drifts)
            here = torch.cat([here[: len(fewer.basis)], here[len(here) - drifts :]])
        return self._losses_along(fewer.run(LEG), here, self.observed)

    def _with_changes(
        self, course: Course, here: Tensor, steps: Sequence[float], known: Curves
    ) -> list[Changed]:
        """Steps to learn, and rates, with one thing changed, of modes that are out of reach."""
        reach = self.setting.horizon
        stuck = [i for i, s in enumerate(steps) if s > reach >= BELIEVED]
        found = [Changed({}, {}) for _ in steps]
        if not stuck:
            return found
        for name, (changed, place) in self._changes(course, here).items():
            curves = known
            if name != AS_IT_IS:
                curves = self._curves(changed.run(BELIEVED), place, self.observed)
            rates = self.modes.rates(-moved_by(changed.pace(), place))
            for i in stuck:
                known_rates = changed.descent.rates_until
                coming = times(curves.steps, curves.learned[:, i], LEARNED, known_rates)
                found[i].steps[name] = coming.steps
                found[i].rates[name] = float(rates[i])
        others = self._other_scalings()
        for i in stuck:
            found[i].rates.update({name: float(rates[i]) for name, rates in others.items()})
        return found

    def _changes(self, course: Course, here: Tensor) -> dict[str, tuple[Course, Tensor]]:
        """Courses with one thing changed, and what their directions do to the outputs here."""
        found = {
            AS_IT_IS: (course, here),
            "at ten times the learning rate": (replace(course, speed=10.0), here),
        }
        if self.leg.clips_entries:
            descent = replace(self.leg.descent, clipping=NO_CLIPPING)
            leg = Leg(self.source, descent).grown()
            found["without clipping"] = leg.course, self._here(leg, self.observed)
        elif self.leg.clip < 1:
            found["without clipping"] = replace(course, clip_norm=math.inf), here
        if any(name.endswith("decay") for name in course.drifts):
            found["without weight decay"] = course.without_decay(), here
        return found

    def _other_scalings(self) -> dict[str, Vector]:
        """Rates of the modes under other optimizers: one product each."""
        source = self.source
        gradient = source.space.split(source.gradient)
        stepped = {name: gradient[name] for name in self.leg.parts}
        own = self.leg.scaled(source.gradient)
        adam = source.joined({n: ADAM_RATE * g / (g.abs() + 1e-8) for n, g in stepped.items()})
        plain = source.joined(stepped)
        size = float(torch.linalg.vector_norm(plain))
        plain = plain * (float(torch.linalg.vector_norm(own)) / size if size else 0.0)
        changes = self.observed.push([adam, plain])
        names = ("with Adam", "with plain gradient descent")
        return {name: self.modes.rates(-c) for name, c in zip(names, changes, strict=True)}

    def _signal_to_noise(self, pieces: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Estimate | None:
        if self.count < 3:
            return None
        gradients = torch.stack([g.double() for _, g, _ in pieces])
        gram = (gradients @ gradients.T).cpu().numpy()
        signal, stderr = shared(gram)
        noise = float(gram.sum()) - signal
        return (
            Estimate(signal / noise, stderr * (1 + signal / noise) / noise) if noise > 0 else None
        )

    def _relative_update(self) -> float:
        try:
            update = self.leg.descent.update(self.leg.stepped)
        except Exception:  # an optimizer that needs more than gradients
            return math.nan
        own = self.source.space.split(self.source.theta)
        moved = sum(float(u.double().square().sum()) for n, u in update.items() if n in own)
        size = sum(float(own[n].double().square().sum()) for n in update if n in own)
        return math.sqrt(moved / size) if size else math.nan
