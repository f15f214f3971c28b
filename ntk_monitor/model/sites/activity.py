"""The activity at a weight site, put together from the records of its uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ntk_monitor.model.sites.placement import Placement, Rows
from ntk_monitor.model.sites.records import Record, Tap
from ntk_monitor.model.sites.weight_sites import WeightSite, over_entries


def parameters_of(record: Record) -> tuple[str, ...]:
    """Names of the trained parameters that act in an operation."""
    origins = [o for o in (record.weight, record.bias) if o is not None]
    return tuple(dict.fromkeys(name for o in origins for name in o.names))


def joined(
    uses: Sequence[Record], rows: Rows, placement: Placement, valid: Tensor | None
) -> list[WeightSite]:
    """The sites (one for each group of the weight) of a use, or of one at each time step."""
    first = uses[0]
    entries = _entries(uses)
    activities = [_columns(record, entries) for record in uses]
    names = parameters_of(first)
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
            _writer(uses, g, placement),
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
            V = over_entries(V, use.entries(), entries)
        columns.insert(0, V)
    return torch.cat(columns, dim=-1)


def _writer(
    uses: Sequence[Record], group: int, placement: Placement
) -> Callable[[Tensor, int], Tensor]:
    """From what is added to a site's outputs to what is added to the operation's."""
    in_layer, units, groups = uses[0].path is not None, uses[0].use.units, uses[0].use.groups
    rows, writes = [r.use.rows for r in uses], [r.use.write for r in uses]

    def write(u: Tensor, use: int) -> Tensor:
        if placement.is_shared:
            return u
        u = placement.of_use(u, use)
        if in_layer:
            return u.reshape(*rows[use], units)
        u = u.reshape(1, *rows[use], units)
        if groups > 1:
            here = (torch.arange(groups, device=u.device) == group).to(u.dtype)
            u = u * here.reshape(-1, *(1 for _ in u.shape[1:]))
        return writes[use](u)

    return write
