"""One probe of a training: every state, in every process."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ntk_monitor.descent import Ahead, Descent, descent_of, plain_descent
from ntk_monitor.monitor.host import Host
from ntk_monitor.monitor.probe_batch import ProbeBatch
from ntk_monitor.monitor.tracked_state import TrackedState
from ntk_monitor.probe import Probe, Tier
from ntk_monitor.snapshot import Snapshot

logger = logging.getLogger(__name__)


def measure(
    host: Host,
    states: Sequence[TrackedState],
    kept: ProbeBatch,
    *,
    redraws: int,
    most: int,
    tier: Tier | None,
    ahead: Ahead,
) -> tuple[Snapshot, ...]:
    """Measure every state, in all processes together.

    Args:
        host: The training.
        states: What is followed.
        kept: The batch.
        redraws: How often new tangents were drawn.
        most: Most products of each.
        tier: How far to go; None for all the way.
        ahead: The learning rates to come.

    Returns:
        A snapshot for each state, the same in all processes; none where there is no batch yet.
        Whatever fails in one process is raised there, and a `ProcessError` in the others.
    """
    batch, processes = kept.for_probe(host)
    if batch is None:
        return ()
    apart = processes.size < host.processes.size
    with processes.together():
        descent = descent_in(states[0].probe, host, ahead)
        if not processes.everyone.all(descent is not None):
            descent = None
        found = tuple(
            state.probe(
                host.module,
                batch,
                descent=descent,
                horizon=max(host.planned_steps - host.global_step, 1),
                second=kept.second,
                source=kept.source,
                seed=state.probe.seed + redraws,
                max_products=most,
                tier=tier,
                processes=processes,
                noise=state.probe.seed + redraws + 2**16 * processes.index,
            )
            for state in states
        )
    return host.shared(found) if apart else found


def descent_in(probe: Probe, host: Host, ahead: Ahead) -> Descent | None:
    """How a training steps; optimizers that cannot be read cost the forecast, and no probe.

    Args:
        probe: The measurement; plain gradient descent if it has a learning rate of its own.
        host: The training.
        ahead: The learning rates to come.

    Returns:
        How it steps, or None.
    """
    if probe.tier == "core":
        return None
    if probe.learning_rate is not None:
        return plain_descent(host.module, probe.learning_rate)
    try:
        optimizers, step = host.optimizers, host.global_step
        rates = ahead.rates(optimizers, lambda: host.schedulers, step, host.planned_steps - step)
        return descent_of(optimizers, host.module, rates=rates, clipping=host.clipping)
    except Exception as error:
        logger.info("the optimizers could not be read: %r", error)
        return None
