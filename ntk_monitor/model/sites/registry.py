"""Weight sites of layers that do not show their weights to torch's operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from ntk_monitor.model.sites.operations.use import Use, product

SiteReader = Callable[..., Iterable[tuple[Tensor, ...]]]
Reader = TypeVar("Reader", bound=SiteReader)
_READERS: dict[type[nn.Module], SiteReader] = {}


def weight_sites(kind: type[nn.Module]) -> Callable[[Reader], Reader]:
    """Register where the weights of a layer of one's own multiply activity.

    Most layers need no registration: products written with torch's operations are seen by
    themselves. One that computes them in a kernel of its own, or inside TorchScript, does; without
    it, its weights are named as missed, and the core is without them.

    The decorated function is called with the layer and the arguments of each of its calls, and
    yields ``(weight, activity)`` or ``(weight, activity, bias)``: a weight of shape (q, ...), and
    what it multiplies, of shape ``(*rows, m)``, with ``m`` entries to each of the ``q`` outputs.

    Args:
        kind: The class of the layer; its subclasses are read likewise.

    Returns:
        A decorator.

    Example:
        >>> class Fused(nn.Linear):
        ...     "A linear layer in a kernel of its own."
        >>> @weight_sites(Fused)
        ... def read(layer, x):
        ...     yield layer.weight, x, layer.bias
    """

    def register(read: Reader) -> Reader:
        _READERS[kind] = read
        return read

    return register


def registered_uses(module: nn.Module, args: Any, kwargs: Any) -> Iterator[Use]:  # noqa: ANN401
    """The uses of weights in one call of a registered layer.

    Args:
        module: The layer, registered or not.
        args: The call's positional arguments.
        kwargs: Its keyword arguments.

    Yields:
        The uses, in the order in which they were given.

    Raises:
        ValueError: If a weight does not fit its activity.
    """
    read = next((_READERS[kind] for kind in type(module).__mro__ if kind in _READERS), None)
    if read is None:
        return
    for place, (weight, activity, *bias) in enumerate(read(module, *args, **kwargs)):
        if weight.numel() != len(weight) * activity.shape[-1]:
            raise ValueError(
                f"weight_sites({type(module).__name__}) must yield weights of shape (q, ...) with "
                f"activity (*rows, m) that has as many entries as each of the q outputs has "
                f"weights; got {tuple(weight.shape)} and {tuple(activity.shape)}"
            )
        yield product(activity, weight, bias[0] if bias else None, place)
