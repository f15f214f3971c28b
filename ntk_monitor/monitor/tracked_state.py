"""One state that a monitor follows: its probe, its metrics, its latest snapshot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torchmetrics import Metric, MetricCollection

from ntk_monitor.metrics import CoreCosine, EffectiveRank, TargetModeAlignment
from ntk_monitor.model.state.finding import StatePath, require_paths
from ntk_monitor.probe import Probe, Tier
from ntk_monitor.snapshot import Snapshot

NamedStates = StatePath | Mapping[str, StatePath]
"""A state, or several by name."""


@dataclass
class TrackedState:
    """One of the states that a monitor follows.

    Attributes:
        name: Its name, which its tags begin with; empty for the only one.
        probe: The measurement.
        metrics: The torchmetrics behind the logged numbers, by tag.
        snapshot: The latest snapshot, or None.
        whole: The latest that reached the kernel, with its step, or None.
        losses: The step and the loss of every probe in this process; nan where there is no loss.
    """

    name: str
    probe: Probe
    metrics: MetricCollection
    snapshot: Snapshot | None = None
    whole: tuple[int, Snapshot] | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)

    @property
    def prefix(self) -> str:
        """What its tags begin with."""
        return f"{self.name}/" if self.name else ""

    def reset(self) -> None:
        """A training begins anew."""
        self.snapshot = self.whole = None
        self.losses = []
        self.metrics.reset()
        self.probe.reset()

    def note(self, snapshot: Snapshot, step: int) -> None:
        """Keep what the summary at the end of a training needs.

        Args:
            snapshot: The measurement.
            step: Where on the loggers' x-axis.
        """
        self.losses.append((step, math.nan if snapshot.loss is None else snapshot.loss))
        if snapshot.tier == "kernel":
            self.whole = step, snapshot

    def scalars(self, snapshot: Snapshot) -> dict[str, float]:
        """Keep a snapshot, pass it through the metrics, and return what is logged.

        Args:
            snapshot: The measurement.

        Returns:
            Numbers by tag, without the prefix.
        """
        self.snapshot = snapshot
        scalars = snapshot.scalars()
        if snapshot.tier == self.probe.tier:  # of a frozen body there is no kernel to pool
            pooled = self.metrics(snapshot)
            scalars |= {tag: float(value) for tag, value in pooled.items() if tag in scalars}
        return scalars


def named_states(state: NamedStates) -> dict[str, StatePath]:
    """The states of an argument by name.

    Args:
        state: A path, several side by side, or states by name.

    Returns:
        The states; the name of an only one is empty.

    Raises:
        ValueError: If the mapping is empty, or a name could not begin a tag.
    """
    if not isinstance(state, Mapping):
        require_paths(state)
        return {"": state}
    wrong = [name for name in state if not name.strip(".") or "/" in name]
    if not state or wrong:
        raise ValueError(
            "state must be a module path, a list of paths, or states by a name without '/' that is "
            f"not of dots alone, got {dict(state)!r}"
        )
    return dict(state)


def paths_of(state: StatePath) -> Sequence[str]:
    """The module paths of a state.

    Args:
        state: One path, or several.

    Returns:
        The paths.
    """
    return [state] if isinstance(state, str) else list(state)


def metrics_by_tag(modes: int, tier: Tier) -> MetricCollection:
    """The metrics behind the logged numbers, by tag.

    Args:
        modes: How many target modes are followed.
        tier: How far a probe goes.

    Returns:
        A collection that takes snapshots.
    """
    if tier != "kernel":
        return MetricCollection({"core/effective_rank": EffectiveRank("core")})
    metrics: dict[str, Metric | MetricCollection] = {
        "ntk/core_cosine": CoreCosine(),
        "ntk/temporal_core_cosine": CoreCosine("temporal"),
        "ntk/effective_rank": EffectiveRank(),
        "ntk/temporal_effective_rank": EffectiveRank("temporal"),
        "ntk/spatial_effective_rank": EffectiveRank("spatial"),
        "core/effective_rank": EffectiveRank("core"),
    }
    for i in range(1, modes + 1):
        metrics[f"target/mode_{i}/alignment"] = TargetModeAlignment(i)
    return MetricCollection(metrics, compute_groups=False)
