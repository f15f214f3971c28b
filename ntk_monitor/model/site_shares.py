"""Where a state can be moved: the trace of its NTK, weight site by weight site.

With ``J_l`` the columns of the parameters of site ``l`` the trace is ``sum_l ||J_l||^2``, and
``||J_l* w||^2`` is one term of it on average over random ``w``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ntk_monitor.estimators import ExactKernel
from ntk_monitor.model.derivatives.trial_gradients import TrialGradients
from ntk_monitor.model.linearization import Linearization

FAMILY = 2**40
"""Sets these directions apart from those of other checks with the same seed."""


def of_entries(lin: Linearization, kernel: ExactKernel) -> dict[str, Tensor]:
    """The terms from all entries of the Jacobian.

    Args:
        lin: The model.
        kernel: Its kernel.

    Returns:
        ``||J_l||^2`` by name, shape ``(1,)``.
    """
    columns = lin.processes.sum(kernel.rows.flatten(1).square().sum(1, dtype=torch.float64))
    return lin.by_site({n: x.sum().reshape(1) for n, x in lin.jacobian.apart(columns).items()})


def of_draws(
    lin: Linearization, trials: TrialGradients | None, count: int, seed: int
) -> dict[str, Tensor]:
    """The terms from random directions: those of a probe that tells trials apart, or some more.

    Args:
        lin: The model.
        trials: Its Jacobian trial by trial, where draws were taken of it; else None.
        count: How many products may be spent where it is None.
        seed: Names the directions.

    Returns:
        ``||J_l* w||^2`` of each draw, shape ``(s,)``, by name; nothing where fewer than two draws
        can be had.
    """
    if trials is not None:
        squares = trials.squares.items()
        return lin.by_site({name: torch.tensor(x, device="cpu") for name, x in squares})
    if count < 2:
        return {}
    # Of rows of each process by themselves, so that no gradients are sent around.
    draws = list(lin.squares(lin.directions(count, FAMILY + seed), here=True))
    terms = torch.tensor([list(draw.values()) for draw in draws], device="cpu")
    terms = terms if lin.is_sharded else lin.processes.sum(terms.double())
    return lin.by_site(dict(zip(draws[0], terms.T, strict=True)))


def shares(squares: Mapping[str, Tensor]) -> list[tuple[str, float, float]]:
    """What each term has of the sum, with its standard error.

    Args:
        squares: The terms in each of some draws; see `of_draws`.

    Returns:
        Names, shares and standard errors, the largest share first; nothing where all are zero.
    """
    if not squares:
        return []
    terms = torch.stack([x.double().cpu() for x in squares.values()])
    totals = terms.sum(0)
    if not 0 < float(totals.sum()) < math.inf:
        return []
    found = []
    for name, x in zip(squares, terms, strict=True):
        share = float(x.sum() / totals.sum())
        rest = (x - share * totals) / totals.mean()
        error = float(rest.std() / math.sqrt(len(x))) if len(x) > 1 else 0.0
        found.append((name, share, error))
    return sorted(found, key=lambda term: -term[1])
