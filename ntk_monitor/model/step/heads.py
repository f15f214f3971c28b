"""Which of the comparisons that were seen make up the loss, and which outputs they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntk_monitor.model.batch.structure import plain_tensor
from ntk_monitor.model.state.graph import graph_behind, nearest
from ntk_monitor.model.state.row_labels import Labels
from ntk_monitor.model.step.comparison import Head, Joined
from ntk_monitor.model.step.discovery import Candidate, Discovery
from ntk_monitor.model.step.losses import BY_HAND, LINKED
from ntk_monitor.model.step.watch import Reading


class Compares(NamedTuple):
    """What a loss compares, in every pass.

    Attributes:
        heads: The outputs that are compared.
        readings: How the calls compare, by their numbers.
        nodes: For each head, its outputs in the graph of the pass.
        constant: Whether it compares outputs with constants.
        rows: The rows of the outputs of each call, by its number.
    """

    heads: tuple[Head, ...] = ()
    readings: Mapping[int, Reading] = {}
    nodes: tuple[tuple[Any, ...], ...] = ()
    constant: bool = False
    rows: Mapping[int, Labels] = {}


def find_heads(
    discovery: Discovery, loss: Tensor, producers: Mapping[Any, str], acting: Set[Any]
) -> Compares:
    """What a loss compares.

    Torch's own loss functions tell it, and the last differences between outputs and data on the
    way to it, or log-probabilities that data picks or weighs, that are no part of the others.

    Args:
        discovery: What was seen in one pass.
        loss: The loss, with the graph of that pass.
        producers: Modules' paths by what they returned, in the graph.
        acting: Results of operations with weights, in the graph.

    Returns:
        The heads in the order of their first comparison.
    """
    behind = graph_behind([loss.grad_fn])
    candidates = [c for c in discovery.candidates if c.result in behind]
    known = [c for c in candidates if not c.by_hand]
    by_hand = [c for c in candidates if c.by_hand and not _is_pairwise(c, acting)]
    by_hand = _driven(by_hand, loss)
    varying = [c for c in by_hand if c.varies]
    by_hand = varying if varying or known else by_hand
    others = _last(_beside(by_hand, known, producers, acting) if known else by_hand)
    chosen = sorted(_of_data([*known, *others]), key=lambda c: c.number)
    by_hand_targets = {c.target for c in chosen if c.by_hand}
    groups: dict[tuple[Any, ...], list[Candidate]] = {}
    for candidate in chosen:
        producer = nearest(candidate.node, producers) or "outputs"
        loss_name = candidate.reading.loss.name
        side_by_side = candidate.by_hand and len(by_hand_targets) == 1
        kind = candidate.shape if side_by_side else len(candidate.shape)
        key = (producer, loss_name, kind, _features(candidate))
        groups.setdefault(key, []).append(candidate)
    heads, nodes = [], []
    for (producer, *_), group in groups.items():
        numbers = tuple(c.number for c in group)
        is_column = all(c.is_column for c in group)
        whole = group[0].whole if len(group) == 1 else None
        loss_of = group[0].reading.loss
        heads.append(Head(producer, loss_of, numbers, _how(group), is_column, whole))
        nodes.append(tuple(c.node for c in group))
    readings = {c.number: c.reading for c in chosen}
    constant = any(result in behind for result in discovery.constant_targets)
    rows = {c.number: c.rows for c in chosen}
    return Compares(tuple(heads), readings, tuple(nodes), constant, rows)


def _of_data(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those whose target is data; all where each was computed from what is trained."""
    return [c for c in candidates if not c.is_trained] or list(candidates)


def _beside(
    by_hand: Sequence[Candidate],
    known: Sequence[Candidate],
    producers: Mapping[Any, str],
    acting: Set[Any],
) -> list[Candidate]:
    """Comparisons by hand that have no part in others, and compare something else than these.

    Their outputs are computed by weights: what is computed from parameters alone has no target.

    Args:
        by_hand: Such that the loss drives towards their targets.
        known: Those by torch's own functions.
        producers: Modules' paths by what they returned, in the graph.
        acting: Results of operations with weights, in the graph.

    Returns:
        Some of the first.
    """
    upstream, results = graph_behind(c.node for c in known), {c.result for c in known}
    same = {(nearest(c.node, producers), c.target) for c in known}
    nodes = {c.node for c in known}
    found = []
    for c in by_hand:
        behind = graph_behind([c.result])
        apart = c.result not in upstream and behind.isdisjoint(results)
        apart = apart and not graph_behind([c.node]).isdisjoint(acting)
        twice = (nearest(c.node, producers), c.target) in same
        if c.reading.loss is not BY_HAND["difference"]:
            twice = twice or c.node in nodes or not _is_certain(c)
        if apart and not twice:
            found.append(c)
    return found


def _is_certain(candidate: Candidate) -> bool:
    """Whether a comparison of probabilities is a loss, and no reward's."""
    return candidate.evenly and candidate.reading.loss.name in (PICK, PRODUCT, BOTH)


