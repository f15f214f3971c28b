"""Every operator through the suite."""

import torch
from support.operator_suite import OperatorSuite, random
from torch import Tensor

from ntk_monitor.operators import (
    BlockRow,
    Dense,
    Diagonal,
    DirectSum,
    Identity,
    LinearOperator,
    OuterProduct,
    TensorProduct,
)


def dense(
    *shape: int, shape_in: tuple[int, ...], dtype: torch.dtype, seed: int = 0, name: str = "A"
) -> Dense:
    return Dense(random(*shape, seed=seed, dtype=dtype), shape_in, name=name)


def a(dtype: torch.dtype) -> Dense:
    return dense(2, 3, 4, shape_in=(4,), dtype=dtype)


def b(dtype: torch.dtype) -> Dense:
    return dense(2, 3, 4, shape_in=(4,), dtype=dtype, seed=1, name="B")


def c(dtype: torch.dtype) -> Dense:
    return dense(4, 2, 2, shape_in=(2, 2), dtype=dtype, seed=2, name="C")


def square(dtype: torch.dtype, seed: int = 3) -> Dense:
    return dense(2, 3, 2, 3, shape_in=(2, 3), dtype=dtype, seed=seed, name="S")


def psd(dtype: torch.dtype) -> Dense:
    L = random(6, 6, seed=8, dtype=dtype)
    return Dense((L @ L.T).reshape(2, 3, 2, 3), (2, 3), name="K", is_psd=True)


class Opaque(LinearOperator):
    """An operator without structure: only its products are known."""

    def __init__(self, matrix: Dense) -> None:
        super().__init__(
            matrix.shape_in, matrix.shape_out, matrix.dtype, matrix.device, is_psd=matrix.is_psd
        )
        self.matrix = matrix

    def _matmat(self, X: Tensor) -> Tensor:
        return self.matrix._matmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.matrix._rmatmat(Y)


