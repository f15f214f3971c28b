"""Weight sites: where a weight multiplies activity on the rows of the state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ntk_monitor.model.sites.operations.table import READERS
from ntk_monitor.model.sites.placement import (
    Numbering,
    Placement,
    Rows,
    by_order,
    numberings,
    placed_by,
)
from ntk_monitor.model.sites.recorder import OUTSIDE, REGISTERED, Record, Recorder, Tap
from ntk_monitor.model.state.row_labels import NOTHING, Labels

Order = Literal["batch", "time", "steps"]
"""How an operation's rows run over the state's: ``"batch"``: trial by trial; ``"time"``: step by
step; ``"steps"``: the same for all trials."""


@dataclass(frozen=True)
class WeightSite:
    """One use of a weight.

    Attributes:
        name: Name of the weight (or, where only the bias is trained, of the bias).
        parameters: Names of the trained parameters that act here: weight, bias or both.
        activity: ``V``, what they multiply, shape ``(B, T, m)``; a trained bias contributes a
            last column of ones, a frozen weight no columns.
        units: ``q``, how many outputs ``Q = V W*`` the weight has.
        derived: Whether the weight is computed from its parameters (masked, normalised, a product
            of two) rather than being one. The core then says where the weight could move the
            state, and less than that may be within reach of the parameters.
        tap: Where those outputs are in a forward pass.
        entries: Of an embedding, the entry that each column stands for, ascending; else None.
    """

    name: str
    parameters: tuple[str, ...]
    activity: Tensor
    units: int
    derived: bool
    tap: Tap
    entries: Tensor | None = None

    def without_activity(self) -> WeightSite:
        """The same site, its activity all zeros in one number of memory."""
        return replace(self, activity=self.activity.new_zeros(()).expand(self.activity.shape))

    def over(self, entries: Tensor | None) -> WeightSite:
        """The same site with columns for more entries of an embedding.

        Args:
            entries: All that the site has and more, ascending; None for those that it has.

        Returns:
            The site; columns of entries that do not occur are zero.
        """
        if entries is None or self.entries is None:
            return self
        return replace(self, activity=_over(self.activity, self.entries, entries), entries=entries)


@dataclass(frozen=True)
class Coverage:
    """How much of what moves the state the core accounts for.

    Attributes:
        fraction: Share of the parameters behind the state whose weight site is in the core.
        left_out: Names of the parameters that are not, each with the reason.
        missed: Those of them that a weight site may have been overlooked of; the others have none
            by nature, or one on other rows than the state's.
        sites: The sites in the core: name, columns of ``V``, units.
    """

    fraction: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    sites: tuple[tuple[str, int, int], ...] = ()


class Dependence(Protocol):
    """Tells what of the state depends on which rows of an operation."""

    def moves_first_step(self, record: Record) -> bool:
        """Whether the first time step of the state depends on an operation."""

    def moves(self, record: Record, which: Tensor) -> bool:
        """Whether the state depends on some rows of an operation."""

    def orders(self, records: Sequence[Record]) -> list[Order | None]:
        """How the rows of operations run over the state's; None if they are others."""


