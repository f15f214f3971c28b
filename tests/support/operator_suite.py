"""The tests that every operator passes: inherit, and say what the operator and its entries are."""

from itertools import combinations
from math import prod, sqrt

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor

from ntk_monitor.operators import Dense, LinearOperator


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class OperatorSuite:
    """Checks of one operator against the tensor of its entries."""

    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def make(self, dtype: torch.dtype) -> LinearOperator:
        raise NotImplementedError

    def entries(self, dtype: torch.dtype) -> Tensor:
        """All entries, shape ``(*shape_out, *shape_in)``."""
        raise NotImplementedError

    @pytest.fixture(params=["float32", "float64"])
    def dtype(self, request: pytest.FixtureRequest) -> torch.dtype:
        dtype = getattr(torch, request.param)
        if dtype not in self.dtypes:
            pytest.skip(f"not offered in {dtype}")
        return dtype

    @pytest.fixture
    def operator(self, dtype: torch.dtype) -> LinearOperator:
        return self.make(dtype)

    @pytest.fixture
    def matrix(self, dtype: torch.dtype, operator: LinearOperator) -> Tensor:
        entries = self.entries(dtype)
        assert tuple(entries.shape) == operator.shape_out + operator.shape_in
        assert entries.dtype == operator.dtype
        return entries.reshape(prod(operator.shape_out), prod(operator.shape_in))

    def close(self, found: Tensor, wanted: Tensor) -> None:
        tolerance = 50 * sqrt(torch.finfo(wanted.dtype).eps) * 1e-2
        scale = float(wanted.abs().max()) if wanted.numel() else 1.0
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * (scale or 1.0))

    def inputs(self, operator: LinearOperator) -> Tensor:
        return random(3, *operator.shape_in, seed=4, dtype=operator.dtype)

    def outputs(self, operator: LinearOperator) -> Tensor:
        return random(3, *operator.shape_out, seed=5, dtype=operator.dtype)

    def test_products(self, operator: LinearOperator, matrix: Tensor) -> None:
        X, Y = self.inputs(operator), self.outputs(operator)
        self.close(operator.matmat(X).reshape(3, -1), X.reshape(3, -1) @ matrix.T)
        self.close(operator.rmatmat(Y).reshape(3, -1), Y.reshape(3, -1) @ matrix)
        self.close(operator.matvec(X[0]), operator.matmat(X)[0])
        self.close(operator.rmatvec(Y[0]), operator.rmatmat(Y)[0])
        self.close(operator.T.matmat(Y), operator.rmatmat(Y))
        self.close(operator.T.rmatmat(X), operator.matmat(X))

    def test_images_have_the_spaces_dtype_and_device(self, operator: LinearOperator) -> None:
        image, back = (
            operator.matmat(self.inputs(operator)),
            operator.rmatmat(self.outputs(operator)),
        )
        assert tuple(image.shape) == (3, *operator.shape_out)
        assert tuple(back.shape) == (3, *operator.shape_in)
        assert {image.dtype, back.dtype} == {operator.dtype}
        assert {image.device, back.device} == {operator.device}

    def test_adjoint_identity(self, operator: LinearOperator) -> None:
        x, y = self.inputs(operator)[0], self.outputs(operator)[0]
        self.close((operator.matvec(x) * y).sum(), (x * operator.rmatvec(y)).sum())
        assert operator.T.T is operator

    def test_dense(self, operator: LinearOperator, matrix: Tensor) -> None:
        self.close(operator.to_dense().reshape(matrix.shape), matrix)

    def test_composition(self, operator: LinearOperator, matrix: Tensor) -> None:
        other = Dense(random(*operator.shape_in, 2, seed=6, dtype=operator.dtype), (2,))
        x = random(2, seed=7, dtype=operator.dtype)
        self.close(
            (operator @ other).matvec(x).flatten(),
            matrix @ (other.to_dense().reshape(-1, 2) @ x),
        )
        self.close((operator @ other).T.to_dense(), (operator @ other).to_dense().movedim(-1, 0))

    @pytest.mark.parametrize("numpy_dtype", ["float32", "float64"])
    def test_scipy_round_trip(
        self, operator: LinearOperator, matrix: Tensor, numpy_dtype: str
    ) -> None:
        flat = operator.to_scipy()
        assert isinstance(flat, ScipyOperator)
        assert flat.dtype == np.dtype(str(operator.dtype).removeprefix("torch."))
        X = self.inputs(operator).reshape(3, -1).T.numpy().astype(numpy_dtype)
        Y = self.outputs(operator).reshape(3, -1).T.numpy().astype(numpy_dtype)
        for image, wanted in (
            (flat.matmat(X), matrix @ torch.from_numpy(X).to(matrix)),
            (flat.rmatmat(Y), matrix.T @ torch.from_numpy(Y).to(matrix)),
            (flat.matvec(X[:, 0])[:, None], matrix @ torch.from_numpy(X[:, :1]).to(matrix)),
            (flat.rmatvec(Y[:, 0])[:, None], matrix.T @ torch.from_numpy(Y[:, :1]).to(matrix)),
        ):
            found = torch.from_numpy(np.ascontiguousarray(image))
            tolerance = 1e-4 if numpy_dtype == "float32" else 1e-5
            scale = float(wanted.abs().max()) or 1.0
            torch.testing.assert_close(
                found, wanted.to(found), rtol=tolerance, atol=tolerance * scale
            )

    def test_claims_hold(self, operator: LinearOperator, matrix: Tensor) -> None:
        if operator.is_psd:
            self.close(matrix, matrix.T)
            eigenvalues = torch.linalg.eigvalsh(matrix.double())
            assert eigenvalues.min() >= -1e-5 * eigenvalues.max().clamp(min=1.0)
            assert operator.T is operator
        if operator.factor is not None:
            L = operator.factor.to_dense().reshape(len(matrix), -1)
            self.close(L @ L.T, matrix)

    def test_partial_traces(self, operator: LinearOperator) -> None:
        ndim = len(operator.shape_in)
        if operator.shape_in != operator.shape_out or not ndim:
            pytest.skip("not from a tensor space to itself")
        entries = self.entries(operator.dtype)
        for count in range(1, ndim + 1):
            for axes in combinations(range(ndim), count):
                kept = [axis for axis in range(ndim) if axis not in axes]
                letters = [axis if axis in axes else ndim + axis for axis in range(ndim)]
                wanted = torch.einsum(
                    entries, [*range(ndim), *letters], [*kept, *(ndim + a for a in kept)]
                )
                found = operator.partial_trace(axes)
                self.close(found.to_dense(), wanted)
                assert found.is_psd >= operator.is_psd
                size = prod(operator.shape_in[axis] for axis in axes)
                self.close(operator.partial_average(axes).to_dense(), wanted / size)

    def test_prints(self, operator: LinearOperator) -> None:
        assert str(operator)
        assert "object at" not in repr(operator)
        assert repr(operator).endswith(f"{operator.shape_in} -> {operator.shape_out}>")
