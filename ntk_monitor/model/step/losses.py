"""What each loss function of torch compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Link = Callable[[Tensor], Tensor]
Kind = Literal["values", "classes", "bits"]
"""``"values"``: the target is what the outputs should be. ``"classes"``: it is class indices, or a
distribution over classes. ``"bits"``: each entry is the probability of a yes."""


def identity(y: Tensor) -> Tensor:
    """Outputs that are compared as they are."""
    return y


def probabilities(y: Tensor) -> Tensor:
    """Logits over the last axis as probabilities."""
    return y.softmax(-1)


Counts = Literal["entries", "rows", "all"]
"""Of what a derivative that is zero says that it does not count: each entry of the outputs; only
rows without any other (a target class has one, the others may have none); nothing (where a margin
is kept, or a target is zero)."""


@dataclass(frozen=True, eq=False)
class Loss:
    """How a loss function reads its arguments.

    Attributes:
        name: The function's name.
        kind: What its target is.
        link: From outputs to what should equal the target.
        target: From the target that is given, the function's other arguments by name and the
            outputs, to the target in the outputs' terms.
        counts: How far its derivatives tell what counts.
        generic: From normal noise, and the target, to outputs at which no derivative is zero by
            chance.
        classes_second: Whether classes are on the second axis of more than two.
        reach: From the function's other arguments by name to the share of the target, less its
            mean, that outputs have where the loss is least.
    """

    name: str
    kind: Kind = "values"
    link: Link = identity
    target: Callable[[Tensor, Mapping[str, Any], Tensor], Tensor] = lambda t, _, __: t
    counts: Counts = "entries"
    generic: Callable[[Tensor, Tensor], Tensor] = lambda noise, _: noise
    classes_second: bool = True
    reach: Callable[[Mapping[str, Any]], float] = lambda _: 1.0


def _multi_hot(target: Tensor, _: Mapping[str, Any], output: Tensor) -> Tensor:
    """Lists of labels, each ended by a negative one, as a yes or no for every class."""
    named = (target >= 0).cumprod(-1).bool()
    found = torch.zeros_like(output)
    found.scatter_add_(-1, target.where(named, 0), named.to(output.dtype))
    return found.clamp_(max=1)


def _of_logarithm(target: Tensor, given: Mapping[str, Any], _: Tensor) -> Tensor:
    return target.exp() if given.get("log_target") else target


def _smoothed(given: Mapping[str, Any]) -> float:
    return 1 - float(given.get("label_smoothing") or 0.0)


def _squeezed(target: Tensor, _: Mapping[str, Any], __: Tensor) -> Tensor:
    return target.squeeze(-1)


def _as_numbers(target: Tensor, _: Mapping[str, Any], output: Tensor) -> Tensor:
    return target.to(output.dtype)


def _around(noise: Tensor, target: Tensor) -> Tensor:
    return noise + target


def _chances(noise: Tensor, _: Tensor) -> Tensor:
    return noise.sigmoid()


def _logarithms(noise: Tensor, _: Tensor) -> Tensor:
    return noise.log_softmax(1 if noise.ndim > 2 else -1)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("mse_loss", generic=_around),
        Loss("l1_loss", generic=_around),
        Loss("smooth_l1_loss", generic=_around),
        Loss("huber_loss", generic=_around),
        Loss("gaussian_nll_loss", generic=_around),
        Loss("poisson_nll_loss", link=torch.exp),
        Loss("cross_entropy", "classes", probabilities, counts="rows", reach=_smoothed),
        Loss("linear_cross_entropy", "classes", probabilities, counts="rows"),
        Loss("nll_loss", "classes", torch.exp, counts="rows", generic=_logarithms),
        Loss("multi_margin_loss", "classes", probabilities, counts="all"),
        Loss("kl_div", link=torch.exp, target=_of_logarithm, counts="rows", generic=_logarithms),
        Loss("binary_cross_entropy", "bits", generic=_chances),
        Loss("binary_cross_entropy_with_logits", "bits", torch.sigmoid),
        Loss("multilabel_soft_margin_loss", "bits", torch.sigmoid),
        Loss("soft_margin_loss", "bits", torch.sigmoid, lambda t, _, __: (t + 1) / 2),
        Loss("multilabel_margin_loss", "bits", torch.sigmoid, _multi_hot, "all"),
    )
}
"""Loss functions of `torch.nn.functional` that compare outputs with a target, by name. The others
(triplets, rankings, similarities, alignments) compare outputs with one another."""

SYMMETRIC = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
"""Those that are the same with their arguments swapped."""
RATES = Loss("poisson_nll_loss", generic=lambda noise, _: noise.exp())
"""Poisson's with ``log_input=False``."""


_PICK = Loss(
    "a log-probability",
    "classes",
    torch.exp,
    counts="rows",
    generic=lambda noise, _: noise.log_softmax(-1),
    classes_second=False,
)
BY_HAND: dict[str, Loss] = {
    "difference": Loss("a difference", target=_as_numbers, generic=_around),
    "overlap": Loss("a product with probabilities", "bits", counts="all", generic=_chances),
    "gather": replace(_PICK, target=_squeezed),
    "pick": _PICK,
    "product": replace(_PICK, name="a product with log-probabilities", kind="values"),
}
"""What a loss that is written by hand does with outputs and a target."""
_PICKED = Loss("a log-probability", "classes", probabilities, counts="rows")
LINKED: dict[str, Loss] = {
    "pick": _PICKED,
    "gather": replace(_PICKED, target=_squeezed),
    "product": replace(_PICKED, name="a product with log-probabilities", target=_as_numbers),
    "kl_div": replace(_PICKED, name="kl_div", target=_of_logarithm),
    "binary_cross_entropy": LOSSES["binary_cross_entropy_with_logits"],
    "both": Loss("products with log-probabilities", "bits", torch.sigmoid, target=_as_numbers),
    "overlap": Loss(
        "a product with probabilities", "bits", torch.sigmoid, target=_as_numbers, counts="all"
    ),
}
"""The same, and what functions of torch's do, where it is known of which logits there are
probabilities: these are the outputs."""
