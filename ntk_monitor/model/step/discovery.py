"""Which of the comparisons that were seen make up the loss, and which outputs they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ntk_monitor.model.graph import graph_behind, nearest
from ntk_monitor.model.step.comparison import Head, Joined
from ntk_monitor.model.step.losses import BY_HAND
from ntk_monitor.model.step.watch import Candidate, Discovery, Reading


class Compares(NamedTuple):
    """What a loss compares, in every pass.

    Attributes:
        heads: The outputs that are compared.
        readings: How the calls compare, by their numbers.
        nodes: For each head, its outputs in the graph of the pass.
        constant: Whether it compares outputs with constants.
    """

    heads: tuple[Head, ...] = ()
    readings: Mapping[int, Reading] = {}
    nodes: tuple[tuple[Any, ...], ...] = ()
    constant: bool = False


def find_heads(discovery: Discovery, loss: Any, producers: Mapping[Any, str]) -> Compares:  # noqa: ANN401
    """What a loss compares.

    Torch's own loss functions tell it; where the loss uses none, the last differences between
    outputs and data on the way to it, or log-probabilities that data picks or weighs.

    Args:
        discovery: What was seen in one pass.
        loss: The loss in the graph of that pass.
        producers: Modules' paths by what they returned, in the graph.

    Returns:
        The heads in the order of their first comparison.
    """
    behind = graph_behind([loss])
    candidates = [c for c in discovery.candidates if c.result in behind]
    known = [c for c in candidates if not c.by_hand]
    chosen = known or _last(candidates)
    groups: dict[tuple[Any, ...], list[Candidate]] = {}
    for candidate in chosen:
        producer = nearest(candidate.node, producers) or "outputs"
        loss_name = candidate.reading.loss.name
        side_by_side = candidate.by_hand and len({c.target for c in chosen}) == 1
        kind = candidate.shape if side_by_side else len(candidate.shape)
        key = (producer, loss_name, kind, _features(candidate))
        groups.setdefault(key, []).append(candidate)
    heads, nodes = [], []
    for (producer, *_), group in groups.items():
        numbers = tuple(c.number for c in group)
        heads.append(Head(producer, group[0].reading.loss, numbers, _how(group)))
        nodes.append(tuple(c.node for c in group))
    readings = {c.number: c.reading for c in chosen}
    constant = any(result in behind for result in discovery.constant_targets)
    return Compares(tuple(heads), readings, tuple(nodes), constant)


def _last(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those on whose result no other depends; of products one, since they share a target."""
    upstream = graph_behind(c.node for c in candidates)
    last = [c for c in candidates if c.result not in upstream]
    differences = [c for c in last if c.reading.loss is BY_HAND["difference"]]
    if differences:
        return differences
    picks = [c for c in last if c.reading.loss.kind == "classes"]
    logarithms = [c for c in last if c.reading.loss is BY_HAND["product"]]
    return picks or (logarithms or last)[:1]


def _features(candidate: Candidate) -> int | None:
    shape = candidate.shape
    second = candidate.reading.loss.kind == "classes" and candidate.reading.loss.classes_second
    return None if len(shape) < 2 else shape[1] if second else shape[-1]


def _how(group: Sequence[Candidate]) -> Joined:
    """How the comparisons of one module are one."""
    if len(group) == 1:
        return "alone"
    same = len({c.shape for c in group}) == 1
    if same and group[0].by_hand and len({c.target for c in group}) == 1:
        return "features"
    return "steps" if same and len(group[0].shape) <= 2 else "rows"
