r"""The Jacobian trial by trial: gradients, and tangents, of each group of trials by itself.

Where trials do not act on one another, a backward pass to the outputs of all weight sites tells the
gradient of every group of trials: with the sensitivity ``s`` of a site's outputs and its activity
``V`` it is :math:`s_b^* V_b`, the sum over that group's rows. And what a tangent of a group's own
would add to the outputs on its rows is :math:`V_b g_b`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple
from weakref import proxy

import torch
from torch import Tensor

from ntk_monitor.estimators.kernel.adaptive import PARTS
from ntk_monitor.estimators.kernel.core import CoreGram
from ntk_monitor.estimators.kernel.tangents import Drawing, Tangent, draw_tangents
from ntk_monitor.estimators.kernel.trials import Gradients, Products
from ntk_monitor.model.derivatives.derivative import Derivative
from ntk_monitor.model.derivatives.differences import SMALLEST_POINT, Differences
from ntk_monitor.model.derivatives.forward_map import ForwardMap
from ntk_monitor.model.derivatives.intervention import Intervention
from ntk_monitor.model.derivatives.site_sampling import square_root
from ntk_monitor.model.parameters.pieces import dots
from ntk_monitor.model.parameters.selection import ParameterSpace
from ntk_monitor.model.sites.placing import PlacedUses
from ntk_monitor.model.sites.records import REGISTERED, Tap
from ntk_monitor.model.sites.weight_sites import WeightSite
from ntk_monitor.model.state.finding import State

logger = logging.getLogger(__name__)

FEWEST_GROUPS, MOST_GROUPS = 4, 32
"""Groups of trials from which it is worth while to tell them apart, and the most that are."""
COTANGENTS, APART = (2,), (3,)
"""The families of random cotangents, and of tangents of groups."""
TOGETHER = 3
"""Leading directions of all groups that are made, for each that is taken out of a group."""
MANY = 32
"""Effective rank of groups from which none of their directions are worth the products that these
take: draws average over them."""
PER_PAIR = 16
"""Operations, beside those of its units, that a pair of rows is taken to cost."""
PIECES = 4
"""Of rows whose inner products with one another are taken."""
LEAST_PIECE = 2**20
"""Numbers that gradients of a round in a part of a weight may have in any case."""
GAP = 1e-3
"""Relative gap up to which gradients by groups agree with those of all parameters, in float32."""
Key = tuple[tuple[str, ...], int]
"""Names entries of parameters: the parameters, and which group of a weight."""


class TrialSite(NamedTuple):
    """A weight site whose gradient is known trial by trial.

    Attributes:
        key: Names the entries that act here; sites with the same share them.
        tap: Where its outputs are in a forward pass.
        units: ``q``.
        activity: ``V``, shape ``(B, T, m)``.
    """

    key: Key
    tap: Tap
    units: int
    activity: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return self.key[0]


def trial_sites(
    placed: PlacedUses, untrained: Iterable[str], room: float
) -> Callable[[WeightSite], TrialSite | None]:
    """Which sites tell their gradient trial by trial.

    Args:
        placed: The uses of weights.
        untrained: Parameters with rows that are not trained.
        room: Bytes that the sites' activity may take.

    Returns:
        From a site to itself with what is needed of it; None where it is none, as where there are
        too few trials, or the room is used up.
    """
    without = {*untrained, *placed.coverage.left_out}
    kinds: dict[str, set[tuple[str, ...]]] = {}
    for names in placed.parameters:
        for name in names:
            kinds.setdefault(name, set()).add(names)
    left = [room]

    def look(site: WeightSite) -> TrialSite | None:
        alike = all(len(kinds[name]) == 1 and name not in without for name in site.parameters)
        if placed.rows[0] < FEWEST_GROUPS or not alike:
            return None
        if site.derived or REGISTERED in site.tap.calls:
            return None
        left[0] -= site.activity.numel() * site.activity.element_size()
        if left[0] < 0:
            return None
        return TrialSite((site.parameters, site.tap.group), site.tap, site.units, site.activity)

    return look


class Part(NamedTuple):
    """Entries of a weight, or of the core.

    Attributes:
        key: Names the weight's entries; of no parameters for the core.
        units: Which rows of the weight.
        gram: ``V V*`` over the activity's rows, where gradients are kept by rows; else None.
    """

    key: Key = ((), 0)
    units: slice = slice(None)
    gram: Tensor | None = None


class TrialGradients:
    """``J`` by groups of trials; an `ntk_monitor.estimators.kernel.trials.TrialFactor`.

    Attributes:
        groups: How many groups of trials there are.
        most: How many draws there is memory for at once.
        squares: ``sum_b ||J_b* w_b||^2`` of each draw so far, by the first name of each site, and
            by the name of every other parameter: what each adds to the trace, on average.
    """

    squares: dict[str, list[float]]

    def __init__(
        self,
        forward: ForwardMap,
        where: State,
        sites: Sequence[TrialSite],
        names: Sequence[str],
        jacobian: Derivative,
        core: CoreGram,
        seed: int,
        accuracy: float,
        untrained: Mapping[str, int],
        room: float,
    ) -> None:
        """Keep what makes it up.

        Args:
            forward: The model.
            where: Where its state is.
            sites: Its weight sites that tell their gradient trial by trial.
            names: The studied parameters.
            jacobian: Counts products, and knows what context to compute in.
            core: The core on the same rows.
            seed: Names the cotangents and tangents.
            accuracy: Relative agreement that finite differences must show.
            untrained: Rows of parameters whose derivative is taken as zero.
            room: Bytes that gradients may take.
        """
        self._shape = jacobian.shape_out
        self._dtype: torch.dtype = jacobian.dtype
        self._device: torch.device = jacobian.device
        self._forward, self._where, self._sites = forward, where, tuple(sites)
        self._jacobian, self._core, self._seed = jacobian, core, seed
        trials = self._shape[0]
        self.groups = min(trials, MOST_GROUPS)
        bounds = [round(i * trials / self.groups) for i in range(self.groups + 1)]
        self._counts = [b - a for a, b in pairwise(bounds)]
        covered = {name for site in sites for name in site.names}
        own = {n: forward.tensors[n] for n in names if n not in covered}
        self._own = own
        self._space = ParameterSpace({name: t.shape for name, t in own.items()})
        self._still = self._space.rows({n: row for n, row in untrained.items() if n in own})
        self._graph: tuple[Tensor, list[Tensor]] | None = None
        self.squares = {}
        self._keys = {site.key: (site.activity.shape[2], site.units) for site in sites}
        self._parts = list(self._in_parts())
        self._directions = torch.empty(0, *self._shape, dtype=self._dtype, device=self._device)
        self._ahead: dict[range, list[Tensor]] = {}
        self._atoms = list(self._entries(self._nothing()))
        self._numbers = room / torch.finfo(self._dtype).bits * 8
        self.most = int(self._numbers / self._numbers_of_a_draw)
        every = [forward.tensors[n] for n in names]
        size = max(math.sqrt(sum(dots(every, every))), SMALLEST_POINT)
        length = math.sqrt(sum(forward.tensors[n].numel() for n in names))

        weak = proxy(self)  # no cycle, which would keep a graph until it is collected

        def difference(index: int, step: float, base: Tensor | None) -> tuple[Tensor, float]:
            epsilon = step * size / length
            ahead = weak._run(index, epsilon)
            behind = weak._run(index, -epsilon) if base is None else base
            return ahead - behind, epsilon

        self._differences = Differences[int](
            difference, lambda: weak._run(0, 0.0), self._dtype, accuracy
        )

    @property
    def _numbers_of_a_draw(self) -> int:
        """Sensitivities of all sites, and gradients in the largest of them."""
        units = sum(site.units for site in self._sites)
        largest = max(map(self._size_of, self._parts))
        rows = self._shape[0] * self._shape[1]
        pairs = max((p.gram.numel() for p in self._parts if p.gram is not None), default=0)
        return rows * units + 2 * self.groups * largest + 2 * self._space.size + 2 * pairs

    def take_out(self, Y: Tensor, count: int, ahead: range) -> Tensor:
        """Choose atoms, and take their gradients with those of the next draws; a product each.

        Returns:
            Leading directions of all groups; none where groups have many, or memory lacks.
        """
        Y = Y.to(self._dtype)
        count = min(count, len(Y), min(self._counts) * math.prod(self._shape[1:]) // 2)
        kept = self.groups * sum(map(self._size_of, self._parts))
        count = min(count, int(self._numbers / kept), self.most - len(ahead))
        if count <= 0:
            return Y[:0]
        flat = self._grouped(Y, 1).flatten(2).transpose(0, 1)  # (g, s, entries)
        gram = (flat @ flat.transpose(1, 2)).double()
        if not _rank(gram) <= MANY:
            return Y[:0]
        self._directions = self._leading_in_groups(flat, gram, count)
        self._jacobian.products += count
        together = torch.cat([self._directions, self._cotangents(ahead)])
        found = self._sensitivities(together)
        self._atoms = list(self._entries([each[:count] for each in found]))
        self._ahead = {ahead: [each[count:] for each in found]}
        each = zip(self._atoms, self._parts, strict=True)
        H = torch.stack([_inner_products(x, x, part.gram) for x, part in each]).sum(0)
        _, vectors = torch.linalg.eigh(H)
        shares = vectors.flip(1)[:, : TOGETHER * count].T.reshape(-1, count, self.groups).to(Y)
        counts = torch.tensor(self._counts, device=Y.device)
        by_trial = shares.repeat_interleave(counts, dim=2)
        return torch.einsum("dab,abtn->dbtn", by_trial, self._directions)

    def _leading_in_groups(self, flat: Tensor, gram: Tensor, count: int) -> Tensor:
        """Orthonormal directions of each group in which some images are large."""
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values[:, -count:], vectors[:, :, -count:]
        least = torch.finfo(self._dtype).eps * values[:, -1:] + torch.finfo(values.dtype).tiny
        scaled = vectors / values.clamp(min=0).add(least).sqrt().unsqueeze(1)
        leading = scaled.transpose(1, 2).to(flat) @ flat
        leading = torch.linalg.qr(leading.transpose(1, 2)).Q.transpose(1, 2)  # what rounding left
        return self._of_groups(leading.transpose(0, 1), self._shape[2])

    def _of_groups(self, x: Tensor, units: int) -> Tensor:
        """From entries of groups, as `_grouped` has them, to ``(len, B, T, units)``."""
        longest = max(self._counts)
        x = x.reshape(-1, self.groups, longest, self._shape[1], units)
        if longest * self.groups == self._shape[0]:
            return x.flatten(1, 2)
        return torch.cat([x[:, b, :count] for b, count in enumerate(self._counts)], dim=1)

    def gradients(self, indices: range) -> Gradients:
        """The gradients of a round; a product each, and one pass for all rounds."""
        self._jacobian.products += len(indices)
        w = self._cotangents(indices)
        found = self._ahead.pop(indices, None) or self._sensitivities(w)
        own = self._own_gradients(found)
        taken = self._taken(w)
        atoms, images = self._images(self._directions), self._images(w)
        # F* F is the diagonal matrix of the core's eigenvalues.
        sizes = self._core.factor.square().sum(0).repeat_interleave(self._shape[2])
        s, g = len(w), self.groups
        rest = images - taken.to(images) @ atoms
        squares = {
            name: x.reshape(s, -1).square().sum(1, dtype=torch.float64)  # also of single numbers
            for name, x in self._space.split(own).items()
        }
        kernel = self._products(self._atoms, self._entries(found), self._parts, taken, squares)
        if not indices.start:  # a measurement that begins anew
            self.squares = {}
        for name, x in squares.items():
            self.squares.setdefault(name, []).extend(x.tolist())
        return Gradients(
            kernel,
            _inner(own, own),
            self._products([atoms], [images], [Part()], taken),
            (
                (atoms.square() @ sizes).view(len(atoms) // g, g),
                (rest.square() @ sizes).view(s, g),
            ),
        )

    def _taken(self, w: Tensor) -> Tensor:
        """What each draw has of each atom, ``<q_ab, w_ib>``, shape ``(s g, r g)``."""
        one, two = (self._grouped(x, 1).flatten(2).transpose(0, 1) for x in (w, self._directions))
        s, r, g = len(w), len(self._directions), self.groups
        taken = torch.zeros(s, g, r, g, dtype=torch.float64, device=self._device)
        same = torch.arange(g, device=self._device)
        taken[:, same, :, same] = (one @ two.transpose(1, 2)).double()
        return taken.view(s * g, r * g)

    def _images(self, w: Tensor) -> Tensor:
        """``V_b* w_b``, shape ``(len g, .)``."""
        factor = self._grouped(self._core.factor.view(*self._shape[:2], -1), 0)
        images = factor.transpose(-1, -2) @ self._grouped(w.to(factor), 1)
        return images.flatten(2).flatten(0, 1)

    def _products(
        self,
        atoms: Iterable[Tensor],
        draws: Iterable[Tensor],
        parts: Iterable[Part],
        taken: Tensor,
        squares: dict[str, Tensor] | None = None,
    ) -> Products:
        """Inner products of atoms, and of draws without what they have of atoms, part by part.

        Args:
            atoms: Of each part, or of the core.
            draws: Likewise.
            parts: What they are of.
            taken: What each draw has of each atom.
            squares: Takes those of each draw, by the first name of each kind of entries.

        Returns:
            The sums over all parts.
        """
        g = self.groups
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        among, mixed, whole = zero, zero, zero
        for x, y, part in zip(atoms, draws, parts, strict=True):
            of_draws = _inner_products(y, y, part.gram)
            among = among + _inner_products(x, x, part.gram)
            mixed = mixed + _inner_products(x, y, part.gram)
            whole = whole + of_draws
            if squares is not None and part.key[0]:
                own, name = of_draws.diagonal().view(-1, g).sum(1), part.key[0][0]
                squares[name] = squares[name] + own if name in squares else own
        rest = mixed - among @ taken.T
        left = whole - taken @ mixed - (taken @ rest).T
        r, s = len(among) // g, len(whole) // g
        return Products(
            among.view(r, g, r, g),
            rest.view(r, g, s, g),
            left.view(s, g, s, g),
            whole.view(s, g, s, g).sum((1, 3)),
        )

    def _cotangents(self, indices: range) -> Tensor:
        noise = draw_tangents(
            math.prod(self._shape),
            indices,
            self._seed,
            dtype=self._dtype,
            device=self._device,
            family=COTANGENTS,
        )
        return noise.view(-1, *self._shape)

    def _in_parts(self) -> Iterator[Part]:
        """Each kind of entries, cut where gradients in all of them would take much memory."""
        rows = self._shape[0] * self._shape[1]
        limit = max(rows * sum(site.units for site in self._sites) / 2, LEAST_PIECE)
        for key, (m, q) in self._keys.items():
            gram = self._gram_of_rows(key)
            count = min(math.ceil(PARTS * m * q / limit), q) if gram is None else 1
            ends = [q * i // count for i in range(count + 1)]
            yield from (Part(key, slice(*each), gram) for each in pairwise(ends))

    def _entries(self, found: Sequence[Tensor]) -> Iterator[Tensor]:
        """The gradients in each part of the entries, as vectors or by rows.

        Yields:
            Gradients themselves, ``s_b^* V_b``, shape ``(len g, units m)``; or where it is less
            work to take their inner products from those of rows, ``s``, ``(len, g, rows, q)``.
        """
        for part in self._parts:
            by_rows = part.gram is not None
            yield self._rows_of(part, found) if by_rows else self._by_group(part, found)

    def _by_group(self, part: Part, found: Sequence[Tensor]) -> Tensor:
        total: Tensor | None = None
        for site, sensitivity in zip(self._sites, found, strict=False):
            if site.key == part.key:
                s = self._grouped(sensitivity[..., part.units], 1)
                here = s.transpose(-1, -2) @ self._grouped(site.activity, 0)
                total = here if total is None else total.add_(here)
        assert total is not None
        return total.flatten(2).flatten(0, 1)

    def _rows_of(self, part: Part, found: Sequence[Tensor]) -> Tensor:
        """The sensitivities of all sites that share some entries, one below the other."""
        each = zip(self._sites, found, strict=False)
        return torch.cat([self._grouped(s, 1) for site, s in each if site.key == part.key], dim=2)

    def _gram_of_rows(self, key: Key) -> Tensor | None:
        """``V V*`` over the rows of all groups, where gradients are kept by rows; else None."""
        m, q = self._keys[key]
        activities = [site.activity for site in self._sites if site.key == key]
        rows = max(self._counts) * sum(V.shape[1] for V in activities)
        if rows**2 * (q + PER_PAIR) >= m * q:
            return None
        V = torch.cat([self._grouped(V, 0) for V in activities], dim=1).flatten(0, 1)
        return V @ V.T

    def _size_of(self, part: Part) -> int:
        """Numbers of a group's gradient in a part of the entries."""
        m, q = self._keys[part.key]
        if part.gram is None:
            return m * len(range(q)[part.units])
        return len(part.gram) // self.groups * q

    def _nothing(self) -> list[Tensor]:
        """Sensitivities of no cotangents."""
        return [self._directions.new_empty(0, *self._shape[:2], s.units) for s in self._sites]

    def _grouped(self, x: Tensor, axis: int) -> Tensor:
        """Trials and steps at some axis as groups and rows, those that a group lacks zero."""
        longest = max(self._counts)
        if longest * self.groups != x.shape[axis]:
            parts = torch.split(x, self._counts, dim=axis)
            missing = torch.zeros_like(x.narrow(axis, 0, 1))
            filled = [
                torch.cat([part, *[missing] * (longest - count)], dim=axis)
                for part, count in zip(parts, self._counts, strict=True)
            ]
            x = torch.cat(filled, dim=axis)
        rows = longest * x.shape[axis + 1]
        return x.reshape(*x.shape[:axis], self.groups, rows, *x.shape[axis + 2 :])

    def _own_gradients(self, found: Sequence[Tensor]) -> Tensor:
        """The gradients in all other parameters, shape ``(len, .)``."""
        own = found[len(self._sites) :]
        flat = self._space.join(own, batch_dims=1) if own else found[0].new_zeros(len(found[0]), 0)
        for entries in self._still:
            flat[:, entries] = 0
        return flat

    def _sensitivities(self, cotangents: Tensor) -> list[Tensor]:
        """Gradients in the sites' outputs and in other parameters, for each cotangent."""
        with self._jacobian.quiet("reversible"):
            if self._graph is None:
                self._graph = self._recorded()
            return _backward(*self._graph, cotangents)

    def _recorded(self) -> tuple[Tensor, list[Tensor]]:
        leaves = {tap: zeros.requires_grad_() for tap, zeros in self._zeros().items()}
        own = {name: t.detach().requires_grad_() for name, t in self._own.items()}
        state = self._forward.run(own, self._where, Intervention(sites=leaves))
        return state, [*leaves.values(), *own.values()]

    def _zeros(self) -> dict[Tap, Tensor]:
        """Nothing, to be added to the sites' outputs."""
        zero = torch.zeros((), dtype=self._dtype, device=self._device)
        return {site.tap: zero.expand(*self._shape[:2], site.units) for site in self._sites}

    def sample(self, indices: range) -> Tensor:
        """``J_b g_ib``, by groups where all that moves them is their own; a product each."""
        before = self._differences.extra
        with self._jacobian.quiet("any"), torch.no_grad():
            images = torch.stack(self._differences(list(indices), sampled=True))
        self._jacobian.products += len(indices) + self._differences.extra - before
        return images.flatten(1, 2).unsqueeze(1) if self._own else self._grouped(images, 1)

    def _run(self, index: int, epsilon: float) -> Tensor:
        """The state with something added to the sites' outputs, and other parameters moved."""
        if not epsilon:  # on the way that other passes go
            return self._forward.run({}, self._where, Intervention(sites=self._zeros()))
        total = self._starts[None] + self._space.size
        drawing = Drawing(Tangent(total, index, self._seed, self._device, APART))
        added = {site.tap: epsilon * self._added(site, drawing) for site in self._sites}
        own = drawing.draw(self._starts[None], self._space.size).to(self._dtype)
        for entries in self._still:
            own[entries] = 0
        theta = self._space.split(own)
        moved = {n: torch.add(self._own[n], g, alpha=epsilon) for n, g in theta.items()}
        return self._forward.run(moved, self._where, Intervention(sites=added))

    @cached_property
    def _factors(self) -> dict[Key, Tensor | None]:
        """Of each group's activity a square factor, where its rows are fewer than the inputs."""
        sites = Counter(site.key for site in self._sites)
        factors: dict[Key, Tensor | None] = {}
        for site in self._sites:
            V = self._grouped(site.activity, 0)
            narrow = V.shape[1] < V.shape[2] and sites[site.key] == 1
            factors[site.key] = (
                square_root(V.double() @ V.double().transpose(1, 2)).to(V) if narrow else None
            )
        return factors

    @cached_property
    def _draws(self) -> dict[Key, int]:
        """How many numbers a tangent of each kind of entries takes."""
        longest = max(self._counts) * self._shape[1]
        inputs = {k: m if self._factors[k] is None else longest for k, (m, _) in self._keys.items()}
        return {k: self.groups * inputs[k] * q for k, (_, q) in self._keys.items()}

    @cached_property
    def _starts(self) -> dict[Key | None, int]:
        """Where they begin, and where those of other parameters do."""
        starts = accumulate([0, *self._draws.values()])
        return dict(zip([*self._draws, None], starts, strict=True))

    def _added(self, site: TrialSite, drawing: Drawing) -> Tensor:
        """What tangents of groups add to a site's outputs, shape ``(B, T, q)``."""
        factor = self._factors[site.key]
        drawn = drawing.draw(self._starts[site.key], self._draws[site.key]).to(self._dtype)
        V = self._grouped(site.activity, 0) if factor is None else factor
        added = V @ drawn.view(self.groups, V.shape[-1], site.units)
        return self._of_groups(added, site.units)[0]

    def gap(self) -> float:
        """How far inner products of gradients by groups are from those of all parameters.

        With cotangents on all trials and on half of the groups: it shows whether all that moves
        the state is seen, and whether trials act on one another. Three products and a round.

        Returns:
            The largest gap over the gradients' size.
        """
        w = self._cotangents(range(2))
        half = w[:1].clone()
        half[:, sum(self._counts[: self.groups // 2]) :] = 0
        three = torch.cat([w, half])
        whole = self._jacobian.rmatmat(three)
        wanted = _inner(whole, whole)
        del whole
        found = self._sensitivities(three)
        own = self._own_gradients(found)
        by_groups, stray = _inner(own, own), 0.0
        others = slice(2 * self.groups + self.groups // 2, None)
        for x, part in zip(self._entries(found), self._parts, strict=True):
            if part.gram is None:
                total = x.view(3, self.groups, -1).sum(1)
                by_groups = by_groups + _inner(total, total)
                stray += float(x[others].square().sum(dtype=torch.float64))
                continue
            products = _inner_products(x, x, part.gram)
            by_groups = by_groups + products.view(3, self.groups, 3, self.groups).sum((1, 3))
            stray += float(products.diagonal()[others].sum())
        sizes = wanted.diagonal().sqrt().clamp(min=torch.finfo(wanted.dtype).tiny)
        gaps = (wanted - by_groups).abs() / torch.outer(sizes, sizes)
        return max(float(gaps.max()), math.sqrt(stray) / float(sizes[2]))


def _inner_products(one: Tensor, two: Tensor, gram: Tensor | None) -> Tensor:
    """Inner products of gradients of groups, in float64.

    Args:
        one: As `TrialGradients._entries` has them.
        two: Likewise.
        gram: That of the activity's rows, of gradients by rows.

    Returns:
        Shape ``(r g, s g)``.
    """
    if gram is None:
        return _gram(one) if one is two else _inner(one, two)
    (r, g, rows, _), s = one.shape, len(two)
    flat = two.flatten(0, 2)
    found = one.new_empty(r, g, s, g)
    for each, x in zip(found, one, strict=True):
        products = (x.flatten(0, 1) @ flat.T).view(g * rows, s, g * rows).mul_(gram.unsqueeze(1))
        each.copy_(products.view(g, rows, s, g, rows).sum((1, 4)))
    return found.view(r * g, s * g).double()


def _inner(one: Tensor, two: Tensor) -> Tensor:
    """Inner products of rows, in float64, of sums in their own arithmetic."""
    return (one @ two.T).double()


def _rank(gram: Tensor) -> float:
    """The effective rank of groups by themselves, from inner products of samples, (g, s, s)."""
    squares = gram.diagonal(dim1=1, dim2=2)
    trace_squared = squares.sum(1).square() - squares.square().sum(1)
    norm_squared = gram.square().sum((1, 2)) - squares.square().sum(1)
    return float(trace_squared.sum() / norm_squared.sum())


def _gram(x: Tensor) -> Tensor:
    """Inner products of rows with one another, each pair of pieces once."""
    ends = [len(x) * i // PIECES for i in range(PIECES + 1)]
    lower = x.new_zeros(len(x), len(x))
    for begin, end in pairwise(ends):
        lower[begin:end, :end] = x[begin:end] @ x[:end].T
    lower = lower.tril().double()
    return lower + lower.tril(-1).T


def _backward(state: Tensor, inputs: Sequence[Tensor], cotangents: Tensor) -> list[Tensor]:
    """Gradients for several cotangents, all at once where the graph's operations can."""
    if len(cotangents) > 1:
        try:
            found = torch.autograd.grad(
                state,
                inputs,
                cotangents,
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
            )
            return list(found)
        except (RuntimeError, NotImplementedError) as error:
            logger.info("cotangents go backward one by one: %s", error)
    each = [x.new_empty(len(cotangents), *x.shape) for x in inputs]
    for i, w in enumerate(cotangents):
        one = torch.autograd.grad(state, inputs, w, retain_graph=True, materialize_grads=True)
        for whole, part in zip(each, one, strict=True):
            whole[i] = part
    return each
