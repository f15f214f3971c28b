"""Which uses of weights are on the state's rows, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from ntk_monitor.model.sites.activity import joined, parameters_of
from ntk_monitor.model.sites.dependence import Dependence
from ntk_monitor.model.sites.operations.table import READERS
from ntk_monitor.model.sites.placement import (
    Numbering,
    Placement,
    Rows,
    by_order,
    numberings,
    placed_by,
)
from ntk_monitor.model.sites.recorder import OUTSIDE, Recorder
from ntk_monitor.model.sites.records import REGISTERED, Record
from ntk_monitor.model.sites.weight_sites import Coverage, Order, WeightSite
from ntk_monitor.model.state.row_labels import NOTHING, Labels


def place_uses(
    module: nn.Module,
    recorder: Recorder,
    names: Sequence[str],
    rows: Rows,
    labels: Labels,
    graph: Container[Any],
    dependence: Dependence,
    valid: Tensor | None = None,
) -> PlacedUses:
    """Where the studied parameters multiply activity on the state's rows.

    A weight that acts once per time step on activity of shape (B, m) is one site over time. A
    weight used twice on the same rows has two sites. Uses that the state does not depend on do not
    count. Rows are told by their numbers; where these were lost on the way, by what the first
    trial of the state depends on.

    Args:
        module: The module under study.
        recorder: What was seen in one forward pass.
        names: The studied parameters that reach the state.
        rows: The state's, ``(B, T)``.
        labels: Of the state.
        graph: The nodes of the state's graph.
        dependence: Tells more of what depends on what.
        valid: Which rows of the state there are, (B, T); None for all.

    Returns:
        The uses in the order of the first of each, and what they cover.
    """
    ordered = sorted(recorder.records, key=lambda r: r.call)
    records = [r for r in ordered if any(node in graph for node in r.nodes)]
    told = {name for r in records if r.call == REGISTERED for name in parameters_of(r)}
    records = [r for r in records if r.call == REGISTERED or told.isdisjoint(parameters_of(r))]
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.label, []).append(record)
    known = list(numberings(labels, rows))
    placed: list[tuple[Sequence[Record], Placement]] = []
    lost: list[list[Record]] = []
    apart: list[Record] = []
    for group in groups.values():
        found = _by_numbers(group, recorder, known, rows, dependence)
        if found is None and _is_a_trial_each(group, rows, dependence):
            found = [(group, by_order(rows, "trials", (), recorder.theta[names[0]].device))]
        if found is None:
            lost += _steps(group, rows, dependence)
            continue
        placed += found
        inside = {id(record) for uses, _ in found for record in uses}
        apart += [record for record in group if id(record) not in inside]
    orders = _orders([uses[0] for uses in lost], rows, dependence)
    for i, uses in enumerate(lost):
        order = orders[i]
        if len(uses) > 1:  # one after the other: in the order of the trials, or in none
            ends = dependence.orders([uses[0], uses[-1]])
            forward = ends == ["batch", "batch"] and not dependence.moves_first_step(uses[-1])
            order = "batch" if forward else None
        if order is None:
            apart += uses
        else:
            spans = [prod(r.use.rows) // rows[0] for r in uses] if order == "batch" else []
            device = recorder.theta[names[0]].device if names else None
            placed.append((uses, by_order(rows, order, spans, device)))
    apart = _without_alternatives(apart, [record for uses, _ in placed for record in uses])
    number = {id(record): i for i, record in enumerate(ordered)}
    placed.sort(key=lambda each: number[id(each[0][0])])
    bare = tuple(
        ([replace(record, output=None, nodes=()) for record in uses], placement)
        for uses, placement in placed
    )
    coverage = _coverage(module, recorder, names, [uses for uses, _ in placed], apart, rows)
    return PlacedUses(bare, rows, valid, coverage)


def _by_numbers(
    group: Sequence[Record],
    recorder: Recorder,
    known: Sequence[Numbering],
    rows: Rows,
    dependence: Dependence,
) -> list[tuple[Sequence[Record], Placement]] | None:
    """The sites of one weight by the numbers of their rows; None where numbers were lost."""
    follower = recorder.rows
    labels = [follower.used.get(record.key, NOTHING) for record in group]
    pairs = zip(group, labels, strict=True)
    met: list[Labels] = [{**own, **follower.met.get(r.key, {})} for r, own in pairs]
    sources = {numbering.source for numbering in known}
    spread = [record.key in follower.spread for record in group]
    if not known or not (any(spread) or any(sources & each.keys() for each in met)):
        return None
    best: list[tuple[Sequence[Record], Placement]] = []
    most = 0
    for numbering, told in product(known, (labels, met)):
        found: list[tuple[Sequence[Record], Placement]] = []
        own = [
            NOTHING if wide and not numbering.is_shared else each
            for wide, each in zip(spread, told, strict=True)
        ]
        shape = follower.shape_of(numbering.source)
        for numbers, placement in placed_by(numbering, own, rows, shape):
            uses = [group[i] for i in numbers]
            each_use = zip(uses, placement.inverse, strict=True)
            if placement.is_shared and not all(map(dependence.moves_all_trials, uses)):
                continue
            if all(_is_inside(record, inverse, dependence) for record, inverse in each_use):
                found.append((uses, placement))
        count = sum(int((p.index >= 0).sum()) for _, p in found)
        if count > most:
            best, most = found, count
    return best


def _without_alternatives(apart: Sequence[Record], placed: Sequence[Record]) -> list[Record]:
    """Uses on other rows, but for those in whose place one is on the state's, or the other way."""
    inside = {record.key for record in placed}
    there = frozenset().union(*(record.instead for record in placed))
    return [r for r in apart if r.key not in there and inside.isdisjoint(r.instead)]


