r"""The Jacobian with tangents that are drawn where weights act, and nothing of the weights' size.

A weight of more inputs than the state has rows acts on few of its own directions. By Theorem 1 its
part of the kernel is :math:`P_l (V_l V_l^* \otimes I) P_l^*`, so of a Gaussian tangent all that
counts is what it adds to the weight's outputs, :math:`L_l Z_l` with :math:`L_l L_l^* = V_l V_l^*`
and ``Z_l`` of independent normal numbers, ``k`` of them for each output in place of ``m``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple
from weakref import proxy

import torch
from torch import Tensor

from ntk_monitor.estimators.kernel.tangents import Drawing, Tangent
from ntk_monitor.estimators.pairs import inner_products
from ntk_monitor.model.derivatives.differences import SMALLEST_POINT, Differences
from ntk_monitor.model.derivatives.forward_map import ForwardMap
from ntk_monitor.model.derivatives.intervention import Intervention
from ntk_monitor.model.derivatives.jacobian import ParameterJacobian
from ntk_monitor.model.derivatives.substitution import MovedPasses
from ntk_monitor.model.parameters.pieces import Direction, Gaussian, Given, dots, inner
from ntk_monitor.model.sites.placing import PlacedUses
from ntk_monitor.model.sites.records import REGISTERED, Tap
from ntk_monitor.model.sites.weight_sites import WeightSite
from ntk_monitor.model.state.finding import State

WORTHWHILE = 2**20
"""Entries of weights from which it is worth while: below, a tangent of their own is as cheap."""
DEAR = 100
"""How many times as long a normal number takes, drawn and added to a weight, as one of a product of
matrices: a tangent at a site costs ``k^2 q`` of these, one of the weight's own ``m q`` of those."""
SHIFT = 1e-12
"""Share of the mean diagonal that is added to a Gram matrix, so that it has a Cholesky factor."""
OWN = (4,)
"""The family of tangents of parameters that are at no wide site."""
AGREES = 1e-2
"""Relative distance up to which both ways to take a product agree."""


class WideSite(NamedTuple):
    """A weight site with more inputs than the state has rows, the only use of its parameters.

    Attributes:
        names: The weight and the bias.
        tap: Where its outputs are in a forward pass.
        units: ``q``.
        gram: ``V V*``, shape ``(k, k)``.
        root: ``L`` with ``L L* = V V*``.
    """

    names: tuple[str, ...]
    tap: Tap
    units: int
    gram: Tensor
    root: Tensor


def wide_sites(
    placed: PlacedUses, sizes: Mapping[str, int]
) -> Callable[[WeightSite], Tensor | None]:
    """Which sites are wide.

    Args:
        placed: The uses of weights.
        sizes: How many entries the studied parameters have.

    Returns:
        From a site to its ``V V*`` in float64, or None where it is not wide; None for all where
        they have fewer than `WORTHWHILE` entries together.
    """
    counts = placed.counts
    rows = placed.rows[0] * placed.rows[1]

    def is_wide(site: WeightSite) -> bool:
        inputs = site.activity.shape[2]
        alone = all(counts[n] == 1 and n not in placed.coverage.left_out for n in site.parameters)
        once = len(site.tap.calls) == 1 and REGISTERED not in site.tap.calls
        return (
            rows < inputs
            and rows**2 < DEAR * inputs
            and alone
            and once
            and site.tap.path is None
            and site.entries is None
            and not site.derived
            and sum(sizes.get(n, 0) for n in site.parameters) == inputs * site.units
        )

    def gram(site: WeightSite) -> Tensor | None:
        if not is_wide(site):
            return None
        V = site.activity.flatten(0, 1).double()
        return V @ V.T

    most = sum(size for name, size in sizes.items() if counts[name] == 1)
    return gram if most >= WORTHWHILE else lambda _: None


def wide_site(site: WeightSite, gram: Tensor, like: Tensor) -> WideSite:
    """A wide site.

    Args:
        site: The site.
        gram: Its ``V V*``, in float64.
        like: A tensor of the arithmetic to work in.

    Returns:
        The site with its root.
    """
    root = square_root(gram)
    return WideSite(site.parameters, site.tap, site.units, gram.to(like), root.to(like))


def square_root(gram: Tensor) -> Tensor:
    """A square factor of positive semidefinite matrices.

    Args:
        gram: Shape ``(..., k, k)``, in float64.

    Returns:
        ``L`` with ``L L* = G``, of the same shape.
    """
    shift = SHIFT * gram.diagonal(dim1=-2, dim2=-1).mean(-1) + torch.finfo(gram.dtype).tiny
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(gram + shift[..., None, None] * eye)
    if bool(failed.any()):
        values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return root


