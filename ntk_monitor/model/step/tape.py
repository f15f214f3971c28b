"""What a step computes from its outputs, recorded so that it can be computed from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


class _Slot(NamedTuple):
    """Stands for a tensor that a tape knows."""

    number: int


class _Entry(NamedTuple):
    """One operation: what is called, with what, and which slots its results go to."""

    function: Callable[..., Any]
    arguments: list[Any]
    structure: Any
    results: tuple[int | None, ...]


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation on some tensors, and on what is computed from them.

    What the operations take besides is kept as it is. `replay` makes them anew, from other tensors.
    """

    def __init__(self) -> None:
        """Begin with an empty tape."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._entries: list[_Entry] = []
        self._slots: dict[int, int] = {}
        self._known: list[Tensor] = []
        self._starts: dict[int, int] = {}
        self._written: list[tuple[int, Tensor]] = []
        self._on = False

    def start(self, number: int, tensor: Tensor) -> None:
        """Follow a tensor from here on.

        Args:
            number: Names it.
            tensor: The tensor.
        """
        if not self._on:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._on = True
        self._starts[number] = self._slot(tensor)

    def stop(self) -> None:
        """End the recording."""
        if self._on:
            self._on = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _slot(self, tensor: Tensor) -> int:
        self._known.append(tensor)  # so that its id stays its own
        self._slots[id(tensor)] = len(self._known) - 1
        return len(self._known) - 1

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Make a call, and record it if it is on something that is followed."""
        del types
        kwargs = kwargs or {}
        leaves, structure = tree_flatten((args, kwargs))
        if not any(isinstance(leaf, Tensor) and id(leaf) in self._slots for leaf in leaves):
            return func(*args, **kwargs)
        for written in _written_to(func, args, kwargs):
            if id(written) not in self._slots:
                self._written.append((self._slot(written), written.clone()))
        found = [
            _Slot(self._slots[id(leaf)])
            if isinstance(leaf, Tensor) and id(leaf) in self._slots
            else leaf
            for leaf in leaves
        ]
        result = func(*args, **kwargs)
        slots = tuple(
            self._slot(leaf) if isinstance(leaf, Tensor) else None for leaf in tree_leaves(result)
        )
        self._entries.append(_Entry(func, found, structure, slots))
        return result

    def replay(self, starts: Mapping[int, Tensor], end: Tensor) -> Tensor | None:
        """Compute again.

        Args:
            starts: A tensor for each that was followed from the start, by its name.
            end: What was computed.

        Returns:
            What it would have been; None where it was not computed from them.
        """
        if id(end) not in self._slots:
            return None
        values = {slot: clone.clone() for slot, clone in self._written}
        values |= {self._starts[number]: tensor for number, tensor in starts.items()}
        given = set(self._starts.values())
        for entry in self._entries:
            arguments = [values[x.number] if isinstance(x, _Slot) else x for x in entry.arguments]
            args, kwargs = tree_unflatten(arguments, entry.structure)
            result = tree_leaves(entry.function(*args, **kwargs))
            for slot, value in zip(entry.results, result, strict=True):
                if slot is not None and slot not in given:
                    values[slot] = value
        return values[self._slots[id(end)]]


def _written_to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:  # noqa: ANN401
    """The tensors that an operation writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    written = [
        given[a.name]
        for a in schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in given
    ]
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, Tensor) else None, written)
    return found
