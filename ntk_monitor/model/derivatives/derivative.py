"""The derivative of a function of one tensor, as an operator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ntk_monitor.model.derivatives.adjoint import AdjointProducts, Evaluate, Quiet, evaluating
from ntk_monitor.model.derivatives.products import (
    EXACT,
    IN_PLACE,
    Function,
    TangentProducts,
    make_products,
)
from ntk_monitor.model.isolation.memory import is_out_of_memory, release_memory
from ntk_monitor.operators import LinearOperator
from ntk_monitor.operators.base import Shape
from ntk_monitor.processes import ALONE, Processes

logger = logging.getLogger(__name__)

COMMON = ("finite-difference", IN_PLACE)
"""Methods whose step all processes choose together."""
Products = TangentProducts | Callable[[], TangentProducts]
"""Tangent products, or what makes them when they are needed."""


class Derivative(LinearOperator):
    r"""The derivative :math:`J = D f(\theta)` of a function at a point.

    Products with tangents (``matvec``, ``matmat``) use the first method of a list that works, and
    stay with it; finite differences that do not settle give way at any product. Adjoint products
    (``rmatvec``, ``rmatmat``, `pulls`) go backward through a recorded evaluation. It takes the
    memory of a training step, so each makes its own and keeps none. Each enters the quiet context
    by itself.

    Attributes:
        products: Products spent so far, those of step checks included.
        halved: Whether memory ran out, once, so that fewer tangents are carried at once.
        quiet: Makes the context to compute in.
    """

    def __init__(
        self,
        name: str,
        shape_in: Shape,
        value: Tensor,
        methods: Mapping[str, Products],
        quiet: Quiet,
        evaluate: Evaluate,
        untrained: Sequence[slice] = (),
        processes: Processes = ALONE,
    ) -> None:
        """Make the operator.

        Args:
            name: How it prints.
            shape_in: Shape of the inputs.
            value: The function's value at the point, which has the shape of the outputs.
            methods: Tangent products by the name of their method, in the order of preference, or
                what makes them when they are needed.
            quiet: Makes the context to compute in.
            evaluate: Records an evaluation.
            untrained: Inputs that the function depends on, and whose derivative is taken as zero,
                as training takes it (an embedding's padding).
            processes: The processes that take the same products, each with values of its own; they
                stay with the same method.
        """
        super().__init__(shape_in, tuple(value.shape), value.dtype, value.device)
        self.name = name
        self.products = 0
        self.halved = False
        self._methods: dict[str, Products] = dict(methods)
        self.quiet = quiet
        self._adjoint_products = AdjointProducts(
            evaluate, quiet, alone=processes.everyone.size == 1
        )
        self._untrained = tuple(untrained)
        self._processes = processes
        self._settled = len(methods) == 1

    @property
    def method(self) -> str:
        """The method in use; before the first product, the one to be tried first."""
        return next(iter(self._methods))

    @property
    def _in_use(self) -> TangentProducts:
        """The products of the method in use."""
        products = self._methods[self.method]
        if not isinstance(products, TangentProducts):
            products = self._methods[self.method] = products()
        return products

    def exclude(self, method: str) -> None:
        """Do without a method, where there is another."""
        if len(self._methods) > 1:
            self._methods.pop(method, None)

    def fall_back(self, method: str) -> bool:
        """Do without all methods but one.

        Args:
            method: The one.

        Returns:
            False where that is the one in use, or not among them.
        """
        if method not in self._methods or self.method == method:
            return False
        self._methods = {method: self._methods[method]}
        self._settled = True
        return True

    def defer(self, method: str) -> None:
        """Try a method last."""
        if method in self._methods:
            self._methods[method] = self._methods.pop(method)

    @property
    def chunk_size(self) -> int:
        """How many tangents may be carried at once."""
        return self._in_use.chunk_size

    @property
    def at_once(self) -> int:
        """How many tangents the method in use carries at once."""
        return self._in_use.at_once

    @property
    def most_extra(self) -> int:
        """How many products one may take beside itself with the method in use."""
        return self._in_use.most_extra

    def _matmat(self, X: Tensor) -> Tensor:
        X = self._trained(X)
        return self._products(lambda products: products(X), len(X))

    def _trained(self, X: Tensor) -> Tensor:
        """Tangents without what is not trained."""
        if self._untrained:
            X = X.clone()
            for entries in self._untrained:
                X[..., entries] = 0
        return X

    def _products(self, compute: Callable[[TangentProducts], Tensor], count: int) -> Tensor:
        """Some products by the first method that works, in all processes, counted."""
        while True:
            products = self._in_use
            before = products.extra_products
            Y, error = self._attempt(products, compute)
            self.products += products.extra_products - before
            if self._fails_anywhere(error):
                self._go_on_after(error, products)
                continue
            assert Y is not None
            self._settled = True
            self.products += count
            return Y

    def _attempt(
        self, products: TangentProducts, compute: Callable[[TangentProducts], Tensor]
    ) -> tuple[Tensor | None, Exception | None]:
        try:
            with self.quiet(products.kernels):
                return compute(products).detach(), None
        except (RuntimeError, NotImplementedError, FloatingPointError) as error:
            return None, error

    def _fails_anywhere(self, error: Exception | None) -> bool:
        """Whether a method that is tried fails in any process; what fails in one later is raised.

        Differences do not settle in all processes or in none, and anything else that befalls them
        ends the measurement, since the others may be choosing a step.

        Args:
            error: What failed here, or None.

        Returns:
            True if the same is to be tried in another way.
        """
        if self._processes.size == 1:
            return error is not None
        asked = self.method not in COMMON and not self._settled
        if error is not None and not asked and not isinstance(error, FloatingPointError):
            raise error
        return not self._processes.all(error is None) if asked else error is not None

    def _go_on_after(self, error: Exception | None, products: TangentProducts) -> None:
        """Carry fewer tangents, or take another method; raise the error where there is none."""
        alone = self._processes.size == 1
        if alone and error is not None and is_out_of_memory(error):
            if products.chunk_size == 1 or self.halved:
                raise error
            products.chunk_size, self.halved = products.chunk_size // 2, True
            logger.info("out of memory: %d tangents at once", products.chunk_size)
            release_memory(self.device)
            return
        unsettled = isinstance(error, FloatingPointError)  # along these tangents: in all processes
        if (self._settled and not unsettled) or len(self._methods) == 1:
            raise error or RuntimeError(f"method={self.method!r} fails in another process")
        logger.info("method %s does not work on this model: %s", self.method, error)
        self.exclude(self.method)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return torch.stack(list(self.pulls(Y)))

    def pulls(self, Y: Iterable[Tensor]) -> Iterator[Tensor]:
        """Adjoint products with some tensors, from one evaluation.

        Those of a small model are taken many at once, in a few dozen times less than one by one.

        Args:
            Y: Each of the shape of the outputs.

        Yields:
            Each of the shape of the inputs.
        """
        for pulled in self._adjoint_products(Y):
            self.products += 1
            yield pulled

    def __str__(self) -> str:
        return self.name


def differentiate(
    name: str, function: Function, at: Tensor, value: Tensor, quiet: Quiet, chunk_size: int
) -> Derivative:
    """The derivative of a function by automatic differentiation.

    Args:
        name: How it prints.
        function: What is differentiated.
        at: The point at which.
        value: The function's value there.
        quiet: Makes the context to compute in.
        chunk_size: How many tangents to carry at once.

    Returns:
        The operator.
    """
    methods: dict[str, Products] = {
        method: make_products(method, function, at, chunk_size) for method in EXACT
    }
    shape_in, evaluate = tuple(at.shape), evaluating(function, at)
    return Derivative(name, shape_in, value, methods, quiet, evaluate)
