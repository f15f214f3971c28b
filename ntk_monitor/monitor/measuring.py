"""One probe of a training: every state, in every process."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from ntk_monitor.model.linearization import Preconditioner
from ntk_monitor.monitor.followed import FollowedState
from ntk_monitor.monitor.host import Host
from ntk_monitor.monitor.kept import KeptBatch
from ntk_monitor.monitor.optimizers import learning_rate, preconditioner
from ntk_monitor.probe import Probe, Tier
from ntk_monitor.ranks import Ranks
from ntk_monitor.snapshot import Snapshot

logger = logging.getLogger(__name__)


def measure(
    host: Host,
    states: Sequence[FollowedState],
    kept: KeptBatch,
    *,
    redraws: int,
    most: int,
    tier: Tier | None,
) -> tuple[Snapshot, ...]:
    """Measure every state, in all processes together.

    Args:
        host: The training.
        states: What is followed.
        kept: The batch.
        redraws: How often new tangents were drawn.
        most: Most products of each.
        tier: How far to go; None for all the way.

    Returns:
        A snapshot for each state, the same in all processes; none where there is no batch yet.
        Whatever fails in one process is raised there, and a `RankError` in the others.
    """
    batch, ranks = kept.for_probe(host)
    if batch is None:
        return ()
    apart = ranks.size < host.ranks.size
    with ranks.together():
        rate, scales = optimization(states[0].probe, host, ranks)
        found = tuple(
            state.probe(
                host.module,
                batch,
                learning_rate=rate,
                preconditioner=scales,
                seed=state.probe.seed + redraws,
                max_products=most,
                tier=tier,
                ranks=ranks,
                noise=state.probe.seed + redraws + 2**16 * ranks.index,
            )
            for state in states
        )
    return host.shared(found) if apart else found


def optimization(
    probe: Probe, host: Host, ranks: Ranks
) -> tuple[float | None, Preconditioner | None]:
    """What the optimizers do; one that cannot be read costs these numbers, and no probe.

    Args:
        probe: The measurement.
        host: The training.
        ranks: The processes that measure together, which all take the first one's rate.

    Returns:
        The learning rate, and what the optimizers multiply the gradient with; see `optimizers`.
    """
    rate, scales = probe.learning_rate, None
    try:
        rate = rate or learning_rate(host.optimizers)
        if probe.modes and probe.tier != "core":
            scales = preconditioner(host.optimizers, host.module)
    except Exception as error:
        logger.info("the optimizers could not be read: %r", error)
    first = ranks.everyone.each(rate or math.nan)[0]
    known = ranks.everyone.all(scales is not None)
    return None if math.isnan(first) else first, scales if known else None
