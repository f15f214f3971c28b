"""Which rows of the state the rows of weight sites are, by their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntk_monitor.model.state.row_labels import NONE, Labels

Rows = tuple[int, int]


class Block(NamedTuple):
    """Rows that are some steps of all trials.

    Attributes:
        steps: Which steps.
        by_trial: Whether they come trial by trial, rather than step by step.
    """

    steps: slice
    by_trial: bool


@dataclass(frozen=True)
class Placement:
    """How the rows of one site run over the state's.

    Attributes:
        index: For each row of the state, trial by trial, which of the rows of the site's uses, one
            after the other, it is; `NONE` for none. Shape ``(B T,)``.
        inverse: For each use, and each of its rows, which row of the state; `NONE` for none.
        is_shared: Whether one row serves all trials.
    """

    index: Tensor
    inverse: tuple[Tensor, ...]
    is_shared: bool = False
    _blocks: dict[int, Block | None] = field(default_factory=dict, init=False, compare=False)
    """Uses so far that have some steps of all trials: which; others None."""

    def of_state(self, parts: Sequence[Tensor], rows: Rows) -> Tensor:
        """Activity on the rows of uses as (B, T, m), zero where there is none.

        Args:
            parts: Of each use, of shape ``(*its rows, m)``.
            rows: The state's.

        Returns:
            Shape ``(B, T, m)``.
        """
        V = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        index = self.index.to(V.device)
        count = torch.arange(len(V), device=V.device)
        if len(V) == len(index) and torch.equal(index, count):
            return V.reshape(*rows, V.shape[-1])
        found = V[index.clamp(min=0)]
        if bool((index < 0).any()):
            found = found.where((index >= 0).unsqueeze(-1), 0)
        return found.reshape(*rows, V.shape[-1])

    def of_use(self, u: Tensor, use: int) -> Tensor:
        """What is on the state's rows on those of a use, zero on rows of its own.

        Args:
            u: Shape ``(B, T, q)``.
            use: The number of the use.

        Returns:
            Shape ``(its rows, q)``.
        """
        B, T = u.shape[:2]
        if use not in self._blocks:
            self._blocks[use] = _block(self.inverse[use], (B, T))
        block = self._blocks[use]
        if block is not None:
            steps = u[:, block.steps]
            return (steps if block.by_trial else steps.transpose(0, 1)).flatten(0, 1)
        inverse = self.inverse[use].to(u.device)
        flat = u.flatten(0, 1)[inverse.clamp(min=0)]
        return flat.where((inverse >= 0).unsqueeze(-1), 0) if bool((inverse < 0).any()) else flat


class Numbering(NamedTuple):
    """One way to number the state's rows, each differently.

    Attributes:
        source: What the numbers are of.
        kind: Which of a label's.
        numbers: Ascending.
        rows: The row of the state that has each: trial by trial, or the step, if it is shared.
        is_shared: Whether all trials have the same numbers.
    """

    source: int
    kind: int
    numbers: Tensor
    rows: Tensor
    is_shared: bool

    def find(self, uses: Sequence[Labels]) -> list[Tensor | None]:
        """The rows of the state that the rows of some uses are.

        Args:
            uses: The rows of each, of shape ``(rows,)``.

        Returns:
            For each use the row of the state for each of its rows, `NONE` for others; None where
            it has no numbers of this source.
        """
        labels = [labels.get(self.source) for labels in uses]
        wanted = [label[self.kind].to(self.numbers.device) for label in labels if label is not None]
        if not wanted:
            return [None] * len(uses)
        every = torch.cat(wanted)
        at = torch.searchsorted(self.numbers, every).clamp(max=len(self.numbers) - 1)
        rows = self.rows[at].where((self.numbers[at] == every) & (every >= 0), NONE)
        found = iter(torch.split(rows, [len(each) for each in wanted]))
        return [None if label is None else next(found) for label in labels]


def numberings(labels: Labels, rows: Rows) -> Iterator[Numbering]:
    """The ways to number the state's rows in which no two of a trial have the same number.

    Args:
        labels: Of the state, (B, T, c).
        rows: The state's, ``(B, T)``.

    Yields:
        The ways, those first in which places are kept.
    """
    for kind in range(3):
        for source, label in labels.items():
            seen: list[Tensor] = []
            for numbers in () if kind and label.is_one else label[kind].unbind(-1):
                if any(torch.equal(numbers, other) for other in seen):
                    continue
                seen.append(numbers)
                there = numbers >= 0
                own, where = numbers[there], there.flatten().nonzero().flatten()
                if not len(own):
                    continue
                ordered, order = own.contiguous().sort()
                if bool((ordered[1:] > ordered[:-1]).all()):
                    yield Numbering(source, kind, ordered, where[order], is_shared=False)
                elif rows[0] > 1 and bool((numbers == numbers[:1]).all()):
                    ordered, order = numbers[0].sort()
                    if bool((ordered[1:] > ordered[:-1]).all()) and bool((ordered >= 0).all()):
                        yield Numbering(source, kind, ordered, order, is_shared=True)


def placed_by(
    numbering: Numbering, uses: Sequence[Labels], rows: Rows, shape: Sequence[int]
) -> list[tuple[list[int], Placement]]:
    """The sites of a weight: uses of it that have different rows of the state together.

    Args:
        numbering: Of the state's rows.
        uses: The rows of each use, in order.
        rows: The state's.
        shape: Of the data that is numbered.

    Returns:
        For each site the numbers of its uses, and how their rows run over the state's. Uses
        without a row of the state are in none, nor are those whose rows differ in less than the
        state's do (of the first steps of all trials, say), or that have some of its rows only, as
        experts have to which they are sent: in another process there may be none. Steps at an end
        may be missing, since a first state is given.
    """
    count = rows[1] if numbering.is_shared else rows[0] * rows[1]
    found = numbering.find(uses)
    present = [i for i, each in enumerate(found) if each is not None]
    if not present:
        return []
    parts = [each for each in found if each is not None]
    whole = _rows_of(parts, count)
    sites = _apart(present, parts, count) if whole is None else [(present, parts, whole)]
    differ = _differing(numbering.numbers, shape)
    return [
        (numbers, _placement(own, count, rows, is_shared=numbering.is_shared))
        for numbers, own, there in sites
        if _lacks_ends_alone(there, numbering, rows)
        and _differing(numbering.numbers[there[numbering.rows]], shape) == differ
    ]


def _lacks_ends_alone(there: Tensor, numbering: Numbering, rows: Rows) -> bool:
    """Whether the numbered rows that a site has not are steps of all trials, at one end."""
    lacking = torch.zeros_like(there)
    lacking[numbering.rows] = ~there[numbering.rows]
    if not bool(lacking.any()):
        return True
    by_trial = lacking.reshape(-1, rows[1])
    steps = by_trial[0]
    if not bool((by_trial == steps).all()):
        return False
    kept = (~steps).nonzero().flatten()
    return len(kept) > 1 and int(kept[-1] - kept[0]) + 1 == len(kept)


def _apart(
    numbers: Sequence[int], parts: Sequence[Tensor], count: int
) -> list[tuple[list[int], list[Tensor], Tensor]]:
    """Uses that have rows in common are of several sites, in turn."""
    sites: list[tuple[list[int], list[Tensor], Tensor]] = []
    for i, part in zip(numbers, parts, strict=True):
        here = _rows_of([part], count)
        if here is None or not bool(here.any()):
            continue
        site = next((each for each in sites if not bool((each[2] & here).any())), None)
        if site is None:
            sites.append(([i], [part], here))
        else:
            site[0].append(i)
            site[1].append(part)
            site[2].logical_or_(here)
    return sites


def _rows_of(parts: Sequence[Tensor], count: int) -> Tensor | None:
    """Which rows of the state some uses have, ``(count,)``; None if they have one twice."""
    every = torch.cat(list(parts))
    often = torch.bincount(every[every >= 0], minlength=count)
    return None if bool((often > 1).any()) else often > 0


def _differing(numbers: Tensor, shape: Sequence[int]) -> list[bool]:
    """In which coordinates of the data some of its entries differ."""
    found = []
    for size in reversed(shape):
        along = numbers % size
        found.append(bool((along != along[:1]).any()))
        numbers = numbers // size
    return found


def _placement(parts: Sequence[Tensor], count: int, rows: Rows, *, is_shared: bool) -> Placement:
    index = torch.full((count,), NONE, device=parts[0].device)
    begin = 0
    for found in parts:
        there = (found >= 0).nonzero().flatten()
        index[found[there]] = there + begin
        begin += len(found)
    if is_shared:
        index = index.expand(rows[0], count).flatten()
    return Placement(index, tuple(parts), is_shared)


def _block(inverse: Tensor, rows: Rows) -> Block | None:
    """Which steps of all trials some rows are, of which a view costs less than gathering them."""
    B, T = rows
    begin, count = int(inverse[0]) if len(inverse) else NONE, len(inverse) // B
    steps = slice(begin, begin + count)
    if begin < 0 or count * B != len(inverse) or begin + count > T:
        return None
    numbers = torch.arange(B * T, device=inverse.device).reshape(B, T)[:, steps]
    if torch.equal(inverse, numbers.flatten()):
        return Block(steps, by_trial=True)
    return Block(steps, by_trial=False) if torch.equal(inverse, numbers.T.flatten()) else None


def by_order(rows: Rows, order: str, spans: Sequence[int], device: Any) -> Placement:  # noqa: ANN401
    """How rows run over the state's, where it is known by other means than their numbers.

    Args:
        rows: The state's.
        order: ``"batch"``: trial by trial; ``"time"``: step by step; ``"steps"``: the same for all
            trials; ``"trials"``: a use for each trial.
        spans: Steps of each use, one after the other up to the last one.
        device: Where the numbers are to be.

    Returns:
        How they run.
    """
    B, T = rows
    numbers = torch.arange(B * T, device=device).reshape(B, T)
    if order == "steps":
        return _placement([torch.arange(T, device=device)], T, rows, is_shared=True)
    if order == "trials":
        return _placement(list(numbers), B * T, rows, is_shared=False)
    if order == "time":
        return _placement([numbers.T.flatten()], B * T, rows, is_shared=False)
    parts, begin = [], T - sum(spans)
    for span in spans:
        parts.append(numbers[:, begin : begin + span].flatten())
        begin += span
    return _placement(parts, B * T, rows, is_shared=False)
