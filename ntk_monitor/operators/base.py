"""The contract of every operator, and the algebra that follows from linearity alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from math import prod
from operator import matmul
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor

from ntk_monitor.operators.contract import Shape, check_same
from ntk_monitor.operators.tracing import BLOCK, random_signs, traced_axes
from ntk_monitor.uncertainty import Estimate, log_jackknife, mean_and_deletes

NUMPY_DTYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
Columns = NDArray[Any]
Products = Callable[[Tensor], Tensor]


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
            self._adjoint = Adjoint(self)
        return self._adjoint

    @property
    def factor(self) -> LinearOperator | None:
        """An operator ``L`` with ``A = L L*``, where one is known from how ``A`` was built."""
        return None

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Compose: ``(A @ B) x = A (B x)``."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return Composition(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """Add two operators between the same spaces."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        """Subtract an operator between the same spaces."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return Sum(self, Scaled(-1.0, other))

    def __mul__(self, scalar: float) -> LinearOperator:
        """Multiply by a number."""
        if not isinstance(scalar, (int, float)):
            return NotImplemented
        return Scaled(float(scalar), self)

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> LinearOperator:
        """Divide by a number."""
        if not isinstance(scalar, (int, float)):
            return NotImplemented
        return Scaled(1.0 / scalar, self)

    def __neg__(self) -> LinearOperator:
        """Return ``-A``."""
        return Scaled(-1.0, self)

    def reshape(self, shape_out: Shape, shape_in: Shape | None = None) -> LinearOperator:
        """The same operator between spaces of other shapes and equal sizes.

        Args:
            shape_out: Shape of the outputs.
            shape_in: Shape of the inputs; by default ``shape_out``.

        Returns:
            The operator on the reshaped spaces.
        """
        return Reshaped(self, shape_out, shape_out if shape_in is None else shape_in)

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
        traced = traced_axes(self, axes)
        if not traced:
            return self
        found = self._partial_trace(traced)
        if found is not None:
            return found
        return PartialTrace(self, traced, probes=probes, generator=generator)

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
        traced = traced_axes(self, axes)
        size = prod(self.shape_in[axis] for axis in traced)
        return self.partial_trace(axes, probes=probes, generator=generator) / size

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        """The partial trace by structure alone; None where there is no rule. Checked axes."""
        return None

    def _gram_partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        """The partial trace of ``A A*`` by the structure of ``A``; None where there is no rule."""
        return None

    def compare(
        self, other: LinearOperator, *, products: int = 64, generator: torch.Generator | None = None
    ) -> Estimate:
        r"""How far this operator is from another one, relative to that one.

        .. math:: \|A - B\|_F / \|B\|_F

        Exact, with standard error zero, where the smaller space has at most ``products``
        dimensions. Else both norms are estimated from the same Gaussian vectors, which makes
        equal operators compare as exactly equal and a small difference come out with a small
        error.

        Args:
            other: The reference ``B``.
            products: Products to spend on each of the two operators, at least 3.
            generator: Source of the vectors; by default one of its own with seed 0.

        Returns:
            The relative distance.

        Raises:
            ValueError: If the spaces differ, the reference is zero, or the budget is too small.
            FloatingPointError: If a product is not finite.
        """
        if (self.shape_in, self.shape_out) != (other.shape_in, other.shape_out):
            raise ValueError(
                f"cannot compare {self}: {self.shape_in} -> {self.shape_out} with {other}: "
                f"{other.shape_in} -> {other.shape_out}"
            )
        check_same("a comparison", self, other)
        if products < 3:
            raise ValueError(f"products must be at least 3 for a standard error, got {products}")
        exact = min(self.input_size, self.output_size) <= products
        if exact:
            left, right = (A.to_dense().double().reshape(1, -1) for A in (self, other))
        else:
            generator = generator or torch.Generator(device=self.device).manual_seed(0)
            shape = (products, *self.shape_in)
            X = torch.randn(shape, generator=generator, device=generator.device)
            X = X.to(self.device, self.dtype)
            left, right = (A.matmat(X).double().flatten(1) for A in (self, other))
        distances, sizes = (left - right).square().sum(1), right.square().sum(1)
        if not bool(torch.isfinite(distances).all() & torch.isfinite(sizes).all()):
            raise FloatingPointError(f"{self} or {other} has products that are not finite")
        if not bool(sizes.any()):
            raise ValueError(f"{other} is zero: a distance relative to it is undefined")
        if exact:
            return Estimate(float((distances / sizes).sqrt()))
        ratios = (mean_and_deletes(distances) / mean_and_deletes(sizes)).sqrt()
        return log_jackknife(ratios.cpu())

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
        and device, and the results come back in this operator's dtype.

        Returns:
            A SciPy operator with ``matvec``, ``rmatvec``, ``matmat`` and ``rmatmat``.

        Raises:
            ValueError: If numpy has no such dtype.
        """
        if self.dtype not in NUMPY_DTYPES:
            raise ValueError(
                f"numpy has no {self.dtype}, which {self} works in: use an operator in "
                f"{', '.join(map(str, NUMPY_DTYPES))}"
            )

        def by_columns(products: Products, shape: Shape) -> Callable[[Columns], Columns]:
            """Products of a batch of tensors as those of columns, or of one vector."""

            def apply(X: Columns) -> Columns:
                rows = torch.from_numpy(np.ascontiguousarray(X.T)).to(self.device, self.dtype)
                Y = products(rows.reshape(-1, *shape))
                columns: Columns = Y.reshape(len(Y), -1).detach().cpu().numpy().T
                return columns

            return apply

        A, adjoint = (
            by_columns(self.matmat, self.shape_in),
            by_columns(self.rmatmat, self.shape_out),
        )
        return ScipyOperator(
            (self.output_size, self.input_size), dtype=np.dtype(NUMPY_DTYPES[self.dtype]),
            matvec=A, matmat=A, rmatvec=adjoint, rmatmat=adjoint,
        )  # fmt: skip

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


class Adjoint(LinearOperator):
    """The adjoint ``A*`` of an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        """Swap the two spaces of ``operator``."""
        super().__init__(operator.shape_out, operator.shape_in, operator.dtype, operator.device)
        self.operator = operator

    def _matmat(self, X: Tensor) -> Tensor:
        return self.operator._rmatmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.operator._matmat(Y)

    @property
    def T(self) -> LinearOperator:
        """The operator itself."""
        return self.operator

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        found = self.operator._partial_trace(axes)
        return None if found is None else found.T

    def __str__(self) -> str:
        return f"{as_factor(self.operator)}*"


