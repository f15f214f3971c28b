"""Ways to compute the product of a derivative with tangents."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp, vmap

from ntk_monitor.model.isolation.kernels import Kernels

ProductMethod = Literal["forward-ad", "finite-difference", "double-backward", "in-place"]
EXACT: tuple[ProductMethod, ...] = ("forward-ad", "double-backward")
"""Methods by automatic differentiation."""
AUTOMATIC: tuple[ProductMethod, ...] = (*EXACT, "finite-difference")
"""Methods of which ``"auto"`` takes one, the exact ones first."""
IN_PLACE: ProductMethod = "in-place"
"""The method that calls the model itself."""
METHODS: tuple[ProductMethod, ...] = (*AUTOMATIC, IN_PLACE)
"""All methods."""


Function = Callable[[Tensor], Tensor]
Tangents = Tensor | Sequence[Tensor]
"""Some tangents, in one tensor or one by one, as they are looked at."""


class TangentProducts(ABC):
    """A way to compute ``J g`` for a batch of tangents ``g``, ``J`` a function's derivative."""

    kernels: Kernels = "plain"
    """Which kernels the method can work with."""

    def __init__(self, function: Function, at: Tensor, chunk_size: int) -> None:
        """Keep what every method needs.

        Args:
            function: What is differentiated.
            at: The point at which.
            chunk_size: How many tangents to carry at once.
        """
        self.function = function
        self.at = at.detach()
        self.chunk_size = chunk_size

    @abstractmethod
    def __call__(self, G: Tangents) -> Tensor:
        """Return ``J G[b]`` for tangents ``(b, *shape_in)``; shape ``(b, *shape_out)``."""

    @property
    def at_once(self) -> int:
        """How many tangents are carried at once: one, unless the method gains from more."""
        return 1

    most_extra = 0
    """How many products one may take beside itself."""

    @property
    def extra_products(self) -> int:
        """Products spent beside those that were asked for."""
        return 0


class ForwardAD(TangentProducts):
    """Forward-mode automatic differentiation, vectorised over tangents. Exact."""

    @property
    def at_once(self) -> int:
        """The chunk size."""
        return self.chunk_size

    def __call__(self, G: Tangents) -> Tensor:
        """Return ``J G[b]``."""

        def product(g: Tensor) -> Tensor:
            image: Tensor = jvp(self.function, (self.at,), (g,))[1]
            return image

        with torch.no_grad(), warnings.catch_warnings():
            # An operation that is done tangent by tangent is slower, and still right.
            warnings.filterwarnings("ignore", "There is a performance drop")
            # torch loads its own rules for forward mode when they are first needed.
            warnings.filterwarnings("ignore", r".torch\.jit\.script. is deprecated")
            many = vmap(product, chunk_size=self.chunk_size, randomness="same")
            images: Tensor = many(_together(G))
        return images


class DoubleBackward(TangentProducts):
    """Reverse mode through reverse mode: ``J g`` is the gradient of ``<J* u, g>`` in ``u``.

    Exact; needs operations that can be differentiated twice.
    """

    @property
    def at_once(self) -> int:
        """The chunk size: one graph serves a whole chunk."""
        return self.chunk_size

    def __call__(self, G: Tangents) -> Tensor:
        """Return ``J G[b]``."""
        leaf = self.at.clone().requires_grad_()
        y = self.function(leaf)
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, leaf, u, create_graph=True, materialize_grads=True)
        return torch.stack([
            torch.autograd.grad(pulled, u, g, retain_graph=True)[0] for g in G
        ]).detach()


class RecordedDoubleBackward(TangentProducts):
    """The same through one graph that is recorded once: no product calls the function again.

    Exact, and fast where calling the function is most of the cost. Keeps the memory of about three
    backward passes. Like them it does not see what is detached from the graph.
    """

    kernels = "plain"

    def __init__(
        self,
        record: Callable[[], tuple[Tensor, Sequence[Tensor]]],
        split: Callable[[Tensor], Sequence[Tensor]],
        check: Callable[[Function, Tensor], None],
    ) -> None:
        """Keep what the method needs.

        Args:
            record: Evaluates the function; its value, with the leaves that it depends on.
            split: The parts of a tangent, one for each leaf.
            check: Called with the product and the first tangent; raises a RuntimeError where the
                product is not that with the function's derivative.
        """
        self.chunk_size = 1
        self._record, self._split = record, split
        self._check: Callable[[Function, Tensor], None] | None = check
        self._graph: tuple[Tensor, dict[int, Tensor]] | None = None

    def __call__(self, G: Tangents) -> Tensor:
        """Return ``J G[b]``."""
        if self._check is not None:
            self._check(self._product, G[0])
            self._check = None
        return torch.stack([self._product(g) for g in G])

    def _recorded(self) -> tuple[Tensor, dict[int, Tensor]]:
        """What stands for the cotangent, and the adjoint products that depend on it, by leaf."""
        with torch.enable_grad():
            value, leaves = self._record()
            u = torch.zeros_like(value, requires_grad=True)
            pulled = torch.autograd.grad(value, leaves, u, create_graph=True, allow_unused=True)
        return u, {i: p for i, p in enumerate(pulled) if p is not None and p.requires_grad}

    def _product(self, g: Tensor) -> Tensor:
        if self._graph is None:
            self._graph = self._recorded()
        (u, pulled), parts = self._graph, self._split(g)
        image: Tensor = torch.autograd.grad(
            list(pulled.values()),
            u,
            [parts[i] for i in pulled],
            retain_graph=True,
            materialize_grads=True,
        )[0]
        return image


def _together(G: Tangents) -> Tensor:
    """Tangents in one tensor, which is filled as they are made."""
    if isinstance(G, Tensor):
        return G
    first = G[0]
    together = first.new_empty(len(G), *first.shape)
    for i, row in enumerate(together):
        row.copy_(G[i] if i else first)
    return together


def make_products(method: str, function: Function, at: Tensor, chunk_size: int) -> TangentProducts:
    """The products of a method by automatic differentiation, by its name.

    Args:
        method: ``"forward-ad"`` or ``"double-backward"``.
        function: What is differentiated.
        at: The point at which.
        chunk_size: How many tangents to carry at once.

    Returns:
        The products.
    """
    kind = ForwardAD if method == "forward-ad" else DoubleBackward
    return kind(function, at, chunk_size)
