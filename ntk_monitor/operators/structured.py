"""Operators given by few numbers: identities, diagonal and rank-one operators."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ntk_monitor.operators.base import LinearOperator
from ntk_monitor.operators.contract import Shape
from ntk_monitor.operators.dense import Dense


class Identity(LinearOperator):
    """The identity ``I`` of a tensor space."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        """Make the identity of the space of ``shape``."""
        super().__init__(tuple(shape), tuple(shape), dtype, torch.device(device), is_psd=True)

    def _matmat(self, X: Tensor) -> Tensor:
        return X

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return Y

    @property
    def factor(self) -> LinearOperator:
        """The identity itself."""
        return self

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator:
        size = prod(self.shape_in[axis] for axis in axes)
        return size * Identity(_without(self.shape_in, axes), self.dtype, self.device)

    def _gram_partial_trace(self, axes: tuple[int, ...]) -> LinearOperator:
        return self._partial_trace(axes)

    def __str__(self) -> str:
        return f"I_{'x'.join(map(str, self.shape_in)) or '1'}"


class Diagonal(LinearOperator):
    """Multiplication by a tensor, entry by entry.

    Example:
        >>> import torch
        >>> Diagonal(torch.tensor([1.0, 2.0])).matvec(torch.tensor([3.0, 4.0])).tolist()
        [3.0, 8.0]
    """

    def __init__(self, entries: Tensor, *, name: str = "diag") -> None:
        """Wrap the diagonal.

        Args:
            entries: The diagonal, in the shape of the space.
            name: How the operator prints.
        """
        shape = tuple(entries.shape)
        is_psd = bool((entries >= 0).all())
        super().__init__(shape, shape, entries.dtype, entries.device, is_psd=is_psd)
        self.entries = entries
        self.name = name

    def _matmat(self, X: Tensor) -> Tensor:
        return self.entries * X

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.entries * Y

    @property
    def T(self) -> LinearOperator:
        """The operator itself."""
        return self

    @property
    def factor(self) -> LinearOperator | None:
        """The diagonal of square roots, where no entry is negative."""
        return Diagonal(self.entries.sqrt(), name=f"√{self.name}") if self.is_psd else None

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator:
        return Diagonal(self.entries.sum(axes), name=f"tr_{_join(axes)} {self.name}")

    def _gram_partial_trace(self, axes: tuple[int, ...]) -> LinearOperator:
        return Diagonal(self.entries.square().sum(axes), name=f"tr_{_join(axes)} {self.name}²")

    def __str__(self) -> str:
        return self.name


class OuterProduct(LinearOperator):
    r"""The rank-one operator :math:`|y\rangle\langle x|`, which maps ``z`` to ``y <x, z>``."""

    def __init__(self, y: Tensor, x: Tensor | None = None, *, name: str = "|y><x|") -> None:
        """Join two tensors.

        Args:
            y: What the operator returns multiples of.
            x: What it looks for; by default ``y`` itself, for a positive semidefinite operator.
            name: How the operator prints.

        Raises:
            ValueError: If the two do not share a dtype and a device.
        """
        is_psd = x is None
        x = y if x is None else x
        if x.dtype != y.dtype or x.device != y.device:
            raise ValueError(
                f"an outer product needs one dtype and one device: y has {y.dtype} on {y.device}, "
                f"x has {x.dtype} on {x.device}"
            )
        super().__init__(tuple(x.shape), tuple(y.shape), y.dtype, y.device, is_psd=is_psd)
        self.y = y
        self.x = x
        self.name = name

    def _matmat(self, X: Tensor) -> Tensor:
        return _outer(X.reshape(len(X), -1) @ self.x.flatten(), self.y)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return _outer(Y.reshape(len(Y), -1) @ self.y.flatten(), self.x)

    @property
    def factor(self) -> LinearOperator | None:
        """``|y>`` as an operator from numbers, where ``x`` is ``y``."""
        return Dense(self.y, (), name="|y>") if self.is_psd else None

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator:
        left = Dense(self.y, (), name="|y>").split_off(axes)
        return left @ (left if self.is_psd else Dense(self.x, (), name="|x>").split_off(axes)).T

    def __str__(self) -> str:
        return self.name


def _outer(numbers: Tensor, tensor: Tensor) -> Tensor:
    return numbers.reshape(-1, *(1,) * tensor.ndim) * tensor


def _without(shape: Shape, axes: tuple[int, ...]) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _join(axes: tuple[int, ...]) -> str:
    return ",".join(map(str, axes))
