"""What each loss function of torch compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Loss:
    """How a loss function reads its arguments.

    Attributes:
        name: The function's name.
        kind: What its target is.
        link: From outputs to what should equal the target.
        target: From the target that is given, the function's other arguments by name and the
            outputs, to the target in the outputs' terms.
        smooth: Whether an entry that counts always has a derivative. Where a derivative may also be
            zero by the class, or since a margin is kept, only a row without any does not count.
        inside: Whether outputs are probabilities, which leave [0, 1] only at the price of an error.
        classes_second: Whether classes are on the second axis of more than two.
    """

    name: str
    kind: Kind = "values"
    link: Link = identity
    target: Callable[[Tensor, Mapping[str, Any], Tensor], Tensor] = lambda t, _, __: t
    smooth: bool = True
    inside: bool = False
    classes_second: bool = True


def _multi_hot(target: Tensor, _: Mapping[str, Any], output: Tensor) -> Tensor:
    """Lists of labels, each ended by a negative one, as a yes or no for every class."""
    named = (target >= 0).cumprod(-1).bool()
    return (
        torch
        .zeros_like(output)
        .scatter_add_(-1, target.where(named, 0), named.to(output.dtype))
        .clamp_(max=1)
    )


def _of_logarithm(target: Tensor, given: Mapping[str, Any], _: Tensor) -> Tensor:
    return target.exp() if given.get("log_target") else target


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("mse_loss"),
        Loss("l1_loss"),
        Loss("smooth_l1_loss"),
        Loss("huber_loss"),
        Loss("gaussian_nll_loss"),
        Loss("poisson_nll_loss", link=torch.exp),
        Loss("cross_entropy", "classes", probabilities, smooth=False),
        Loss("linear_cross_entropy", "classes", probabilities, smooth=False),
        Loss("nll_loss", "classes", torch.exp, smooth=False),
        Loss("multi_margin_loss", "classes", probabilities, smooth=False),
        Loss("kl_div", "values", torch.exp, _of_logarithm, smooth=False),
        Loss("binary_cross_entropy", "bits", inside=True),
        Loss("binary_cross_entropy_with_logits", "bits", torch.sigmoid),
        Loss("multilabel_soft_margin_loss", "bits", torch.sigmoid),
        Loss("soft_margin_loss", "bits", torch.sigmoid, lambda t, _, __: (t + 1) / 2),
        Loss("multilabel_margin_loss", "bits", torch.sigmoid, _multi_hot, smooth=False),
    )
}
"""Loss functions of `torch.nn.functional` that compare outputs with a target, by name. The others
(triplets, rankings, similarities, alignments) compare outputs with one another."""

RATES = Loss("poisson_nll_loss")
"""Poisson's with ``log_input=False``."""
BY_HAND: dict[str, Loss] = {
    "difference": Loss("a difference"),
    "gather": Loss(
        "a log-probability",
        "classes",
        torch.exp,
        lambda t, _, __: t.squeeze(-1),
        smooth=False,
        classes_second=False,
    ),
    "pick": Loss("a log-probability", "classes", torch.exp, smooth=False, classes_second=False),
    "overlap": Loss("a product with probabilities", "bits", smooth=False),
    "product": Loss("a product with log-probabilities", "values", torch.exp, smooth=False),
}
"""What a loss that is written by hand does with outputs and a target."""
