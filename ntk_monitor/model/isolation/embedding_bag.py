"""``F.embedding_bag`` in operations that have all derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding


def plain_embedding_bag(index: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:  # noqa: ANN401
    """``F.embedding_bag`` of the modes ``"sum"`` and ``"mean"`` in operations with all derivatives.

    Args:
        index: The entries.
        weight: The embedding.
        *args: The operation's other arguments.
        **kwargs: Likewise.

    Returns:
        Its output; None for other modes.
    """
    bags = bags_of(index, weight, *args, **kwargs)
    if bags is None:
        return None
    rows = embedding(bags.entries, weight) * bags.scale.unsqueeze(1)
    return rows.new_zeros(bags.bags, weight.shape[1]).index_add(0, bags.bag, rows)


class Bags(NamedTuple):
    """Which entries a bag adds up: entry ``entries[i]`` is in ``bag[i]``, times ``scale[i]``."""

    entries: Tensor
    bag: Tensor
    scale: Tensor
    bags: int
    untrained: int | None


def bags_of(
    index: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Bags | None:
    """Read the arguments of ``F.embedding_bag``; None where a bag is not a weighted sum."""
    del norm_type, scale_grad_by_freq, sparse
    if mode == "max" or max_norm is not None:
        return None
    if index.ndim == 2:
        count = len(index)
        bag = torch.arange(count, device=index.device).repeat_interleave(index.shape[1])
    else:
        assert offsets is not None
        starts = offsets[:-1] if include_last_offset else offsets
        count = len(starts)
        places = torch.arange(len(index), device=index.device)
        bag = torch.searchsorted(starts, places, right=True) - 1
    entries = index.flatten()
    untrained = None if padding_idx is None else padding_idx % len(weight)
    scale = torch.ones_like(entries, dtype=weight.dtype)
    if untrained is not None:
        scale = (entries != untrained).to(weight.dtype)
    if per_sample_weights is not None:
        scale = scale * per_sample_weights.flatten()
    elif mode == "mean":
        sizes = scale.new_zeros(count).index_add(0, bag, scale).clamp(min=1)
        scale = scale / sizes[bag]
    return Bags(entries, bag, scale, count, untrained)
