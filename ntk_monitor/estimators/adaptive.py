"""The adaptive engine: as few products as give every number of a kernel its wanted accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ntk_monitor.estimators.core import CoreGram
from ntk_monitor.estimators.sketch import MIN_SAMPLES, TangentSketch
from ntk_monitor.operators import LinearOperator

PILOT, ROUND, TOP_UP = 12, 8, 4
"""Samples of the first round, the most and the fewest of each further one."""
MIN_DIRECTIONS = 4
"""Fewest directions for which deflation is worth its products."""
CAUTION = 2.0
"""Standard deviations of the standard error itself, which a lucky draw must not make small."""
BASIS_LIMIT = 2**28
"""Most entries that a basis in parameter space may have."""

Draw = Callable[[range], Tensor]
"""Tangents by their indices, shape ``(len, p)``."""


@dataclass(frozen=True)
class Measured:
    """A sampled kernel, and how the sampling went.

    Attributes:
        sketch: The samples.
        scheme: ``"sampled"``, or ``"deflated"`` after parameter-space deflation.
        tolerance_met: Whether every number reached the wanted relative standard error; otherwise
            the budget ended the sampling.
    """

    sketch: TangentSketch
    scheme: str
    tolerance_met: bool


def sample_kernel(
    J: LinearOperator,
    core: CoreGram,
    draw: Draw,
    first: Tensor,
    *,
    tolerance: float,
    left: Callable[[], int],
) -> Measured:
    r"""Sample ``A = J J*`` until its numbers are accurate enough, or the budget is spent.

    A pilot of samples ``y = J g`` comes first. While the largest relative standard error ``e`` is
    not safely below the tolerance, there are two ways to go on. More samples reduce it as
    ``1 / sqrt(s)``: good where ``A`` has many directions. Where it has few, they are taken out, in
    parameter space:

    .. math::
        Q = \mathrm{orth}(J^* \mathrm{orth}(Y)), \quad F = J Q, \quad
        A = F F^* + J (I - Q Q^*) J^*

    exactly, and fresh samples ``J (I - QQ^*) g`` measure only the rest. The samples that chose
    ``Q`` are not used again, so everything stays unbiased. Deflation is chosen when the extra
    samples that the tolerance would take, ``s ((e / tol)^2 - 1)``, exceed what deflation costs, and
    the effective rank of what is sampled is below ``2 s``.

    Args:
        J: The Jacobian, from ``(p,)`` to ``(B, T, n)``.
        core: The core on the same rows.
        draw: Tangents.
        first: The sample of tangent 0, shape ``(1, B, T, n)``.
        tolerance: Wanted relative standard error of every number.
        left: Products that may still be spent.

    Returns:
        The samples and how they came about.

    References:
        Persson, Cortinovis and Kressner, arXiv:2109.10659 (2021), for deflation before sampling;
        Chen et al., arXiv:2310.12364 (2023), for its use in partial traces.
    """
    used = 1
    basis: Tensor | None = None
    sketch = TangentSketch(core)

    def sample(count: int) -> Tensor:
        nonlocal used
        G = draw(range(used, used + count))
        used += count
        if basis is not None:
            G = G - (G @ basis.T) @ basis
        return J.matmat(G).flatten(1, 2)

    # A quarter each for pilot, basis, its image and the rest, where the budget is small.
    pilot = max(2 * MIN_SAMPLES, min(PILOT, (left() + 1) // 4))
    sketch.extend(torch.cat([first.flatten(1, 2), sample(min(pilot - 1, left()))]))
    while True:
        error = sketch.statistics.relative_error
        met = (
            len(sketch) >= pilot and error * (1 + CAUTION / math.sqrt(2 * len(sketch))) <= tolerance
        )
        if met or left() < 1 or not math.isfinite(error):
            scheme = "deflated" if sketch.atoms else "sampled"
            return Measured(sketch, scheme, tolerance_met=met)
        directions = _affordable_directions(sketch, J, left() - pilot)
        if directions and _should_deflate(sketch, error, tolerance):
            basis, F = _deflate(J, sketch.leading_directions(directions), basis)
            sketch = sketch.deflated(F)
            sketch.extend(sample(min(pilot, left())))
        else:
            wanted = math.ceil(min(_missing(sketch, error, tolerance), ROUND))
            sketch.extend(sample(min(max(wanted, TOP_UP), left())))


def _affordable_directions(sketch: TangentSketch, J: LinearOperator, left: int) -> int:
    # Two products each. Of many samples only the leading half: the rest of their span is hardly
    # better than a random one.
    most = min(max(PILOT, len(sketch) // 2), len(sketch), left // 2)
    fits = (sketch.atoms + most) * J.input_size <= BASIS_LIMIT
    return most if most >= MIN_DIRECTIONS and fits else 0


def _should_deflate(sketch: TangentSketch, error: float, tolerance: float) -> bool:
    """The decision rule of `sample_kernel`."""
    s = len(sketch)
    return (
        _missing(sketch, error, tolerance) > 2 * s + PILOT
        and sketch.residual_effective_rank < 2 * s
    )


def _missing(sketch: TangentSketch, error: float, tolerance: float) -> float:
    """How many more plain samples the tolerance takes."""
    return len(sketch) * ((error / tolerance) ** 2 - 1) if tolerance else math.inf


def _deflate(J: LinearOperator, directions: Tensor, basis: Tensor | None) -> tuple[Tensor, Tensor]:
    """The basis with what the directions pull back to, ``(r, p)``, and the new part's images."""
    pulled = J.rmatmat(directions.reshape(-1, *J.shape_out))
    for _ in range(2):  # once more against rounding
        if basis is not None:
            pulled = pulled - (pulled @ basis.T) @ basis
        pulled = torch.linalg.qr(pulled.T).Q.T
    F = J.matmat(pulled.contiguous()).flatten(1, 2)
    return pulled if basis is None else torch.cat([basis, pulled]), F
