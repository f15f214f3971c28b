"""Which parameters are studied, and how they form one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ntk_monitor.model.parameters.unwrapping import plain_name

ParameterFilter = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None


class NothingTrainedError(ValueError):
    """No parameter requires a gradient, at present."""


def select_parameters(module: nn.Module, which: ParameterFilter) -> tuple[str, ...]:
    """Names of the trained parameters that are asked for.

    Args:
        module: The module that owns them.
        which: None for all; names or glob patterns; or a predicate of name and parameter. A
            frozen parameter (``requires_grad=False``) is never selected.

    Returns:
        Names, in the module's order; a tied parameter appears once.

    Raises:
        NothingTrainedError: If nothing is trained.
        ValueError: If a pattern or the predicate matches nothing.
    """
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise NothingTrainedError(
            f"{type(module).__name__} has no parameter with requires_grad=True: there is nothing "
            "that gradient descent could change"
        )
    lazy = [name for name, p in trained.items() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"the parameters {', '.join(lazy)} of {type(module).__name__} are not initialised yet: "
            "call the module on one batch first"
        )
    if which is None:
        return tuple(trained)
    if callable(which):
        names = tuple(n for n, p in trained.items() if which(n, p))
        unmatched: list[str] = [] if names else [repr(which)]
    else:
        patterns = _patterns(which)
        names = tuple(n for n in trained if any(fnmatchcase(n, p) for p in patterns))
        unmatched = without_match(which, trained)
    if unmatched:
        raise ValueError(
            f"parameters={unmatched} match no trained parameter; the trained ones are "
            f"{', '.join(trained)}"
        )
    return names


def without_match(which: ParameterFilter, names: Iterable[str]) -> list[str]:
    """The names or patterns of a filter to which none of some names belongs.

    Args:
        which: The filter; a predicate has no patterns.
        names: Names of parameters.

    Returns:
        The patterns, none if all have a match.
    """
    if which is None or callable(which):
        return []
    names = list(names)
    return [p for p in _patterns(which) if not any(fnmatchcase(n, p) for n in names)]


def _patterns(which: str | Sequence[str]) -> list[str]:
    return [plain_name(p) for p in ([which] if isinstance(which, str) else which)]


@dataclass(frozen=True)
class ParameterSpace:
    """Several tensors read as one flat vector.

    Attributes:
        shapes: Shape of each parameter, by name, in order.
    """

    shapes: Mapping[str, torch.Size]

    @property
    def size(self) -> int:
        """Number of entries ``p``."""
        return sum(prod(shape) for shape in self.shapes.values())

    def rows(self, which: Mapping[str, int]) -> list[slice]:
        """Where single rows of parameters are in a flat vector.

        Args:
            which: The row by the parameter's name.

        Returns:
            A slice for each.
        """
        found, start = [], 0
        for name, shape in self.shapes.items():
            if name in which:
                width = prod(shape[1:])
                found.append(slice(start + which[name] * width, start + (which[name] + 1) * width))
            start += prod(shape)
        return found

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut flat vectors of shape ``(..., p)`` into tensors of shape ``(..., *shape)``.

        Args:
            flat: Flat vectors.

        Returns:
            One tensor per parameter, a view where possible.
        """
        if not self.shapes:
            return {}
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape((*flat.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, tensors: Sequence[Tensor], batch_dims: int = 0) -> Tensor:
        """Put tensors, in order, side by side in flat vectors.

        Args:
            tensors: One per parameter, each with the same leading batch axes.
            batch_dims: How many leading axes are batch axes.

        Returns:
            Shape ``(*batch, p)``.
        """
        # A single number has no axis of its own.
        return torch.cat([t.reshape(*t.shape[:batch_dims], -1) for t in tensors], dim=-1)
