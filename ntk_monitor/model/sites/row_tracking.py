"""Rows followed through a forward pass: to which row of the data an entry of a tensor belongs.

Every entry of a tensor has a number, that of an entry of the data from which it comes. Operations
that move entries (views, permutations, indices, packing) move their numbers; those that act row by
row hand them on; a product gathers those of the features that it sums over into one. Two places of
a pass then have the same row where they have the same number, whatever their layouts and sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import WeakIdKeyDictionary

from ntk_monitor.compat import tree_leaves
from ntk_monitor.model.sites.operations.contractions import contraction_of
from ntk_monitor.model.sites.operations.convolutions import Axis, convolution_of
from ntk_monitor.model.sites.operations.signatures import in_order
from ntk_monitor.model.state.row_labels import (
    NONE,
    NOTHING,
    Label,
    Labels,
    change_all,
    common_shape,
    either,
    fits,
    is_still,
    made_of,
    one_of,
    same_numbers,
    together,
)
from ntk_monitor.model.state.unroll import CELL_STEPS

logger = logging.getLogger(__name__)

MOST_SOURCES = 4
"""Sources that are kept of one tensor: the first two, and the latest two."""

MOST_FRESH = 8
"""Uses whose rows have met none yet that are followed with one tensor, the latest."""

MOVING = frozenset({
    *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "ravel", "squeeze"),
    *("unsqueeze", "transpose", "transpose_", "swapaxes", "swapdims", "permute", "movedim"),
    *("moveaxis", "t", "adjoint", "flip", "fliplr", "flipud", "roll", "rot90", "narrow", "select"),
    *("index_select", "gather", "take", "take_along_dim", "__getitem__", "split", "chunk"),
    *("unbind", "tensor_split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "hsplit"),
    *("vsplit", "dsplit", "unfold", "expand", "expand_as", "broadcast_to", "repeat", "tile"),
    *("repeat_interleave", "diagonal", "masked_select", "_pack_padded_sequence"),
    *("contiguous", "clone", "detach", "as_strided", "atleast_2d", "atleast_3d", "squeeze_"),
    *("unsqueeze_", "alias", "__get__", "__iter__"),
})
"""Operations that move the entries of their first argument."""
JOINING = frozenset({
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"),
    *("row_stack", "broadcast_tensors", "pad_sequence"),
})
"""Operations that put several tensors together."""
WRITING = frozenset({
    *("__setitem__", "copy_", "index_copy", "index_copy_", "index_add", "index_add_", "scatter"),
    *("scatter_", "scatter_add", "scatter_add_", "index_put", "index_put_", "masked_scatter"),
    *("masked_scatter_",),
})
"""Operations that put one tensor in places of another."""
SUMMING = frozenset({
    *("sum", "mean", "amax", "amin", "max", "min", "prod", "std", "var", "norm", "logsumexp"),
    *("median", "nanmean", "nansum", "vector_norm"),
})
"""Operations that make one entry of those along some axes."""
LAYERS = frozenset({"rnn_tanh", "rnn_relu", "gru", "lstm"})
CONVOLVING = frozenset({"conv1d", "conv2d", "conv3d"})
CONTRACTING = frozenset({
    *("linear", "matmul", "mm", "bmm", "mv", "dot", "addmm", "addmv", "baddbmm", "einsum"),
    *("bilinear", "__matmul__", "__rmatmul__"),
})


class Operation(NamedTuple):
    """An operation that was called.

    Attributes:
        name: Its name.
        func: The operation.
        args: Its positional arguments.
        kwargs: Its arguments by name.
        outputs: The tensors that it returned.
        is_data: Whether a tensor is data, and no parameter.
        depends: Whether a tensor depends on data, and is no constant.
    """

    name: str
    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outputs: Sequence[Tensor]
    is_data: Callable[[Tensor], bool]
    depends: Callable[[Tensor], bool]

    @property
    def in_order(self) -> list[Any]:
        """Its arguments by position, as far as they have one."""
        return in_order(self.name, self.args, self.kwargs)

    def first(self, *names: str) -> Any:  # noqa: ANN401
        """The first argument, by position or by one of its names."""
        if self.args:
            return self.args[0]
        return next(self.kwargs[name] for name in names if name in self.kwargs)

    def again(self, first: Any, *names: str) -> Any:  # noqa: ANN401
        """The same with another first argument."""
        if self.args:
            return self.func(first, *self.args[1:], **self.kwargs)
        name = next(name for name in names if name in self.kwargs)
        return self.func(**{**self.kwargs, name: first})


class RowTracker:
    """Follows rows through the operations of one pass.

    Attributes:
        used: The rows of each use of a weight: those of what it acts on.
        met: The rows that it first meets, where its output is added to others or multiplied with
            them: those that a weight on a hidden state has a part in.
        spread: The uses whose rows meet several others each.
    """

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._labels: Any = WeakIdKeyDictionary()
        self._shapes: list[tuple[int, ...]] = []
        self._constants: set[int] = set()
        self._fresh: Any = WeakIdKeyDictionary()
        self._done: set[Any] = set()
        self.used: dict[Any, Labels] = {}
        self.met: dict[Any, Labels] = {}
        self.spread: set[Any] = set()

    def of(self, tensor: Any) -> Labels:  # noqa: ANN401
        """What is known of a tensor."""
        found: Labels = self._labels.get(tensor, NOTHING) if isinstance(tensor, Tensor) else NOTHING
        return found

    def shape_of(self, source: int) -> tuple[int, ...]:
        """The shape of the data that a source numbers."""
        return self._shapes[source]

    def use(self, key: Any, output: Tensor, numbers: Tensor, count: int) -> None:  # noqa: ANN401
        """An operation multiplies with a weight: its rows are those of what it returns.

        Args:
            key: Names the use.
            output: What it returned.
            numbers: Of which of the rows each entry of that is, ``NONE`` for none.
            count: How many rows there are.
        """
        numbers = numbers.expand(output.shape)
        self.used[key] = change_all(self.of(output), partial(_by_row, places=numbers, count=count))
        self._fresh[output] = (*self._fresh.get(output, ()), (key, numbers, count))

    def see(self, operation: Operation) -> None:
        """An operation was called, and rows are followed through it.

        Args:
            operation: The operation.
        """
        if not operation.outputs:
            return
        handler = HANDLERS.get(operation.name, RowTracker._row_by_row)
        try:
            found = handler(self, operation)
        except Exception as error:  # an operation that is called in an unknown way
            logger.debug("rows are not followed through %s: %r", operation.name, error)
            found = []
        for i, tensor in enumerate(operation.outputs):
            labels = found[i] if i < len(found) else NOTHING
            if labels and all(x.near.shape == tensor.shape for x in labels.values()):
                self._labels[tensor] = _few(labels)
            else:
                self._labels.pop(tensor, None)
                self._fresh.pop(tensor, None)

    def _labelled(self, value: Any, operation: Operation) -> Labels:  # noqa: ANN401
        """What is known of an argument; data of which nothing is known is numbered."""
        if not isinstance(value, Tensor) or not value.ndim:
            return NOTHING
        known = self.of(value)
        if not known and operation.is_data(value):
            known = self._labels[value] = self._numbered(value)
            if not operation.depends(value):
                self._constants.update(known)
        return known

    def _numbered(self, tensor: Tensor) -> Labels:
        """Numbers of a tensor's own."""
        shape = tuple(tensor.shape)
        small = tensor.numel() <= torch.iinfo(torch.int32).max
        kind = torch.int32 if small else torch.int64
        numbers = torch.arange(tensor.numel(), dtype=kind, device=tensor.device).reshape(shape)
        self._shapes.append(shape)
        return {len(self._shapes) - 1: Label(numbers, numbers, numbers)}

    def _whole(self, labels: Labels, output: Tensor) -> list[Labels]:
        """With numbers of its own for a tensor of which no source numbers all entries."""
        if not labels or any(bool((label.near >= 0).all()) for label in labels.values()):
            return [labels]
        return [{**labels, **self._numbered(output)}]

    def _moved(self, operation: Operation) -> list[Labels]:
        """Entries are moved, and so are their numbers."""
        name, outputs = operation.name, operation.outputs
        first = operation.first("input", "self")
        if not self.of(first) and not operation.is_data(first) and first not in self._fresh:
            return self._rows_of_a_weight(operation)

        def move(numbers: Tensor) -> list[Tensor]:
            if name in {"view", "view_as", "reshape_as"}:  # numbers may be laid out otherwise
                return [numbers.reshape(outputs[0].shape)]
            found = tree_leaves(operation.again(numbers, "input", "self"))
            return [t for t in found if isinstance(t, Tensor)]

        known = self._labelled(first, operation)
        moved = {s: label.each(move) for s, label in known.items()}
        for key, numbers, count in self._fresh.get(first, ()):
            for tensor, own in zip(outputs, move(numbers), strict=False):
                if own.shape == tensor.shape:
                    before = self._fresh.get(tensor, ()) if tensor is not first else ()
                    self._fresh[tensor] = (*before, (key, own, count))
        counts = (len(kind) for kinds in moved.values() for kind in kinds)
        return [
            {s: Label(*(kind[i] for kind in kinds)) for s, kinds in moved.items()}
            for i in range(min(counts, default=0))
        ]

    def _rows_of_a_weight(self, operation: Operation) -> list[Labels]:
        """Rows of a weight that are chosen by number."""
        at = {"__getitem__": 1, "index_select": 2}.get(operation.name)
        index = None if at is None else operation.args[at]
        return self._chosen(index, operation)

    def _chosen(self, index: Any, operation: Operation) -> list[Labels]:  # noqa: ANN401
        """Rows of a table are those of the numbers that choose them."""
        (output, *_) = operation.outputs
        if not isinstance(index, Tensor) or output.ndim <= index.ndim:
            return []
        more = [1] * (output.ndim - index.ndim)
        known = self._labelled(index, operation)
        return [change_all(known, lambda x: x.reshape(*x.shape, *more).expand(output.shape))]

    def _sorted(self, operation: Operation) -> list[Labels]:
        given = operation.args[1] if len(operation.args) > 1 else -1
        axis = operation.kwargs.get("dim", -1 if isinstance(given, bool) else given)
        known = self._labelled(operation.first("input"), operation)
        return [change_all(known, lambda x: x.gather(axis, operation.outputs[1]))]

    def _joined(self, operation: Operation) -> list[Labels]:
        """Several tensors become one."""
        names = ("tensors", "sequences")
        parts = list(operation.first(*names))
        known = [self._labelled(part, operation) for part in parts]
        found = made_of(known, parts, lambda each: operation.again(each, *names))
        return self._whole(found, operation.outputs[0])

    def _written(self, operation: Operation) -> list[Labels]:
        """What is put in takes the place of what was there; so does what is added to it."""
        into, value = operation.args[0], operation.args[-1]

        def write(numbers: Sequence[Tensor]) -> Tensor:
            old, own = numbers
            return _put(operation, old.clone(memory_format=torch.contiguous_format), own)

        known = [self.of(into), self._labelled(value, operation)]
        put = value if isinstance(value, Tensor) else into.new_zeros(())
        return self._whole(made_of(known, [into, put], write), operation.outputs[0])

    def _unpacked(self, operation: Operation) -> list[Labels]:
        data, sizes, first, _, *rest = operation.args
        known = self._labelled(data, operation)
        return [change_all(known, lambda x: operation.func(x, sizes, first, NONE, *rest)[0])]

    def _padded(self, operation: Operation) -> list[Labels]:
        names = ("input", "pad", "mode", "value")
        given = {**dict(zip(names, operation.args, strict=False)), **operation.kwargs}
        mode = given.get("mode", "constant")

        def widen(numbers: Tensor) -> Tensor:
            if mode == "constant":
                return pad(numbers, given["pad"], value=NONE)
            return pad(numbers.double(), given["pad"], mode=mode).round().long()

        known = self._labelled(given["input"], operation)
        return self._whole(change_all(known, widen), operation.outputs[0])

    def _layer(self, operation: Operation) -> list[Labels]:
        """A recurrent layer: its steps are those of its input; so are its last ones."""
        args = operation.args
        output, *last = operation.outputs
        rows = self._over_features(self._labelled(args[0], operation), output)
        if isinstance(args[1], Tensor) and not args[1].is_floating_point():  # packed
            return [rows]
        two, batch_first = bool(args[-2]), bool(args[-1])
        axis = 0 if output.ndim == 2 or not batch_first else 1

        def final(numbers: Tensor, like: Tensor) -> Tensor:
            ends = [numbers.select(axis, -1), numbers.select(axis, 0)]
            each = [ends[i % 2 if two else 0][..., :1] for i in range(len(like))]
            return torch.stack(each).expand(like.shape)

        return [rows, *(change_all(rows, partial(final, like=t)) for t in last)]

    def _cell(self, operation: Operation) -> list[Labels]:
        x, hidden = operation.in_order[:2]
        hidden = hidden if isinstance(hidden, Tensor) else hidden[0]
        known = self._labelled(x, operation) or self.of(hidden)
        found = self._over_features(known, operation.outputs[0])
        return [found] * len(operation.outputs)

    def _queried(self, operation: Operation) -> list[Labels]:
        """Attention: its rows are the queries'."""
        known = self._labelled(operation.first("query"), operation)
        return [self._over_features(known, operation.outputs[0])]

    def _looked_up(self, operation: Operation) -> list[Labels]:
        return self._chosen(operation.first("input"), operation)

    def _bags(self, operation: Operation) -> list[Labels]:
        index = operation.first("input")
        if index.ndim != 2:
            return []
        known = self._labelled(index, operation)
        return [self._over_features(known, operation.outputs[0])]

    def _over_features(self, labels: Labels, output: Tensor) -> Labels:
        """The numbers of rows, the same for all features."""
        return self._gather(labels, (-1,), lambda x: x.unsqueeze(-1).expand(output.shape))

    def _gather(
        self, labels: Labels, axes: Sequence[int], change: Callable[[Tensor], Tensor]
    ) -> Labels:
        """One number for all entries along some axes, laid out anew."""
        return {s: self._gathered(s, x, axes).each(change) for s, x in labels.items()}

    def _gathered(self, source: int, label: Label, axes: Sequence[int]) -> Label:
        """One number for all entries along some axes."""
        if not label.is_one:  # each by itself: of scores, high has the rows of the keys
            near, high, low = (self._gathered(source, Label(x, x, x), axes) for x in label)
            return Label(near.near, high.high, low.low)
        axes = sorted(axis % label.near.ndim for axis in axes)
        still = [a for a in axes if all(is_still(x, a) for x in label)]
        for axis in reversed(still):
            label = label.each(partial(torch.select, dim=axis, index=0))
        axes = [a - sum(s < a for s in still) for a in axes if a not in still]
        return one_of(label, axes, self._shapes[source]) if axes else label

    def _contracted(self, operation: Operation) -> list[Labels]:
        """A product keeps the rows of its operands that it does not sum over."""
        (output, *_) = operation.outputs
        equation, operands, addend = contraction_of(operation.name, operation.in_order)
        inputs, out = equation.split("->")
        found: Labels = NOTHING
        for letters, operand in zip(inputs.split(","), operands, strict=True):
            known = self._labelled(operand, operation)
            # What has met rows, and goes into a product, is done: it is what others act on.
            self._done.update(key for key, *_ in self._fresh.get(operand, ()) if key in self.met)
            gone = [i for i, each in enumerate(letters) if each not in out]
            spread = partial(_spread, letters=letters, out=out, shape=output.shape)
            found = either(found, self._gather(known, gone, spread))
        if isinstance(addend, Tensor) and (known := self._labelled(addend, operation)):
            wide = change_all(known, lambda x: x.expand(output.shape))
            found = together([found, wide]) if found else wide
        return [found]

    def _windows(self, operation: Operation) -> list[Labels]:
        """A convolution: of each window the entry that leaves as many as possible a number."""
        (x, axes), shape = convolution_of(operation.in_order), operation.outputs[0].shape
        channels = x.ndim - len(axes) - 1  # 1, or 0 of a single sequence or image

        def tapped(numbers: Tensor) -> Tensor:
            found = _tapped(numbers if channels else numbers.unsqueeze(0), axes)
            return (found.unsqueeze(1) if channels else found).expand(shape)

        return [self._gather(self._labelled(x, operation), (channels,), tapped)]

    def _summed(self, operation: Operation) -> list[Labels]:
        given, (output, *_) = operation.first("input", "self"), operation.outputs
        if output.shape == given.shape or not isinstance(given, Tensor):
            return self._row_by_row(operation)
        second = operation.args[1] if len(operation.args) > 1 else None
        axes = operation.kwargs.get("dim", operation.kwargs.get("axis", second))
        axes = (axes,) if type(axes) is int else axes
        if axes is None or not all(type(axis) is int for axis in axes):
            return []
        kept = sorted(a % given.ndim for a in axes) if output.ndim == given.ndim else ()

        def shaped(numbers: Tensor) -> Tensor:
            for axis in kept:
                numbers = numbers.unsqueeze(axis)
            return numbers

        return [self._gather(self._labelled(given, operation), axes, shaped)]

    def _row_by_row(self, operation: Operation) -> list[Labels]:
        """An operation that keeps places: what it returns has the shape of what it is given."""
        (output, *_) = operation.outputs
        shape = output.shape
        leaves = tree_leaves((operation.args, operation.kwargs))
        given = [t for t in leaves if isinstance(t, Tensor) and t.ndim and t.dtype != torch.bool]
        fit = [t for t in given if fits(t.shape, shape)]
        known = [(t, self._labelled(t, operation)) for t in fit]
        known = [(t, labels) for t, labels in known if labels]
        whole = any(t.shape == shape for t in fit if t in self._fresh or self.of(t))
        if not known or not (whole or common_shape(*(t.shape for t, _ in known)) == shape):
            return []
        wide = [change_all(labels, lambda x: x.expand(shape)) for _, labels in known]
        joined = together(wide) if len(wide) > 1 else wide[0]
        alive = [t for t in fit if t in self._fresh or (self.of(t) and operation.depends(t))]
        going = [t for t in alive if t in self._fresh and self._goes_on(t, alive, shape)]
        if going:
            fresh = [use for t in going for use in self._fresh[t] if use[0] not in self._done]
            self._fresh[output] = tuple(fresh[-MOST_FRESH:])
        self._tell(fit, joined, shape, alone=len(known) < 2)
        return [joined]

    def _goes_on(self, tensor: Tensor, alive: Iterable[Tensor], shape: torch.Size) -> bool:
        """Whether a tensor meets no rows but its own: ``-h`` on what a weight makes of ``h``."""
        others = [t for t in alive if t is not tensor]
        if tensor.shape != shape or not others:
            return tensor.shape == shape
        own = self._of_data(tensor)
        return bool(own) and all(
            t.shape == shape and same_numbers(own, self._of_data(t)) for t in others
        )

    def _of_data(self, tensor: Tensor) -> Labels:
        """The rows of a tensor as far as they are known, but for the numbers of constants."""
        known = {s: label for s, label in self.of(tensor).items() if s not in self._constants}
        return known if tensor in self._fresh else self._over_features(known, tensor)

    def _tell(
        self, given: Iterable[Tensor], joined: Labels, shape: torch.Size, *, alone: bool
    ) -> None:
        """Uses whose outputs meet other rows have a part in the rows that come of it."""
        for tensor in given:
            uses = self._fresh.get(tensor, ())
            if not uses or (alone and self.of(tensor)):
                continue
            for key, numbers, count in uses:
                if key in self._done:
                    continue
                if tensor.shape == shape:
                    rows = change_all(joined, partial(_by_row, places=numbers, count=count))
                    self.met[key] = _over(rows, self.met.get(key, NOTHING))
                elif not _is_spread_along(joined, tensor, shape):
                    self.spread.add(key)


