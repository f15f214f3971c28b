"""Dense products: contractions of indices, whose activity is the contraction without the weight."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntk_monitor.model.sites.operations.additions import first_row, read_add
from ntk_monitor.model.sites.operations.use import Use

LETTERS = string.ascii_letters


def contraction(
    equation: str, operands: Sequence[Tensor], which: int, bias: Tensor | None = None
) -> Use:
    """A use of a weight in a product of tensors.

    Args:
        equation: As of ``torch.einsum``, without an ellipsis, and without repeated or lonely
            indices in the weight.
        operands: The tensors, the weight among them.
        which: The position of the weight.
        bias: What is added.

    Returns:
        The use.
    """
    inputs, out = equation.split("->")
    indices = inputs.split(",")
    indices[which], single = _without_copies(indices, which, operands[which])
    operands = [single if i == which else t for i, t in enumerate(operands)]
    sizes = {
        i: size
        for names, tensor in zip(indices, operands, strict=True)
        for i, size in zip(names, tensor.shape, strict=True)
    }
    weight = indices.pop(which)
    others = [t.detach() for i, t in enumerate(operands) if i != which]  # and so no graph
    elsewhere = set("".join(indices))
    groups = [i for i in weight if i in out and i in elsewhere]
    units = [i for i in weight if i in out and i not in elsewhere]
    summed = [i for i in weight if i not in out]
    rows = [i for i in out if i not in weight]
    activity = "".join([*groups, *rows, *summed])

    def count(names: Sequence[str]) -> int:
        return prod(sizes[i] for i in names)

    def read() -> Tensor:
        V = torch.einsum(f"{','.join(indices)}->{activity}", *others)
        return V.reshape(count(groups), *(sizes[i] for i in rows), count(summed))

    def write(u: Tensor) -> Tensor:
        order = [*groups, *rows, *units]
        full = u.reshape([sizes[i] for i in order])
        return full.permute([order.index(i) for i in out])

    return Use(
        weight=operands[which],
        bias=bias,
        read=read,
        write=write,
        rows=tuple(sizes[i] for i in rows),
        units=count(units),
        groups=count(groups),
    )


BROADCAST = "?"
"""Stands for an axis of size one that is repeated to fit another operand."""


class Contraction(NamedTuple):
    """A product of tensors, whichever operation it is.

    Attributes:
        equation: As of ``torch.einsum``, without an ellipsis, with `BROADCAST` for axes that are
            repeated.
        operands: The tensors.
        addend: What is added to the product, or None.
    """

    equation: str
    operands: tuple[Any, ...]
    addend: Any = None


def contraction_of(name: str, given: Sequence[Any]) -> Contraction:
    """Which axes of its operands a product sums over, and which it keeps.

    Args:
        name: Of the operation.
        given: Its arguments by position.

    Returns:
        The product.
    """
    if name == "einsum":
        equation, *operands = given
        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = list(operands[0])
        return Contraction(_explicit(equation.replace(" ", ""), operands), tuple(operands))
    if name == "linear":
        x, weight, *bias = given
        rows = LETTERS[: x.ndim - 1]
        units = "y" if weight.ndim > 1 else ""
        return Contraction(f"{rows}z,{units}z->{rows}{units}", (x, weight), *bias)
    if name == "bilinear":
        x, z, weight, *bias = given
        rows = LETTERS[: x.ndim - 1]
        return Contraction(f"{rows}w,{rows}x,ywx->{rows}y", (x, z, weight), *bias)
    if name in {"addmm", "addmm_", "addmv", "baddbmm"}:
        return contraction_of("matmul", given[1:])._replace(addend=given[0])
    if name == "__rmatmul__":
        given = given[::-1]
    a, b = given[:2]
    batch = LETTERS[: max(a.ndim, b.ndim, 2) - 2]
    left = "z" if a.ndim == 1 else batch[len(batch) - a.ndim + 2 :] + "yz"
    right = "z" if b.ndim == 1 else batch[len(batch) - b.ndim + 2 :] + "zx"
    out = batch + ("" if a.ndim == 1 else "y") + ("" if b.ndim == 1 else "x")
    left, right = _marked(left, a, right, b), _marked(right, b, left, a)
    return Contraction(f"{left},{right}->{out}", (a, b))


def _marked(names: str, t: Tensor, others: str, other: Tensor) -> str:
    """Names of axes, with a mark for those of size one that are repeated."""
    found = ""
    for i, letter in enumerate(names):
        at = others.find(letter)
        repeated = t.shape[i] == 1 and at >= 0 and other.shape[at] > 1
        found += BROADCAST if repeated else letter
    return found


def _without_copies(indices: Sequence[str], which: int, weight: Tensor) -> tuple[str, Tensor]:
    """A weight without the axes along which it is the same, where another operand has them."""
    names = indices[which]
    elsewhere = set("".join(n for i, n in enumerate(indices) if i != which))
    for i in reversed(range(weight.ndim)):
        if weight.shape[i] > 1 and weight.stride(i) == 0 and names[i] in elsewhere:
            names, weight = names[:i] + names[i + 1 :], weight.select(i, 0)
    return names, weight


def read_product(name: str, *args: Any, beta: float = 1, alpha: float = 1) -> list[Use]:  # noqa: ANN401
    """A product of tensors: of ``a @ b`` and its relatives either operand may be the weight."""
    equation, operands, addend = contraction_of(name, args)
    which = {"linear": (1,), "bilinear": (2,), "einsum": _whole(equation)}.get(name, (1, 0))
    is_bias = name in {"linear", "bilinear"} or (
        addend is not None
        and addend.ndim == 1 < operands[1].ndim
        and len(addend) == operands[1].shape[-1]
    )
    is_bias = is_bias and (addend is None or first_row(addend) is None)
    equation, operands = _without_broadcast(equation, operands)
    uses = [contraction(equation, operands, i, addend if is_bias else None) for i in which]
    scaled = [replace(use, scale=float(alpha), bias_scale=float(beta)) for use in uses]
    if is_bias or addend is None:
        return scaled
    nothing = operands[0].new_zeros(()).expand(uses[0].rows)
    added = read_add(addend, uses[0].laid_out(nothing))
    beta = float(beta)
    return [*scaled, *(replace(use, scale=beta, bias_scale=beta) for use in added)]


def _whole(equation: str) -> tuple[int, ...]:
    """The operands whose indices are neither repeated nor summed over by themselves."""
    inputs, out = equation.split("->")
    split = inputs.split(",")
    return tuple(
        which
        for which, name in enumerate(split)
        if len(set(name)) == len(name)
        and {*out, *"".join(split[:which] + split[which + 1 :])}.issuperset(name)
    )


def _without_broadcast(equation: str, operands: Sequence[Tensor]) -> tuple[str, tuple[Tensor, ...]]:
    """A product without the axes of size one that are repeated to fit another operand."""
    gone = [
        tuple(i for i, letter in enumerate(names) if letter == BROADCAST)
        for names in equation.partition("->")[0].split(",")
    ]
    pairs = zip(gone, operands, strict=True)
    narrow = tuple(t.squeeze(axes) if axes else t for axes, t in pairs)
    return equation.replace(BROADCAST, ""), narrow


def _explicit(equation: str, operands: Sequence[Tensor]) -> str:
    """An equation with an output, and with letters in place of an ellipsis."""
    inputs, arrow, out = equation.partition("->")
    names = inputs.split(",")
    pairs = zip(names, operands, strict=True)
    counts = [t.ndim - len(name.replace("...", "")) for name, t in pairs]
    dots = "".join([i for i in LETTERS if i not in equation][: max(counts)])
    names = [
        name.replace("...", dots[len(dots) - count :])
        for name, count in zip(names, counts, strict=True)
    ]
    if not arrow:
        letters = "".join(names)
        out = "..." + "".join(i for i in sorted(set(letters) - set(dots)) if letters.count(i) == 1)
    return f"{','.join(names)}->{out.replace('...', dots)}"
