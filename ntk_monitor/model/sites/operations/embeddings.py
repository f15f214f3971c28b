"""Embeddings and indexing: products with one-hot rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ntk_monitor.model.isolation.embedding_bag import bags_of
from ntk_monitor.model.sites.operations.use import Use, first_group


def read_embedding(
    index: Tensor, weight: Tensor, padding_idx: int | None = None, *_: object, **__: object
) -> list[Use]:
    """``F.embedding``: one-hot vectors over the entries that occur."""
    untrained = None if padding_idx is None else padding_idx % len(weight)

    def read() -> Tensor:
        present, inverse = torch.unique(index, return_inverse=True)
        V = one_hot(inverse, len(present)).to(weight.dtype)
        if untrained is not None:
            V = V * (index != untrained).unsqueeze(-1)
        return V.unsqueeze(0)

    rows, units = tuple(index.shape), weight.shape[1]
    entries = partial(torch.unique, index)
    return [Use(weight, None, read, first_group, rows, units, untrained=untrained, entries=entries)]


def read_index(weight: Tensor, index: Any) -> list[Use]:  # noqa: ANN401
    """``weight[index]`` with a tensor of indices."""
    is_index = isinstance(index, Tensor) and not index.is_floating_point()
    if not is_index or index.dtype == torch.bool or weight.ndim != 2:
        return []
    return read_embedding(index % len(weight), weight)


def read_index_select(weight: Tensor, dim: int, index: Tensor) -> list[Use]:
    """``weight.index_select(0, index)``."""
    return read_embedding(index, weight) if dim == 0 and weight.ndim == 2 else []


def read_embedding_bag(index: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> list[Use]:  # noqa: ANN401
    """``F.embedding_bag`` of the modes ``"sum"`` and ``"mean"``: how often each entry occurs."""
    bags = bags_of(index, weight, *args, **kwargs)
    if bags is None:
        return []

    def read() -> Tensor:
        present, inverse = torch.unique(bags.entries, return_inverse=True)
        V = weight.new_zeros(bags.bags, len(present))
        return V.index_put((bags.bag, inverse), bags.scale.detach(), accumulate=True).unsqueeze(0)

    rows, units = (bags.bags,), weight.shape[1]
    untrained, entries = bags.untrained, partial(torch.unique, bags.entries)
    return [Use(weight, None, read, first_group, rows, units, untrained=untrained, entries=entries)]
