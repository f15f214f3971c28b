"""Ways to compute the product of a derivative with tangents."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp, vmap

from ntk_monitor.model.kernels import Kernels
from ntk_monitor.ranks import ALONE, Ranks

ProductMethod = Literal["forward-ad", "finite-difference", "double-backward"]
METHODS: tuple[ProductMethod, ...] = ("forward-ad", "double-backward", "finite-difference")
"""All methods, the exact ones first."""


Function = Callable[[Tensor], Tensor]
REACH = 3.0
"""How many times the checked change of the function a finite difference may make."""
SHORTENED, SHORTEST = 3, 1e-3
"""How often a step is shortened at most, and to which part of it at once."""


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
    def __call__(self, G: Tensor) -> Tensor:
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

    def __call__(self, G: Tensor) -> Tensor:
        """Return ``J G[b]``."""

        def product(g: Tensor) -> Tensor:
            image: Tensor = jvp(self.function, (self.at,), (g,))[1]
            return image

        with torch.no_grad(), warnings.catch_warnings():
            # An operation that is done tangent by tangent is slower, and still right.
            warnings.filterwarnings("ignore", "There is a performance drop")
            images: Tensor = vmap(product, chunk_size=self.chunk_size, randomness="same")(G)
        return images


class DoubleBackward(TangentProducts):
    """Reverse mode through reverse mode: ``J g`` is the gradient of ``<J* u, g>`` in ``u``.

    Exact; needs operations that can be differentiated twice.
    """

    @property
    def at_once(self) -> int:
        """The chunk size: one graph serves a whole chunk."""
        return self.chunk_size

    def __call__(self, G: Tensor) -> Tensor:
        """Return ``J G[b]``."""
        leaf = self.at.clone().requires_grad_()
        y = self.function(leaf)
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, leaf, u, create_graph=True, materialize_grads=True)
        return torch.stack([
            torch.autograd.grad(pulled, u, g, retain_graph=True)[0] for g in G
        ]).detach()


class FiniteDifference(TangentProducts):
    r"""Central finite differences: two plain forward passes a product, any kernel.

    .. math:: J g \approx (f(\theta + \epsilon g) - f(\theta - \epsilon g)) / (2 \epsilon)

    with ``theta`` the point and ``epsilon = eta ||theta|| / ||g||``. The first product chooses
    ``eta``: starting from ``0.6 u^(1/3)`` (``u`` the rounding unit), steps ``eta`` and ``eta / 10``
    must agree to the given accuracy, or the step is divided by ten, twice at most. That is good for
    tangents that change the function about as much. One that changes it more than `REACH` times
    as much, ``epsilon ||J g||``, as leading directions do, is done again with a smaller step,
    though not for a change below ``sqrt(u) ||f||``, which rounding would blur. Where the function's
    values are spread over processes, sizes and changes are those of all together, so that all take
    the same steps.
    """

    kernels = "any"
    most_extra = SHORTENED

    def __init__(
        self,
        function: Function,
        at: Tensor,
        chunk_size: int,
        accuracy: float = 0.01,
        ranks: Ranks = ALONE,
    ) -> None:
        """Keep what the method needs; ``accuracy`` is the relative agreement of two steps."""
        super().__init__(function, at, chunk_size)
        self.accuracy = accuracy
        self.ranks = ranks
        self.step: float | None = None
        self._checked = 0.0
        self._extra = 0

    @property
    def extra_products(self) -> int:
        """Products spent on the step check, and on those that had to be done again."""
        return self._extra

    def __call__(self, G: Tensor) -> Tensor:
        """Return ``J G[b]``."""
        with torch.no_grad():
            images = []
            for g in G:
                if self.step is None:
                    step, image, change = self._choose_step(g)
                    if change > 0:  # a tangent that moves nothing is no check
                        self.step, self._checked = step, max(change, self._blurred())
                else:
                    image = self._within_reach(g, self.step)
                images.append(image)
            return torch.stack(images)

    def _blurred(self) -> float:
        """The change of the function that rounding makes uncertain to ``sqrt(u)``."""
        return self._norm(self.function(self.at)) * math.sqrt(torch.finfo(self.at.dtype).eps)

    def _norm(self, values: Tensor) -> float:
        """The norm of a function value, whose parts all processes have."""
        norm = torch.linalg.vector_norm(values, dtype=torch.float64)
        return math.sqrt(self.ranks.sum(norm.square()))

    def _within_reach(self, g: Tensor, step: float) -> Tensor:
        """The product, with a step that changes the function about as much as the checked one."""
        image, change = self._product(g, step)
        for _ in range(SHORTENED):
            if not REACH * self._checked < change < math.inf:
                break
            step *= max(self._checked / change, SHORTEST)
            image, change = self._product(g, step)
            self._extra += 1
        return image

    def _product(self, g: Tensor, step: float) -> tuple[Tensor, float]:
        """The product, and by how much the function changed for it."""
        # A model whose parameters are all zero still needs a step of its own.
        size, length = (
            torch.linalg.vector_norm(self.at).clamp(min=1e-3),
            torch.linalg.vector_norm(g),
        )
        epsilon = step * size / torch.where(length > 0, length, 1.0)
        point = torch.addcmul(self.at, g, epsilon)
        ahead = self.function(point).clone()  # a state may be a view of the parameters
        torch.addcmul(self.at, g, epsilon, value=-1, out=point)
        image: Tensor = (ahead - self.function(point)) / (2 * epsilon)
        return image, float(epsilon) * self._norm(image)

    def _choose_step(self, g: Tensor) -> tuple[float, Tensor, float]:
        """The step, the product with it, and the change that it made."""
        step: float = 0.6 * torch.finfo(self.at.dtype).eps ** (1 / 3)
        coarse, change = self._product(g, step)
        gaps = []
        for _ in range(3):
            fine, smaller = self._product(g, step / 10)
            self._extra += 1
            gap, size = self._norm(coarse - fine), self._norm(fine)
            if not gap > self.accuracy * size:  # also passes a product that is zero or not finite
                return step, coarse, change
            gaps.append(f"{gap / size if size else math.inf:.2g}")
            step, coarse, change = step / 10, fine, smaller
        raise FloatingPointError(
            f"finite differences do not settle: a step ten times smaller changes the product by "
            f"{', '.join(gaps)} in turn (wanted at most {self.accuracy:.2g}); use "
            "method='forward-ad', or dtype=torch.float64"
        )


def make_products(
    method: str,
    function: Function,
    at: Tensor,
    chunk_size: int,
    accuracy: float,
    ranks: Ranks = ALONE,
) -> TangentProducts:
    """The products of a method by its name.

    Args:
        method: One of `METHODS`.
        function: What is differentiated.
        at: The point at which.
        chunk_size: How many tangents to carry at once.
        accuracy: Relative agreement that finite differences must show.
        ranks: The processes over which the function's values are spread.

    Returns:
        The products.
    """
    if method == "finite-difference":
        return FiniteDifference(function, at, chunk_size, accuracy, ranks)
    kind = ForwardAD if method == "forward-ad" else DoubleBackward
    return kind(function, at, chunk_size)
