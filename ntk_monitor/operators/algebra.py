"""Operators made of operators: adjoints, compositions, sums, multiples, other shapes."""

from __future__ import annotations

import math

from torch import Tensor

from ntk_monitor.operators.base import LinearOperator, Shape, check_same


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
        found = factors[0]
        for factor in factors[1:]:
            found = found @ factor
        return found

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
        super().__init__(
            left.shape_in,
            left.shape_out,
            left.dtype,
            left.device,
            is_psd=left.is_psd and right.is_psd,
        )
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
        super().__init__(
            operator.shape_in,
            operator.shape_out,
            operator.dtype,
            operator.device,
            is_psd=operator.is_psd and scalar >= 0,
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
        is_psd = operator.is_psd and tuple(shape_in) == tuple(shape_out)
        super().__init__(
            tuple(shape_in), tuple(shape_out), operator.dtype, operator.device, is_psd=is_psd
        )
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