class TestDense(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return square(dtype)

    def entries(self, dtype: torch.dtype) -> Tensor:
        return random(2, 3, 2, 3, seed=3, dtype=dtype)


class TestOpaque(TestDense):
    """Partial traces by products alone."""

    def make(self, dtype: torch.dtype) -> LinearOperator:
        return Opaque(square(dtype))


class TestOpaqueGram(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        factor = Opaque(square(dtype))
        return factor @ factor.T

    def entries(self, dtype: torch.dtype) -> Tensor:
        matrix = square(dtype).to_dense()
        return torch.einsum("abij,cdij->abcd", matrix, matrix)


class TestIdentity(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return Identity((2, 3), dtype)

    def entries(self, dtype: torch.dtype) -> Tensor:
        return torch.eye(6, dtype=dtype).reshape(2, 3, 2, 3)


class TestDiagonal(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return Diagonal(random(2, 3, dtype=dtype))

    def entries(self, dtype: torch.dtype) -> Tensor:
        return torch.diag(random(2, 3, dtype=dtype).flatten()).reshape(2, 3, 2, 3)


class TestPositiveDiagonal(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return Diagonal(random(2, 3, dtype=dtype).abs())

    def entries(self, dtype: torch.dtype) -> Tensor:
        return torch.diag(random(2, 3, dtype=dtype).abs().flatten()).reshape(2, 3, 2, 3)


class TestOuterProduct(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return OuterProduct(random(2, 3, dtype=dtype), random(2, 3, seed=1, dtype=dtype))

    def entries(self, dtype: torch.dtype) -> Tensor:
        y, x = random(2, 3, dtype=dtype), random(2, 3, seed=1, dtype=dtype)
        return torch.einsum("ab,cd->abcd", y, x)


class TestProjector(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return OuterProduct(random(2, 3, dtype=dtype))

    def entries(self, dtype: torch.dtype) -> Tensor:
        y = random(2, 3, dtype=dtype)
        return torch.einsum("ab,cd->abcd", y, y)


class TestAdjoint(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return a(dtype).T

    def entries(self, dtype: torch.dtype) -> Tensor:
        return random(2, 3, 4, dtype=dtype).permute(2, 0, 1)


class TestSquareAdjoint(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return square(dtype).T

    def entries(self, dtype: torch.dtype) -> Tensor:
        return square(dtype).to_dense().permute(2, 3, 0, 1)


class TestSum(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return square(dtype) + square(dtype, 9)

    def entries(self, dtype: torch.dtype) -> Tensor:
        return square(dtype).to_dense() + square(dtype, 9).to_dense()


class TestDifferenceOfMultiples(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return 3 * a(dtype) / 2 - -b(dtype)

    def entries(self, dtype: torch.dtype) -> Tensor:
        return 1.5 * a(dtype).to_dense() + b(dtype).to_dense()


class TestMultiple(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return 4 * psd(dtype)

    def entries(self, dtype: torch.dtype) -> Tensor:
        return 4 * psd(dtype).to_dense()


class TestComposition(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return a(dtype) @ c(dtype)

    def entries(self, dtype: torch.dtype) -> Tensor:
        return torch.einsum("abc,cde->abde", a(dtype).to_dense(), c(dtype).to_dense())


class TestGram(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        factor = a(dtype)
        return factor @ factor.T

    def entries(self, dtype: torch.dtype) -> Tensor:
        return torch.einsum("abc,dec->abde", a(dtype).to_dense(), a(dtype).to_dense())


class TestScaledGram(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        factor = 2 * a(dtype)
        return 9 * (factor @ factor.T)

    def entries(self, dtype: torch.dtype) -> Tensor:
        return 36 * torch.einsum("abc,dec->abde", a(dtype).to_dense(), a(dtype).to_dense())


class TestCongruence(OperatorSuite):
    """``P K P*`` with a positive semidefinite ``K``."""

    def make(self, dtype: torch.dtype) -> LinearOperator:
        P, K = square(dtype), psd(dtype)
        return P @ K @ P.T

    def entries(self, dtype: torch.dtype) -> Tensor:
        P, K = (M.to_dense().reshape(6, 6) for M in (square(dtype), psd(dtype)))
        return (P @ K @ P.T).reshape(2, 3, 2, 3)


class TestReshaped(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        factor = a(dtype)
        return (factor @ factor.T).reshape((3, 2))

    def entries(self, dtype: torch.dtype) -> Tensor:
        L = a(dtype).to_dense().reshape(3, 2, 4)
        return torch.einsum("abc,dec->abde", L, L)


class TestReshapedBetweenSpaces(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return a(dtype).reshape((6,), (2, 2))

    def entries(self, dtype: torch.dtype) -> Tensor:
        return a(dtype).to_dense().reshape(6, 2, 2)


class TestTensorProduct(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return TensorProduct(a(dtype), c(dtype))

    def entries(self, dtype: torch.dtype) -> Tensor:
        return torch.einsum("abi,cde->abcide", a(dtype).to_dense(), c(dtype).to_dense())


class TestCore(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        V = a(dtype)
        return TensorProduct(V @ V.T, Identity((5,), dtype))

    def entries(self, dtype: torch.dtype) -> Tensor:
        V = a(dtype).to_dense()
        return torch.einsum("abi,cdi,ef->abecdf", V, V, torch.eye(5, dtype=dtype))


class TestGramOfTensorProduct(TestCore):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        factor = TensorProduct(a(dtype), Identity((5,), dtype))
        return factor @ factor.T


class TestDirectSum(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return DirectSum(a(dtype), c(dtype))

    def entries(self, dtype: torch.dtype) -> Tensor:
        return torch.block_diag(
            a(dtype).to_dense().reshape(6, 4), c(dtype).to_dense().reshape(4, 4)
        )


class TestPositiveDirectSum(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        factor = a(dtype)
        return DirectSum(factor @ factor.T, Identity((2,), dtype))

    def entries(self, dtype: torch.dtype) -> Tensor:
        L = a(dtype).to_dense().reshape(6, 4)
        return torch.block_diag(L @ L.T, torch.eye(2, dtype=dtype))


class TestBlockRow(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return BlockRow(a(dtype), square(dtype))

    def entries(self, dtype: torch.dtype) -> Tensor:
        parts = a(dtype).to_dense().reshape(6, 4), square(dtype).to_dense().reshape(6, 6)
        return torch.cat(parts, dim=1).reshape(2, 3, 10)


class TestPartialTrace(OperatorSuite):
    def make(self, dtype: torch.dtype) -> LinearOperator:
        return Opaque(dense(2, 3, 2, 2, 3, 2, shape_in=(2, 3, 2), dtype=dtype)).partial_trace(1)

    def entries(self, dtype: torch.dtype) -> Tensor:
        return torch.einsum("abcdbf->acdf", random(2, 3, 2, 2, 3, 2, dtype=dtype))
