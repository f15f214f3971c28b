"""What the models of several processes have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ntk_monitor.model.sites.weight_sites import Coverage, WeightSite
from ntk_monitor.processes import Processes


def in_every_process(
    sites: Sequence[WeightSite], coverage: Coverage, sizes: Mapping[str, int], processes: Processes
) -> tuple[dict[int, Tensor | None], Coverage]:
    """The sites that all processes have, in the same order.

    An expert that gets all rows in one process has a site there, and none in others. Of an
    embedding each process has columns for the entries that occur in its own batch.

    Args:
        sites: Those of this process.
        coverage: What they cover.
        sizes: Of parameters, by name.
        processes: The processes.

    Returns:
        The sites' numbers, each with the entries over which all processes have it (see
        `WeightSite.over`), and what the sites cover.
    """
    if processes.size == 1:
        return dict.fromkeys(range(len(sites))), coverage
    times: Counter[str] = Counter()
    names = []
    for site in sites:
        width = site.activity.shape[2] if site.entries is None else "entries"
        name = f"{site.name} {width} {site.units}"
        times[name] += 1
        names.append(f"{name} {times[name]}")
    found = zip(names, range(len(sites)), processes.in_all(names), strict=True)
    numbers = [number for _, number, common in sorted(found) if common]
    kept = [sites[number] for number in numbers]
    entries = [None if s.entries is None else torch.unique(processes.join(s.entries)) for s in kept]
    lost = {n for s in sites for n in s.parameters} - {n for s in kept for n in s.parameters}
    reason = "in another process it has no site on the state's rows"
    left_out = {**coverage.left_out, **dict.fromkeys(sorted(lost), reason)}
    gone = sum(sizes[name] for name in lost - set(coverage.left_out))
    fraction = coverage.fraction - gone / sum(sizes.values())
    shapes = tuple(
        (site.name, site.activity.shape[2] if every is None else len(every), site.units)
        for site, every in zip(kept, entries, strict=True)
    )
    coverage = replace(coverage, fraction=fraction, left_out=left_out, sites=shapes)
    return dict(zip(numbers, entries, strict=True)), coverage
