"""The state that ``"auto"`` stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from ntk_monitor.compat import CONVOLUTION
from ntk_monitor.model.batch.structure import first_tensor
from ntk_monitor.model.state.calls import CELLS, RECURRENT, Call, Ends, WeightUse, is_channels_first
from ntk_monitor.model.state.graph import graph_behind

MINOR = 0.25
"""Share of the weights below which their rows are not those of the state."""
READOUTS = (nn.Linear, nn.Bilinear, CONVOLUTION)
"""Layers that, as the last ones before a loss, make outputs of a state."""


def automatic_state(calls: Sequence[Call], weights: Sequence[WeightUse], ends: Ends) -> str:
    """The path that ``state="auto"`` stands for.

    Args:
        calls: All calls of submodules in one forward pass, in order.
        weights: The uses of weights, in order.
        ends: The outputs.

    Returns:
        The path; see `find_state`.

    Raises:
        ValueError: If no submodule was called.
    """
    if not calls:
        raise ValueError(
            "state='auto' found no submodule call to read a state from: name one with "
            "state='path.of.module'"
        )
    graphs = [graph_behind(nodes) for nodes in ends.nodes if any(n is not None for n in nodes)]
    ways = [[c for c in calls if not graph.isdisjoint(c.nodes)] for graph in graphs]
    ways = [way for way in ways if way] or [list(calls)]  # a frozen body is in no graph
    on_all = set.intersection(*({id(c) for c in way} for way in ways))
    shared = [c for c in ways[0] if id(c) in on_all]
    if not shared:  # networks of their own: the one with the most weights
        sizes = [sum(u.size for u in weights if not g.isdisjoint(u.nodes)) for g in graphs]
        largest = max(range(len(graphs)), key=sizes.__getitem__)
        graphs = [graphs[largest]]
        shared = [c for c in calls if not graphs[0].isdisjoint(c.nodes)] or list(calls)
        ways = [shared]
    first_of = {call.path: i for i, call in reversed(list(enumerate(calls)))}
    readouts = [first_of[c.path] for c in map(_readout, ways) if c is not None]
    limit = min(readouts, default=len(calls))
    inner = _readable(shared, calls)
    if ends.are_compared:
        before = _hidden(inner, shared, weights, graphs)
    else:
        number = {id(call): i for i, call in enumerate(calls)}
        before = [c for c in inner if number[id(c)] < limit] if readouts else []
    if not before and readouts:  # what comes before the readout may be frozen, or nothing
        before = _readable(calls[:limit], calls)
        inner = before or inner
    recurrent = [c.path for c in inner if isinstance(c.module, (*RECURRENT, *CELLS))]
    if recurrent:
        return recurrent[-1]
    return _last(before or inner, calls, weights, has_readout=bool(before))


def _hidden(
    inner: Sequence[Call],
    shared: Sequence[Call],
    weights: Sequence[WeightUse],
    graphs: Sequence[set[Any]],
) -> list[Call]:
    """Calls of modules after which weights act on the way to every output.

    The others compute the outputs themselves, or a part of them.

    Args:
        inner: Calls that return rows of features.
        shared: All calls on the way to every output.
        weights: The uses of weights.
        graphs: For each output, the graph behind it.

    Returns:
        Some of the first.
    """
    behind = []
    for graph in graphs:
        acting = [node for use in weights for node in use.nodes if node in graph]
        behind.append(graph_behind(parent for node in acting for parent, _ in node.next_functions))
    last = [c for c in shared if any(c.node is not None and c.node not in g for g in behind)]
    outputs = {c.path for c in last}
    hidden = [c for c in inner if c.path not in outputs]
    # Of a cell whose outputs are compared, all but the last call go on to another one.
    hidden = hidden or [c for c in inner if all(c is not d for d in last)]
    often = Counter(c.path for c in shared)
    return hidden or [c for c in inner if often[c.path] > 1 and _goes_in_steps(c, shared)]


def _last(
    before: Sequence[Call],
    calls: Sequence[Call],
    weights: Sequence[WeightUse],
    *,
    has_readout: bool,
) -> str:
    """The last of some calls on whose rows weights act."""
    rows = _rows(before[-1], calls)
    sizes: dict[int, int] = {}
    for use in weights[: before[-1].uses]:
        sizes[use.rows] = sizes.get(use.rows, 0) + use.size
    if sizes and has_readout and sizes.get(rows, 0) < MINOR * sum(sizes.values()):
        rows = max(sizes, key=lambda count: sizes[count])
    often = Counter(call.path for call in calls)
    once = [call for call in before if often[call.path] == 1]
    last = next((call for call in reversed(once) if _rows(call, calls) == rows), None)
    if last is None and often[before[-1].path] > 1:
        return next((c.path for c in reversed(before) if _goes_in_steps(c, calls)), before[-1].path)
    if last is None:
        return before[-1].path
    # A module that hands on what one of its own returned is named by the inner one.
    same = (c for c in once if first_tensor(c.output) is first_tensor(last.output))
    return next(call.path for call in same if _rows(call, calls) == rows)


def _readable(some: Sequence[Call], calls: Sequence[Call]) -> list[Call]:
    """Calls that return rows of features, of modules that see data, if there are any."""
    varying = {c.path for c in calls if c.varies}
    rows = [c for c in some if _rows(c, calls) or isinstance(c.module, RECURRENT)]
    return [c for c in rows if c.path in varying] or rows or list(some)


def _readout(way: Sequence[Call]) -> Call | None:
    """The layer that makes the outputs, if the last one with weights on the way to them does."""
    last = next((call for call in reversed(way) if _is_layer(call.module)), None)
    return last if last is not None and isinstance(last.module, READOUTS) else None


def _goes_in_steps(call: Call, calls: Sequence[Call]) -> bool:
    """Whether all calls of a module return trials of the same features."""
    outputs = [first_tensor(c.output) for c in calls if c.path == call.path]
    features = {t.shape[1] if isinstance(t, Tensor) and t.ndim == 2 else None for t in outputs}
    return len(features) == 1 and None not in features


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has parameters and no modules of its own."""
    return not any(True for _ in module.children()) and any(True for _ in module.parameters())


def _rows(call: Call, calls: Sequence[Call]) -> int:
    """How many rows of features a module returned."""
    output = first_tensor(call.output)
    if not isinstance(output, Tensor) or output.ndim < 2:
        return 0
    if output.ndim > 2 and is_channels_first(call, calls):
        return output.numel() // output.shape[1]
    return prod(output.shape[:-1])
