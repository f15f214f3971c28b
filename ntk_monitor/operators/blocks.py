"""Operators between direct sums of spaces, each laid out as one flat vector."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ntk_monitor.operators.base import LinearOperator, as_factor
from ntk_monitor.operators.contract import check_same


class DirectSum(LinearOperator):
    r"""The block-diagonal operator :math:`A_1 \oplus A_2 \oplus \dots`.

    It acts on the direct sum of the spaces, a flat vector in which the tensors of the parts stand
    one after the other. Theorem 1's core in block form is the direct sum over weight sites of
    ``V_l V_l* (x) I``.
    """

    def __init__(self, *operators: LinearOperator) -> None:
        """Put operators of one dtype and device side by side."""
        first = _first("a direct sum", operators)
        size_in = sum(prod(A.shape_in) for A in operators)
        size_out = sum(prod(A.shape_out) for A in operators)
        is_psd = all(A.is_psd for A in operators)
        super().__init__((size_in,), (size_out,), first.dtype, first.device, is_psd=is_psd)
        self.operators = operators

    def _matmat(self, X: Tensor) -> Tensor:
        return torch.cat([y.reshape(len(X), -1) for y in _images(self.operators, X)], dim=1)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return DirectSum(*(A.T for A in self.operators))._matmat(Y)

    @property
    def factor(self) -> LinearOperator | None:
        """The direct sum of the factors."""
        found = [A.factor for A in self.operators]
        known = [A for A in found if A is not None]
        return DirectSum(*known) if len(known) == len(found) else None

    def __str__(self) -> str:
        return " ⊕ ".join(map(as_factor, self.operators))


class BlockRow(LinearOperator):
    r"""The operator :math:`(A_1, A_2, \dots)` that adds what its parts make of their own input.

    .. math:: (x_1, x_2, \dots) \mapsto A_1 x_1 + A_2 x_2 + \dots

    With ``P_l`` from the outputs of weight site ``l`` to the state, and the core in block form,
    Theorem 1 reads ``BlockRow(P_1, ...) @ core @ BlockRow(P_1, ...).T``.
    """

    def __init__(self, *operators: LinearOperator) -> None:
        """Put operators in a row.

        Raises:
            ValueError: If they do not share outputs, dtype and device.
        """
        first = _first("a block row", operators)
        for A in operators:
            if A.shape_out != first.shape_out:
                raise ValueError(
                    f"a block row needs one output space: {first} returns {first.shape_out}, "
                    f"{A} returns {A.shape_out}"
                )
        size = sum(prod(A.shape_in) for A in operators)
        super().__init__((size,), first.shape_out, first.dtype, first.device)
        self.operators = operators

    def _matmat(self, X: Tensor) -> Tensor:
        return torch.stack(_images(self.operators, X)).sum(0)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return torch.cat([A._rmatmat(Y).reshape(len(Y), -1) for A in self.operators], dim=1)

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.operators))}]"


def _images(operators: tuple[LinearOperator, ...], X: Tensor) -> list[Tensor]:
    """What each operator makes of its own part of every ``X[b]``."""
    pieces = torch.split(X, [prod(A.shape_in) for A in operators], dim=1)
    pairs = zip(operators, pieces, strict=True)
    return [A._matmat(x.reshape(len(X), *A.shape_in)) for A, x in pairs]


def _first(what: str, operators: tuple[LinearOperator, ...]) -> LinearOperator:
    """The first of several operators that share a dtype and a device."""
    if not operators:
        raise ValueError(f"{what} needs at least one operator, got none")
    for A in operators[1:]:
        check_same(what, operators[0], A)
    return operators[0]
