"""Where the state is, what reaches it, and where its weights multiply activity."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ntk_monitor.model.derivatives.site_sampling import WideSite, wide_site, wide_sites
from ntk_monitor.model.derivatives.trial_gradients import TrialSite, trial_sites
from ntk_monitor.model.isolation.memory import free_memory
from ntk_monitor.model.passes import (
    MEMORY_SHARE,
    Question,
    StepLoss,
    affordable_chunk,
    found_in,
    recorded_pass,
    recurrence_of,
    sizes_of,
    step_of,
    untrained_rows,
)
from ntk_monitor.model.sites.collector import Collector, Number
from ntk_monitor.model.sites.dependence import ByGradient, ByShaking
from ntk_monitor.model.sites.placing import PlacedUses, place_uses
from ntk_monitor.model.sites.processes import in_every_process
from ntk_monitor.model.sites.saved_tensors import (
    GraphNeededError,
    Sketch,
    TooLargeError,
    without_saved_tensors,
)
from ntk_monitor.model.sites.weight_sites import Coverage, WeightSite
from ntk_monitor.model.state.finding import State
from ntk_monitor.model.state.row_labels import Labels

logger = logging.getLogger(__name__)

TRIAL_MEMORY = 2**29
"""Most bytes that gradients trial by trial may take: no more than what is little on any machine."""


class Discovered(NamedTuple):
    """What is known of a model before any product."""

    where: State
    h: Tensor
    reached: tuple[str, ...]
    sites: tuple[WeightSite, ...]
    coverage: Coverage
    recurrence: State | None
    chunk_size: int
    untrained: Mapping[str, int]
    loss: StepLoss
    rows: Labels
    wide: tuple[WideSite, ...] = ()
    leaders: Mapping[str, str] = {}
    by_trial: tuple[TrialSite, ...] = ()
    room: float = math.inf
    here: tuple[str, ...] = ()
    """Of the parameters that reach the state, those that do so in this process."""


def discover(question: Question, *, sketched: bool, room: float) -> Discovered:
    """Look at a model in one forward pass that keeps all, or in several that keep little.

    Args:
        question: What is asked.
        sketched: Whether to keep little from the start.
        room: Bytes that may be kept otherwise; what needs more is done with little, if it can be.

    Returns:
        The answer. Of both ways it is the same, to rounding.
    """
    if not sketched:
        try:
            return _kept(question, room)
        except TooLargeError:
            logger.info("activations take more than %d bytes: weight sites are streamed", room)
    try:
        return _streamed(question)
    except GraphNeededError as error:
        logger.info("weight sites are not streamed: %s", error)
        return _kept(question, math.inf)


def _kept(question: Question, room: float) -> Discovered:
    """In one pass, whose graph and activations are kept."""
    recorded = recorded_pass(question, room)
    recorder, found = recorded.recorder, found_in(question, recorded)
    del recorded  # what the step returned may be larger than all else
    placed = place_uses(
        question.forward.module,
        recorder,
        found.reached,
        found.rows,
        found.labels,
        found.graph,
        ByGradient(found.h),
        found.where.valid,
    )
    h = found.h.detach()
    steps = step_of(found.where, recorder.calls, h)
    untrained = untrained_rows(recorder, found.reached)
    room = min(room, MEMORY_SHARE * free_memory(h.device), TRIAL_MEMORY)
    kept = trial_sites(placed, untrained, room)
    seen = _seen(question, placed, found.reached, h, kept)
    return Discovered(
        found.where,
        h,
        found.reached,
        seen.sites,
        seen.coverage,
        recurrence_of(found.where, steps, h),
        affordable_chunk(recorder.calls, h),
        untrained,
        found.loss,
        found.labels,
        seen.wide,
        placed.leaders,
        seen.by_trial,
        room,
        found.here,
    )


class _Seen(NamedTuple):
    """The sites, none where their activity is consumed, and what is known of all of them."""

    sites: tuple[WeightSite, ...]
    coverage: Coverage
    wide: tuple[WideSite, ...] = ()
    by_trial: tuple[TrialSite, ...] = ()


def _seen(
    question: Question,
    placed: PlacedUses,
    reached: Sequence[str],
    h: Tensor,
    kept: Callable[[WeightSite], TrialSite | None],
) -> _Seen:
    """Look at all sites, one after the other."""
    consume, processes = question.consume, question.processes
    if consume is None or processes.size > 1:
        every = tuple(placed.sites())
        sizes = sizes_of(question, reached)
        common, coverage = in_every_process(every, placed.covered_by(every), sizes, processes)
        sites = tuple(every[number].over(entries) for number, entries in common.items())
        if consume is None:
            return _Seen(sites, coverage)
        for site in sites:
            consume(site.activity.flatten(0, 1), None)
        return _Seen((), coverage)
    shapes, wide, by_trial = [], [], []
    gram_of = wide_sites(placed, sizes_of(question, reached))
    for site in placed.sites():
        gram = gram_of(site)
        consume(site.activity.flatten(0, 1), gram)
        if gram is not None:
            wide.append(wide_site(site, gram, h))
        if (apart := kept(site)) is not None:
            by_trial.append(apart)
        shapes.append(site.without_activity())
    return _Seen((), placed.covered_by(shapes), tuple(wide), tuple(by_trial))


def _streamed(question: Question) -> Discovered:
    """In several passes, which keep no graph and no activations."""
    forward = question.forward
    recorded = forward.record(question.names, Sketch())
    recorder, found = recorded.recorder, found_in(question, recorded)
    del recorded  # what the step returned may be larger than all else
    where, loss, labels = found.where, found.loss, found.labels

    def state_again() -> Tensor:
        with without_saved_tensors():
            return forward.run(forward.leaves(question.names), where).detach().clone()

    placed = place_uses(
        forward.module,
        recorder,
        found.reached,
        found.rows,
        found.labels,
        found.graph,
        ByShaking(state_again, found.rows),
        where.valid,
    )
    steps = step_of(where, recorder.calls, found.h)
    chunk_size = affordable_chunk(recorder.calls, found.h)
    untrained = untrained_rows(recorder, found.reached)
    reached, here, leaders = found.reached, found.here, placed.leaders
    del recorder, found
    h, outputs, sites, coverage = _collected(question, placed, where, reached, list(steps))
    recurrence = recurrence_of(where, {path: outputs[path] for path in steps}, h)
    return Discovered(
        where,
        h,
        reached,
        sites,
        coverage,
        recurrence,
        chunk_size,
        untrained,
        loss,
        labels,
        leaders=leaders,
        here=here,
    )


def _collected(
    question: Question,
    placed: PlacedUses,
    where: State,
    reached: Sequence[str],
    watched: Sequence[str],
) -> tuple[Tensor, dict[str, list[Tensor]], tuple[WeightSite, ...], Coverage]:
    """The state, outputs that are watched, the sites (none if consumed), and their coverage."""
    processes, names = question.processes, question.names
    kept: dict[Number, Tensor | None] | None = None
    common: Coverage | None = None
    if processes.size > 1:
        shapes = Collector(placed, lambda *_: None)
        question.forward.collect(shapes, names, where)
        every, sizes = shapes.sites, sizes_of(question, reached)
        own, numbers = tuple(every.values()), list(every)
        found, common = in_every_process(own, placed.covered_by(own), sizes, processes)
        kept = {numbers[i]: entries for i, entries in found.items()}
    seen: dict[Number, WeightSite] = {}

    def visit(number: Number, site: WeightSite) -> None:
        if kept is not None:
            if number not in kept:
                return
            site = site.over(kept[number])
        if question.consume is None:
            seen[number] = site
        else:
            question.consume(site.activity.flatten(0, 1), None)

    collector = Collector(placed, visit, watched)
    h = question.forward.collect(collector, names, where)
    coverage = placed.covered_by(collector.sites.values()) if common is None else common
    return h, collector.outputs, tuple(site for _, site in sorted(seen.items())), coverage
