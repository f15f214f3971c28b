"""What of the state depends on which rows of an operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ntk_monitor.compat import without_torch_function
from ntk_monitor.model.sites.operations.table import READERS
from ntk_monitor.model.sites.placement import Rows
from ntk_monitor.model.sites.records import REGISTERED, Record
from ntk_monitor.model.sites.saved_tensors import GraphNeededError
from ntk_monitor.model.sites.watch import Watch
from ntk_monitor.model.sites.weight_sites import Order
from ntk_monitor.model.state.unroll import CELL_STEPS


class ByGradient:
    """Told by going backward from the state."""

    def __init__(self, h: Tensor) -> None:
        """Keep the state.

        Args:
            h: Shape ``(B, T, n)``, with the graph of its computation.
        """
        self._h = h

    def moves_first_step(self, record: Record) -> bool:
        """Whether the first time step of the state depends on an operation."""
        (gradient,) = self._gradients(self._h[:, :1], [record])
        return gradient is not None and bool((gradient != 0).any())

    def moves(self, record: Record, which: Tensor) -> bool:
        """Whether the state depends on some rows of an operation, shape ``(rows,)``."""
        if record.path is not None or record.output is None:
            return True
        (gradient,) = self._gradients(self._h, [record])
        if gradient is None:
            return False
        mask = _mask(record, record.label[0], which.reshape(record.use.rows)).expand_as(gradient)
        return bool((gradient[mask] != 0).any())

    def moves_all_trials(self, record: Record) -> bool:
        """Whether the first trial of the state depends on an operation, and the last one."""
        if record.output is None:
            return False
        return all(self._moving(part, [record])[0] for part in (self._h[:1], self._h[-1:]))

    def is_a_trial_each(self, records: Sequence[Record]) -> bool:
        """Whether each trial of the state depends on one of as many operations, in order."""
        if any(record.output is None for record in records):
            return False
        for half in _halves(len(records)):
            if self._moving(self._h[half.to(self._h.device)], records) != half.tolist():
                return False
        return True

    def _moving(self, part: Tensor, records: Sequence[Record]) -> list[bool]:
        """On which operations some of the state depends."""
        gradients = self._gradients(part, records)
        return [gradient is not None and bool((gradient != 0).any()) for gradient in gradients]

    def orders(self, records: Sequence[Record]) -> list[Order | None]:
        """How the rows of operations run over the state's; None if they are others."""
        gradients = self._gradients(self._h[:1], records)
        return [self._order(*pair) for pair in zip(records, gradients, strict=True)]

    def _gradients(self, part: Tensor, records: Sequence[Record]) -> tuple[Tensor | None, ...]:
        """The gradients of a random weighting of some of the state in operations' outputs."""
        if not records:
            return ()
        generator = torch.Generator(device=part.device).manual_seed(0)
        weights = torch.randn(part.shape, generator=generator, device=part.device, dtype=part.dtype)
        outputs = [record.output for record in records if record.output is not None]
        with torch.enable_grad():
            total = (part * weights).sum()
            return torch.autograd.grad(total, outputs, retain_graph=True, allow_unused=True)

    def _order(self, record: Record, gradient: Tensor | None) -> Order | None:
        if gradient is None:
            return None
        B, use = len(self._h), record.use
        count = prod(use.rows)
        numbers = use.laid_out(torch.arange(count, device=gradient.device))
        if numbers.shape[:-1] == gradient.shape[:-1]:  # a cell returns fewer than are weighed
            numbers = numbers[..., :1]
        touched = numbers.expand_as(gradient)[gradient != 0]
        if bool((touched < count // B).all()):
            return "batch"
        return "time" if bool((touched % B == 0).all()) else None


class ByShaking:
    """Told by what changes in the state when rows of an operation's output are changed.

    In the memory of a forward pass; one pass where the rows of all operations run trial by trial.
    """

    def __init__(self, run: Callable[[], Tensor], rows: Rows) -> None:
        """Keep how to run.

        Args:
            run: Computes the state, in the same operations as when the records were made.
            rows: The state's.
        """
        self._run, self._rows = run, rows
        self._h: Tensor | None = None

    def moves_first_step(self, record: Record) -> bool:
        """Whether the first time step of the state depends on an operation."""
        every = torch.ones(record.use.rows, dtype=torch.bool, device="cpu")
        return bool(self._touched([(record, every)])[:, 0].any())

    def moves_all_trials(self, record: Record) -> bool:
        """Whether all trials of the state depend on an operation."""
        every = torch.ones(record.use.rows, dtype=torch.bool, device="cpu")
        return bool(self._touched([(record, every)]).any(1).all())

    def is_a_trial_each(self, records: Sequence[Record]) -> bool:
        """Whether each trial of the state depends on one of as many operations, in order."""
        every = [(r, torch.ones(r.use.rows, dtype=torch.bool, device="cpu")) for r in records]
        return all(
            torch.equal(self._touched([every[i] for i in half.nonzero()]).any(1), half)
            for half in _halves(len(every))
        )

    def moves(self, record: Record, which: Tensor) -> bool:
        """Whether the state depends on some rows of an operation, shape ``(rows,)``."""
        return bool(self._touched([(record, which.cpu().reshape(record.use.rows))]).any())

    def orders(self, records: Sequence[Record]) -> list[Order | None]:
        """How the rows of operations run over the state's; None if they are others."""
        if not records:
            return []
        orders: tuple[Order, ...] = ("batch", "time")
        for order in orders:
            if self._fits(records, order):
                return [order] * len(records)
        return [next((o for o in orders if self._fits([r], o)), None) for r in records]

    def _fits(self, records: Sequence[Record], order: Order) -> bool:
        """Whether what would be the rows of the first trial moves no other trial."""
        B, rows = self._rows[0], []
        for record in records:
            number = torch.arange(prod(record.use.rows), device="cpu")
            first = number < len(number) // B if order == "batch" else number % B == 0
            rows.append((record, first.reshape(record.use.rows)))
        return not bool(self._touched(rows)[1:].any())

    def _touched(self, rows: Sequence[tuple[Record, Tensor]]) -> Tensor:
        """Which rows of the state change when some of operations' outputs do, (B, T)."""
        if any(record.call == REGISTERED for record, _ in rows):
            raise GraphNeededError("the output of a registered layer is not known")
        if self._h is None:
            self._h = self._run()
        with _Shaker(rows):
            shaken = self._run()
        limit = math.sqrt(torch.finfo(self._h.dtype).eps) * self._h.abs().amax()
        return ~((shaken - self._h).abs() <= limit).all(dim=-1).cpu()


def _halves(count: int) -> Iterator[Tensor]:
    """Sets of numbers of which each number is known by those that it is in, and all the others."""
    numbers = torch.arange(count, device="cpu")
    for bit in range(max((count - 1).bit_length(), 1)):
        there = numbers >> bit & 1 == 1
        yield from (half for half in (there, ~there) if bool(half.any()))


Dependence = ByGradient | ByShaking
"""Tells what of the state depends on which rows of an operation."""


class _Shaker(Watch):
    """Adds noise to some rows of operations' outputs while it is entered."""

    def __init__(self, rows: Sequence[tuple[Record, Tensor]]) -> None:
        super().__init__()
        self._rows: dict[int, list[tuple[Record, Tensor]]] = {}
        for record, which in rows:
            self._rows.setdefault(record.call, []).append((record, which))

    def see(self, func: Any, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Call an operation, and add noise to its output, to the first one of several."""
        output = func(*args, **kwargs)
        for record, which in self._rows.get(number, []) if name in READERS else ():
            several = isinstance(output, tuple)
            first = output[0] if several else output
            with without_torch_function():
                shaken = first + _noise(first, _mask(record, name, which.to(first.device)))
            output = (shaken, *output[1:]) if several else shaken
        return output


def _mask(record: Record, name: str, which: Tensor) -> Tensor:
    """Some rows of a use in the layout of the operation's output."""
    if name in CELL_STEPS:  # the output has fewer features than the weighted sum
        return which.unsqueeze(-1)
    return record.use.laid_out(which)


def _noise(like: Tensor, mask: Tensor) -> Tensor:
    generator = torch.Generator(device=like.device).manual_seed(0)
    drawn = torch.randn(like.shape, generator=generator, device=like.device)
    return drawn.mul_(mask).to(like.dtype)
