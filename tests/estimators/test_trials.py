"""Moments from gradients of groups of trials: no bias, honest errors, and less of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ntk_monitor.estimators.kernel.trials import Gradients, Products, SpatialMoments, TrialMoments
from ntk_monitor.uncertainty import (
    Estimate,
    additive_deletes,
    jackknife,
    jackknifed,
    sample_count,
)

G, K, N, P = 5, 3, 4, 30
"""Groups, rows and units of each, parameters."""
OWN = 6
"""Parameters whose gradient is known as a sum over groups."""


class Truth(NamedTuple):
    """A kernel of groups that have something in common, and its core."""

    J: Tensor
    own: Tensor
    V: Tensor

    @property
    def kernel(self) -> Tensor:
        J = torch.cat([self.J, self.own], dim=-1).flatten(0, 1)
        return J @ J.T

    @property
    def core(self) -> Tensor:
        V = self.V.flatten(0, 1)
        return torch.kron(V @ V.T, torch.eye(N, dtype=V.dtype))

    @property
    def numbers(self) -> tuple[float, float, float]:
        A, C = self.kernel, self.core
        return float(A.trace()), float(A.square().sum()), float((A * C).sum())


def truth(share: float, seed: int = 0) -> Truth:
    """With ``share`` of each group's Jacobian the same in all."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    decay = torch.arange(1, P + 1) ** -0.7
    J = (share * draw(1, K * N, P) + (1 - share) * draw(G, K * N, P)) * decay
    return Truth(J, J[..., :OWN] + 0.3 * draw(G, K * N, OWN), draw(G, K, 2) + 1)