class Composition(LinearOperator):
    """The composition ``A B``.

    Products that read the same from both ends, as ``L L*`` and ``P K P*`` with a positive
    semidefinite ``K``, are recognised as positive semidefinite.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        """Chain ``right``, then ``left``.

        Raises:
            ValueError: If the output space of ``right`` is not the input space of ``left``.
        """
        if left.shape_in != right.shape_out:
            raise ValueError(
                f"cannot compose {left} @ {right}: the left operator takes {left.shape_in}, the "
                f"right one returns {right.shape_out}"
            )
        check_same("a composition", left, right)
        self.parts = (*_parts(left), *_parts(right))
        half = len(self.parts) // 2
        mirrored = all(
            _are_adjoint(first, last)
            for first, last in zip(self.parts[:half], reversed(self.parts[-half:]), strict=True)
        )
        middle = self.parts[half] if len(self.parts) % 2 else None
        is_psd = mirrored and (middle is None or middle.is_psd)
        super().__init__(right.shape_in, left.shape_out, left.dtype, left.device, is_psd=is_psd)

    def _matmat(self, X: Tensor) -> Tensor:
        for part in reversed(self.parts):
            X = part._matmat(X)
        return X

    def _rmatmat(self, Y: Tensor) -> Tensor:
        for part in self.parts:
            Y = part._rmatmat(Y)
        return Y

    @property
    def factor(self) -> LinearOperator | None:
        """The left half of a product that reads the same from both ends."""
        if not self.is_psd:
            return None
        half = len(self.parts) // 2
        factors = list(self.parts[:half])
        if len(self.parts) % 2:
            middle = self.parts[half].factor
            if middle is None:
                return None
            factors.append(middle)
        return reduce(matmul, factors)

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        return None if self.factor is None else self.factor._gram_partial_trace(axes)

    def __str__(self) -> str:
        return " ".join(map(as_factor, self.parts))


class Sum(LinearOperator):
    """The sum ``A + B``."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        """Add two operators.

        Raises:
            ValueError: If they do not map between the same spaces.
        """
        if (left.shape_in, left.shape_out) != (right.shape_in, right.shape_out):
            raise ValueError(
                f"cannot add {left}: {left.shape_in} -> {left.shape_out} and {right}: "
                f"{right.shape_in} -> {right.shape_out}"
            )
        check_same("a sum", left, right)
        is_psd = left.is_psd and right.is_psd
        super().__init__(left.shape_in, left.shape_out, left.dtype, left.device, is_psd=is_psd)
        self.left = left
        self.right = right

    def _matmat(self, X: Tensor) -> Tensor:
        return self.left._matmat(X) + self.right._matmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.left._rmatmat(Y) + self.right._rmatmat(Y)

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        left, right = self.left._partial_trace(axes), self.right._partial_trace(axes)
        return None if left is None or right is None else left + right

    def __str__(self) -> str:
        if isinstance(self.right, Scaled) and self.right.scalar == -1.0:
            return f"{self.left} - {as_factor(self.right.operator)}"
        return f"{self.left} + {self.right}"


class Scaled(LinearOperator):
    """The multiple ``c A``."""

    def __init__(self, scalar: float, operator: LinearOperator) -> None:
        """Multiply ``operator`` by ``scalar``."""
        shape_in, shape_out, is_psd = operator.shape_in, operator.shape_out, operator.is_psd
        super().__init__(
            shape_in, shape_out, operator.dtype, operator.device, is_psd=is_psd and scalar >= 0
        )
        self.scalar = scalar
        self.operator = operator

    def _matmat(self, X: Tensor) -> Tensor:
        return self.scalar * self.operator._matmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.scalar * self.operator._rmatmat(Y)

    @property
    def factor(self) -> LinearOperator | None:
        """``sqrt(c) L``."""
        if not self.is_psd or self.operator.factor is None:
            return None
        return Scaled(math.sqrt(self.scalar), self.operator.factor)

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        found = self.operator._partial_trace(axes)
        return None if found is None else Scaled(self.scalar, found)

    def _gram_partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        found = self.operator._gram_partial_trace(axes)
        return None if found is None else Scaled(self.scalar**2, found)

    def __str__(self) -> str:
        return f"{self.scalar:g} {as_factor(self.operator)}"


class Reshaped(LinearOperator):
    """An operator between spaces of other shapes."""

    def __init__(self, operator: LinearOperator, shape_out: Shape, shape_in: Shape) -> None:
        """Give both spaces of ``operator`` another shape.

        Raises:
            ValueError: If a new shape does not have as many entries as the old one.
        """
        for old, new in ((operator.shape_out, shape_out), (operator.shape_in, shape_in)):
            if math.prod(old) != math.prod(new):
                raise ValueError(
                    f"cannot reshape {operator}: {operator.shape_in} -> {operator.shape_out} to "
                    f"{shape_in} -> {shape_out}: {new} has {math.prod(new)} entries, {old} has "
                    f"{math.prod(old)}"
                )
        shape_in, shape_out = tuple(shape_in), tuple(shape_out)
        is_psd = operator.is_psd and shape_in == shape_out
        super().__init__(shape_in, shape_out, operator.dtype, operator.device, is_psd=is_psd)
        self.operator = operator

    def _matmat(self, X: Tensor) -> Tensor:
        image = self.operator._matmat(X.reshape(len(X), *self.operator.shape_in))
        return image.reshape(len(X), *self.shape_out)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        image = self.operator._rmatmat(Y.reshape(len(Y), *self.operator.shape_out))
        return image.reshape(len(Y), *self.shape_in)

    @property
    def factor(self) -> LinearOperator | None:
        """The factor of the operator, with reshaped outputs."""
        factor = self.operator.factor if self.is_psd else None
        return None if factor is None else factor.reshape(self.shape_out, factor.shape_in)

    def __str__(self) -> str:
        return str(self.operator)


class PartialTrace(LinearOperator):
    r"""The partial trace of an operator over some axes of its space.

    .. math:: \mathrm{tr}_n A = \sum_j (I \otimes e_j^*)\, A\, (I \otimes e_j)

    This is the trace: only the diagonal of the traced axes enters. Summing ``A`` over a traced
    axis, :math:`(I \otimes 1^*) A (I \otimes 1)`, adds every cross term as well and is a different
    operator. With random signs ``z`` in place of the unit vectors ``e_j`` the cross terms vanish
    on average, and the mean over several of them is unbiased.

    References:
        Chen et al., Faster randomized partial trace estimation, arXiv:2310.12364 (2023).
    """

    def __init__(
        self,
        operator: LinearOperator,
        axes: int | tuple[int, ...],
        *,
        probes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Trace ``operator`` over ``axes``; see `LinearOperator.partial_trace`."""
        self.axes = traced_axes(operator, axes)
        space = operator.shape_in
        self._left = tuple(axis for axis in range(len(space)) if axis not in self.axes)
        shape = tuple(space[axis] for axis in self._left)
        super().__init__(shape, shape, operator.dtype, operator.device, is_psd=operator.is_psd)
        self.operator = operator
        self.vectors = random_signs(operator, self.axes, probes, generator)

    def _matmat(self, X: Tensor) -> Tensor:
        return self._traced(self.operator._matmat, X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._traced(self.operator._rmatmat, Y)

    def _traced(self, products: Products, X: Tensor) -> Tensor:
        """The partial trace times every ``X[b]``, from products of what is traced."""
        shape = tuple(self.operator.shape_in[axis] for axis in self.axes)
        size, flat = prod(shape), X.reshape(len(X), -1)
        vectors = self.vectors
        if vectors is None:
            vectors = torch.eye(size, dtype=X.dtype, device=X.device)
        axes = tuple(1 + axis for axis in self.axes)
        first = tuple(range(1, 1 + len(axes)))
        total = torch.zeros_like(flat)
        for Z in torch.split(vectors, BLOCK):
            padded = torch.einsum("bx,cz->cbzx", flat, Z).reshape(-1, *shape, *self.shape_in)
            image = products(padded.movedim(first, axes)).movedim(axes, first)
            image = image.reshape(len(Z), len(X), size, -1)
            total += torch.einsum("cbzx,cz->bx", image, Z)
        return total.reshape(X.shape)

    def _partial_trace(self, axes: tuple[int, ...]) -> LinearOperator | None:
        if self.vectors is not None:
            return None
        return self.operator.partial_trace(self.axes + tuple(self._left[axis] for axis in axes))

    def __str__(self) -> str:
        sampled = "" if self.vectors is None else f"[{len(self.vectors)} probes]"
        return f"tr_{','.join(map(str, self.axes))}{sampled}({self.operator})"


def as_factor(operator: LinearOperator) -> str:
    """How an operator prints as a factor: sums and products of several get brackets.

    Args:
        operator: The operator.

    Returns:
        Its text, in brackets where it is more than one symbol.
    """
    text, depth, parts = str(operator), 0, 1
    for character in text:
        depth += (character in "([") - (character in ")]")
        parts += character == " " and depth == 0
    return f"({text})" if parts > 1 else text


def _parts(operator: LinearOperator) -> tuple[LinearOperator, ...]:
    """The chain of operators that a composition stands for."""
    return operator.parts if isinstance(operator, Composition) else (operator,)


def _are_adjoint(first: LinearOperator, last: LinearOperator) -> bool:
    """Whether one of two operators was built as the adjoint of the other."""
    return (
        (isinstance(last, Adjoint) and last.operator is first)
        or (isinstance(first, Adjoint) and first.operator is last)
        or (first is last and first.is_psd)
    )