Handler = Callable[[RowTracker, Operation], list[Labels]]
_BY_HANDLER: dict[Handler, Iterable[str]] = {
    RowTracker._moved: MOVING,
    RowTracker._joined: JOINING,
    RowTracker._written: WRITING,
    RowTracker._summed: SUMMING,
    RowTracker._contracted: CONTRACTING,
    RowTracker._windows: CONVOLVING,
    RowTracker._layer: LAYERS,
    RowTracker._cell: CELL_STEPS,
    RowTracker._sorted: ("sort",),
    RowTracker._unpacked: ("_pad_packed_sequence",),
    RowTracker._padded: ("pad",),
    RowTracker._queried: ("scaled_dot_product_attention",),
    RowTracker._looked_up: ("embedding", "one_hot"),
    RowTracker._bags: ("embedding_bag",),
}
HANDLERS = {name: how for how, names in _BY_HANDLER.items() for name in names}
"""How rows go through an operation, by its name; by place through all others."""


def _spread(numbers: Tensor, letters: str, out: str, shape: torch.Size) -> Tensor:
    """Numbers of an operand on what a product returns.

    Args:
        numbers: Along the axes that the product keeps.
        letters: The names of the operand's axes.
        out: Those of what is returned.
        shape: Of that.

    Returns:
        Of that shape.
    """
    left = [each for each in letters if each in out]
    order = [left.index(each) for each in out if each in left]
    index = tuple(slice(None) if each in left else None for each in out)
    return numbers.permute(order)[index].expand(shape)


