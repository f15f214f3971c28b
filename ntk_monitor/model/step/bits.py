"""Binary cross-entropy by hand: two products, one for a yes and one for a no."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ntk_monitor.compat import without_torch_function
from ntk_monitor.model.step.links import Linked

CLOSE = 1e-5
"""How far probabilities of a yes and of a no may be from one together."""


class Half(NamedTuple):
    """A product of data with logarithms of the probabilities of a yes, or of a no.

    Attributes:
        linked: What the logarithms are of some logits.
        target: The data as probabilities of a yes, in the order of the logits.
        result: The product.
    """

    linked: Linked
    target: Tensor
    result: Tensor


class Halves:
    """The products that were seen and wait for their other half."""

    def __init__(self) -> None:
        """Begin with none."""
        self._waiting: list[Half] = []

    def other(self, linked: Linked, t: Tensor, result: Tensor) -> Half | None:
        """The product that makes a binary cross-entropy of another.

        Args:
            linked: What the logarithms are.
            t: The data they are multiplied with.
            result: The product.

        Returns:
            An earlier one; None where none fits, and this one waits.
        """
        with without_torch_function():
            target = linked.placed(t.to(result.dtype))
            if target is None:
                return None
            for i, half in enumerate(self._waiting):
                same = half.linked.logits is linked.logits
                if same and half.linked.turned != linked.turned and _agree(half.target, target):
                    return self._waiting.pop(i)
        self._waiting.append(Half(linked, target, result))
        return None


def _agree(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=0, atol=CLOSE)
