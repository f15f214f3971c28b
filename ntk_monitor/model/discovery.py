"""Where the state is, what reaches it, and where its weights multiply activity."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntk_monitor.model.batch.structure import first_tensor, main_output
from ntk_monitor.model.derivatives.forward_map import ForwardMap, Recorded
from ntk_monitor.model.derivatives.site_sampling import WideSite, wide_site, wide_sites
from ntk_monitor.model.derivatives.trial_gradients import TrialSite, trial_sites
from ntk_monitor.model.isolation.memory import free_memory
from ntk_monitor.model.sites.collector import Collector, Number
from ntk_monitor.model.sites.dependence import ByGradient, ByShaking
from ntk_monitor.model.sites.placement import Rows
from ntk_monitor.model.sites.processes import in_every_process
from ntk_monitor.model.sites.recorder import Recorder
from ntk_monitor.model.sites.saved_tensors import (
    GraphNeededError,
    Sketch,
    TooLargeError,
    without_saved_tensors,
)
from ntk_monitor.model.sites.weight_sites import (
    Coverage,
    PlacedUses,
    WeightSite,
    place_uses,
)
from ntk_monitor.model.state.calls import Call, Ends, WeightUse
from ntk_monitor.model.state.graph import graph_behind
from ntk_monitor.model.state.row_labels import NOTHING, Labels
from ntk_monitor.model.state.sources import State, StatePath, StateSource, find_state, state_rows
from ntk_monitor.model.step import StepError, StepFunction
from ntk_monitor.model.step.heads import Compares, find_heads
from ntk_monitor.model.step.standins import REMEDY
from ntk_monitor.ranks import Ranks

logger = logging.getLogger(__name__)

MAX_CHUNK = 16
"""Most tangents carried at once: beyond, products hardly become cheaper."""
MEMORY_SHARE = 0.1
"""Share of the free memory that the tangents of one pass may take."""

TRIAL_MEMORY = 2**29
"""Most bytes that gradients trial by trial may take: no more than what is little on any machine."""

Consumer = Callable[[Tensor, Tensor | None], None]
"""Takes the activity ``V`` of one site, (k, m), and ``V V*`` in float64 where that is known."""


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


class Question(NamedTuple):
    """What is asked of a model.

    Attributes:
        forward: The model.
        names: The studied parameters.
        chosen: Whether a user chose them; otherwise they are all that are trained.
        state: Where the state is, or ``"auto"``.
        mask: Which rows of it there are.
        must_fit: Whether a mask of another shape is an error.
        ranks: The processes that ask the same.
        consume: Takes the activity of each site, which is not kept then; None to keep it.
    """

    forward: ForwardMap
    names: tuple[str, ...]
    chosen: bool
    state: StatePath
    mask: Tensor | None
    must_fit: bool
    ranks: Ranks
    consume: Consumer | None


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


class UnregisteredError(ValueError):
    """A pass uses parameters of the model's own where copies should be."""


class StepLoss(NamedTuple):
    """The loss of a step, in one recorded pass.

    Attributes:
        value: The loss; None where there is none.
        compares: What it compares.
        sums: For comparisons by torch's own functions, by number, sums that tell whether another
            pass compares the same.
        rows: Of the output, where nothing is compared.
    """

    value: float | None
    compares: Compares
    sums: Mapping[int, Tensor]
    rows: Labels = NOTHING


class _Found(NamedTuple):
    """What one recorded pass tells of the state and the loss."""

    where: State
    h: Tensor
    graph: set[Any]
    reached: tuple[str, ...]
    loss: StepLoss
    labels: Labels
    here: tuple[str, ...]

    @property
    def rows(self) -> Rows:
        return self.h.shape[0], self.h.shape[1]


