"""Samples of a kernel as they are taken, and directions that are taken out of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ntk_monitor.estimators.formulas import at_least_float32, relative_gap
from ntk_monitor.estimators.kernel.core import CoreGram
from ntk_monitor.estimators.kernel.row_sketch import Room
from ntk_monitor.estimators.kernel.tangent_sketch import MIN_SAMPLES, TangentSketch
from ntk_monitor.estimators.kernel.tangents import draw_tangents
from ntk_monitor.estimators.pairs import inner_products

AGAIN = 4
"""How many products one may take, with those that are done again for it; as many must be left for
each of those that are computed together."""
EXHAUSTED = 1e-5
"""Share of an image outside of the directions so far, below which a Krylov space is at its end."""
STARTS = (1,)
"""The family of random directions that begin Krylov spaces."""

X = TypeVar("X")
"""A direction in parameter space, in whatever form a kernel has it."""


class JacobianSampler(Protocol[X]):
    """``J`` of a kernel ``A = J J*``, with random tangents ``g_0, g_1, ...`` of its own.

    Where the rows of the state are spread over processes, each has its own rows of images, and all
    that is in parameter space is summed over them.
    """

    @property
    def shape_out(self) -> tuple[int, ...]:
        """``(B, T, n)`` of this process's rows."""

    @property
    def at_once(self) -> int:
        """Tangents that are best carried at once."""

    @property
    def dtype(self) -> torch.dtype:
        """Of images."""

    @property
    def device(self) -> torch.device:
        """Of images."""

    def sample(self, indices: range) -> Tensor:
        """``J g_i``, shape ``(len, B, T, n)``; a product each."""

    def pull(self, u: Tensor) -> X:
        """``J* u`` for ``u`` of shape ``(B, T, n)``; one product."""

    def pulls(self, several: Iterable[Tensor], *, here: bool = False) -> Iterator[X]:
        """``J* u`` for several ``u``; a product each.

        Args:
            several: Each of shape ``(B, T, n)``.
            here: Whether this process's rows alone count, where it has all parameters.
        """

    def push(self, x: X) -> Tensor:
        """``J x``, shape ``(B, T, n)``; one product."""

    def inner(self, index: int, x: X) -> float:
        """``<g_i, x>``."""

    @property
    def fingerprint(self) -> int:
        """A number that tells whether processes have the same tangents."""


