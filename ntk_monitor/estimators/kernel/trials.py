"""A kernel's trace and norm from gradients of each trial by itself, far fewer than of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ntk_monitor.uncertainty import additive_deletes

LEAST_LEFT = 0.5
"""Share of a draw that a fit to all draws is taken to leave, at least."""


class Products(NamedTuple):
    """Inner products of tensors that each group of trials has, of atoms and of draws.

    Attributes:
        atoms: Between atoms, shape ``(r, g, r, g)``.
        mixed: Between atoms and draws, shape ``(r, g, s, g)``.
        draws: Between what is left of draws beside the atoms, shape ``(s, g, s, g)``.
        sums: Between whole draws, all groups together, shape ``(s, s)``.
    """

    atoms: Tensor
    mixed: Tensor
    draws: Tensor
    sums: Tensor


class Gradients(NamedTuple):
    """A round of gradients ``x_ib = J_b* w_ib`` of draws ``w_ib ~ N(0, I)``.

    Attributes:
        kernel: Their inner products over the parameters whose gradient is known group by group.
        together: ``<x_i, x_j>`` over all others, of the sums ``x_i`` over groups, shape ``(s, s)``.
        core: The inner products of ``V_b* w_ib``.
        curved: ``||V V_b* w||^2`` of atoms, shape ``(r, g)``, and of what is left of draws beside
            them, shape ``(s, g)``.
    """

    kernel: Products
    together: Tensor
    core: Products
    curved: tuple[Tensor, Tensor]


class TrialFactor(Protocol):
    """``J`` of a kernel whose trials do not act on one another, in ``g`` groups of trials."""

    @property
    def groups(self) -> int:
        """``g``."""

    @property
    def most(self) -> int:
        """How many draws there is memory for at once."""

    def take_out(self, Y: Tensor, count: int, ahead: range) -> Tensor:
        """Choose atoms for each group from images ``J g``; a product each.

        Args:
            Y: Images that no draw depends on, shape ``(s, B, T, n)``.
            count: How many of the directions that lead there, at most.
            ahead: The draws of the round that comes next.

        Returns:
            Leading directions of all groups together, orthonormal, of shape ``(d, B, T, n)``, the
            one with the largest Rayleigh quotient first.
        """

    def gradients(self, indices: range) -> Gradients:
        """The gradients of a round, at least two draws; a product each."""

    def sample(self, indices: range) -> Tensor:
        """``J_b g_ib``, with a tangent of its own for each group; a product each.

        Within a group they have the law of other samples.

        Returns:
            What is independent of one another: groups, with rows of zeros where they are unequal,
            or all trials, shape ``(len, g, rows, n)`` or ``(len, 1, rows, n)``.
        """


class Moment(NamedTuple):
    """A number that is a mean over independent draws, of several kinds.

    Attributes:
        value: The number.
        influences: How far each draw is from the others of its kind, over the number of those, in
            an order that is the same for all numbers: to first order the number moves so much.
    """

    value: float
    influences: Tensor


class TrialMoments:
    r"""Moments of ``A = J J*`` from gradients group by group.

    A backward pass with a cotangent ``w`` gives the gradient ``x_b = J_b^* w_b`` of each group of
    trials by itself, as trials do not act on one another. For independent draws

    .. math::
        \mathrm{tr} A = \sum_b E \|x_b\|^2, \quad
        \|A\|_F^2 = \sum_{bc} E \langle x_{ib}, x_{jc}\rangle^2, \quad
        \langle A, G \otimes I\rangle = \sum_{bc} E \langle x_{ib}, x_{jc}\rangle
            \langle V_b^* w_{ib}, V_c^* w_{jc}\rangle,

    with ``i != j`` where ``b = c``. Of the variance, the diagonal blocks alone of what samples with
    one tangent for all have in all blocks: with ``g`` groups that are alike it is ``g`` times
    smaller. Of parameters whose gradient is known as a sum over groups only, pairs ``(i, j)`` are
    taken as a whole.

    Orthonormal directions ``q_ab`` of each group may be taken out of the draws, which then measure
    only the rest: in every moment such an *atom*, of gradient ``J_b^* q_ab``, counts once where a
    draw counts ``1/s``. There is no bias as long as atoms do not depend on draws.

    Moments of the core are known: its trace, its squared norm as a sum over pairs, and as one over
    draws, ``E ||V V* w||^2``. What draws say of them tells how these err, and regression takes that
    share of the error off (control variates). Pairs are those of one round.

    References:
        Hoeffding, A class of statistics with asymptotically normal distribution (1948), for the
        influences; Owen, Monte Carlo theory, methods and examples (2013), chapter 8.
    """

    def __init__(self, core_trace: float, core_norm_squared: float) -> None:
        """Start without draws.

        Args:
            core_trace: ``tr (G (x) I)``.
            core_norm_squared: ``||G (x) I||_F^2``.
        """
        self._known = (core_trace, core_norm_squared, core_norm_squared)
        self._rounds: list[tuple[Part, ...]] = []

    def __len__(self) -> int:
        """Draws of all groups."""
        return sum(len(apart) for (_, apart, _), *_ in self._rounds)

    def extend(self, found: Gradients) -> None:
        """Add a round.

        Args:
            found: Its inner products.
        """
        kernel, core = (
            Products(*(x.double().cpu() for x in p)) for p in (found.kernel, found.core)
        )
        together = found.together.double().cpu()
        atoms, draws = (x.double().cpu() for x in found.curved)
        nothing = torch.zeros_like(together)
        self._rounds.append((
            _traces(kernel, together.diagonal()),
            _pairs(kernel, kernel, (2 * kernel.sums + together) * together),
            _pairs(kernel, core, together * core.sums),
            _traces(core, nothing[0]),
            (float(atoms.sum() + draws.sum(1).mean()), draws, nothing[:, :1]),
            _pairs(core, core, nothing),
        ))  # fmt: skip

    @property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """``tr A``, ``||A||_F^2`` and ``<A, G (x) I>``, each with deletes."""
        every = [_pooled([each[i] for each in self._rounds]) for i in range(6)]
        counted = torch.stack([moment.influences for moment in every]).any(0)
        trace, norm, inner, *core = (Moment(m.value, m.influences[counted]) for m in every)
        # Sums over draws have no part in the noise of pairs.
        values = (
            _controlled(trace, core[:2], self._known[:2]),
            _controlled(norm, core, self._known),
            _controlled(inner, core, self._known),
        )
        one, two, three = (additive_deletes(each.value, each.influences) for each in values)
        return one, two, three


Part = tuple[float, Tensor, Tensor]
"""A moment by one round; what each draw of each group has in it, and what each draw as a whole."""


def _pooled(rounds: Sequence[Part]) -> Moment:
    """A moment of all rounds."""
    n = sum(len(apart) for _, apart, _ in rounds)
    value = sum(len(apart) / n * value for value, apart, _ in rounds)
    apart = torch.cat([apart for _, apart, _ in rounds])
    every = torch.cat([apart, torch.cat([together for *_, together in rounds])], dim=1)
    return Moment(value, ((every - every.mean(0)) / math.sqrt(n * (n - 1))).flatten())


def _over_blocks(draws: Tensor) -> Tensor:
    """Sums over groups of means over draws, those with itself left out, shape ``(s, g)``."""
    s, g = draws.shape[:2]
    rows = draws.sum(2)  # (i, b, c)
    same = torch.arange(g, device=draws.device)
    rows[:, same, same] -= torch.einsum("ibib->ib", draws)
    counts = rows.new_full((g, g), float(s))
    counts.fill_diagonal_(s - 1.0)
    return (rows / counts).sum(2)


def _traces(products: Products, together: Tensor) -> Part:
    """The trace, from squared lengths."""
    atoms, draws = (torch.einsum("ibib->ib", x) for x in (products.atoms, products.draws))
    value = atoms.sum() + draws.sum(1).mean() + together.mean()
    return float(value), draws, together.unsqueeze(1)


def _pairs(one: Products, two: Products, whole: Tensor) -> Part:
    """A moment that is a sum over pairs of groups, of atoms and of means over draws.

    Args:
        one: Inner products.
        two: Those that they are multiplied by.
        whole: What more there is of pairs of draws as a whole, shape ``(s, s)``.

    Returns:
        The sum, and what draws have in it; pairs of one with itself do not count.
    """
    s = len(whole)
    means = _over_blocks(one.draws * two.draws)
    crossed = (one.mixed * two.mixed).sum((0, 1))
    others = (whole.sum(1) - whole.diagonal()) / (s - 1)
    value = (one.atoms * two.atoms).sum() + (2 * crossed + means).sum(1).mean() + others.mean()
    return float(value), 2 * (crossed + means), 2 * others.unsqueeze(1)


def _controlled(moment: Moment, controls: Sequence[Moment], truths: Sequence[float]) -> Moment:
    """A moment without the error that it shares with others that are known."""
    X = torch.stack([control.influences for control in controls], dim=1)
    scale = X.norm(dim=0)
    used = scale > 0
    if not bool(used.any()):
        return moment
    X = X[:, used] / scale[used]
    beta = torch.linalg.lstsq(X, moment.influences[:, None], driver="gelsd").solution[:, 0]
    differences = zip(controls, truths, strict=True)
    gaps = torch.tensor([c.value - truth for c, truth in differences], dtype=X.dtype, device="cpu")
    value = moment.value - float(beta @ (gaps[used] / scale[used]))
    # A draw that the fit follows leaves less of itself than it errs by.
    U, sizes, _ = torch.linalg.svd(X, full_matrices=False)
    followed = U[:, sizes > torch.finfo(X.dtype).eps * len(X) * sizes[0]].square().sum(1)
    return Moment(value, (moment.influences - X @ beta) / (1 - followed).clamp(min=LEAST_LEFT))


class SpatialMoments:
    r"""Moments of the spatial view from samples whose tangents differ from group to group.

    That view is a sum over trials, so that it does not matter what groups have in common: with
    ``Y_ib = J_b g_ib`` on a group's rows

    .. math:: k S = \sum_b E\, Y_b^* Y_b, \quad
        \|k S\|_F^2 = \sum_{bc} E \|Y_{ib} Y_{jc}^*\|_F^2,

    ``i != j`` where ``b = c``, and errors of groups that have nothing in common average out. Pairs
    are those of one round.
    """

    def __init__(self) -> None:
        """Start without samples."""
        self._rounds: list[tuple[Part, Part]] = []

    def __len__(self) -> int:
        """Independent parts of samples."""
        return sum(squares.numel() for (_, squares, _), _ in self._rounds)

    @property
    def samples(self) -> int:
        """Samples of all groups."""
        return sum(len(squares) for (_, squares, _), _ in self._rounds)

    def extend(self, Y: Tensor) -> None:
        """Add a round.

        Args:
            Y: What is independent of one another, shape ``(s, g, rows, n)``, at least two samples.
        """
        (s, g, rows, n), parts = Y.shape, Y.flatten(0, 1)
        if s * g * rows**2 < n * (n + rows):
            flat = parts.flatten(0, 1)
            products = (flat @ flat.T).square().view(s * g, rows, s * g, rows).sum((1, 3))
        else:
            views = (parts.transpose(1, 2) @ parts).flatten(1)
            products = views @ views.T
        squares = torch.linalg.vector_norm(parts, dim=(1, 2)).double().square().cpu().view(s, g)
        means = _over_blocks(products.double().cpu().view(s, g, s, g))
        none = means.new_empty(s, 0)
        self._rounds.append((
            (float(squares.sum(1).mean()), squares, none),
            (float(means.sum(1).mean()), 2 * means, none),
        ))  # fmt: skip

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """``tr A`` and ``||k S||_F^2``, with deletes."""
        one, two = (_pooled([each[i] for each in self._rounds]) for i in range(2))
        return (
            additive_deletes(one.value, one.influences),
            additive_deletes(two.value, two.influences),
        )