def _last(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those on whose result no other depends; of products one, since they share a target."""
    upstream = graph_behind(c.node for c in candidates)
    last = [c for c in candidates if c.result not in upstream]
    differences = [c for c in last if c.reading.loss is BY_HAND["difference"]]
    if differences:
        return differences
    named = [c for c in last if c.reading.loss.name in (PICK, BOTH)]
    logarithms = [c for c in last if c.reading.loss.name == PRODUCT]
    return named or (logarithms or last)[:1]


PICK, PRODUCT, BOTH = (LINKED[kind].name for kind in ("pick", "product", "both"))


def _driven(candidates: Sequence[Candidate], loss: Tensor) -> list[Candidate]:
    """Comparisons whose outputs a loss drives towards what they meet.

    In a difference each entry of the outputs is driven towards the target's: not so where the
    largest one is taken off, or in the ratio of a policy to what it was. Log-probabilities that
    data picks are to become likely: those of a policy gradient's actions are so or not, by the
    reward. What meets a constant has no target.

    Args:
        candidates: Comparisons by hand.
        loss: The loss, with its graph.

    Returns:
        Some of them, and those of which it cannot be told.
    """
    known = [c for c in candidates if c.tensors is not None]
    if not known:
        return list(candidates)
    results = [c.tensors[0] for c in known if c.tensors is not None]
    others = [c.other for c in known if c.other is not None]
    each = torch.autograd.grad(loss, results + others, retain_graph=True, allow_unused=True)
    gradients = dict(zip(map(id, results + others), each, strict=True))
    driven = [c for c in known if c.tensors is not None and _lead(c, gradients)]
    return [replace(c, evenly=_pulls_evenly(c, gradients), varies=_varies(c)) for c in driven]


def _lead(candidate: Candidate, gradients: Mapping[int, Tensor | None]) -> bool:
    """Whether a loss leads all parts of a comparison to its target, by their results' ids."""
    assert candidate.tensors is not None
    g = gradients[id(candidate.tensors[0])]
    if g is None or not _leads(candidate, g):
        return False
    other = None if candidate.other is None else gradients[id(candidate.other)]
    return candidate.other is None or (other is not None and not bool((other > 0).any()))


def _pulls_evenly(candidate: Candidate, gradients: Mapping[int, Tensor | None]) -> bool:
    """Whether a loss pulls all that have one target alike, but for what it leaves out.

    A reward pulls each action by another weight.

    Args:
        candidate: The comparison.
        gradients: The derivatives of the loss, by the results' ids.

    Returns:
        True if it does.
    """
    assert candidate.tensors is not None
    result, t = candidate.tensors
    g = gradients[id(result)]
    if g is None or t.numel() != g.numel():
        return False
    g, t = plain_tensor(g).double().flatten(), plain_tensor(t).flatten()
    weighs = candidate.reading.loss.name != PICK
    counts = (g != 0) & (t != 0) if weighs else g != 0
    which = torch.zeros_like(t[counts], dtype=torch.long) if weighs else t[counts].long()
    pulls = g[counts].abs()
    if not pulls.numel():
        return False
    most = pulls.new_zeros(int(which.max()) + 1).scatter_reduce(0, which, pulls, "amax")
    return bool((pulls >= (1 - EVEN) * most[which]).all())


EVEN = 1e-3
"""Relative difference of pulls up to which they are alike."""


def _leads(candidate: Candidate, gradient: Tensor) -> bool:
    assert candidate.tensors is not None
    result, _ = candidate.tensors
    if candidate.reading.loss is BY_HAND["difference"]:
        return leads_there(result, gradient)
    return not bool((gradient > 0).any())


def _varies(candidate: Candidate) -> bool:
    """Whether the numbers of a target are not all the same."""
    assert candidate.tensors is not None
    t = candidate.tensors[1]
    return bool((t != t.flatten()[:1]).any())


def leads_there(difference: Tensor, gradient: Tensor) -> bool:
    """Whether a loss falls where a difference becomes smaller.

    Args:
        difference: Outputs less a target, or the reverse.
        gradient: The derivative of the loss in it.

    Returns:
        True if it does, but for a small part.
    """
    work = plain_tensor(difference.detach() * gradient)
    against = -work.clamp(max=0).sum(dtype=torch.float64)
    return bool(against <= AGAINST * work.abs().sum(dtype=torch.float64))


AGAINST = 0.1
"""Share of a loss's pull on the outputs that may lead away from a target."""


def _is_pairwise(candidate: Candidate, acting: Set[Any]) -> bool:
    """Whether a product's outputs compare rows with rows, as similarities do.

    They come from a matrix product of two trained tensors, after the last weights.

    Args:
        candidate: The comparison.
        acting: Results of operations with weights, in the graph.

    Returns:
        True if they do.
    """
    if candidate.reading.loss is BY_HAND["difference"]:
        return False
    seen, stack = set(), [candidate.node]
    while stack:
        node = stack.pop()
        if node in seen or node in acting:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions]
        if type(node).__name__.startswith(PRODUCTS) and all(p is not None for p in parents):
            return True
        stack += [parent for parent in parents if parent is not None]
    return False


PRODUCTS = ("MmBackward", "BmmBackward")
"""Matrix products in a graph, by the beginning of their names."""


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
    if same and _are_parts(group):
        return "parts"
    return "steps" if same and len(group[0].shape) <= 2 else "rows"


def _are_parts(group: Sequence[Candidate]) -> bool:
    """Whether outputs of one shape are features of one tensor, on the same rows.

    Columns of trials by time steps are on other rows, and no features.

    Args:
        group: The comparisons.

    Returns:
        True where that is known.
    """
    first = group[0]
    if first.part_of is None or len({c.part_of for c in group}) > 1:
        return False
    if first.reading.loss.kind == "classes" or (first.is_column and len(first.shape) > 2):
        return False
    return all(_same_rows(first.rows, c.rows) for c in group)


def _same_rows(a: Labels, b: Labels) -> bool:
    return bool(a) and a.keys() == b.keys() and all(torch.equal(a[s].near, b[s].near) for s in a)
