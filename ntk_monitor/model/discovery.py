"""Where the state is, what reaches it, and where its weights multiply activity."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ntk_monitor.model.batch.structure import first_tensor
from ntk_monitor.model.derivatives.site_sampling import wide_site, wide_sites
from ntk_monitor.model.derivatives.trial_gradients import trial_sites
from ntk_monitor.model.isolation.memory import free_memory
from ntk_monitor.model.passes import MEMORY_SHARE, Found, Question, found_in, recorded_pass
from ntk_monitor.model.sites.collector import Collector, Number
from ntk_monitor.model.sites.dependence import ByGradient, ByShaking, Dependence
from ntk_monitor.model.sites.placing import PlacedUses, place_uses
from ntk_monitor.model.sites.processes import in_every_process
from ntk_monitor.model.sites.recorder import Recorder
from ntk_monitor.model.sites.saved_tensors import (
    GraphNeededError,
    Sketch,
    TooLargeError,
    without_saved_tensors,
)
from ntk_monitor.model.sites.weight_sites import Coverage, WeightSite
from ntk_monitor.model.state.calls import Call
from ntk_monitor.model.state.finding import State
from ntk_monitor.model.state.sources import StateSource

logger = logging.getLogger(__name__)

TRIAL_MEMORY = 2**29
"""Most bytes that gradients trial by trial may take: no more than what is little on any machine."""


def discover(question: Question, *, sketched: bool, room: float) -> Found:
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


def _kept(question: Question, room: float) -> Found:
    """In one pass, whose graph and activations are kept."""
    recorded = recorded_pass(question, room)
    recorder, found = recorded.recorder, found_in(question, recorded)
    del recorded  # what the step returned may be larger than all else
    placed = _placed(question, recorder, found, ByGradient(found.h))
    h = found.h.detach()
    recurrence = _recurrence_of(found.where, _step_of(found.where, recorder.calls, h), h)
    room = min(room, MEMORY_SHARE * free_memory(h.device), TRIAL_MEMORY)
    found = found._replace(h=h, graph=set(), recurrence=recurrence, room=room)
    return _with_sites(question, placed, found._replace(leaders=placed.leaders))


def _placed(
    question: Question, recorder: Recorder, found: Found, dependence: Dependence
) -> PlacedUses:
    return place_uses(
        question.forward.module,
        recorder,
        found.reached,
        found.rows,
        found.labels,
        found.graph,
        dependence,
        found.where.valid,
    )


def _with_sites(question: Question, placed: PlacedUses, found: Found) -> Found:
    """Look at all sites, one after the other; they are kept where nothing consumes them."""
    consume, processes, sizes = question.consume, question.processes, question.sizes(found.reached)
    if consume is None or processes.size > 1:
        every = tuple(placed.sites())
        common, coverage = in_every_process(every, placed.covered_by(every), sizes, processes)
        sites = tuple(every[number].over(entries) for number, entries in common.items())
        if consume is None:
            return found._replace(sites=sites, coverage=coverage)
        for site in sites:
            consume(site.activity.flatten(0, 1), None)
        return found._replace(coverage=coverage)
    shapes, wide, by_trial = [], [], []
    gram_of = wide_sites(placed, sizes)
    kept = trial_sites(placed, found.untrained, found.room)
    for site in placed.sites():
        gram = gram_of(site)
        consume(site.activity.flatten(0, 1), gram)
        if gram is not None:
            wide.append(wide_site(site, gram, found.h))
        if (apart := kept(site)) is not None:
            by_trial.append(apart)
        shapes.append(site.without_activity())
    coverage = placed.covered_by(shapes)
    return found._replace(coverage=coverage, wide=tuple(wide), by_trial=tuple(by_trial))


def _streamed(question: Question) -> Found:
    """In several passes, which keep no graph and no activations."""
    forward = question.forward
    recorded = forward.record(question.names, Sketch())
    recorder, found = recorded.recorder, found_in(question, recorded)
    del recorded  # what the step returned may be larger than all else
    where = found.where

    def state_again() -> Tensor:
        with without_saved_tensors():
            return forward.run(forward.leaves(question.names), where).detach().clone()

    placed = _placed(question, recorder, found, ByShaking(state_again, found.rows))
    steps = list(_step_of(where, recorder.calls, found.h))
    del recorder
    found = found._replace(h=found.h.detach(), graph=set(), leaders=placed.leaders)
    return _collected(question, placed, found, steps)


def _collected(
    question: Question, placed: PlacedUses, found: Found, watched: Sequence[str]
) -> Found:
    """With the state, its recurrence in outputs that are watched, the sites and their coverage."""
    processes, names, where = question.processes, question.names, found.where
    kept: dict[Number, Tensor | None] | None = None
    common: Coverage | None = None
    if processes.size > 1:
        shapes = Collector(placed, lambda *_: None)
        question.forward.collect(shapes, names, where)
        every, sizes = shapes.sites, question.sizes(found.reached)
        own, numbers = tuple(every.values()), list(every)
        those, common = in_every_process(own, placed.covered_by(own), sizes, processes)
        kept = {numbers[i]: entries for i, entries in those.items()}
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
    sites = tuple(site for _, site in sorted(seen.items()))
    recurrence = _recurrence_of(where, collector.outputs, h)
    return found._replace(h=h, sites=sites, coverage=coverage, recurrence=recurrence)


def _step_of(state: State, calls: Sequence[Call], h: Tensor) -> dict[str, list[Tensor]]:
    """What each submodule of the state's returned, where it may be the state step by step."""
    source = state.sources[0]
    if len(state.sources) > 1 or source.recurrent or source.spans:
        return {}
    steps: dict[str, list[Tensor]] = {}
    for call in calls:
        output, inside = first_tensor(call.output), call.path.startswith(f"{source.path}.")
        if inside and isinstance(output, Tensor) and output.ndim == 2:
            steps.setdefault(call.path, []).append(output)
    return {
        path: outputs
        for path, outputs in steps.items()
        if len(outputs) == h.shape[1] > 1 and outputs[0].shape == h[:, 0].shape
    }


def _recurrence_of(state: State, steps: Mapping[str, Sequence[Tensor]], h: Tensor) -> State | None:
    """The state as the outputs of what recurs.

    That is the state's own module if it is a recurrent layer or a cell; else a submodule of it
    that is called once per time step and returns just the state.

    Args:
        state: The state.
        steps: What each submodule returned at each of its calls.
        h: The state's values.

    Returns:
        It; None if there is no such module.
    """
    if len(state.sources) > 1:
        return None
    if state.sources[0].recurrent or state.sources[0].spans:
        return state
    for path, outputs in steps.items():
        if torch.equal(torch.stack(list(outputs), dim=1), h):
            return replace(state, sources=(StateSource(path, spans=(1,) * len(outputs)),))
    return None