def _is_spread_along(joined: Labels, tensor: Tensor, shape: torch.Size) -> bool:
    """Whether what is broadcast meets the same rows in all the places that it is copied to."""
    own = (1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape)
    copied = [i for i, (a, b) in enumerate(zip(own, shape, strict=True)) if a != b]
    return all(is_still(x, i) for label in joined.values() for x in label for i in copied)


def _few(labels: Labels) -> Labels:
    """At most so many sources: the first ones are the data's own, the latest the nearest."""
    if len(labels) <= MOST_SOURCES:
        return labels
    order = sorted(labels)
    half = MOST_SOURCES // 2
    return {source: labels[source] for source in (*order[:half], *order[-half:])}


def _over(found: Labels, before: Labels) -> Labels:
    """The rows of a use that are known now, and before those that are not."""
    joined = dict(before)
    for source, label in found.items():
        old = before.get(source)
        if old is None:
            joined[source] = label
        else:
            pairs = zip(label, old, strict=True)
            joined[source] = Label(*(torch.where(a >= 0, a, b) for a, b in pairs))
    return joined


def _by_row(numbers: Tensor, places: Tensor, count: int) -> Tensor:
    """Numbers in the layout of an operation's output, row by row, shape ``(count,)``."""
    axes = [
        axis
        for axis in range(numbers.ndim)
        if all(x.shape[axis] > 1 and x.stride(axis) == 0 for x in (numbers, places))
    ]
    for axis in axes:
        numbers, places = numbers.narrow(axis, 0, 1), places.narrow(axis, 0, 1)
    found = numbers.new_full((count,), NONE)
    there = places >= 0
    found[places[there].long()] = numbers[there]
    return found


