"""How to read each operation of torch, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ntk_monitor.model.sites.operations import additions, contractions, convolutions, embeddings
from ntk_monitor.model.sites.operations.signatures import SIGNATURES, in_order
from ntk_monitor.model.sites.operations.use import Use, product
from ntk_monitor.model.state import unroll as cells

Reader = Callable[..., "list[Use]"]


def read_cell(
    x: Tensor,
    hidden: Any,  # noqa: ANN401
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> list[Use]:
    """A recurrent cell: the weighted input, and the weighted hidden state."""
    h = hidden if isinstance(hidden, Tensor) else hidden[0]
    parts = ((x, w_ih, b_ih), (h, w_hh, b_hh))
    return [product(*part, place) for place, part in enumerate(parts)]


PRODUCTS = frozenset({
    *("linear", "bilinear", "matmul", "mm", "bmm", "mv", "dot", "addmm", "addmm_", "addmv"),
    *("baddbmm", "einsum"),
})
_subtract = partial(additions.read_add, signs=(1, -1))
READERS: dict[str, Reader] = {
    **{name: partial(contractions.read_product, name) for name in PRODUCTS},
    **dict.fromkeys(("add", "add_"), additions.read_add),
    **dict.fromkeys(("sub", "sub_", "subtract"), _subtract),
    "rsub": additions.read_reversed_subtract,
    "embedding": embeddings.read_embedding,
    "embedding_bag": embeddings.read_embedding_bag,
    "__getitem__": embeddings.read_index,
    "index_select": embeddings.read_index_select,
    **{f"conv{n}d": convolutions.read_convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolutions.read_transposed_convolution for n in (1, 2, 3)},
    **dict.fromkeys(cells.CELL_STEPS, read_cell),
}
"""How to read an operation, by its name."""


def uses_in(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Use]:
    """The uses of weights in an operation, whichever way its arguments are given.

    Args:
        name: Of the operation, one of `READERS`.
        args: Its positional arguments.
        kwargs: Its arguments by name.

    Returns:
        The uses, of everything that could be a weight; none where it is called in an unknown way.
    """
    try:
        others = {key: kwargs[key] for key in kwargs if key not in SIGNATURES.get(name, ())}
        return READERS[name](*in_order(name, args, kwargs), **others)
    except (TypeError, ValueError, AttributeError, IndexError):
        return []


def perturbed(name: str, args: Any, kwargs: Any, output: Any, added: dict[int, Tensor]) -> Any:  # noqa: ANN401
    """An operation's output when something is added to the outputs of its weights.

    Args:
        name: The operation's name.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned.
        added: What is added, by the place of the use, each in the layout of the output (for a
            cell, of its weighted sum).

    Returns:
        The output to go on with.
    """
    if name in cells.CELL_STEPS:
        return cells.run_cell(name, *args, **kwargs, added=added)
    for u in added.values():
        output = output + u
    return output
