"""The coming steps of a training in a small space: Krylov directions, and the real loss in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntk_monitor.descent.group_updates import Part
from ntk_monitor.descent.lossmap import LossMap, Vector
from ntk_monitor.descent.optimizers import Descent
from ntk_monitor.descent.velocity import Velocity

DEPTH = 6
"""Krylov directions."""
BELIEVED = 30
"""Coming steps that are taken one by one, and for which a forecast is worth believing; those after
them are a flow."""
PER_DOUBLING = 3
"""Steps ahead at which the curves are known, beyond those."""
SINGLE_RENEWED = 16
"""Of so many steps taken one by one the first finds out which directions are unstable."""
RENEWED = 5
"""Of so many strides the first finds out how the speed changes with the place."""
RISE = 0.01
"""Share of the loss by which it may rise in a stride, by rounding."""
AT_REST = 1e-3
"""Share of the way so far below which a stride has come to rest."""
WAITS = 10.0
"""How many times the present learning rate a later one is where a schedule waits."""
MOST_ENTRIES = 2**22
"""Outputs up to which the loss is computed anew as often as a long forecast asks."""
BREAKDOWN = 1e-6
"""Share of a new direction that must be left when the others are taken out of it."""


class Path(NamedTuple):
    """A course as far as it was followed.

    Attributes:
        steps: Steps ahead, from 0.
        places: The place in the small space at each, shape ``(h, directions)``.
        losses: The loss at each.
        momentum: What momentum holds after the last step that was taken one by one.
    """

    steps: Vector
    places: NDArray[np.float64]
    losses: Vector
    momentum: Vector


class Grown(NamedTuple):
    """What a Krylov space is made of.

    Attributes:
        basis: Orthonormal directions of outputs, this process's entries, shape ``(m, N)``.
        response: What a step of the size one along each makes of the outputs, ``J S J* b``.
        pulled: The gradients ``J* b``, each of shape ``(p,)``.
    """

    basis: Tensor
    response: Tensor
    pulled: list[Tensor]


@dataclass(frozen=True, eq=False)
class Course:
    r"""How the outputs move in the coming steps.

    Outputs are :math:`f = y - \sum_j p_j \Phi_j`. The first ``m`` of the directions
    :math:`\Phi_j = J S J^* b_j` are those of a Krylov space, ``S`` being the learning rate times
    the optimizer's ``D``; the others do not depend on the outputs: a penalty's gradient, what
    momentum holds, decay. At each step the gradient is that of the real loss at ``f``, seen through
    the ``b_j``, clipped, averaged by momentum and scheduled as the optimizer does it.

    Attributes:
        loss_map: The loss.
        basis: ``b_j``, shape ``(m, N)``.
        directions: All ``Phi_j``, shape ``(m + drifts, N)``.
        drifts: What the others are, by name, in order.
        gram: Inner products of the gradients of the first ``m``, and of the penalty.
        velocity: Momentum.
        descent: Rates and clipping.
        shrink: What is taken off the movement itself at each step, by decay.
        clip_norm: Norm to which gradients are clipped, or inf.
        speed: What the learning rate is multiplied with.
    """

    loss_map: LossMap
    basis: Tensor
    directions: Tensor
    drifts: tuple[str, ...]
    gram: Vector
    velocity: Velocity
    descent: Descent
    shrink: float
    clip_norm: float
    speed: float = 1.0

    def shallower(self, depth: int) -> Course:
        """The same in fewer Krylov directions.

        Args:
            depth: How many.

        Returns:
            Another course.
        """
        m, depth = len(self.basis), max(depth, 1)
        kept = [*range(min(depth, m)), *range(m, len(self.directions))]
        inner = [*range(min(depth, m)), *range(m, len(self.gram))]
        return replace(
            self,
            basis=self.basis[:depth],
            directions=self.directions[kept],
            gram=self.gram[np.ix_(inner, inner)],
        )

    def without_decay(self) -> Course:
        """The same without decay: its directions are there, and nothing moves along them.

        Returns:
            Another course.
        """
        drifts = tuple("none" if name.endswith("decay") else name for name in self.drifts)
        return replace(self, drifts=drifts, shrink=0.0)

    def outputs(self, p: Vector) -> Tensor:
        """The outputs at a place of the small space."""
        return self.loss_map.outputs - moved_by(p, self.directions)

    def slopes(self, places: Sequence[Vector]) -> tuple[Vector, Vector]:
        """The loss at some places, and the gradients in terms of the directions, clipped.

        Args:
            places: Each of shape ``(directions,)``.

        Returns:
            The losses, shape ``(k,)``, and the gradients, shape ``(k, directions)``.
        """
        m = len(self.basis)
        losses, along = self.loss_map.evaluate(map(self.outputs, places), self.basis)
        coefficients = np.zeros((len(places), len(self.directions)))
        coefficients[:, :m] = along
        inner = coefficients[:, : len(self.gram)].copy()
        for i, name in enumerate(self.drifts, start=m):
            coefficients[:, i] = float(name in {"rest", "coupled decay"})
            if name == "rest":
                inner[:, i] = 1.0
        norms = np.sqrt(np.maximum(np.einsum("ki,ij,kj->k", inner, self.gram, inner), 0.0))
        far = norms > self.clip_norm
        coefficients[far, : inner.shape[1]] *= (self.clip_norm / norms[far])[:, None]
        return losses, coefficients

    def run(self, horizon: float, single: int = BELIEVED) -> Path:
        """Integrate.

        Args:
            horizon: How many steps ahead.
            single: How many of them one by one.

        Returns:
            The path; it ends early where the loss ceases to be finite.
        """
        steps, places, losses, momentum = self._single(int(min(horizon, single)))
        long = len(self.directions) > 0 and horizon > single and math.isfinite(losses[-1])
        if long and self.loss_map.outputs.numel() <= MOST_ENTRIES:
            self._flow(steps, places, losses, horizon)
        return Path(np.array(steps), np.array(places), np.array(losses), momentum)

    def _single(self, count: int) -> tuple[list[float], list[Vector], list[float], Vector]:
        m, v = len(self.basis), self.velocity
        p = np.zeros(len(self.directions))
        momentum = np.zeros_like(p)
        if "held" in self.drifts:
            momentum[m + self.drifts.index("held")] = 1.0
        cap = np.eye(m)
        (loss,), (gradient,) = self.slopes([p])
        steps, places, losses = [0.0], [p], [float(loss)]
        for k in range(count):
            rate = self.descent.rate_at(k) * self.speed
            first = k == 0 and "held" not in self.drifts and v.taken is None
            momentum = v.beta * momentum + (1.0 if first and v.beta else v.gain) * gradient
            step = self._undirected(v.step(momentum, gradient, k))
            if k and k % SINGLE_RENEWED == 1:
                cap = self._caps(p, rate)
            step[:m] = cap @ step[:m]
            p = p * (1 - self.shrink * rate) + rate * step
            (loss,), (gradient,) = self.slopes([p])
            steps.append(k + 1.0)
            places.append(p)
            losses.append(float(loss))
            if not math.isfinite(loss):
                break
        return steps, places, losses, momentum

    def _undirected(self, step: Vector) -> Vector:
        """What happens at every step whatever the gradient."""
        for i, name in enumerate(self.drifts, start=len(self.basis)):
            if name in {"steady", "decoupled decay"}:
                step[i] = 1.0
        return step

    def _caps(self, p: Vector, rate: float) -> NDArray[np.float64]:
        """What a step along unstable directions is multiplied with: nothing.

        Along an eigendirection of the small kernel with eigenvalue ``lambda`` steps with
        ``lambda h`` above `Velocity.stable`, ``h`` the loss's curvature, would swing ever farther.
        A real network does so within bounds, at the edge of stability.

        Args:
            p: The place.
            rate: The learning rate over the present one.

        Returns:
            A map of steps in the basis.
        """
        reach, vectors = self._reaches(p, rate)
        factors = np.where(reach > self.velocity.stable, 0.0, 1.0)
        caps: NDArray[np.float64] = (vectors * factors) @ vectors.T
        return caps

    def headroom(self) -> float:
        """How many times as large steps may be until they swing ever farther.

        It is of the present rate, before gradients are clipped by their norm, and as far as the
        Krylov space shows: a least bound of the largest eigenvalue, hence an upper one.

        Returns:
            The factor: below 1 where steps are too large already, inf where there are none.
        """
        if not len(self.basis):
            return math.nan
        reach, _ = self._reaches(np.zeros(len(self.directions)), self.descent.rate_at(0))
        most = float(reach.max())
        return self.velocity.stable / most if most > 0 else math.inf

    def _reaches(self, p: Vector, rate: float) -> tuple[Vector, Vector]:
        """By eigendirection of the small kernel, by what a step there changes its own slope."""
        here = (self.basis @ self.directions[: len(self.basis)].T).double()
        kernel = self.loss_map.processes.sum(here).cpu().numpy()
        values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
        return values * self._curvatures(p, vectors) * rate, vectors

    def _curvatures(self, p: Vector, vectors: Vector) -> Vector:
        """Second derivatives of the loss at a place, along unit vectors of the basis: columns."""
        y, processes = self.outputs(p), self.loss_map.processes
        q = torch.as_tensor(vectors.T, dtype=self.basis.dtype, device=self.basis.device)
        q = q @ self.basis
        size = math.sqrt(float(processes.sum(y.double().square().sum())))
        epsilon = 0.01 * (size + 1e-3 * math.sqrt(processes.total(len(y))))
        points = itertools.chain([y], (y + epsilon * direction for direction in q))
        slopes = self.loss_map.evaluate(points, q)[1]  # before they are clipped
        found: Vector = np.maximum((np.diag(slopes[1:]) - slopes[0]) / epsilon, 0.0)
        return found

    def _flow(
        self, steps: list[float], places: list[Vector], losses: list[float], horizon: float
    ) -> None:
        r"""Go on as a flow, in strides that grow with the distance, linearly implicit.

        A stride of ``n`` steps solves :math:`(1 - n DF) \Delta p = n F`, ``F`` being what a step
        does, so that directions in which a stride would overshoot come to rest.
        """
        begin = steps[-1]
        count = max(round(PER_DOUBLING * math.log2(horizon / begin)), 1) + 1
        times = np.geomspace(begin, horizon, count)
        here = self._found(places[-1])
        slope: NDArray[np.float64] | None = None
        for i, (t, then) in enumerate(itertools.pairwise(times)):
            before = here.place
            here, slope = self._stride(
                float(t), float(then), here, None if i % RENEWED == 0 else slope
            )
            if not (math.isfinite(here.loss) and np.isfinite(here.place).all()):
                break
            moved = float(np.abs(here.place - before).max())
            rests = moved <= AT_REST * float(np.abs(here.place).max())
            rests = rests and self.descent.largest_ahead(horizon, int(t)) <= WAITS
            steps.append(horizon if rests else float(then))
            places.append(here.place)
            losses.append(here.loss)
            if rests:
                break

    def _stride(
        self,
        t: float,
        then: float,
        here: _Found,
        slope: NDArray[np.float64] | None,
        halvings: int = 2,
    ) -> tuple[_Found, NDArray[np.float64]]:
        """One stride; in two halves where the loss rises, which a flow does not let it do."""
        p, moved = here.place, self._paced(t, here)
        known = slope is not None
        slope = self._slope(t, here, moved) if slope is None else slope
        n = self._steps_between(t, then)
        new = self._found(p + np.linalg.solve(np.eye(len(p)) - n * slope, n * moved))
        if new.loss <= here.loss + RISE * (here.loss + self.loss_map.loss) or self.drifts:
            return new, slope
        if known:
            return self._stride(t, then, here, None, halvings)
        if not halvings:
            return here, slope
        middle = (t + then) / 2
        here, _ = self._stride(t, middle, here, slope, halvings - 1)
        return self._stride(middle, then, here, None, halvings - 1)

    def _found(self, p: Vector) -> _Found:
        (loss,), (gradient,) = self.slopes([p])
        return _Found(p, float(loss), gradient)

    def _steps_between(self, t: float, then: float) -> float:
        """How many steps at the rate of the first they are worth."""
        now = self.descent.rate_at(int(t))
        return (self.descent.rates_until(then) - self.descent.rates_until(t)) / now if now else 0.0

    def pace(self) -> Vector:
        """By what a step changes the place now, momentum having come to its full gain."""
        return self._paced(0.0, self._found(np.zeros(len(self.directions))))

    def _paced(self, t: float, here: _Found) -> Vector:
        rate = self.descent.rate_at(int(t)) * self.speed
        step = self._undirected(self.velocity.total * here.gradient)
        return rate * step - self.shrink * rate * here.place

    def _slope(self, t: float, here: _Found, moved: Vector) -> NDArray[np.float64]:
        """The derivative of that in the place."""
        p = here.place
        found = np.zeros((len(p), len(p)))
        size = float(np.abs(p).max())
        for i in range(len(self.basis), len(p)):
            found[i, i] = -self.shrink * (self.descent.rate_at(int(t)) * self.speed)
        m = len(self.basis)
        epsilons = 0.01 * np.maximum(np.abs(p[:m]), max(0.01 * size, 1e-12))
        ahead = p + np.eye(len(p))[:m] * epsilons[:, None]
        gradients = self.slopes(list(ahead))[1] if m else ahead
        for j in range(m):
            there = self._paced(t, _Found(ahead[j], math.nan, gradients[j]))
            found[:, j] = (there - moved) / epsilons[j]
        return found


def moved_by(p: Vector, directions: Tensor) -> Tensor:
    """What outputs are less at a place of a small space, by what its directions do to them."""
    return torch.as_tensor(p, dtype=directions.dtype, device=directions.device) @ directions


class _Found(NamedTuple):
    """A place of the small space, the loss there, and its gradient in terms of the directions."""

    place: Vector
    loss: float
    gradient: Vector


def grow(
    loss_map: LossMap,
    scaled: Callable[[Tensor], Tensor],
    start: Tensor,
    first: tuple[Tensor, Tensor],
) -> Grown:
    r"""A Krylov space of outputs under :math:`J S J^*`, with full orthogonalisation.

    Args:
        loss_map: The model.
        scaled: ``S`` on flat gradients.
        start: Its first direction, this process's entries, shape ``(N,)``.
        first: The pulled gradient of ``start`` and what it makes of the outputs.

    Returns:
        The space, of `DEPTH` directions at most, of which each but the first costs a backward pass
        and a product; it ends early where it is invariant.
    """
    processes = loss_map.processes

    def size_of(x: Tensor) -> float:
        return math.sqrt(float(processes.sum(x.double().square().sum())))

    basis: list[Tensor] = []
    response: list[Tensor] = []
    pulled: list[Tensor] = []
    new, size = start, size_of(start)
    reference = size
    while len(basis) < DEPTH and size > BREAKDOWN * reference and size > 0:
        b = new / size
        if basis:
            g = loss_map.pull(b)
            moved = loss_map.push([scaled(g)])[0]
        else:
            g, moved = first[0] / size, first[1] / size
        basis.append(b)
        pulled.append(g)
        response.append(moved)
        new, reference = moved, size_of(moved)
        for _ in range(2):
            B = torch.stack(basis)
            new = new - processes.sum((B @ new).double()).to(new.dtype) @ B
        size = size_of(new)
    none = loss_map.outputs.new_zeros(0, len(loss_map.outputs))
    return Grown(
        torch.stack(basis) if basis else none, torch.stack(response) if response else none, pulled
    )


def scaling(
    parts: dict[str, Part], loss_map: LossMap, mask: Tensor | None
) -> Callable[..., Tensor]:
    """``S`` on flat gradients: learning rate times ``D``; zero for what is not stepped.

    Args:
        parts: How each parameter is stepped.
        loss_map: Knows how parameters form a flat vector.
        mask: What gradients are multiplied with before, by clipping entry by entry; or None.

    Returns:
        The map.
    """

    def scaled(flat: Tensor) -> Tensor:
        given = loss_map.space.split(flat if mask is None else flat * mask)
        return loss_map.joined({name: part.scale(given[name]) for name, part in parts.items()})

    return scaled
