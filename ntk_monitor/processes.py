"""The processes that measure one batch together, each with rows of its own."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b

import torch
import torch.distributed as dist
from torch import Tensor

RIDERS = 1021
"""How many numbers go along with the message before a sum; more have a sum of their own. A message
of 8 kB takes no longer than a short one."""
PIECE = 2**20
"""Entries that a checksum looks at, or a sum of several tensors takes, together."""


class ProcessError(RuntimeError):
    """Another process could not go on, or is at another place; all of them stop together."""


class Processes:
    """The processes that measure together: every rank is the same, and all meet in sums.

    A measurement runs inside `together`, in which all processes do the same sums in the same order.
    Before each of them they tell one another, in one small message, that all are there and about to
    do the same; so one that has failed, or has gone another way, is heard of at the next sum, and
    no process waits for it.

    Attributes:
        index: Which of the processes this is, from 0.
        size: How many there are.
        given: Bytes that this process has given to sums.
        everyone: All that keep together; more than these where only some have the same part of
            the parameters, see `within`.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """Take the processes of a group.

        Args:
            group: The group; None for this process alone.
            device: Where the group's backend wants its tensors.
        """
        self._group, self._device = group, torch.device(device)
        self.index = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.everyone = self
        self.given = 0
        self._met = 0
        self._together = False

    def within(self, group: dist.ProcessGroup | None) -> Processes:
        """Some of these processes, who have sums of their own while all of these keep together.

        With tensor parallelism several processes have the same batch. Those with the same part of
        the parameters and other batches sum among themselves.

        Args:
            group: Of this process; all are in one of as many. None where each has sums for itself,
                since all have the same batch.

        Returns:
            The processes of the group.
        """
        some = Processes(group, self._device)
        some.everyone = self
        return some

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do at once; if it fails in one, it fails in all.

        Inside another such context it is part of that.

        Yields:
            Nothing.

        Raises:
            ProcessError: If another process failed, or does something else.
        """
        if self.everyone is not self:
            with self.everyone.together():
                yield
            return
        if self.size == 1 or self._together:
            yield
            return
        self._met, self._together = 0, True
        try:
            yield
            self._meet("the end")
        except ProcessError:  # all have it
            raise
        except BaseException:
            with suppress(RuntimeError):  # the others may be gone
                self._meet("the end", failed=True)
            raise
        finally:
            self._together = False

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, the same to the bit in each.

        Args:
            x: Of the same shape in all. Of a few numbers the sum is taken in float64.

        Returns:
            The sum, a new tensor unless the process is alone.
        """
        if self.size == 1:
            return x
        if x.numel() <= RIDERS and x.is_floating_point() and self.everyone is self:
            numbers = self._meet(f"a sum of {tuple(x.shape)}", x.detach().flatten())
            return numbers.to(x.device, x.dtype).reshape(x.shape)
        mine = x.detach().to(self._device, copy=True).contiguous()
        self.everyone._meet(f"a sum of {tuple(x.shape)}")
        self.given += mine.numel() * mine.element_size()
        dist.all_reduce(mine, group=self._group)
        return mine.to(x.device)

    def sums(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The sums of several tensors, in few messages.

        Args:
            tensors: Of the same shapes in all processes, of one type, on one device.

        Returns:
            The sums.
        """
        if self.size == 1:
            return tensors
        found: list[Tensor] = []
        for these in runs([x.numel() for x in tensors], PIECE):
            flat = [x.detach().flatten() for x in tensors[these]]
            every = self.sum(torch.cat(flat) if len(flat) > 1 else flat[0])
            found += torch.split(every, [len(x) for x in flat])
        return tuple(part.reshape(x.shape) for part, x in zip(found, tensors, strict=True))

    def total(self, value: float) -> float:
        """The sum of one number over all processes.

        Args:
            value: Of this process.

        Returns:
            The sum.
        """
        return sum(self.each(value))

    def least(self, value: float) -> float:
        """The smallest of one number over all processes.

        Args:
            value: Of this process.

        Returns:
            The smallest.
        """
        return min(self.each(value))

    def all(self, truth: bool) -> bool:
        """Whether something holds in all processes.

        Args:
            truth: Whether it does in this one.

        Returns:
            True if it does in all.
        """
        return self.least(float(truth)) > 0

    def join(self, x: Tensor, dim: int = 0, counts: Sequence[int] | None = None) -> Tensor:
        """The parts of all processes, one after the other.

        Args:
            x: This process's part; all but one axis are the same in all.
            dim: The axis along which they are parts.
            counts: Their lengths, where they are known.

        Returns:
            The whole.
        """
        if self.size == 1:
            return x
        counts = self.counts(x.shape[dim]) if counts is None else counts
        shape = list(x.shape)
        shape[dim] = sum(counts)
        every = x.new_zeros(shape)
        every.narrow(dim, self.own(counts).start, x.shape[dim]).copy_(x)
        return self.sum(every)

    def own(self, counts: Sequence[int]) -> slice:
        """Where this process's part is, when the parts of all come one after the other.

        Args:
            counts: The lengths of the parts, by process.

        Returns:
            The place.
        """
        start = sum(counts[: self.index])
        return slice(start, start + counts[self.index])

    def share(self, count: int) -> slice:
        """This process's share of some work that all could do.

        Args:
            count: How many pieces of work there are.

        Returns:
            Which of them are its own.
        """
        return slice(count * self.index // self.size, count * (self.index + 1) // self.size)

    def first(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the first process has.

        Of what all compute from the same numbers, for where the last bit, a sign or an order must
        be the same, and their machines may differ.

        Args:
            tensors: Of the same shapes in all, and of one type.

        Returns:
            The first one's.
        """
        return self.sums(*(x if self.index == 0 else torch.zeros_like(x) for x in tensors))

    def counts(self, count: int) -> list[int]:
        """How many of something each process has.

        Args:
            count: How many this one has.

        Returns:
            The counts, by process.
        """
        return [int(n) for n in self.each(count)]

    def in_all(self, names: Sequence[str]) -> list[bool]:
        """Which of some names all processes have.

        Args:
            names: Those of this process, each once.

        Returns:
            True for each that all have.
        """
        if self.size == 1:
            return [True] * len(names)
        digests = [blake2b(name.encode(), digest_size=6).digest() for name in names]
        mine = torch.tensor([int.from_bytes(d) for d in digests], dtype=torch.int64, device="cpu")
        every = self.join(mine)
        return [int((every == digest).sum()) == self.size for digest in mine]

    def meet(self, what: str) -> None:
        """Make sure that all processes are here; one that is not makes all raise a `ProcessError`.

        Args:
            what: What is about to be done.
        """
        if self.everyone.size > 1:
            self.everyone._meet(what)

    def require_same(self, what: str, checksum: int, remedy: str) -> None:
        """Refuse to go on where the processes differ in what they must have in common.

        Args:
            what: What it is.
            checksum: Of this process's.
            remedy: What to do about a difference.

        Raises:
            ProcessError: In all processes, if they differ.
        """
        halves = torch.tensor(divmod(checksum, 2**31), dtype=torch.float64, device="cpu")
        every = self.join(halves[None], counts=[1] * self.size)
        if bool((every != halves).any()):
            raise ProcessError(
                f"the processes that measure together differ in {what}, so that their sums would "
                f"mean nothing: {remedy}"
            )

    def each(self, value: float) -> list[float]:
        """One number of every process.

        Args:
            value: This process's.

        Returns:
            All of them, by process.
        """
        if self.size == 1:
            return [value]
        every = torch.zeros(self.size, dtype=torch.float64, device="cpu")
        every[self.index] = value
        return [float(number) for number in self.sum(every)]

    def _meet(self, what: str, riders: Tensor | None = None, *, failed: bool = False) -> Tensor:
        """Tell the others where this process is, and hear where they are.

        Args:
            what: What is about to be done.
            riders: A few numbers, whose sums are wanted.
            failed: Whether this process will not go on.

        Returns:
            The sums.

        Raises:
            ProcessError: If another process will not go on, or is at another place.
        """
        self._met += 1
        place = zlib.crc32(f"{self._met} {what}".encode()) % 2**20
        count = 0 if riders is None else len(riders)
        said = torch.zeros(3 + RIDERS, dtype=torch.float64, device=self._device)
        said[:3] = torch.tensor([failed, place, place**2], device="cpu")
        if riders is not None:
            said[3 : 3 + count] = riders.to(self._device)
        self.given += said.numel() * said.element_size()
        dist.all_reduce(said, group=self._group)
        failures, places, squares = (int(n) for n in said[:3].tolist())
        if failures and not failed:
            raise ProcessError("another process that takes part in this measurement failed")
        if places**2 != self.size * squares and not failed:  # equal if all places are
            raise ProcessError(
                f"the processes that measure together do different things (here: {what}); do they "
                "have the same settings, and batches of the same kind?"
            )
        return said[3 : 3 + count]


def runs(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Put successive things together, as many as fit.

    Args:
        sizes: Of the things.
        most: How large they may be together; one that is larger is by itself.

    Yields:
        Which are together.
    """
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > most:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def checksum(*tensors: Tensor) -> int:
    """A number that tells whether tensors are the same to the bit.

    Args:
        tensors: The tensors; each entry counts with its place.

    Returns:
        A number from 0 to 2^62 - 1.
    """
    total = 0
    for x in tensors:
        flat = x.detach().flatten().contiguous().view(torch.uint8)
        flat = torch.cat([flat, flat.new_zeros(-len(flat) % 4)]).view(torch.int32)
        for i, piece in enumerate(torch.split(flat, PIECE)):
            places = torch.arange(1, 2 * len(piece), 2, device=piece.device)
            found = int((piece.long() * (places + 2 * i)).sum())  # wraps around, the same anywhere
            total = (31 * total + found) % 2**62
    return total


ALONE = Processes()
"""One process that measures for itself."""