class PlacedUses(NamedTuple):
    """The uses of weights that are in the core, without the graph in which they were found."""

    uses: tuple[tuple[Sequence[Record], Placement], ...]
    rows: Rows
    valid: Tensor | None
    coverage: Coverage

    @property
    def counts(self) -> Counter[str]:
        """How many sites each parameter has."""
        return Counter(name for uses, _ in self.uses for name in _parameters(uses[0]))

    @property
    def parameters(self) -> list[tuple[str, ...]]:
        """The parameters that act in each use."""
        return [_parameters(uses[0]) for uses, _ in self.uses]

    @property
    def leaders(self) -> dict[str, str]:
        """The site's name by that of each parameter with one: a bias goes with its weight."""
        found: dict[str, str] = {}
        for uses, _ in self.uses:
            names = _parameters(uses[0])
            for name in names:
                found.setdefault(name, found.get(names[0], names[0]))
        return found

    def sites(self) -> Iterator[WeightSite]:
        """The sites one after the other, with their activity, which takes memory of its own."""
        for uses, placement in self.uses:
            yield from self.joined(uses, placement)

    def joined(self, uses: Sequence[Record], placement: Placement) -> list[WeightSite]:
        """The sites (one for each group of the weight) of a use, or of one at each time step.

        Args:
            uses: The uses, one for each time step if there are several.
            placement: How their rows run over the state's.

        Returns:
            The sites.
        """
        return _joined(uses, self.rows, placement, self.valid)

    def covered_by(self, sites: Iterable[WeightSite]) -> Coverage:
        """What all sites cover.

        Args:
            sites: All of them, in order.

        Returns:
            The coverage with the sites' shapes.
        """
        shapes = tuple((site.name, site.activity.shape[2], site.units) for site in sites)
        return replace(self.coverage, sites=shapes)


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
    told = {name for r in records if r.call == REGISTERED for name in _parameters(r)}
    records = [r for r in records if r.call == REGISTERED or told.isdisjoint(_parameters(r))]
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.label, []).append(record)
    known = list(numberings(labels, rows))
    placed: list[tuple[Sequence[Record], Placement]] = []
    lost: list[list[Record]] = []
    apart: list[Record] = []
    for group in groups.values():
        found = _by_numbers(group, recorder, known, rows, dependence)
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
            order = "batch" if ends == ["batch", "batch"] else None
        if order is None:
            apart += uses
        else:
            spans = [prod(r.use.rows) // rows[0] for r in uses] if order == "batch" else []
            device = recorder.theta[names[0]].device if names else None
            placed.append((uses, by_order(rows, order, spans, device)))
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
    sources = {numbering.source for numbering in known}
    heard = [
        sources & {*each, *follower.met.get(r.key, ())} or r.key in follower.spread
        for r, each in zip(group, labels, strict=True)
    ]
    if not known or not any(heard):
        return None
    best: list[tuple[Sequence[Record], Placement]] = []
    most = 0
    met: list[Labels] = [
        {**own, **follower.met.get(r.key, {})} for r, own in zip(group, labels, strict=True)
    ]
    numbered: Iterable[tuple[Numbering, list[Labels]]] = product(known, (labels, met))
    for numbering, told in numbered:
        found: list[tuple[Sequence[Record], Placement]] = []
        own = [
            NOTHING if r.key in follower.spread and not numbering.is_shared else each
            for r, each in zip(group, told, strict=True)
        ]
        for numbers, placement in placed_by(
            numbering, own, rows, follower.shape_of(numbering.source)
        ):
            uses = [group[i] for i in numbers]
            if all(
                _is_inside(*each, dependence) for each in zip(uses, placement.inverse, strict=True)
            ):
                found.append((uses, placement))
        count = sum(int((p.index >= 0).sum()) for _, p in found)
        if count > most:
            best, most = found, count
    return best


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
    inside = Counter(name for uses in placed for record in uses for name in _parameters(record))
    outside = Counter(name for record in apart for name in _parameters(record))
    left_out: dict[str, str] = {}
    missed: list[str] = []
    for record in apart:
        for name in _parameters(record):
            acts = "it also acts on rows" if inside[name] else "its rows"
            verb = ", which are not" if inside[name] else " are not"
            left_out.setdefault(name, f"{acts} {record.use.rows}{verb} the state's {rows}")
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
    covered = sum(
        sizes[name] * inside[name] / (inside[name] + outside[name])
        for name in names
        if inside[name]
    )
    share = covered / behind if behind else 0.0  # of a frozen body nothing
    return Coverage(share, left_out, tuple(missed))


def _owner(module: nn.Module, name: str) -> str:
    return type(module.get_submodule(name.rpartition(".")[0])).__name__


def _parameters(record: Record) -> tuple[str, ...]:
    origins = [o for o in (record.weight, record.bias) if o is not None]
    return tuple(dict.fromkeys(name for o in origins for name in o.names))


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


def _joined(
    uses: Sequence[Record], rows: Rows, placement: Placement, valid: Tensor | None
) -> list[WeightSite]:
    """The sites (one for each group of the weight) of a use, or of one at each time step."""
    first = uses[0]
    entries = _entries(uses)
    activities = [_columns(record, entries) for record in uses]
    names = _parameters(first)
    sites = []
    for g in range(first.use.groups):
        V = placement.of_state(
            [_where(r, V[g]) for r, V in zip(uses, activities, strict=True)], rows
        )
        V = V if valid is None else V.where(valid.unsqueeze(-1), 0)
        tap = Tap(
            tuple(r.call for r in uses),
            first.use.place if first.local is None else first.local,
            first.path,
            _Write(uses, g, placement),
            g,
        )
        derived = first.weight is not None and first.weight.is_computed
        sites.append(WeightSite(names[0], names, V, first.use.units, derived, tap, entries))
    return sites


def _where(record: Record, V: Tensor) -> Tensor:
    """Activity, zero at steps that a packed sequence lacks."""
    return V if record.valid is None else V.where(record.valid.unsqueeze(-1), 0)


def _entries(uses: Sequence[Record]) -> Tensor | None:
    """The entries of an embedding that occur in any of its uses."""
    found = [r.use.entries() for r in uses if r.use.entries is not None]
    return None if not found else torch.unique(torch.cat(found))


def _over(V: Tensor, own: Tensor, entries: Tensor) -> Tensor:
    """Columns for all entries of an embedding, from those for some of them."""
    if len(own) == len(entries):
        return V
    places = torch.searchsorted(entries, own)
    return V.new_zeros(*V.shape[:-1], len(entries)).index_copy(-1, places, V)


def _columns(record: Record, entries: Tensor | None) -> Tensor:
    """The columns of V that studied parameters multiply: activity for a weight, ones for a bias."""
    use = record.use
    columns = []
    if record.bias is not None:
        assert use.bias is not None
        one = use.bias.detach().new_full((), use.bias_scale * record.bias.scale)
        columns.append(one.expand(use.groups, *use.rows, 1))
    if record.weight is not None:
        V = use.read().detach()
        scale = use.scale * record.weight.scale
        V = V if scale == 1 else V * scale
        if entries is not None and use.entries is not None:
            V = _over(V, use.entries(), entries)
        columns.insert(0, V)
    return torch.cat(columns, dim=-1)


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
            found[i] = "steps" if own in {(T,), (1, T)} else None
        elif 1 in rows or (own[0] == B != T and len(own) > 1):
            found[i] = "batch"
        elif own == (T, B) and B != T:
            found[i] = "time"
        else:
            unclear.append(i)
    # Trials do not mix: the rows that the first one depends on are its own.
    found |= zip(unclear, dependence.orders([records[i] for i in unclear]), strict=True)
    return found


class _Write:
    """From what is added to a site's outputs to what is added to the operation's."""

    def __init__(self, uses: Sequence[Record], group: int, placement: Placement) -> None:
        self.group, self.placement = group, placement
        self.in_layer = uses[0].path is not None
        self.units, self.groups = uses[0].use.units, uses[0].use.groups
        self.rows = [record.use.rows for record in uses]
        self.writes = [record.use.write for record in uses]

    def __call__(self, u: Tensor, use: int) -> Tensor:
        if self.placement.is_shared:
            return u
        rows = self.rows[use]
        u = self.placement.of_use(u, use)
        if self.in_layer:
            return u.reshape(*rows, self.units)
        u = u.reshape(1, *rows, self.units)
        if self.groups > 1:
            number = torch.arange(self.groups, device=u.device)
            here = (number == self.group).to(u.dtype)
            u = u * here.reshape(-1, *(1 for _ in u.shape[1:]))
        return self.writes[use](u)
