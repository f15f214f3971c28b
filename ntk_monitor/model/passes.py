"""The recorded forward pass of a discovery: the state, the step's loss, and what memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntk_monitor.model.batch.structure import first_tensor, main_output
from ntk_monitor.model.derivatives.forward_map import ForwardMap, Recorded
from ntk_monitor.model.derivatives.site_sampling import WideSite
from ntk_monitor.model.derivatives.trial_gradients import TrialSite
from ntk_monitor.model.isolation.memory import free_memory
from ntk_monitor.model.sites.placement import Rows
from ntk_monitor.model.sites.saved_tensors import TooLargeError
from ntk_monitor.model.sites.weight_sites import Coverage, WeightSite
from ntk_monitor.model.state.calls import Call, Ends, WeightUse
from ntk_monitor.model.state.finding import State, StatePath, find_state, state_rows
from ntk_monitor.model.state.graph import graph_behind
from ntk_monitor.model.state.row_labels import NOTHING, Labels
from ntk_monitor.model.step import StepError, StepFunction
from ntk_monitor.model.step.heads import Compares, find_heads
from ntk_monitor.model.step.standins import REMEDY
from ntk_monitor.processes import Processes

MAX_CHUNK = 16
"""Most tangents carried at once: beyond, products hardly become cheaper."""
MEMORY_SHARE = 0.1
"""Share of the free memory that the tangents of one pass may take."""

Consumer = Callable[[Tensor, Tensor | None], None]
"""Takes the activity ``V`` of one site, (k, m), and ``V V*`` in float64 where that is known."""


class Question(NamedTuple):
    """What is asked of a model.

    Attributes:
        forward: The model.
        names: The studied parameters.
        chosen: Whether a user chose them; otherwise they are all that are trained.
        state: Where the state is, or ``"auto"``.
        mask: Which rows of it there are.
        must_fit: Whether a mask of another shape is an error.
        processes: The processes that ask the same.
        consume: Takes the activity of each site, which is not kept then; None to keep it.
    """

    forward: ForwardMap
    names: tuple[str, ...]
    chosen: bool
    state: StatePath
    mask: Tensor | None
    must_fit: bool
    processes: Processes
    consume: Consumer | None

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """How many numbers each parameter has, by its name."""
        return {name: self.forward.tensors[name].numel() for name in names}


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


class Found(NamedTuple):
    """What is known of a model before any product: of its first passes.

    Attributes:
        where: Where the state is.
        h: The state.
        graph: What is behind it, as long as that is kept.
        reached: The studied parameters that reach the state.
        here: Those of them that do so in this process.
        loss: The step's loss.
        labels: The rows of the state.
        untrained: By parameters' names, a row that gets no gradient.
        chunk_size: How many tangents fit in memory.
        recurrence: The state as the outputs of what recurs, or None.
        sites: The weight sites, none where their activity is consumed.
        coverage: What all of them cover.
        leaders: The site's name by that of each parameter with one.
        wide: Sites with more parameters than they need tangents for.
        by_trial: Sites that tell trials apart.
        room: Bytes that gradients trial by trial may take.
    """

    where: State
    h: Tensor
    graph: set[Any]
    reached: tuple[str, ...]
    here: tuple[str, ...]
    loss: StepLoss
    labels: Labels
    untrained: Mapping[str, int]
    chunk_size: int
    recurrence: State | None = None
    sites: tuple[WeightSite, ...] = ()
    coverage: Coverage = Coverage(0.0)
    leaders: Mapping[str, str] = {}
    wide: tuple[WideSite, ...] = ()
    by_trial: tuple[TrialSite, ...] = ()
    room: float = math.inf

    @property
    def rows(self) -> Rows:
        """The state's trials and time steps."""
        return self.h.shape[0], self.h.shape[1]


def found_in(question: Question, recorded: Recorded) -> Found:
    """What a recorded forward pass answers: the state, the uses of weights, the loss."""
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
    anywhere = question.processes.sum(here.long()) > 0  # an expert may have no rows here
    reached = tuple(name for name, there in zip(names, anywhere, strict=True) if there)
    others = recorder.reaching(graph_behind(node for end in ends.nodes for node in end))
    if not reached and (question.chosen or not others):
        raise ValueError(
            f"no studied parameter reaches the state {', '.join(where.paths)!r}, so gradient "
            "descent cannot move it: choose a later module with state=..., or other parameters"
        )
    own = tuple(name for name in reached if name in reaching)
    labels, chunk_size = state_rows(where, recorder.calls), affordable_chunk(recorder.calls, h)
    untrained = {name: row for name in reached if (row := recorder.untrained(name)) is not None}
    return Found(where, h, graph, reached, own, loss, labels, untrained, chunk_size)


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
    kept = compares._replace(nodes=())  # they would keep the pass's graph alive
    return StepLoss(value, kept, discovery.sums), Ends(ends, are_compared=True)


def recorded_pass(question: Question, room: float) -> Recorded:
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
        question.processes.all(False)
        raise
    if not question.processes.all(True):
        raise TooLargeError("what a pass keeps takes more memory than another process has")
    return recorded


def affordable_chunk(calls: Sequence[Call], h: Tensor) -> int:
    """How many tangents fit in memory, judged by the activations of a forward pass."""
    outputs = [first_tensor(call.output) for call in calls]
    tensors = [t for t in outputs if isinstance(t, Tensor)]
    size = 2 * sum(t.numel() * t.element_size() for t in tensors)
    most = MEMORY_SHARE * free_memory(h.device) / max(size, 1)
    return int(max(1, min(MAX_CHUNK, most)))
