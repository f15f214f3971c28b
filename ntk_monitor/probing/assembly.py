"""A snapshot, put together from what a probe found."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ntk_monitor.descent import Predicted
from ntk_monitor.estimators import CoreGram, Estimate, ExactKernel, KernelStatistics, Measured
from ntk_monitor.estimators.subspace import fix_signs
from ntk_monitor.model import Linearization
from ntk_monitor.model.isolation.deadline import Deadline
from ntk_monitor.model.site_shares import shares
from ntk_monitor.model.step import Comparison
from ntk_monitor.notices import NOT_FINITE, say
from ntk_monitor.probing.kernel import MeasuredKernel
from ntk_monitor.probing.settings import Tier
from ntk_monitor.processes import Processes
from ntk_monitor.pulled_modes import PulledMode, stacked_patterns, target_modes
from ntk_monitor.snapshot import ComparedOutput, Snapshot
from ntk_monitor.targets import Target, varies

TEMPORAL_MODES = 20
"""How many temporal modes a snapshot keeps."""
CONSTANT = 1e-6
"""Spread of a unit's activity over rows, over its size or 1, below which it is the same on all."""
AT_THE_END = 0.01
"""How close to an end of their range saturated units are."""


class Findings(NamedTuple):
    """What is known of a snapshot before the kernel is measured."""

    pulled: tuple[PulledMode, ...]
    outputs: tuple[ComparedOutput, ...]
    remarks: tuple[str, ...]
    predicted: Predicted
    dead: float
    saturated: float
    deadline: Deadline
    tier: Tier


def assembled(
    lin: Linearization, core: CoreGram, found: Findings, measured: MeasuredKernel | None, seed: int
) -> Snapshot:
    """Put the numbers together.

    Args:
        lin: The model.
        core: Its core.
        found: What is known without the kernel.
        measured: The kernel; None where it was not measured.
        seed: Names the draws of the eigenvectors.

    Returns:
        The snapshot.
    """
    n, processes = lin.state.shape[2], lin.processes
    kernel, adjoint_error, by_site = measured or (None, math.nan, {})
    statistics = _unknown(n) if kernel is None else kernel.statistics
    if kernel is not None and statistics.trace.is_finite:
        spectrum, modes = kernel.temporal_eigenpairs(TEMPORAL_MODES, seed)
    else:
        spectrum, modes = torch.empty(0, device="cpu"), lin.state.new_empty(lin.rows, 0)
        if kernel is not None:
            say(NOT_FINITE.format("derivatives"), RuntimeWarning)
    modes = _whole(modes.T.reshape(-1, *lin.state.shape[:2]), processes)
    pulled, predicted = found.pulled, found.predicted
    terms = shares(by_site)
    return Snapshot(
        core_cosine=statistics.core_cosine,
        temporal_core_cosine=statistics.temporal_core_cosine,
        effective_rank=statistics.effective_rank,
        temporal_effective_rank=statistics.temporal_effective_rank,
        spatial_effective_rank=statistics.spatial_effective_rank,
        trace=statistics.trace,
        frobenius_norm=statistics.frobenius_norm,
        core_effective_rank=core.effective_rank,
        core_spectrum=core.spectrum,
        temporal_spectrum=spectrum.cpu(),
        temporal_modes=modes,
        target_modes=target_modes(pulled, statistics.frobenius_norm, predicted.modes),
        target_patterns=_whole(stacked_patterns(pulled), processes) if pulled else modes[:0],
        coverage=lin.coverage,
        state_shape=(*modes.shape[1:], n),
        state=lin.modules,
        products=int(-processes.least(-lin.jacobian.products)),
        seconds=-processes.everyone.least(-found.deadline.elapsed),
        method="exact" if isinstance(kernel, ExactKernel) else lin.jacobian.method,
        scheme=kernel.scheme if isinstance(kernel, Measured) else "exact",
        tier="modes" if found.tier == "kernel" and not lin.parameters else found.tier,
        tolerance_met=kernel.tolerance_met if isinstance(kernel, Measured) else True,
        adjoint_error=adjoint_error,
        step=lin.step,
        loss=predicted.loss,
        transfer=predicted.transfer,
        forecast=predicted.forecast,
        instruments=predicted.instruments,
        dead_units=found.dead,
        saturated_units=found.saturated,
        outputs=found.outputs,
        remarks=found.remarks + predicted.remarks,
        trace_by_site=tuple((name, share) for name, share, _ in terms),
        trace_by_site_stderr=tuple(error for *_, error in terms),
    )