def _find(question: Question, recorded: Recorded) -> _Found:
    module, names = question.forward.module, question.names
    recorder = recorded.recorder
    loss, ends = _loss(question.forward.step, recorded)
    weights = [
        WeightUse(prod(r.use.rows), r.size, () if r.weight is None else r.nodes)
        for r in recorder.records
    ]
    where, h = find_state(
        module,
        question.state,
        recorder.calls,
        weights,
        ends,
        question.mask,
        must_fit=question.must_fit,
    )
    graph = graph_behind([h.grad_fn])
    _require_registered(question.forward, graph)
    reaching = recorder.reaching(graph)
    here = torch.tensor([name in reaching for name in names], device="cpu")
    anywhere = question.ranks.sum(here.long()) > 0  # an expert may have no rows here
    reached = tuple(name for name, there in zip(names, anywhere, strict=True) if there)
    others = recorder.reaching(graph_behind(node for end in ends.nodes for node in end))
    if not reached and (question.chosen or not others):
        raise ValueError(
            f"no studied parameter reaches the state {', '.join(where.paths)!r}, so gradient "
            "descent cannot move it: choose a later module with state=..., or other parameters"
        )
    own = tuple(name for name in reached if name in reaching)
    return _Found(where, h, graph, reached, loss, state_rows(where, recorder.calls), own)


def _require_registered(forward: ForwardMap, graph: set[Any]) -> None:
    """Refuse parameters that a module keeps where no copies can take their place.

    Raises:
        UnregisteredError: If the pass has used some of the model's own in place of copies.
    """
    own = {id(t) for t in forward.tensors.values()}
    names = [n for n, p in forward.parameters.items() if id(p) in graph and id(p) not in own]
    if names:
        raise UnregisteredError(
            f"{', '.join(names[:3])} are used past the module's registry of parameters (from a "
            "list or a dictionary of its own), where no copies can take their place: "
            "method='in-place' works with the parameters themselves"
        )


def _loss(step: StepFunction, recorded: Recorded) -> tuple[StepLoss, Ends]:
    """The loss, and where the outputs are that it compares."""
    discovery = recorded.discovery
    loss = step.loss(recorded.returned, discovery.meant)
    if loss is None:
        output = main_output(recorded.returned)
        end = () if output is None else (output.grad_fn,)
        rows = NOTHING if output is None else recorded.recorder.rows.of(output)
        return StepLoss(None, Compares(), {}, rows), Ends((end,))
    if loss.grad_fn is None:
        raise StepError(
            f"the loss of {step.name} depends on no studied parameter in this call (does it run "
            "under torch.no_grad(), on a branch that is not trained, or on parameters that "
            f"parameters=... leaves out?): {REMEDY}"
        )
    producers = {node: call.path for call in recorded.recorder.calls for node in call.nodes}
    acting = {node for r in recorded.recorder.records if r.weight is not None for node in r.nodes}
    compares = find_heads(discovery, loss, producers, acting)
    value = float(loss.detach())
    ends = compares.nodes or ((loss.grad_fn,),)
    return StepLoss(value, compares, discovery.sums), Ends(ends, are_compared=True)


def _kept(question: Question, room: float) -> Discovered:
    """In one pass, whose graph and activations are kept."""
    recorded = _recorded(question, room)
    recorder, found = recorded.recorder, _find(question, recorded)
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
    steps = _steps(found.where, recorder.calls, h)
    untrained = _untrained(recorder, found.reached)
    room = min(room, MEMORY_SHARE * free_memory(h.device), TRIAL_MEMORY)
    kept = trial_sites(placed, untrained, room)
    seen = _seen(question, placed, found.reached, h, kept)
    return Discovered(
        found.where,
        h,
        found.reached,
        seen.sites,
        seen.coverage,
        _recurrence(found.where, steps, h),
        _affordable_chunk(recorder.calls, h),
        untrained,
        found.loss,
        found.labels,
        seen.wide,
        placed.leaders,
        seen.by_trial,
        room,
        found.here,
    )