def _is_inside(record: Record, inverse: Tensor, dependence: Dependence) -> bool:
    """Whether the rows of a use that are none of the state's do not move the state."""
    outside = inverse < 0
    if record.valid is not None:
        outside &= record.valid.flatten().to(outside.device)
    return not bool(outside.any()) or not dependence.moves(record, outside)


def _coverage(
    module: nn.Module,
    recorder: Recorder,
    names: Sequence[str],
    placed: Sequence[Sequence[Record]],
    apart: Sequence[Record],
    rows: Rows,
) -> Coverage:
    """What of the parameters the placed uses are: each counts by the share of its uses."""
    inside = Counter(name for uses in placed for record in uses for name in parameters_of(record))
    outside = Counter(name for record in apart for name in parameters_of(record))
    left_out: dict[str, str] = {}
    missed: list[str] = []
    for record in apart:
        for name in parameters_of(record):
            left_out.setdefault(name, _elsewhere(record.use.rows, rows, also=bool(inside[name])))
    for name in names:
        if name in left_out or inside[name]:
            continue
        met = recorder.met.get(name)
        left_out[name] = f"{_owner(module, name)} uses it " + (f"in {met!r}" if met else "unseen")
        if met not in OUTSIDE and met not in READERS:
            missed.append(name)
    left_out = {name: left_out[name] for name in names if name in left_out}
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    behind = sum(sizes[name] for name in names)
    covered = sum(sizes[n] * inside[n] / (inside[n] + outside[n]) for n in names if inside[n])
    share = covered / behind if behind else 0.0  # of a frozen body nothing
    return Coverage(share, left_out, tuple(missed))


def _elsewhere(own: Sequence[int], rows: Rows, *, also: bool) -> str:
    """Why a use is left out."""
    acts, which = ("it also acts on rows", ", which") if also else ("its rows", "")
    why = f"{acts} {tuple(own)}{which}"
    if prod(own) != prod(rows):
        return f"{why} are not the state's {rows}"
    return (
        f"{why} cannot be followed to the state's {rows}: a product with a constant over trials or "
        "steps, or another operation in which rows come together, is on the way"
    )


