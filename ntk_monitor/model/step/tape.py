"""What a step computes from its outputs, recorded so that it can be computed from others."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ntk_monitor.compat import as_strided, tree_flatten, tree_leaves, tree_unflatten
from ntk_monitor.model.isolation.interception import OperationMode, written_to
from ntk_monitor.model.isolation.memory import address_of


class _Slot(NamedTuple):
    """Stands for a tensor that a tape knows."""

    number: int


class _Entry(NamedTuple):
    """One operation: what is called, with what, and which slots its results go to.

    Attributes:
        function: The operation.
        arguments: What it takes, one after the other, `_Slot` for what is computed.
        structure: How they form arguments; None where they are just these.
        results: The slots of its results; None for those that are no tensor.
        writes: Whether it changes what it takes.
    """

    function: Callable[..., Any]
    arguments: list[Any]
    structure: Any
    results: tuple[int | None, ...]
    writes: bool


class Tape(OperationMode):
    """Records every operation on some tensors, and on what is computed from them.

    What the operations take besides is kept as it is. `replay` makes them anew, from other tensors.
    """

    def __init__(self) -> None:
        """Begin with an empty tape."""
        super().__init__()
        self._entries: list[_Entry] = []
        self._slots: dict[int, int] = {}
        self._known: list[Tensor] = []
        self._starts: dict[int, int] = {}
        self._written: list[tuple[int, Tensor]] = []
        self._memories: dict[int, int] = {}
        self._needed: dict[int, list[_Entry]] = {}
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

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Make a call, and record it if it is on something that is followed."""
        leaves, structure = tree_flatten((args, kwargs))
        self._find_views(leaves)
        if not any(id(leaf) in self._slots for leaf in leaves):
            return func(*args, **kwargs)
        changed = written_to(func, args, kwargs)
        for written in changed:
            if id(written) not in self._slots:
                self._follow_memory(written)
        found = [_Slot(self._slots[id(x)]) if id(x) in self._slots else x for x in leaves]
        result = func(*args, **kwargs)
        slots = tuple(
            self._slot(leaf) if isinstance(leaf, Tensor) else None for leaf in tree_leaves(result)
        )
        simple = len(leaves) == len(args) and all(map(operator.is_, leaves, args))
        self._entries.append(
            _Entry(func, found, None if simple else structure, slots, bool(changed))
        )
        return result

    def _follow_memory(self, written: Tensor) -> None:
        """Follow what was not computed from them until it is written to, with all views of it."""
        memory = written.untyped_storage()
        count = memory.nbytes() // written.element_size()
        whole = written.as_strided((count,), (1,), 0)
        root = self._slot(whole)
        self._written.append((root, whole.clone()))
        self._memories[memory.data_ptr()] = root
        self._find_views([written])

    def _find_views(self, leaves: Sequence[Any]) -> None:
        """Follow tensors in memory that is followed."""
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or id(leaf) in self._slots or not self._memories:
                continue
            root = self._memories.get(address_of(leaf) or 0)
            if root is None or leaf.dtype != self._known[root].dtype:
                continue
            how = (tuple(leaf.shape), leaf.stride(), leaf.storage_offset())
            arguments = [_Slot(root), *how]
            self._entries.append(
                _Entry(as_strided, arguments, None, (self._slot(leaf),), writes=False)
            )

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
        wanted = self._slots[id(end)]
        if wanted not in self._needed:
            self._needed[wanted] = self._needed_for(wanted)
        values = {slot: clone.clone() for slot, clone in self._written}
        # Clones, as a loss may write to its outputs.
        values |= {self._starts[number]: tensor.clone() for number, tensor in starts.items()}
        given = set(self._starts.values())
        for entry in self._needed[wanted]:
            found = [values[x.number] if type(x) is _Slot else x for x in entry.arguments]
            if entry.structure is None:
                result = entry.function(*found)
            else:
                args, kwargs = tree_unflatten(found, entry.structure)
                result = entry.function(*args, **kwargs)
            leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
            for slot, value in zip(entry.results, leaves, strict=True):
                if slot is not None and slot not in given:
                    values[slot] = value
        return values[wanted]

    def _needed_for(self, wanted: int) -> list[_Entry]:
        """The operations without which something could not be computed, in order."""
        given = set(self._starts.values())
        needed: set[int | None] = {wanted}
        kept: list[_Entry] = []
        for entry in reversed(self._entries):
            if entry.writes or not needed.isdisjoint(entry.results):
                kept.append(entry)
                needed.update(x.number for x in entry.arguments if type(x) is _Slot)
                needed -= given
        return kept[::-1]