def idle_units(lin: Linearization) -> tuple[float, float]:
    """The shares of units that are dead, and that are saturated."""
    h, valid, processes = lin.state.detach().flatten(0, 1).double(), lin.valid, lin.processes
    if valid is not None and valid.numel() == len(h):
        h = h[valid.flatten()]
    ends = ((h.abs() - 1).abs() < AT_THE_END) | (h.abs() < AT_THE_END)
    columns = (h, h.square(), ends.double(), (h.abs() > 1).double())
    moments = torch.stack([column.sum(0) for column in columns])
    count = processes.total(len(h))
    mean, square, at_ends, beyond = processes.sum(moments) / max(count, 1)
    spread = (square - mean.square()).clamp_min(0).sqrt()
    dead = spread <= CONSTANT * mean.abs().clamp_min(1)
    saturated = (at_ends > 1 - AT_THE_END) & (beyond == 0) & ~dead
    return float(dead.double().mean()), float(saturated.double().mean())


def described(comparison: Comparison) -> ComparedOutput:
    """One output that the loss compares, in words."""
    head, target = comparison.head, comparison.target
    assert head.loss is not None
    assert comparison.output is not None
    kind = "yes or no" if head.loss.kind == "bits" else head.loss.kind
    shape = () if target is None else tuple(target.shape)
    counts = comparison.counts
    part = "" if counts is None else f", {float(counts.double().mean()):.0%} of the entries count"
    return ComparedOutput(
        head.name, head.loss.name, tuple(comparison.output.shape), f"{kind} {shape}{part}"
    )


def remarks_on(lin: Linearization, targets: dict[int, Target]) -> tuple[str, ...]:
    """What was not found or not measured, each with what to do about it."""
    remarks = []
    if not lin.parameters:
        remarks.append(
            f"nothing that is trained moves the state {', '.join(lin.modules)!r} yet: there are no "
            "numbers of the kernel until its parameters require gradients; state=... names another"
        )
    if lin.loss is not None and not math.isfinite(lin.loss):
        remarks.append(f"the loss of {lin.step} is {lin.loss} on the kept batch")
    if not targets and lin.without_targets:
        remarks.append(lin.without_targets)
    for number, target in targets.items():
        if not varies(target, lin.processes):
            head = lin.comparisons[number].head
            whose = "batch" if head.loss is None else head.name
            remarks.append(
                f"the target of {whose!r} is the same wherever it counts in this batch, so that it "
                "has no modes: probe another batch (probe_batch), or one of shuffled data"
            )
    return tuple(remarks)


def _whole(patterns: Tensor, processes: Processes) -> Tensor:
    """Patterns over the trials of all processes, each with its largest entry positive.

    Args:
        patterns: Over this process's, shape ``(m, B, T)``; others may have shorter or longer ones.
        processes: The processes.

    Returns:
        Shape ``(m, B, T)``, on the CPU.
    """
    longest = max(processes.counts(patterns.shape[2]))
    padded = torch.nn.functional.pad(patterns, (0, longest - patterns.shape[2]))
    whole = processes.join(padded, 1)
    return fix_signs(whole.flatten(1).T).T.reshape(whole.shape).contiguous().cpu()


def _unknown(units: int) -> KernelStatistics:
    """The statistics of a kernel that could not be measured: nan throughout."""
    nan = torch.full((1,), torch.nan, device="cpu")
    return KernelStatistics(Estimate(math.nan, math.nan), nan, nan, nan, nan, nan, nan[0], units)
