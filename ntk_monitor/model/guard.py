"""Refusing to write where a model's own numbers are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ntk_monitor.model.memory import address_of


class WriteError(RuntimeError):
    """A pass would have written to parameters of which there is no copy."""


class Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises before anything is written to some memory, by whatever operation.

    Attributes:
        refused: Whether there was such an attempt, also where somebody has caught the error.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Note where they are.

        Args:
            tensors: The tensors.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.refused = False
        self._addresses = {at for t in tensors if (at := address_of(t))}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Look at what an operation writes to, and make it if it may."""
        del types
        kwargs = kwargs or {}
        for written in _written(func, args, kwargs):
            for tensor in tree_leaves(written):
                if isinstance(tensor, Tensor) and tensor.numel():
                    self._look_at(tensor)
        return func(*args, **kwargs)

    def _look_at(self, tensor: Tensor) -> None:
        if address_of(tensor) in self._addresses:
            self.refused = True
            raise WriteError("the step writes into parameters of the model")


def _written(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found = []
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[i] if i < len(args) else kwargs.get(argument.name))
    return found
