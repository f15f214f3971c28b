"""Seeing every call of PyTorch's functions while something runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch.overrides import TorchFunctionMode


class FunctionMode(TorchFunctionMode):
    """Gets the calls of PyTorch's functions while it is entered, and makes them or not."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Hand a call on with its name."""
        del types
        return self.call(func, getattr(func, "__name__", ""), args, kwargs or {})

    @abstractmethod
    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        """Make a call, or do something else in its place.

        Args:
            func: The function.
            name: Its name; empty where it has none.
            args: Its positional arguments.
            kwargs: Its arguments by name.

        Returns:
            What the caller gets.
        """