def _tapped(numbers: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Of each window of a convolution the number in one place, the same place in all."""
    for i, axis in enumerate(axes, start=1):
        wide = pad(numbers.movedim(i, -1).contiguous(), axis.margins, value=NONE)
        windows = wide.unfold(-1, axis.span, axis.stride)[..., :: axis.dilation]
        still = min(axis.margins[0] // axis.dilation, axis.kernel - 1)  # an entry keeps its place
        taps = dict.fromkeys((still, (axis.kernel - 1) // 2, axis.kernel - 1, 0))
        best = max((windows[..., tap] for tap in taps), key=lambda found: int((found >= 0).sum()))
        numbers = best.movedim(-1, i)
    return numbers


def _put(operation: Operation, target: Tensor, own: Tensor) -> Tensor:
    """Numbers where others are put in."""
    name, args = operation.name, operation.args
    if name == "__setitem__":
        target[args[1]] = own
        return target
    if name == "copy_":
        return target.copy_(own)
    if name.startswith(("index_put", "masked_scatter")):
        found = operation.func(target, args[1], own)
        return found if isinstance(found, Tensor) else target
    axis, index = args[1], args[2]
    if name.startswith("scatter"):
        return target.scatter(axis, index, own.expand(index.shape) if own.ndim == 0 else own)
    return target.index_copy(axis, index, own)
