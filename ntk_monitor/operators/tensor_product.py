"""Tensor products of operators."""

from __future__ import annotations

from math import prod

from torch import Tensor

from ntk_monitor.operators.base import LinearOperator, as_factor
from ntk_monitor.operators.contract import check_same


class TensorProduct(LinearOperator):
    r"""The tensor product :math:`A \otimes B`, on the axes of ``A`` followed by those of ``B``.

    .. math:: (A \otimes B)(x \otimes y) = A x \otimes B y

    The core of the global NTK, ``V V* (x) I_n`` on a state of shape ``(B, T, n)``, is the tensor
    product of a Gram operator on ``(B, T)`` and the identity of ``(n,)``.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        """Join two operators of one dtype and device."""
        check_same("a tensor product", left, right)
        shape_in, shape_out = left.shape_in + right.shape_in, left.shape_out + right.shape_out
        is_psd = left.is_psd and right.is_psd
        super().__init__(shape_in, shape_out, left.dtype, left.device, is_psd=is_psd)
        self.left = left
        self.right = right

    def _matmat(self, X: Tensor) -> Tensor:
        return _apply_both(self.left, self.right, X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return _apply_both(self.left.T, self.right.T, Y)

    @property
    def factor(self) -> LinearOperator | None:
        """The tensor product of the factors."""
        left, right = self.left.factor, self.right.factor
        return None if left is None or right is None else TensorProduct(left, right)

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        # tr_{a,b}(A (x) B) = tr_a(A) (x) tr_b(B): the axes of B follow those of A.
        ndim = len(self.left.shape_in)
        if self.left.shape_in != self.left.shape_out:
            return None
        left = self.left.partial_trace(tuple(axis for axis in axes if axis < ndim))
        right = self.right.partial_trace(tuple(axis - ndim for axis in axes if axis >= ndim))
        return TensorProduct(left, right)

    def _gram_partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        grams = TensorProduct(self.left @ self.left.T, self.right @ self.right.T)
        return grams._partial_trace(axes)

    def __str__(self) -> str:
        return f"{as_factor(self.left)} ⊗ {as_factor(self.right)}"


def _apply_both(left: LinearOperator, right: LinearOperator, X: Tensor) -> Tensor:
    """Apply ``right`` along the trailing axes of each ``X[b]``, then ``left`` along the leading."""
    batch, size_left, size_right = len(X), prod(left.shape_in), prod(right.shape_out)
    Z = right._matmat(X.reshape(batch * size_left, *right.shape_in))
    Z = Z.reshape(batch, size_left, size_right).transpose(1, 2)
    Z = left._matmat(Z.reshape(batch * size_right, *left.shape_in))
    Z = Z.reshape(batch, size_right, prod(left.shape_out)).transpose(1, 2)
    return Z.reshape(batch, *left.shape_out, *right.shape_out)