class AtSites(NamedTuple):
    """A direction in parameter space that gradients can have, told by where they come from.

    Attributes:
        results: Of each wide site the gradient in its outputs, ``P_l* u``, shape ``(k, q)``; the
            weight's own is the product with ``V_l``.
        own: The gradients of all other parameters.
    """

    results: tuple[Tensor, ...]
    own: tuple[Tensor, ...]


class SiteSampler:
    """``J`` with tangents at the wide sites, and of their own for all other parameters.

    Samples have the law of those with a Gaussian tangent for each parameter. Products are finite
    differences of passes in which something is added to the sites' results; adjoint ones go
    backward as far as these. An `ntk_monitor.estimators.kernel.sampling.JacobianSampler`.

    Attributes:
        shape_out: ``(B, T, n)``.
        dtype: Of images.
        device: Of images.
    """

    at_once = 1

    def __init__(
        self,
        forward: ForwardMap,
        where: State,
        sites: Sequence[WideSite],
        names: Sequence[str],
        jacobian: ParameterJacobian,
        seed: int,
        accuracy: float,
        untrained: Mapping[str, int],
    ) -> None:
        """Keep what makes it up.

        Args:
            forward: The model.
            where: Where its state is.
            sites: Its wide sites.
            names: The studied parameters.
            jacobian: Counts products, and knows what context to compute in.
            seed: Names the tangents.
            accuracy: Relative agreement that finite differences must show.
            untrained: Rows of parameters whose derivative is taken as zero.
        """
        self.shape_out = jacobian.shape_out
        self.dtype: torch.dtype = jacobian.dtype
        self.device: torch.device = jacobian.device
        self._forward, self._where, self._sites = forward, where, tuple(sites)
        self._jacobian, self._seed = jacobian, seed
        covered = {name for site in sites for name in site.names}
        own = {n: forward.tensors[n] for n in names if n not in covered}
        self._own, self._spread = own, forward.spread(own.values())
        self._still = {name: row for name, row in untrained.items() if name in own}
        self._passes = MovedPasses(own, self._still)
        every = [forward.tensors[n] for n in names]
        size = max(math.sqrt(sum(dots(every, every))), SMALLEST_POINT)
        self._entries = sum(forward.tensors[n].numel() for n in names)
        rows = self.shape_out[0] * self.shape_out[1]
        self._starts = [0, *accumulate(rows * site.units for site in self._sites)]

        weak = proxy(self)  # no cycle, which would be kept until it is collected

        def difference(
            direction: int | AtSites, step: float, base: Tensor | None
        ) -> tuple[Tensor, float]:
            epsilon = step * size / (weak._length(direction) or 1.0)
            ahead = weak._run(direction, epsilon)
            behind = weak._run(direction, -epsilon) if base is None else base
            return ahead - behind, epsilon

        self._differences = Differences[int | AtSites](
            difference, lambda: weak._run(0, 0.0), self.dtype, accuracy
        )

    def _length(self, direction: int | AtSites) -> float:
        if isinstance(direction, AtSites):
            return math.sqrt(sum(self.squares(direction).values()))
        return math.sqrt(self._entries)  # what a Gaussian tangent has

    def _drawing(self, index: int) -> Drawing:
        """The numbers of a sample at the sites, one ``Z`` after the other."""
        return Drawing(Tangent(self._starts[-1], index, self._seed, self.device))

    def _drawn(self, drawing: Drawing, which: int) -> Tensor:
        start, end = self._starts[which : which + 2]
        return drawing.draw(start, end - start).to(self.dtype)

    def _at_site(self, direction: Drawing | AtSites, which: int, epsilon: float) -> Tensor:
        """What is added to a site's outputs, shape ``(B, T, q)``."""
        site = self._sites[which]
        if not epsilon:
            added = site.root.new_zeros(len(site.root), site.units)
        elif isinstance(direction, AtSites):
            added = site.gram @ direction.results[which]
        else:
            added = site.root @ self._drawn(direction, which).view(-1, site.units)
        return (epsilon * added).view(*self.shape_out[:2], site.units)

    def _own_part(self, direction: int | AtSites) -> Direction:
        if isinstance(direction, AtSites):
            return Given(direction.own, self._spread)
        return Gaussian(self._seed, direction, self._spread, self.device, OWN)

    def _run(self, direction: int | AtSites, epsilon: float) -> Tensor:
        """The state with the parameters moved along a direction."""
        given = self._drawing(direction) if isinstance(direction, int) else direction
        making = {
            site.tap: partial(self._at_site, given, i, epsilon)
            for i, site in enumerate(self._sites)
        }
        intervention = Intervention(made=making)
        if not self._own:
            return self._forward.run({}, self._where, intervention)
        own = self._own_part(direction) if epsilon else None
        return self._passes(
            lambda m: self._forward.run_with(m, self._where, intervention), own, epsilon
        )

    def _products(self, directions: Sequence[int | AtSites], *, sampled: bool) -> Tensor:
        before = self._differences.extra
        with self._jacobian.quiet("any"), torch.no_grad():
            images = torch.stack(self._differences(directions, sampled=sampled))
        self._jacobian.products += len(directions) + self._differences.extra - before
        return images

    def sample(self, indices: range) -> Tensor:
        """``J g_i``, shape ``(len, B, T, n)``; a product each."""
        return self._products(list(indices), sampled=True)

    def push(self, x: AtSites) -> Tensor:
        """``J x``; one product."""
        return self._products([x], sampled=False)[0]

    def pull(self, u: Tensor) -> AtSites:
        """``J* u``; one product."""
        return next(self.pulls([u]))

    def pulls(self, several: Iterable[Tensor], *, here: bool = False) -> Iterator[AtSites]:
        """``J* u`` for several ``u``, from one evaluation; a product each.

        Args:
            several: Each of shape ``(B, T, n)``.
            here: No matter: sites are met by one process alone.

        Yields:
            The directions.
        """
        del here
        leaves = [
            torch.zeros(*self.shape_out[:2], site.units, dtype=self.dtype, device=self.device)
            for site in self._sites
        ]
        own = {name: t.detach().requires_grad_() for name, t in self._own.items()}
        making = {
            site.tap: partial(_itself, leaf.requires_grad_())
            for site, leaf in zip(self._sites, leaves, strict=True)
        }
        inputs = [*leaves, *own.values()]
        with self._jacobian.quiet("reversible"):
            state = self._forward.run(own, self._where, Intervention(made=making))
        for u in several:
            self._jacobian.products += 1
            with self._jacobian.quiet("reversible"):
                found = torch.autograd.grad(
                    state, inputs, u, retain_graph=True, materialize_grads=True
                )
            others = found[len(leaves) :]
            for name, g in zip(self._own, others, strict=True):
                if name in self._still:
                    g[self._still[name]] = 0
            yield AtSites(tuple(g.flatten(0, 1) for g in found[: len(leaves)]), others)

    def inner(self, index: int, x: AtSites) -> float:
        """``<g_i, x>``."""
        drawing = self._drawing(index)
        total = inner(self._own_part(index), x.own, self._spread)
        for i, result in enumerate(x.results):
            added = self._at_site(drawing, i, 1.0).flatten(0, 1)
            total += _inner(added, result)
        return total

    def squares(self, x: AtSites) -> dict[str, float]:
        """The squared norm of a direction, by the first name of each site and of other parameters.

        Args:
            x: The direction.

        Returns:
            What adds up to it.
        """
        parts = {
            site.names[0]: _inner(site.gram @ a, a)
            for site, a in zip(self._sites, x.results, strict=True)
        }
        return parts | dict(zip(self._own, dots(x.own, x.own), strict=True))

    def distance_to_parameters(self, u: Tensor) -> float:
        """How far ``J J* u`` is from what it is with a vector of all parameters.

        Args:
            u: Shape ``(B, T, n)``.

        Returns:
            The distance over the size; a few products.
        """
        jacobian = self._jacobian
        pulled = Given(next(jacobian.pulls_apart([u])), jacobian.spread)
        wanted = jacobian.along([pulled])[0].double()
        del pulled
        found = self.push(self.pull(u)).double()
        size = float(wanted.norm())
        return float((found - wanted).norm()) / size if size else 0.0

    @property
    def fingerprint(self) -> int:
        """A number that tells whether processes have the same tangents."""
        return Tangent(self._starts[-1], 0, self._seed, self.device).fingerprint


def _inner(x: Tensor, y: Tensor) -> float:
    return float(inner_products(x.reshape(1, -1), y.reshape(1, -1)))


def _itself(leaf: Tensor) -> Tensor:
    return leaf
