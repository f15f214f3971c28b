"""Seeing every call of PyTorch's functions, or of its operations, while something runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ntk_monitor.compat import TorchDispatchMode, tree_leaves
from ntk_monitor.model.isolation.exchange import exchanged

Function = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class FunctionMode(TorchFunctionMode):
    """Gets the calls of PyTorch's functions while it is entered, and makes them or not."""

    _paused = False

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:  # noqa: ANN401
        """Hand a call on with its name."""
        del types
        if self._paused:
            return func(*args, **(kwargs or {}))
        return self.call(func, getattr(func, "__name__", ""), args, kwargs or {})

    def pause(self) -> AbstractContextManager[None]:
        """Overlook calls that are not the model's own, in scope."""
        return exchanged([(self, "_paused", True)])

    @abstractmethod
    def call(self, func: Function, name: str, args: Args, kwargs: Kwargs) -> Any:  # noqa: ANN401
        """Make a call, or do something else in its place.

        Args:
            func: The function.
            name: Its name; empty where it has none.
            args: Its positional arguments.
            kwargs: Its arguments by name.

        Returns:
            What the caller gets.
        """


class OperationMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gets the operations that PyTorch's functions are made of, wherever they are called from."""

    def __init__(self) -> None:
        """Begin."""
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:  # noqa: ANN401
        """Hand an operation on."""
        del types
        return self.call(func, args, kwargs or {})

    @abstractmethod
    def call(self, func: Any, args: Args, kwargs: Kwargs) -> Any:  # noqa: ANN401
        """Make an operation, or do something else in its place.

        Args:
            func: The operation.
            args: Its positional arguments.
            kwargs: Its arguments by name.

        Returns:
            What the caller gets.
        """


def written_to(func: Any, args: Args, kwargs: Kwargs) -> list[Tensor]:  # noqa: ANN401
    """The tensors that an operation writes to.

    Args:
        func: The operation.
        args: Its positional arguments.
        kwargs: Its arguments by name.

    Returns:
        Some of the arguments.
    """
    places = _written_places(func)
    if not places:
        return []
    written = [args[i] if i < len(args) else kwargs.get(name) for i, name in places]
    return [x for x in tree_leaves(written) if isinstance(x, Tensor)]


@cache
def _written_places(func: Any) -> tuple[tuple[int, str], ...]:  # noqa: ANN401
    """Positions and names of the arguments that an operation writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return ()
    return tuple(
        (i, argument.name)
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