class Sampling(Generic[X]):
    """Samples of a kernel, with what may be taken out of them.

    Attributes:
        J: The Jacobian.
        core: The core on the same rows.
        left: Products that may still be spent.
        sketch: The samples.
        krylov: The directions.
        used: How many tangents have been drawn.
    """

    sketch: TangentSketch
    krylov: Krylov[X]

    def __init__(
        self,
        J: JacobianSampler[X],
        core: CoreGram,
        left: Callable[[], int],
        seed: int,
        max_memory: float,
        *,
        viewed: int | None = None,
    ) -> None:
        """Take the first ``MIN_SAMPLES``, whatever may be spent.

        Args:
            J: The Jacobian.
            core: The core on the same rows.
            left: Products that may still be spent.
            seed: Names the start of Krylov spaces.
            max_memory: Bytes that the samples may take.
            viewed: How many samples there will probably be, which are kept until they are `taken`;
                None where that is not known, and none are kept.
        """
        self.J, self.core, self.left, self._seed = J, core, left, seed
        itemsize = torch.promote_types(J.dtype, torch.float32).itemsize
        self._numbers = core.processes.least(max_memory) / itemsize
        self.used = 0
        self._viewed = viewed
        self._images: list[Tensor] | None = None if viewed is None else []
        self._begin()

    def _begin(self) -> None:
        first = self.used
        room = Room(self._numbers, max(self.left(), MIN_SAMPLES), self._viewed)
        self.sketch = TangentSketch(self.core, room)
        self._take(MIN_SAMPLES, lambda: AGAIN * MIN_SAMPLES)  # a step check's products show after
        self.krylov = Krylov(self.J, self.sketch, self._seed, first)

    def begin_anew(self) -> None:
        """Draw other samples in place of those so far, which the directions may depend on."""
        known = self.krylov.compare()
        self._begin()
        self.krylov.adjoint_error = known

    def taken(self) -> Tensor:
        """The samples themselves, shape ``(s, B, T, n)``, which are kept no longer."""
        images, self._images = torch.cat(self._images or []), None
        return images

    def spare(self) -> int:
        """Products for samples: one is kept for the comparison with the adjoint."""
        return self.left() - (self.krylov.adjoint_error is None)

    def extend(self, count: int) -> None:
        """Add samples, while there are products for them.

        Args:
            count: How many.
        """
        self._take(count, self.spare)

    def _take(self, count: int, spare: Callable[[], int]) -> None:
        pieces: list[Tensor] = []
        end = self.used + count
        while self.used < end and (free := spare()) > 0:
            # Processes that wait for one another do so once for several products.
            several = max(self.J.at_once, min(free // AGAIN, MIN_SAMPLES), 1)
            indices = range(self.used, min(end, self.used + several))
            images = at_least_float32(self.J.sample(indices))
            if self._images is not None:
                self._images.append(images)
            pieces.append(images.flatten(1, 2))
            self.used = indices.stop
            # Not all at once: the sketch may keep them in less memory.
            if sum(map(len, pieces)) >= MIN_SAMPLES:
                self.sketch.extend(torch.cat(pieces))
                pieces = []
        if pieces:
            self.sketch.extend(torch.cat(pieces))


class Krylov(Generic[X]):
    """A Krylov space that is taken out of a sketch as it grows.

    Attributes:
        adjoint_error: Of the first direction and the first sample; None before their comparison.
    """

    adjoint_error: float | None = None

    def __init__(self, J: JacobianSampler[X], sketch: TangentSketch, seed: int, index: int) -> None:
        """Draw the start.

        Args:
            J: The Jacobian.
            sketch: With the first samples, none deflated.
            seed: Names the start.
            index: Of the first sample's tangent.
        """
        self._J, self._sketch, self._index = J, sketch, index
        self._first = sketch.leading_sample(0)
        self._seed = seed
        self._direction = self._random()

    def extend(self, directions: int, left: Callable[[], int]) -> None:
        """Take out some more directions, at two products each or a few more, while there are."""
        for _ in range(directions):
            if left() < 2 or self._sketch.drowned:
                return
            image = at_least_float32(self._J.push(self._pull())).flatten(0, 1)
            self._sketch.deflate(self._direction, image[None])
            rows = self._sketch.rows
            size = rows.processes.sum(image.double().square().sum()).sqrt()
            further = self._sketch.outside(rows.lead(rows.keep(image)))
            exhausted = torch.linalg.vector_norm(further) <= EXHAUSTED * size
            self._direction = self._random() if bool(exhausted) else _unit(further)[None]

    def take(self, directions: Sequence[Tensor], left: Callable[[], int]) -> None:
        """Take out given directions, that no sample depends on; the space goes on from the last.

        Args:
            directions: Each on all rows, shape ``(k, n)``.
            left: Products that may still be spent.
        """
        rows = self._sketch.rows
        for direction in directions:
            kept = self._sketch.outside(rows.lead(rows.keep(direction.to(self._first))))
            if float(torch.linalg.vector_norm(kept)) > 0:
                self._direction = _unit(kept)[None]
                self.extend(1, left)

    def compare(self) -> float:
        """The adjoint error; one product, unless it is known."""
        if self.adjoint_error is None:
            self._pull()
        assert self.adjoint_error is not None
        return self.adjoint_error

    def _random(self) -> Tensor:
        """A direction of its own, where there is none to go on with; shape (1, leading, n)."""
        trials, T, n = self._J.shape_out
        rows, self._seed = self._sketch.rows, self._seed + 1
        # Trial by trial, so that it does not depend on which process has which.
        own = rows.processes.own(rows.processes.counts(trials))
        indices, device = range(own.start, own.stop), self._J.device
        noise = draw_tangents(T * n, indices, self._seed, device=device, family=STARTS)
        kept = rows.lead(rows.keep(noise.reshape(trials * T, n).to(self._first)))
        return _unit(self._sketch.outside(kept))[None]

    def _pull(self) -> X:
        """``J* u``."""
        u = self._direction[0]
        lifted = self._sketch.rows.lift(u).to(self._J.dtype)
        pulled = self._J.pull(lifted.reshape(self._J.shape_out))
        if self.adjoint_error is None:
            forward = float(inner_products(self._first.reshape(1, -1), u.reshape(1, -1)))
            usual = float(torch.linalg.vector_norm(self._first.double())) / math.sqrt(u.numel())
            self.adjoint_error = relative_gap(forward - self._J.inner(self._index, pulled), usual)
        return pulled


def _unit(X: Tensor) -> Tensor:
    """A tensor at norm one."""
    unit: Tensor = X / torch.linalg.vector_norm(X)
    return unit
