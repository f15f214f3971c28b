"""Watching a model's own operations, and adding to their outputs."""

from __future__ import annotations

import types
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor

from ntk_monitor.compat import without_torch_function
from ntk_monitor.model.isolation.interception import Args, Function, FunctionMode, Kwargs
from ntk_monitor.model.sites.operations.table import READERS, perturbed
from ntk_monitor.model.sites.records import Tap

COMPOSED = {"multi_head_attention_forward"}
"""Operations written in Python of others; their parts are watched."""


class Watch(FunctionMode):
    """Numbers the operations that can have a weight site, the same in every pass."""

    def __init__(self) -> None:
        """Begin at zero."""
        super().__init__()
        self._count = 0

    def call(self, func: Function, name: str, args: Args, kwargs: Kwargs) -> Any:  # noqa: ANN401
        """Number an operation and hand it over; one that is composed of others is opened."""
        if name in COMPOSED:
            with self:
                return _opened(func)(*args, **kwargs)
        number, self._count = self._count, self._count + (name in READERS)
        return self.see(func, name, number, args, kwargs)

    @abstractmethod
    def see(self, func: Function, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Call an operation, and do what this mode is for."""


@lru_cache
def _opened(func: Function) -> Function:
    """An operation written in Python, without its own check for modes that watch."""
    assert isinstance(func, types.FunctionType)
    scope = {**func.__globals__, "has_torch_function": lambda *_: False}
    opened = types.FunctionType(
        func.__code__, scope, func.__name__, func.__defaults__, func.__closure__
    )
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


class Injector(Watch):
    """Adds perturbations to the outputs of weight sites while it is entered."""

    def __init__(self, sites: Mapping[Tap, Callable[[], Tensor]]) -> None:
        """Keep what to add where.

        Args:
            sites: Makes what to add, (B, T, q), by the tap.
        """
        super().__init__()
        self._added: dict[int, list[tuple[Tap, int, Callable[[], Tensor]]]] = {}
        for tap, make in sites.items():
            for i, call in enumerate(tap.calls):
                self._added.setdefault(call, []).append((tap, i, make))

    def see(self, func: Function, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Call an operation and change what it returns."""
        output = func(*args, **kwargs)
        if name not in READERS or number not in self._added:
            return output
        added: dict[int, Tensor] = {}
        with without_torch_function():
            for tap, i, make in self._added[number]:
                assert isinstance(tap.place, int)
                u = tap.write(make(), i)
                added[tap.place] = added[tap.place] + u if tap.place in added else u
        return perturbed(name, args, kwargs, output, added)
