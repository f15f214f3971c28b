"""Operators given by all their entries."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ntk_monitor.operators.base import LinearOperator
from ntk_monitor.operators.contract import Shape


class Dense(LinearOperator):
    """An operator given by the tensor of its entries.

    Example:
        >>> import torch
        >>> A = Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        >>> A.matvec(torch.tensor([1.0, -1.0])).tolist()
        [-1.0, -1.0, -1.0]
        >>> A
        <Dense: (2,) -> (3,)>
    """

    def __init__(
        self,
        entries: Tensor,
        shape_in: Shape | None = None,
        *,
        name: str = "Dense",
        is_psd: bool = False,
    ) -> None:
        """Wrap ``entries`` of shape ``(*shape_out, *shape_in)``.

        Args:
            entries: All entries; a matrix when ``shape_in`` is left out.
            shape_in: The trailing axes of ``entries`` that are the input space; by default the
                last axis alone.
            name: How the operator prints.
            is_psd: Declare the entries symmetric positive semidefinite; symmetry is checked.

        Raises:
            ValueError: If the trailing axes of ``entries`` are not ``shape_in``, or entries
                declared positive semidefinite are not symmetric.
        """
        shape_in = tuple(entries.shape[-1:]) if shape_in is None else tuple(shape_in)
        split = entries.ndim - len(shape_in)
        if split < 0 or tuple(entries.shape[split:]) != shape_in:
            raise ValueError(
                f"shape_in must be the trailing axes of entries, got shape_in={shape_in} for "
                f"entries of shape {tuple(entries.shape)}"
            )
        shape_out = tuple(entries.shape[:split])
        super().__init__(shape_in, shape_out, entries.dtype, entries.device, is_psd=is_psd)
        self.matrix = entries.reshape(prod(shape_out), prod(shape_in))
        self.name = name
        if is_psd and not torch.allclose(self.matrix, self.matrix.T):
            raise ValueError(
                f"{name} is declared positive semidefinite but is not symmetric: its largest "
                f"asymmetry is {float((self.matrix - self.matrix.T).abs().max()):.2g}"
            )

    def _matmat(self, X: Tensor) -> Tensor:
        return (X.reshape(len(X), -1) @ self.matrix.T).reshape(-1, *self.shape_out)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return (Y.reshape(len(Y), -1) @ self.matrix).reshape(-1, *self.shape_in)

    def split_off(self, axes: tuple[int, ...]) -> Dense:
        r"""Move output axes to the input, so that the Gram operator is the partial trace.

        .. math:: \mathrm{tr}_{axes}(L L^*) = L' L'^*

        Args:
            axes: Axes of ``shape_out``, not negative.

        Returns:
            ``L'``, with the same entries between other spaces.
        """
        ndim = len(self.shape_out)
        kept = tuple(axis for axis in range(ndim) if axis not in axes)
        entries = self.matrix.reshape(*self.shape_out, -1).permute(*kept, *axes, ndim)
        shape = tuple(self.shape_out[axis] for axis in kept)
        entries = entries.reshape(*shape, -1)
        return Dense(entries, tuple(entries.shape[-1:]), name=self.name)

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator:
        ndim = len(self.shape_in)
        entries = self.matrix.reshape(self.shape_out + self.shape_in)
        inputs = [axis if axis in axes else ndim + axis for axis in range(ndim)]
        kept = [axis for axis in range(ndim) if axis not in axes]
        traced = torch.einsum(
            entries, [*range(ndim), *inputs], [*kept, *(ndim + axis for axis in kept)]
        )
        shape = tuple(self.shape_in[axis] for axis in kept)
        name = f"tr_{','.join(map(str, axes))}({self.name})"
        return Dense(traced, shape, name=name, is_psd=self.is_psd)

    def _gram_partial_trace(self, axes: tuple[int, ...]) -> LinearOperator:
        factor = self.split_off(axes)
        return factor @ factor.T

    def __str__(self) -> str:
        return self.name
