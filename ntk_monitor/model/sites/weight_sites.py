"""Weight sites: where a weight multiplies activity on the rows of the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ntk_monitor.model.sites.records import Tap

Order = Literal["batch", "time", "steps"]
"""How an operation's rows run over the state's: ``"batch"``: trial by trial; ``"time"``: step by
step; ``"steps"``: the same for all trials."""


@dataclass(frozen=True)
class WeightSite:
    """One use of a weight.

    Attributes:
        name: Name of the weight (or, where only the bias is trained, of the bias).
        parameters: Names of the trained parameters that act here: weight, bias or both.
        activity: ``V``, what they multiply, shape ``(B, T, m)``; a trained bias contributes a
            last column of ones, a frozen weight no columns.
        units: ``q``, how many outputs ``Q = V W*`` the weight has.
        derived: Whether the weight is computed from its parameters (masked, normalised, a product
            of two) rather than being one. The core then says where the weight could move the
            state, and less than that may be within reach of the parameters.
        tap: Where those outputs are in a forward pass.
        entries: Of an embedding, the entry that each column stands for, ascending; else None.
    """

    name: str
    parameters: tuple[str, ...]
    activity: Tensor
    units: int
    derived: bool
    tap: Tap
    entries: Tensor | None = None

    def without_activity(self) -> WeightSite:
        """The same site, its activity all zeros in one number of memory."""
        return replace(self, activity=self.activity.new_zeros(()).expand(self.activity.shape))

    def over(self, entries: Tensor | None) -> WeightSite:
        """The same site with columns for more entries of an embedding.

        Args:
            entries: All that the site has and more, ascending; None for those that it has.

        Returns:
            The site; columns of entries that do not occur are zero.
        """
        if entries is None or self.entries is None:
            return self
        activity = over_entries(self.activity, self.entries, entries)
        return replace(self, activity=activity, entries=entries)


@dataclass(frozen=True)
class Coverage:
    """How much of what moves the state the core accounts for.

    Attributes:
        fraction: Share of the parameters behind the state whose weight site is in the core.
        left_out: Names of the parameters that are not, each with the reason.
        missed: Those of them that a weight site may have been overlooked of; the others have none
            by nature, or one on other rows than the state's.
        sites: The sites in the core: name, columns of ``V``, units.
    """

    fraction: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    sites: tuple[tuple[str, int, int], ...] = ()


def over_entries(V: Tensor, own: Tensor, entries: Tensor) -> Tensor:
    """Columns for all entries of an embedding, from those for some of them."""
    if len(own) == len(entries):
        return V
    places = torch.searchsorted(entries, own)
    return V.new_zeros(*V.shape[:-1], len(entries)).index_copy(-1, places, V)
