"""Dense products: contractions of indices, whose activity is the contraction without the weight."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntk_monitor.model.sites.operations.additions import read_add
from ntk_monitor.model.sites.operations.signatures import in_order
from ntk_monitor.model.sites.operations.use import Use, nothing_added

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
    names, single = _without_copies(indices, which, operands[which])
    operands = [single if i == which else t for i, t in enumerate(operands)]
    indices[which] = names
    inputs = ",".join(indices)
    weight = indices.pop(which)
    others = [t.detach() for i, t in enumerate(operands) if i != which]  # and so no graph
    sizes = {
        i: size
        for name, tensor in zip(inputs.split(","), operands, strict=True)
        for i, size in zip(name, tensor.shape, strict=True)
    }
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


def contraction_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Contraction:
    """Which axes of its operands a product sums over, and which it keeps.

    Args:
        name: Of the operation.
        args: Its positional arguments.
        kwargs: Its arguments by name.

    Returns:
        The product.
    """
    given = in_order(name, args, kwargs)
    if name == "einsum":
        operands = given[1:]
        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = list(operands[0])
        explicit = _explicit(given[0].replace(" ", ""), operands)
        return Contraction(explicit, tuple(operands))
    if name == "linear":
        x, weight, *bias = given
        rows = LETTERS[: x.ndim - 1]
        units = "y" if weight.ndim > 1 else ""
        addend = bias[0] if bias else None
        return Contraction(f"{rows}z,{units}z->{rows}{units}", (x, weight), addend)
    if name == "bilinear":
        x, z, weight, *bias = given
        rows = LETTERS[: x.ndim - 1]
        addend = bias[0] if bias else None
        return Contraction(f"{rows}w,{rows}x,ywx->{rows}y", (x, z, weight), addend)
    if name in {"addmm", "addmv", "baddbmm"}:
        return contraction_of("matmul", given[1:], {})._replace(addend=given[0])
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


def read_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Use]:
    """``F.linear``."""
    rows = LETTERS[: x.ndim - 1]
    if weight.ndim == 1:
        return [contraction(f"{rows}z,z->{rows}", (x, weight), 1, bias)]
    return [contraction(f"{rows}z,yz->{rows}y", (x, weight), 1, bias)]


def read_bilinear(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Use]:
    """``F.bilinear``."""
    rows = LETTERS[: x.ndim - 1]
    return [contraction(f"{rows}w,{rows}x,ywx->{rows}y", (x, z, weight), 2, bias)]


def read_matmul(a: Tensor, b: Tensor, *, bias: Tensor | None = None) -> list[Use]:
    """``a @ b`` and its relatives, either operand being the weight."""
    batch = LETTERS[: max(a.ndim, b.ndim, 2) - 2]
    left = "z" if a.ndim == 1 else batch[len(batch) - a.ndim + 2 :] + "yz"
    right = "z" if b.ndim == 1 else batch[len(batch) - b.ndim + 2 :] + "zx"
    out = batch + ("" if a.ndim == 1 else "y") + ("" if b.ndim == 1 else "x")
    left, a = _without_broadcast(left, a, right, b)
    right, b = _without_broadcast(right, b, left, a)
    return [contraction(f"{left},{right}->{out}", (a, b), which, bias) for which in (1, 0)]


def _without_broadcast(names: str, t: Tensor, others: str, other: Tensor) -> tuple[str, Tensor]:
    """Drop the axes of size one that are repeated to fit the other operand."""
    for i in reversed(range(t.ndim)):
        at = others.find(names[i])
        if t.shape[i] == 1 and at >= 0 and other.shape[at] > 1:
            names, t = names[:i] + names[i + 1 :], t.squeeze(i)
    return names, t


def read_addmm(
    bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> list[Use]:
    """``bias + a @ b``."""
    is_bias = bias.ndim == 1 and b.ndim > 1 and len(bias) == b.shape[-1]
    uses = read_matmul(a, b, bias=bias if is_bias else None)
    scaled = [replace(use, scale=float(alpha), bias_scale=float(beta)) for use in uses]
    if is_bias:
        return scaled
    added = read_add(bias, uses[0].write(nothing_added(uses[0], a)))
    return [*scaled, *(replace(use, bias_scale=float(beta)) for use in added)]


def read_einsum(equation: str, *operands: Any) -> list[Use]:  # noqa: ANN401
    """``torch.einsum`` with an equation."""
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    explicit = _explicit(equation.replace(" ", ""), operands)
    names, _, out = explicit.partition("->")
    split = names.split(",")
    uses = []
    for which, name in enumerate(split):
        elsewhere = {*out, *"".join(split[:which] + split[which + 1 :])}
        if len(set(name)) == len(name) and elsewhere.issuperset(name):
            uses.append(contraction(explicit, operands, which))
    return uses


def _explicit(equation: str, operands: Sequence[Tensor]) -> str:
    """An equation with an output, and with letters in place of an ellipsis."""
    inputs, arrow, out = equation.partition("->")
    free = [i for i in LETTERS if i not in equation]
    most = max(
        t.ndim - len(name.replace("...", ""))
        for name, t in zip(inputs.split(","), operands, strict=True)
    )
    dots = "".join(free[:most])
    names = []
    for name, tensor in zip(inputs.split(","), operands, strict=True):
        count = tensor.ndim - len(name.replace("...", ""))
        names.append(name.replace("...", dots[len(dots) - count :]))
    if not arrow:
        letters = "".join(names)
        out = "..." + "".join(i for i in sorted(set(letters) - set(dots)) if letters.count(i) == 1)
    return f"{','.join(names)}->{out.replace('...', dots)}"