def _recorded(question: Question, room: float) -> Recorded:
    """One pass of which all is kept, in every process or in none.

    Sites that are streamed come in another order, and processes sum over those of all.

    Args:
        question: What is asked.
        room: Bytes that may be kept.

    Returns:
        What was recorded.

    Raises:
        TooLargeError: If it is too much in one of them.
    """
    try:
        recorded = question.forward.record(question.names, room=room)
    except TooLargeError:
        question.ranks.all(False)
        raise
    if not question.ranks.all(True):
        raise TooLargeError("what a pass keeps takes more memory than another process has")
    return recorded


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
    consume, ranks = question.consume, question.ranks
    if consume is None or ranks.size > 1:
        every = tuple(placed.sites())
        sizes = _sizes(question, reached)
        common, coverage = in_every_process(every, placed.covered_by(every), sizes, ranks)
        sites = tuple(every[number].over(entries) for number, entries in common.items())
        if consume is None:
            return _Seen(sites, coverage)
        for site in sites:
            consume(site.activity.flatten(0, 1), None)
        return _Seen((), coverage)
    shapes, wide, by_trial = [], [], []
    gram_of = wide_sites(placed, _sizes(question, reached))
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
    recorder, found = recorded.recorder, _find(question, recorded)
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
    steps = _steps(where, recorder.calls, found.h)
    chunk_size = _affordable_chunk(recorder.calls, found.h)
    untrained = _untrained(recorder, found.reached)
    reached, here, leaders = found.reached, found.here, placed.leaders
    del recorder, found
    h, outputs, sites, coverage = _collected(question, placed, where, reached, list(steps))
    recurrence = _recurrence(where, {path: outputs[path] for path in steps}, h)
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
    ranks, names = question.ranks, question.names
    kept: dict[Number, Tensor | None] | None = None
    common: Coverage | None = None
    if ranks.size > 1:
        shapes = Collector(placed, lambda *_: None)
        question.forward.collect(shapes, names, where)
        every, sizes = shapes.sites, _sizes(question, reached)
        own, numbers = tuple(every.values()), list(every)
        found, common = in_every_process(own, placed.covered_by(own), sizes, ranks)
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


def _sizes(question: Question, names: Sequence[str]) -> dict[str, int]:
    return {name: question.forward.tensors[name].numel() for name in names}


def _untrained(recorder: Recorder, names: Sequence[str]) -> dict[str, int]:
    rows = {name: recorder.untrained(name) for name in names}
    return {name: row for name, row in rows.items() if row is not None}


def _affordable_chunk(calls: Sequence[Call], h: Tensor) -> int:
    """How many tangents fit in memory, judged by the activations of a forward pass."""
    outputs = [first_tensor(call.output) for call in calls]
    tensors = [t for t in outputs if isinstance(t, Tensor)]
    size = 2 * sum(t.numel() * t.element_size() for t in tensors)
    most = MEMORY_SHARE * free_memory(h.device) / max(size, 1)
    return int(max(1, min(MAX_CHUNK, most)))


def _steps(state: State, calls: Sequence[Call], h: Tensor) -> dict[str, list[Tensor]]:
    """What each submodule of the state's returned, where it may be the state step by step."""
    if len(state.sources) > 1 or state.sources[0].recurrent or state.sources[0].spans:
        return {}
    steps: dict[str, list[Tensor]] = {}
    for call in calls:
        output = first_tensor(call.output)
        if (
            call.path.startswith(f"{state.sources[0].path}.")
            and isinstance(output, Tensor)
            and output.ndim == 2
        ):
            steps.setdefault(call.path, []).append(output)
    return {
        path: outputs
        for path, outputs in steps.items()
        if len(outputs) == h.shape[1] > 1 and outputs[0].shape == h[:, 0].shape
    }


def _recurrence(state: State, steps: Mapping[str, Sequence[Tensor]], h: Tensor) -> State | None:
    # The state's own module if it is a recurrent layer or a cell; else a submodule of it that is
    # called once per time step and returns just the state; None if there is no such module.
    if len(state.sources) > 1:
        return None
    if state.sources[0].recurrent or state.sources[0].spans:
        return state
    for path, outputs in steps.items():
        if torch.equal(torch.stack(list(outputs), dim=1), h):
            return replace(state, sources=(StateSource(path, spans=(1,) * len(outputs)),))
    return None
