"""The arguments of torch's operations by their places and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntk_monitor.model.state import unroll as cells

_CONVOLUTION = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_CELL = "input hx w_ih w_hh b_ih b_hh"
SIGNATURES: dict[str, tuple[str, ...]] = {
    name: tuple(signature.split())
    for name, signature in {
        "linear": "input weight bias",
        "bilinear": "input1 input2 weight bias",
        "matmul": "input other",
        "mm": "input mat2",
        "bmm": "input mat2",
        "mv": "input vec",
        "dot": "input tensor",
        **dict.fromkeys(("addmm", "addmm_"), "input mat1 mat2"),
        "addmv": "input mat vec",
        "baddbmm": "input batch1 batch2",
        **dict.fromkeys(("add", "add_", "sub", "sub_", "subtract", "rsub"), "input other"),
        "embedding": "input weight padding_idx",
        "embedding_bag": "input weight",
        "index_select": "input dim index",
        **{f"conv{n}d": _CONVOLUTION for n in (1, 2, 3)},
        **{f"conv_transpose{n}d": _TRANSPOSED for n in (1, 2, 3)},
        **dict.fromkeys(cells.CELL_STEPS, _CELL),
    }.items()
}
"""The names of torch's own arguments, in order; those after them go by name."""


def in_order(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """An operation's arguments by position, those among them that were given by name included.

    Args:
        name: Of the operation.
        args: Its positional arguments.
        kwargs: Its arguments by name.

    Returns:
        The arguments as far as they are given without a gap, defaults in gaps that there are.
    """
    order = SIGNATURES.get(name, ())
    rest = list(order[len(args) :])
    while rest and rest[-1] not in kwargs:
        rest.pop()
    return [*args, *(kwargs.get(each, _DEFAULTS.get(each)) for each in rest)]


_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
