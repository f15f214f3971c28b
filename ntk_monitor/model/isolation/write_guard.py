"""Refusing to write where a model's own numbers are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ntk_monitor.model.isolation.interception import OperationMode, written_to
from ntk_monitor.model.isolation.memory import address_of

WRITES = "the step writes into parameters of the model"


class WriteError(RuntimeError):
    """A pass would have written to parameters of which there is no copy."""


class Guard(OperationMode):  # type: ignore[no-untyped-call]
    """Raises before anything is written to some memory, by whatever operation.

    Attributes:
        refused: Whether there was such an attempt, also where somebody has caught the error.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Note where they are.

        Args:
            tensors: The tensors.
        """
        super().__init__()
        self.refused = False
        self._addresses = {at for t in tensors if (at := address_of(t))}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Make an operation that does not write there."""
        for tensor in written_to(func, args, kwargs):
            if tensor.numel() and address_of(tensor) in self._addresses:
                self.refused = True
                raise WriteError(WRITES)
        return func(*args, **kwargs)


@contextmanager
def guarded(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let nothing be written to some tensors.

    Args:
        tensors: The tensors.

    Yields:
        Nothing.

    Raises:
        WriteError: If somebody tried, whatever others made of the error.
    """
    guard = Guard(tensors)
    try:
        with guard:
            yield
    finally:
        if guard.refused:
            raise WriteError(WRITES)
