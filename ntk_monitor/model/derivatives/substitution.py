"""Operations that are given moved parameters, while the parameters stay what they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ntk_monitor.compat import tree_map_only, without_torch_function
from ntk_monitor.model.isolation.interception import FunctionMode
from ntk_monitor.model.isolation.memory import address_of
from ntk_monitor.model.parameters.pieces import Direction, local, piece_size, pieces
from ntk_monitor.model.parameters.sharding import place_of

SMALL = 2**20
"""Entries up to which a moved parameter is kept while it is not known how often it is used."""
ASKING = frozenset({
    *("__get__", "__len__", "__hash__", "__repr__", "size", "dim", "ndimension", "numel"),
    *("nelement", "stride", "storage_offset", "is_contiguous", "is_floating_point", "is_complex"),
    *("data_ptr", "get_device", "element_size", "untyped_storage", "storage", "requires_grad_"),
    *("is_set_to", "is_same_size", "register_hook", "is_shared", "is_pinned", "dim_order"),
})
"""Functions that ask something of a tensor."""
VIEWS = frozenset(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real"))
"""What gives a tensor itself in another way, though by the name of those that ask."""


class Substitution(FunctionMode):
    r"""Has the operations of a forward pass use :math:`\theta + \epsilon g`, one at a time.

    Whenever a parameter, or a view of one, is about to be used, a copy of it is made and moved, and
    let go of after its last use. The parameters themselves are never written to, and there is no
    vector as long as all of them. What is used where no operation of PyTorch's shows it (by a
    kernel that is called past them) would not be moved: `require` says so.

    Without a direction the uses are counted, and everything is as it is.

    Attributes:
        theta: The parameters by name.
        uses: How often each was used, by its number.
    """

    def __init__(
        self,
        theta: Mapping[str, Tensor],
        untrained: Mapping[str, int],
        direction: Direction | None = None,
        epsilon: float = 0.0,
        uses: Mapping[int, int] | None = None,
    ) -> None:
        """Prepare one pass.

        Args:
            theta: The parameters; their memory must not overlap.
            untrained: Rows that stay where they are, by name.
            direction: Along which the parameters are moved; None to count uses.
            epsilon: How far.
            uses: How often each is used in a pass; None where that is not known: small ones are
                kept until it ends then, and others made anew for each use.
        """
        super().__init__()
        self.theta, self.uses = theta, Counter[int]()
        self._names = list(theta)
        self._numbers = {name: i for i, name in enumerate(self._names)}
        self._untrained, self._direction, self._epsilon = untrained, direction, epsilon
        self._expected = uses
        self._known: dict[int, tuple[int, Tensor]] = {}
        self._spans: dict[int, list[tuple[int, int, int, Tensor]]] = {}
        self._made: dict[int, Tensor] = {}
        for name, parameter in theta.items():
            self.learn_parameter(name, parameter)

    def learn_parameter(self, name: str, tensor: Tensor) -> None:
        """From now on a tensor is a parameter.

        Args:
            name: The parameter.
            tensor: The tensor that is in its place.
        """
        number = self._numbers[name]
        self._known[id(tensor)] = number, tensor
        address = address_of(tensor)
        if address:
            begin = tensor.data_ptr()
            end = begin + _reach(tensor) * tensor.element_size()
            self._spans.setdefault(address, []).append((begin, end, number, tensor))

    def forget_parameter(self, address: int) -> None:
        """From now on no parameter is in some place.

        Args:
            address: Of its memory.
        """
        for *_, tensor in self._spans.pop(address, ()):
            self._known.pop(id(tensor), None)

    def knows(self, address: int) -> bool:
        """Whether a parameter is in some place.

        Args:
            address: Of its memory.

        Returns:
            True if one is.
        """
        return address in self._spans

    def require(self, names: Collection[str]) -> None:
        """Refuse a pass in which a parameter was not used by any operation that could be seen.

        Args:
            names: The parameters.

        Raises:
            RuntimeError: If there is one.
        """
        unseen = [name for name in names if not self.uses[self._numbers[name]]]
        if unseen:
            raise RuntimeError(
                f"no operation of PyTorch's was seen to use {', '.join(unseen[:3])}: a kernel of "
                "the model's own reads it, where finite differences cannot move it. Leave it out "
                "with parameters=..., or take method='forward-ad' or 'double-backward'"
            )

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        """Call an operation with moved parameters in the place of those among its arguments."""
        if name in ASKING and func not in VIEWS:
            return func(*args, **kwargs)
        if name == "embedding" and (found := self._looked_up(*args, **kwargs)):
            return func(*found)
        return func(*map(self._among, args), **{k: self._among(x) for k, x in kwargs.items()})

    def _among(self, argument: Any) -> Any:  # noqa: ANN401
        """An argument with moved parameters in the place of those in it."""
        if isinstance(argument, Tensor):
            return self._instead(argument)
        if isinstance(argument, (list, tuple, dict)):
            return tree_map_only(Tensor, self._instead, argument)
        return argument

    def _looked_up(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        *_: Any,  # noqa: ANN401
        **__: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor] | None:
        """Of an embedding that is used once: which rows are looked up, and these where they are."""
        number, parameter = self._known.get(id(weight), (-1, None))
        once = self._expected is not None and self._expected.get(number, 0) == 1
        if parameter is not weight or self._direction is None or not once or max_norm is not None:
            return None
        if isinstance(weight, DTensor) or not weight.is_contiguous():
            return None
        del padding_idx  # concerns gradients alone
        with without_torch_function(), torch.no_grad():
            rows, which = torch.unique(input, return_inverse=True)
            if 2 * len(rows) > len(weight):
                return None
            self.uses[number] += 1
            return which, self._make_rows(number, weight, rows, self._direction)

    def _make_rows(self, number: int, table: Tensor, rows: Tensor, direction: Direction) -> Tensor:
        """Some rows of a table, in order, where they are to be."""
        moved, width = table.detach()[rows], table.shape[1]
        read, each = direction.reader(number, table), max(piece_size(table.device) // width, 1)
        starts = torch.arange(0, len(table), each, device=rows.device)
        ends = [*torch.searchsorted(rows, starts).tolist(), len(rows)]
        for start, (first, last) in zip(range(0, len(table), each), pairwise(ends), strict=True):
            if first < last:
                g = read(start * width, min(each, len(table) - start) * width).view(-1, width)
                self._move(moved[first:last], g[rows[first:last] - start])
        still = self._untrained.get(self._names[number])
        return moved if still is None else torch.where((rows == still)[:, None], table[rows], moved)

    def _move(self, numbers: Tensor, g: Tensor) -> None:
        """Move some entries, which are a copy."""
        g = g.view(numbers.shape)
        if numbers.dtype.itemsize < g.dtype.itemsize:  # the product would be rounded, or overflow
            numbers += (g * self._epsilon).to(numbers.dtype)
        else:
            numbers.add_(g.to(numbers.dtype), alpha=self._epsilon)

    def _instead(self, tensor: Tensor) -> Tensor:
        """What an operation is given in the place of a tensor."""
        found = self._known.get(id(tensor))
        if found is None or found[1] is not tensor:
            found = self._within(tensor)
        if found is None:
            return tensor
        number, parameter = found
        self.uses[number] += 1
        if self._direction is None:
            return tensor
        moved = self._moved(number, parameter, self._direction)
        if tensor is parameter:
            return moved
        offset = tensor.storage_offset() - parameter.storage_offset() + moved.storage_offset()
        return moved.as_strided(tensor.size(), tensor.stride(), offset)

    def _within(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        """The parameter of which a tensor is a view."""
        if not self._spans or isinstance(tensor, DTensor):
            return None
        spans = self._spans.get(address_of(tensor) or 0)
        if not spans or not tensor.numel():
            return None
        begin = tensor.data_ptr()
        end = begin + _reach(tensor) * tensor.element_size()
        return next(
            (
                (number, parameter)
                for first, last, number, parameter in spans
                if first <= begin and end <= last and tensor.dtype == parameter.dtype
            ),
            None,
        )

    def _moved(self, number: int, parameter: Tensor, direction: Direction) -> Tensor:
        """A parameter where it is to be, for one use of it."""
        moved = self._made.pop(number, None)
        if moved is None:
            with without_torch_function(), torch.no_grad():
                moved = self._make(number, parameter, direction)
        if self._is_kept(number, moved):
            self._made[number] = moved
        return moved

    def _is_kept(self, number: int, moved: Tensor) -> bool:
        if self._expected is None:
            return moved.numel() <= SMALL
        return self.uses[number] < self._expected.get(number, 0)

    def _make(self, number: int, parameter: Tensor, direction: Direction) -> Tensor:
        own, place = local(parameter), place_of(parameter)
        read = direction.reader(number, parameter)
        moved = own.clone()
        for piece in pieces([moved]):
            self._move(piece.numbers, read(piece.start, piece.numbers.numel()))
        row = self._untrained.get(self._names[number], -1)
        row -= place.offsets[0] if place.offsets else 0
        if self._names[number] in self._untrained and 0 <= row < len(own):
            moved[row] = own[row]
        if not isinstance(parameter, DTensor):
            return moved
        return DTensor.from_local(
            moved,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


class MovedPasses:
    """Passes of a model with moved parameters, of which it is remembered how often each is used."""

    def __init__(
        self,
        theta: Mapping[str, Tensor],
        untrained: Mapping[str, int],
        used: Collection[str] | None = None,
    ) -> None:
        """Keep what is moved.

        Args:
            theta: The parameters; their memory must not overlap.
            untrained: Rows that stay where they are, by name.
            used: Names of those that a pass must use; None for all.
        """
        self._theta, self._untrained = theta, untrained
        self._used = theta if used is None else used
        self._uses: dict[int, int] = {}

    def __call__(
        self, value: Callable[[Substitution], Tensor], direction: Direction | None, epsilon: float
    ) -> Tensor:
        """Make one pass.

        Args:
            value: Makes it with a substitution.
            direction: Along which the parameters are moved; None for where they are.
            epsilon: How far.

        Returns:
            What it computes. Where a parameter was not seen to be used, `Substitution.require`
            raises a RuntimeError.
        """
        moving = Substitution(self._theta, self._untrained, direction, epsilon, self._uses or None)
        found = value(moving)
        if not self._uses:
            moving.require(self._used)
            self._uses.update(moving.uses)
        return found


def _reach(tensor: Tensor) -> int:
    """From a tensor's first entry to behind its last one, in entries of its memory."""
    if not tensor.numel():
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
