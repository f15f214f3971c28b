"""The derivative of a function of one tensor, as an operator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ntk_monitor.model.memory import is_out_of_memory
from ntk_monitor.model.products import Function, TangentProducts, make_products
from ntk_monitor.operators import LinearOperator

logger = logging.getLogger(__name__)

Quiet = Callable[[bool], AbstractContextManager[None]]
"""Makes the context to compute in; takes whether fused kernels must be off."""
Reverse = Callable[[Tensor], Tensor]
"""``y -> J* y``."""


class Derivative(LinearOperator):
    r"""The derivative :math:`J = D f(\theta)` of a function at a point.

    Products with tangents (`matvec`, `matmat`) use the first method of a list that works, and
    stay with it; adjoint products (`rmatvec`, `rmatmat`) go backward through one recorded
    evaluation. Each enters the quiet context by itself.

    Attributes:
        products: Products spent so far, those of step checks included.
    """

    def __init__(
        self,
        name: str,
        at: Tensor,
        value: Tensor,
        methods: dict[str, TangentProducts],
        reverse: Reverse,
        quiet: Quiet,
    ) -> None:
        """Make the operator.

        Args:
            name: How it prints.
            at: The point, which has the shape of the inputs.
            value: The function's value there, which has the shape of the outputs.
            methods: Tangent products by the name of their method, in the order of preference.
            reverse: Adjoint products.
            quiet: Makes the context to compute in.
        """
        super().__init__(tuple(at.shape), tuple(value.shape), value.dtype, value.device)
        self.name = name
        self.products = 0
        self._methods = dict(methods)
        self._reverse = reverse
        self._quiet = quiet
        self._settled = len(methods) == 1

    @property
    def method(self) -> str:
        """The method in use; before the first product, the one to be tried first."""
        return next(iter(self._methods))

    @property
    def at_once(self) -> int:
        """How many tangents the method in use carries at once."""
        return self._methods[self.method].at_once

    def _matmat(self, X: Tensor) -> Tensor:
        while True:
            products = self._methods[self.method]
            before = products.extra_products
            try:
                with self._quiet(products.plain_kernels):
                    Y = products(X).detach()
            except (RuntimeError, NotImplementedError, FloatingPointError) as error:
                if is_out_of_memory(error):
                    if products.chunk_size == 1:
                        raise
                    products.chunk_size //= 2
                    logger.info("out of memory: %d tangents at once", products.chunk_size)
                    continue
                if self._settled or len(self._methods) == 1:
                    raise
                logger.info("method %s does not work on this model: %s", self.method, error)
                del self._methods[self.method]
                continue
            self._settled = True
            self.products += len(X) + products.extra_products - before
            return Y

    def _rmatmat(self, Y: Tensor) -> Tensor:
        self.products += len(Y)
        with self._quiet(True):
            return torch.stack([self._reverse(y) for y in Y])

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
        The operator; the evaluation that its adjoint products go back through is recorded at the
        first of them.
    """
    recorded: list[tuple[Tensor, Tensor]] = []

    def reverse(y: Tensor) -> Tensor:
        if not recorded:
            leaf = at.detach().clone().requires_grad_()
            recorded.append((function(leaf), leaf))
        output, leaf = recorded[0]
        (pulled,) = torch.autograd.grad(output, leaf, y, retain_graph=True, materialize_grads=True)
        return pulled

    methods = {
        method: make_products(method, function, at, chunk_size, accuracy=0.01)
        for method in ("forward-ad", "double-backward")
    }
    return Derivative(name, at, value, methods, reverse, quiet)