def _owner(module: nn.Module, name: str) -> str:
    return type(module.get_submodule(name.rpartition(".")[0])).__name__


def _is_a_trial_each(group: Sequence[Record], rows: Rows, dependence: Dependence) -> bool:
    """Whether uses with the same label are those of the trials, one after the other."""
    B, T = rows
    if not len(group) == B > 1 or any(r.path is not None for r in group):
        return False
    return all(prod(r.use.rows) == T for r in group) and dependence.is_a_trial_each(group)


def _steps(group: Sequence[Record], rows: Rows, dependence: Dependence) -> list[list[Record]]:
    """Uses with the same label, those of successive time steps together."""
    # A weight that acts once less often than there are steps does so from the second step on, if
    # the first step of the state does not depend on it: that is given from outside, as the initial
    # value of a differential equation is.
    B, T = rows
    spans = [r.use.rows[1] for r in group if len(r.use.rows) == 2 and r.use.rows[0] == B]
    if len(spans) == len(group) > 1 and sum(spans) == T:  # sequences, one after the other
        return [list(group)]
    if T == 1 or any(r.path is not None or r.use.rows != (B,) for r in group):
        return [[record] for record in group]
    late = len(group) % (T - 1) == 0 and not dependence.moves_first_step(group[0])
    steps = T - 1 if late else T
    if len(group) % steps:
        return [[record] for record in group]
    each = len(group) // steps
    return [list(group[i::each]) for i in range(each)]


def _orders(
    records: Sequence[Record], rows: Rows, dependence: Dependence
) -> dict[int, Order | None]:
    """How the rows of each operation run over the state's, by number; None if they are others."""
    found: dict[int, Order | None] = {}
    unclear: list[int] = []
    B, T = rows
    for i, record in enumerate(records):
        own = record.use.rows
        if record.path is not None:
            found[i] = "batch" if own == rows else None
        elif prod(own) != B * T:
            is_shared = own in {(T,), (1, T)} and dependence.moves_all_trials(record)
            found[i] = "steps" if is_shared else None
        elif 1 in rows or (own[0] == B != T and len(own) > 1):
            found[i] = "batch"
        elif own == (T, B) and B != T:
            found[i] = "time"
        else:
            unclear.append(i)
    # Trials do not mix: the rows that the first one depends on are its own.
    found |= zip(unclear, dependence.orders([records[i] for i in unclear]), strict=True)
    return found


class PlacedUses(NamedTuple):
    """The uses of weights that are in the core, without the graph in which they were found."""

    uses: tuple[tuple[Sequence[Record], Placement], ...]
    rows: Rows
    valid: Tensor | None
    coverage: Coverage

    @property
    def counts(self) -> Counter[str]:
        """How many sites each parameter has."""
        return Counter(name for names in self.parameters for name in names)

    @property
    def parameters(self) -> list[tuple[str, ...]]:
        """The parameters that act in each use."""
        return [parameters_of(uses[0]) for uses, _ in self.uses]

    @property
    def leaders(self) -> dict[str, str]:
        """The site's name by that of each parameter with one: a bias goes with its weight."""
        found: dict[str, str] = {}
        for names in self.parameters:
            for name in names:
                found.setdefault(name, found.get(names[0], names[0]))
        return found

    def sites(self) -> Iterator[WeightSite]:
        """The sites one after the other, with their activity, which takes memory of its own."""
        for uses, placement in self.uses:
            yield from joined(uses, self.rows, placement, self.valid)

    def covered_by(self, sites: Iterable[WeightSite]) -> Coverage:
        """What all sites cover.

        Args:
            sites: All of them, in order.

        Returns:
            The coverage with the sites' shapes.
        """
        shapes = tuple((site.name, site.activity.shape[2], site.units) for site in sites)
        return replace(self.coverage, sites=shapes)