def gradients(found: Truth, draws: int, atoms: int, seed: int) -> Gradients:
    """A round, with leading directions of each group taken out."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(draws, G, K * N, generator=generator, dtype=torch.float64)
    A = found.J @ found.J.transpose(1, 2)
    q = torch.linalg.eigh(A).eigenvectors[..., K * N - atoms :].permute(2, 0, 1)
    taken = torch.einsum("sgd,rgd->sgr", w, q)
    left = w - torch.einsum("sgr,rgd->sgd", taken, q)

    def products(image: Tensor) -> Products:
        one, two, whole = (torch.einsum("sgd,gdp->sgp", u, image) for u in (q, left, w))
        pairs = (
            torch.einsum("igp,jhp->igjh", a, b) for a, b in ((one, one), (one, two), (two, two))
        )
        return Products(*pairs, whole.sum(1) @ whole.sum(1).T)

    core = torch.stack([torch.kron(V, torch.eye(N, dtype=V.dtype)) for V in found.V])
    square = core @ (core.flatten(0, 1).T @ core.flatten(0, 1))  # V V* V, by groups
    together = torch.einsum("sgd,gdp->sp", w, found.own)
    curved = tuple(
        (torch.einsum("sgd,gdp->sgp", u, square) * torch.einsum("sgd,gdp->sgp", u, core)).sum(-1)
        for u in (q, left)
    )
    return Gradients(products(found.J), together @ together.T, products(core), curved)


def moments_of(found: Truth, rounds: int, draws: int, atoms: int, seed: int) -> TrialMoments:
    core = found.core
    moments = TrialMoments(float(core.trace()), float(core.square().sum()))
    for i in range(rounds):
        moments.extend(gradients(found, draws, atoms, seed * rounds + i))
    assert len(moments) == rounds * draws
    return moments


def measured(found: Truth, draws: int, atoms: int, seed: int) -> list[Estimate]:
    return [jackknifed(each) for each in moments_of(found, 1, draws, atoms, seed).moments]


def require_honest(shots: list[tuple[Tensor, ...]], wanted: tuple[float, ...]) -> None:
    """No bias, and a variance that is what the jackknife says."""
    for each, truth in zip(zip(*shots, strict=True), wanted, strict=True):
        values = torch.stack([found[0] for found in each])
        stated = torch.tensor([jackknife(found).stderr ** 2 for found in each])
        spread = float(values.std())
        # Regression on the core, of as few draws as these, has a bias of second order.
        assert abs(float(values.mean()) - truth) < 4 * spread / math.sqrt(len(shots)) + 0.01 * truth
        assert 0.75 < math.sqrt(float(stated.mean())) / spread < 1.5


@pytest.mark.parametrize(("rounds", "draws", "atoms"), [(1, 8, 0), (2, 4, 0), (1, 8, 2), (4, 2, 1)])
@pytest.mark.parametrize("share", [0.0, 0.8])
def test_moments_are_unbiased_and_know_their_error(
    share: float, rounds: int, draws: int, atoms: int
) -> None:
    found = truth(share)
    shots = [moments_of(found, rounds, draws, atoms, seed).moments for seed in range(300)]
    require_honest(shots, found.numbers)


def test_groups_that_are_alike_make_errors_as_much_smaller() -> None:
    """The variance of the trace has the diagonal blocks alone."""
    found = truth(1.0)
    found = found._replace(own=0 * found.own)
    A = found.kernel
    blocks = A.view(G, K * N, G, K * N)
    diagonal = sum(float(blocks[b, :, b].square().sum()) for b in range(G))
    assert float(A.square().sum()) == pytest.approx(G * diagonal)
    nothing = (0.0, 0.0)  # no core whose trace were known
    values = []
    for seed in range(300):
        moments = TrialMoments(*nothing)
        moments.extend(gradients(found._replace(V=0 * found.V), 4, 0, seed))
        values.append(float(moments.moments[0][0]))
    variance = float(torch.tensor(values, dtype=torch.float64).var())
    assert variance == pytest.approx(2 * diagonal / 4, rel=0.35)


def test_atoms_alone_are_exact() -> None:
    found = truth(0.5)
    found = found._replace(own=0 * found.own)
    for shot, wanted in zip(measured(found, 3, K * N, 0), found.numbers, strict=True):
        assert shot.value == pytest.approx(wanted, rel=1e-9)
        assert shot.stderr < 1e-9 * wanted


def test_a_kernel_that_is_the_core_is_known() -> None:
    """Regression on the core takes all of the error off."""
    found = truth(0.5)
    core = torch.stack([torch.kron(V, torch.eye(N, dtype=V.dtype)) for V in found.V])
    same = Truth(core, 0 * found.own, found.V)
    for shot, wanted in zip(measured(same, 4, 0, 0), same.numbers, strict=True):
        assert shot.value == pytest.approx(wanted, rel=1e-6)
        assert shot.stderr < 1e-6 * wanted


def test_nothing_is_zero() -> None:
    found = truth(0.5)
    for shot in measured(Truth(0 * found.J, 0 * found.own, found.V), 4, 1, 0):
        assert (shot.value, shot.stderr) == (0.0, 0.0)


@pytest.mark.parametrize("units", [2, 9])
@pytest.mark.parametrize("groups", [1, 5])
def test_spatial_moments_are_unbiased_and_know_their_error(groups: int, units: int) -> None:
    generator = torch.Generator().manual_seed(0)
    L = torch.randn(groups, 3 * units, 6, generator=generator, dtype=torch.float64)
    A = torch.einsum("bip,bjp->bij", L, L).view(groups, 3, units, 3, units)
    S = torch.einsum("btitj->ij", A)
    wanted = float(S.trace()), float(S.square().sum())
    shots = []
    for seed in range(300):
        drawn = torch.Generator().manual_seed(seed)
        moments = SpatialMoments()
        for s in (4, 3):
            g = torch.randn(s, groups, 6, generator=drawn, dtype=torch.float64)
            moments.extend(torch.einsum("bip,sbp->sbi", L, g).view(s, groups, 3, units))
        assert (len(moments), moments.samples) == (7 * groups, 7)
        shots.append(moments.moments)
    require_honest(shots, wanted)


def test_additive_deletes_have_the_variance_that_is_given() -> None:
    influences = torch.tensor([0.3, -0.1, -0.2, 0.4, -0.4], dtype=torch.float64)
    values = additive_deletes(5.0, influences)
    assert sample_count(values) == 5
    found = jackknifed(values)
    assert found.value == pytest.approx(5.0, rel=0.02)
    plain = float(influences.norm())
    assert jackknife(values).stderr == pytest.approx(plain, rel=1e-9)
    assert plain < found.stderr < 1.5 * plain
    twice = jackknifed(values.square())
    assert twice.relative_error == pytest.approx(2 * found.relative_error, rel=0.05)
