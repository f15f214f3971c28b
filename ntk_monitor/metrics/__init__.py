"""Metrics over snapshots, in torchmetrics' form: a pure function and a class for each.

The classes keep sums, of numerators and of denominators, and divide only in ``compute``; so they
pool several snapshots (probe batches, runs, processes) in a way that one large snapshot of the
block-diagonal kernel would. A snapshot must be a whole measurement: half of its rows have another
effective rank.
"""

from ntk_monitor.metrics.core_cosine import CoreCosine, core_cosine
from ntk_monitor.metrics.effective_rank import EffectiveRank, effective_rank
from ntk_monitor.metrics.target_alignment import TargetModeAlignment, target_mode_alignment

__all__ = [
    "CoreCosine",
    "EffectiveRank",
    "TargetModeAlignment",
    "core_cosine",
    "effective_rank",
    "target_mode_alignment",
]
