"""The contract of every operator, and the algebra that follows from linearity alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ntk_monitor.uncertainty import Estimate

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

Shape = tuple[int, ...]


class LinearOperator(ABC):
    r"""A linear map :math:`A: \mathbb{R}^{\text{shape\_in}} \to \mathbb{R}^{\text{shape\_out}}`.

    The four public products check shape, dtype and device in this one place; a subclass writes
    only the batched ``_matmat`` and ``_rmatmat``, which may assume checked input.

    Attributes:
        shape_in: Shape of the tensors that the operator takes.
        shape_out: Shape of the tensors that it returns.
        dtype: Floating type of both.
        device: Device of both.
        is_psd: Whether the operator is known to be symmetric positive semidefinite.
    """

    def __init__(
        self,
        shape_in: Shape,
        shape_out: Shape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_psd: bool = False,
    ) -> None:
        """Fix the spaces between which the operator maps.

        Args:
            shape_in: Shape of an input tensor.
            shape_out: Shape of an output tensor.
            dtype: Floating type of inputs and outputs.
            device: Device of inputs and outputs.
            is_psd: Declare the operator symmetric positive semidefinite.

        Raises:
            ValueError: If a positive semidefinite operator is declared between different spaces.
        """
        if is_psd and shape_in != shape_out:
            raise ValueError(
                f"a positive semidefinite operator maps a space to itself, got {shape_in} -> "
                f"{shape_out}"
            )
        self.shape_in = shape_in
        self.shape_out = shape_out
        self.dtype = dtype
        self.device = device
        self.is_psd = is_psd
        self._adjoint: LinearOperator | None = None

    @property
    def input_size(self) -> int:
        """Dimension of the input space."""
        return prod(self.shape_in)

    @property
    def output_size(self) -> int:
        """Dimension of the output space."""
        return prod(self.shape_out)

    @abstractmethod
    def _matmat(self, X: Tensor) -> Tensor:
        """Apply the operator to each ``X[b]``; ``X`` has shape ``(b, *shape_in)``."""

    @abstractmethod
    def _rmatmat(self, Y: Tensor) -> Tensor:
        """Apply the adjoint to each ``Y[b]``; ``Y`` has shape ``(b, *shape_out)``."""

    def matvec(self, x: Tensor) -> Tensor:
        """Return ``A x`` for one tensor of shape ``shape_in``; the cost is one product."""
        self._check(x, self.shape_in, batched=False)
        return self._matmat(x.unsqueeze(0)).squeeze(0)

    def rmatvec(self, y: Tensor) -> Tensor:
        """Return ``A* y`` for one tensor of shape ``shape_out``; the cost is one product."""
        self._check(y, self.shape_out, batched=False)
        return self._rmatmat(y.unsqueeze(0)).squeeze(0)

    def matmat(self, X: Tensor) -> Tensor:
        """Return every ``A X[b]`` for a batch of shape ``(b, *shape_in)``; ``b`` products."""
        self._check(X, self.shape_in, batched=True)
        return self._matmat(X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """Return every ``A* Y[b]`` for a batch of shape ``(b, *shape_out)``; ``b`` products."""
        self._check(Y, self.shape_out, batched=True)
        return self._rmatmat(Y)

    @property
    def T(self) -> LinearOperator:
        """The adjoint ``A*``; the adjoint of an adjoint is the operator itself."""
        if self.is_psd:
            return self
        if self._adjoint is None:
            self._adjoint = algebra.Adjoint(self)
        return self._adjoint

    @property
    def factor(self) -> LinearOperator | None:
        """An operator ``L`` with ``A = L L*``, where one is known from how ``A`` was built."""
        return None

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Compose: ``(A @ B) x = A (B x)``."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return algebra.Composition(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """Add two operators between the same spaces."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return algebra.Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        """Subtract an operator between the same spaces."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return algebra.Sum(self, algebra.Scaled(-1.0, other))

    def __mul__(self, scalar: float) -> LinearOperator:
        """Multiply by a number."""
        if not isinstance(scalar, (int, float)):
            return NotImplemented
        return algebra.Scaled(float(scalar), self)

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> LinearOperator:
        """Divide by a number."""
        if not isinstance(scalar, (int, float)):
            return NotImplemented
        return algebra.Scaled(1.0 / scalar, self)

    def __neg__(self) -> LinearOperator:
        """Return ``-A``."""
        return algebra.Scaled(-1.0, self)

    def reshape(self, shape_out: Shape, shape_in: Shape | None = None) -> LinearOperator:
        """The same operator between spaces of other shapes and equal sizes.

        Args:
            shape_out: Shape of the outputs.
            shape_in: Shape of the inputs; by default ``shape_out``.

        Returns:
            The operator on the reshaped spaces.
        """
        return algebra.Reshaped(self, shape_out, shape_out if shape_in is None else shape_in)

    def partial_trace(
        self,
        axes: int | tuple[int, ...],
        *,
        probes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> LinearOperator:
        r"""Trace over some axes of a space that the operator maps to itself.

        .. math:: (\mathrm{tr}_n A)_{ab} = \sum_j A_{(a,j),(b,j)}

        Where the operator's structure gives the result (tensor products, sums, dense and diagonal
        operators, Gram operators of known factors), that is used, and costs nothing more. Else a
        product of the result costs as many products of ``A`` as the traced axes have entries, or
        as many as there are ``probes``:

        .. math:: \mathrm{tr}_n A = E[(I \otimes z^*)\, A\, (I \otimes z)],\quad z_j = \pm 1

        is unbiased, with relative error of order ``1 / sqrt(probes)``. Axes that do not exist, an
        operator between two spaces, and an exact sum that would be too long raise a ValueError.

        Args:
            axes: The axes to trace over; negative ones count from the end.
            probes: Sample with so many random signs instead of summing exactly.
            generator: Source of the signs; needed with ``probes``.

        Returns:
            The operator on the remaining axes.

        Example:
            >>> import torch
            >>> from ntk_monitor.operators import Dense
            >>> A = Dense(torch.eye(6).reshape(2, 3, 2, 3), shape_in=(2, 3))
            >>> A.partial_trace(1).to_dense().tolist()
            [[3.0, 0.0], [0.0, 3.0]]
        """
        traced = partial_trace.traced_axes(self, axes)
        if not traced:
            return self
        found = self._partial_trace(traced)
        if found is not None:
            return found
        return partial_trace.PartialTrace(self, traced, probes=probes, generator=generator)

    def partial_average(
        self,
        axes: int | tuple[int, ...],
        *,
        probes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> LinearOperator:
        r"""The partial trace over some axes, divided by the number of entries they have.

        .. math:: T = \mathrm{tr}_n(A) / n

        Args:
            axes: The axes to average over.
            probes: As in `partial_trace`.
            generator: As in `partial_trace`.

        Returns:
            The operator on the remaining axes.
        """
        traced = partial_trace.traced_axes(self, axes)
        size = prod(self.shape_in[axis] for axis in traced)
        return self.partial_trace(axes, probes=probes, generator=generator) / size

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        """The partial trace by structure alone; None where there is no rule. Checked axes."""
        return None

    def _gram_partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        """The partial trace of ``A A*`` by the structure of ``A``; None where there is no rule."""
        return None

    def compare(
        self,
        other: LinearOperator,
        *,
        products: int = 64,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        r"""How far this operator is from another one, relative to that one.

        .. math:: \|A - B\|_F / \|B\|_F

        Exact, with standard error zero, where the smaller space has at most ``products``
        dimensions. Else both norms are estimated from the same Gaussian vectors, which makes
        equal operators compare as exactly equal and a small difference come out with a small
        error. Different spaces, a zero reference or too small a budget raise a ValueError, products
        that are not finite a FloatingPointError.

        Args:
            other: The reference ``B``.
            products: Products to spend on each of the two operators, at least 3.
            generator: Source of the vectors; by default one of its own with seed 0.

        Returns:
            The relative distance.
        """
        return comparison.relative_distance(self, other, products, generator)

    def to_dense(self) -> Tensor:
        """Return the tensor of all entries, of shape ``(*shape_out, *shape_in)``.

        The cost is ``min(prod(shape_in), prod(shape_out))`` products.
        """
        size_in, size_out = prod(self.shape_in), prod(self.shape_out)
        if size_in <= size_out:
            columns = self._matmat(self._basis(self.shape_in)).reshape(size_in, size_out)
            return columns.T.reshape(self.shape_out + self.shape_in)
        rows = self._rmatmat(self._basis(self.shape_out))
        return rows.reshape(self.shape_out + self.shape_in)

    def to_scipy(self) -> ScipyOperator:
        """The operator on flat numpy vectors, for ``scipy.sparse.linalg``.

        SciPy may hand over arrays of either precision; they are brought to this operator's dtype
        and device, and the results come back in this operator's dtype. A dtype that numpy does not
        have raises a ValueError.

        Returns:
            A SciPy operator with ``matvec``, ``rmatvec``, ``matmat`` and ``rmatmat``.
        """
        return scipy_bridge.to_scipy(self)

    def _basis(self, shape: Shape) -> Tensor:
        """All unit tensors of a space, as a batch."""
        return torch.eye(prod(shape), dtype=self.dtype, device=self.device).reshape(-1, *shape)

    def _check(self, x: Tensor, shape: Shape, *, batched: bool) -> None:
        """Refuse a tensor that does not live in the space of the given shape."""
        wanted = f"(batch, {', '.join(map(str, shape))})" if batched else str(shape)
        if x.ndim != len(shape) + batched or tuple(x.shape[batched:]) != shape:
            raise ValueError(
                f"{self} expects a tensor of shape {wanted}, got {tuple(x.shape)}: its spaces are "
                f"{self.shape_in} -> {self.shape_out}"
            )
        if x.dtype != self.dtype or x.device != self.device:
            raise ValueError(
                f"{self} works in {self.dtype} on {self.device}, got {x.dtype} on {x.device}: "
                "convert the tensor with .to(operator.device, operator.dtype)"
            )

    def __repr__(self) -> str:
        """The operator as mathematics, then its spaces."""
        return f"<{self}: {self.shape_in} -> {self.shape_out}>"

    def __str__(self) -> str:
        """The operator as mathematics."""
        return type(self).__name__


def check_same(what: str, left: LinearOperator, right: LinearOperator) -> None:
    """Refuse two operators that do not share a dtype and a device.

    Args:
        what: The construction that needs them to agree, for the message.
        left: One operator.
        right: The other.

    Raises:
        ValueError: If they differ.
    """
    if left.dtype != right.dtype or left.device != right.device:
        raise ValueError(
            f"{what} needs one dtype and one device: {left} has {left.dtype} on {left.device}, "
            f"{right} has {right.dtype} on {right.device}"
        )


# Imported last: these build on the class above, and it on them.
from ntk_monitor.operators import algebra, comparison, partial_trace, scipy_bridge  # noqa: E402
