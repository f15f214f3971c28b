"""Rows followed through a forward pass: to which row of the data an entry of a tensor belongs.

Every entry of a tensor has a number, that of an entry of the data from which it comes. Operations
that move entries (views, permutations, indices, packing) move their numbers; those that act row by
row hand them on; a product gathers those of the features that it sums over into one. Two places of
a pass then have the same row where they have the same number, whatever their layouts and sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ntk_monitor.model.labels import (
    NONE,
    NOTHING,
    Label,
    Labels,
    change_all,
    either,
    is_still,
    none_of,
    together,
)
from ntk_monitor.model.operations import contraction_of, convolution_of, in_order
from ntk_monitor.model.unroll import CELL_STEPS

logger = logging.getLogger(__name__)

MOST_SOURCES = 4
"""Sources that are kept of one tensor: the first two, and the latest two."""

MOVING = frozenset({
    *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "ravel", "squeeze"),
    *("unsqueeze", "transpose", "transpose_", "swapaxes", "swapdims", "permute", "movedim"),
    *("moveaxis", "t", "adjoint", "flip", "fliplr", "flipud", "roll", "rot90", "narrow", "select"),
    *("index_select", "gather", "take", "take_along_dim", "__getitem__", "split", "chunk"),
    *("unbind", "tensor_split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "hsplit"),
    *("vsplit", "dsplit", "unfold", "expand", "expand_as", "broadcast_to", "repeat", "tile"),
    *("repeat_interleave", "diagonal", "masked_select", "_pack_padded_sequence", "movedim"),
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
CONTRACTING = frozenset({
    *("linear", "matmul", "mm", "bmm", "mv", "dot", "addmm", "addmv", "baddbmm", "einsum"),
    *("bilinear", "__matmul__", "__rmatmul__"),
})


class Follower:
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
        self._fresh: Any = WeakIdKeyDictionary()
        self.used: dict[Any, Labels] = {}
        self.met: dict[Any, Labels] = {}
        self.spread: set[Any] = set()

    def of(self, tensor: Any) -> Labels:  # noqa: ANN401
        """What is known of a tensor."""
        found: Labels = self._labels.get(tensor, NOTHING) if isinstance(tensor, Tensor) else NOTHING
        return found

    def begin(self, tensor: Tensor) -> Labels:
        """A tensor's entries are numbered anew."""
        found = self._labels[tensor] = self._numbered(tensor)
        return found

    def _numbered(self, tensor: Tensor) -> Labels:
        shape = tuple(tensor.shape)
        numbers = torch.arange(tensor.numel(), device=tensor.device).reshape(shape)
        self._shapes.append(shape)
        return {len(self._shapes) - 1: Label(numbers, numbers, numbers)}

    def _whole(self, labels: Labels, output: Tensor) -> Labels:
        """With numbers of its own for a tensor of which no source numbers all entries."""
        if not labels or any(bool((label.near >= 0).all()) for label in labels.values()):
            return labels
        return {**labels, **self._numbered(output)}

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
        found = {
            s: label.each(lambda x: _by_row(x, numbers, count))
            for s, label in self.of(output).items()
        }
        self.used[key] = found
        self._fresh[output] = (*self._fresh.get(output, ()), (key, numbers, count))

    def see(
        self,
        name: str,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        output: Any,  # noqa: ANN401
        is_data: Callable[[Tensor], bool],
    ) -> None:
        """An operation was called, and rows are followed through it.

        Args:
            name: Its name.
            func: The operation.
            args: Its positional arguments.
            kwargs: Its arguments by name.
            output: What it returned.
            is_data: Whether a tensor is data, and no parameter.
        """
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if not outputs:
            return
        try:
            found = self._seen(name, func, args, kwargs, outputs, is_data)
        except Exception as error:  # an operation that is called in an unknown way
            logger.debug("rows are not followed through %s: %r", name, error)
            found = None
        for i, tensor in enumerate(outputs):
            labels = found[i] if found is not None and i < len(found) else None
            fits = labels and all(x.near.shape == tensor.shape for x in labels.values())
            if labels and fits:
                self._labels[tensor] = _few(labels)
            else:
                self._labels.pop(tensor, None)
                self._fresh.pop(tensor, None)

    def _seen(
        self,
        name: str,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Sequence[Tensor],
        is_data: Callable[[Tensor], bool],
    ) -> list[Labels] | None:
        def labelled(value: Any) -> Labels:  # noqa: ANN401
            if not isinstance(value, Tensor) or not value.ndim:
                return NOTHING
            return self.of(value) or (self.begin(value) if is_data(value) else NOTHING)

        if name in MOVING:
            return self._moved(name, func, args, kwargs, outputs, labelled, is_data)
        if name == "sort":
            return [self._taken(labelled(args[0]), outputs[1], _axis(args, kwargs))]
        if name in JOINING:
            joined = self._joined(func, args, kwargs, labelled)
            return joined and [self._whole(joined[0], outputs[0])]
        if name in WRITING:
            return [self._whole(self._written(name, func, args, kwargs, labelled), outputs[0])]
        if name == "_pad_packed_sequence":
            data, sizes, first, _, *rest = args
            return [change_all(labelled(data), lambda x: func(x, sizes, first, NONE, *rest)[0])]
        if name == "pad":
            return [self._whole(self._padded(args, kwargs, labelled), outputs[0])]
        if name in LAYERS:
            return self._layer(args, outputs, labelled)
        if name in CELL_STEPS:
            x, hidden = in_order(name, args, kwargs)[:2]
            hidden = hidden if isinstance(hidden, Tensor) else hidden[0]
            inner = labelled(x) or self.of(hidden)
            return [self._over_features(inner, outputs[0])] * len(outputs)
        if name == "scaled_dot_product_attention":
            query = args[0] if args else kwargs["query"]
            return [self._over_features(labelled(query), outputs[0])]
        if name in {"embedding", "one_hot"}:
            index = args[0] if args else kwargs["input"]
            shape = outputs[0].shape
            return [change_all(labelled(index), lambda x: x.unsqueeze(-1).expand(shape))]
        if name == "embedding_bag":
            index = args[0] if args else kwargs["input"]
            return [self._over_features(labelled(index), outputs[0])] if index.ndim == 2 else None
        if name in CONTRACTING:
            return [self._contracted(name, args, kwargs, outputs[0], labelled)]
        if (window := convolution_of(name, args, kwargs)) is not None:
            return [self._windows(labelled(window.x), window, outputs[0])]
        if name in SUMMING and outputs[0].shape != args[0].shape:
            return [self._summed(labelled(args[0]), args, kwargs, outputs[0])]
        return self._row_by_row(args, kwargs, outputs, labelled)

    def _moved(
        self,
        name: str,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Sequence[Tensor],
        labelled: Callable[[Any], Labels],
        is_data: Callable[[Tensor], bool],
    ) -> list[Labels] | None:
        key = "input" if not args and "input" in kwargs else "self"
        first = args[0] if args else kwargs[key]
        if not self.of(first) and not is_data(first) and first not in self._fresh:
            # Rows of a weight, by number.
            index = (
                args[1] if name == "__getitem__" else args[2] if name == "index_select" else None
            )
            if not isinstance(index, Tensor) or outputs[0].ndim <= index.ndim:
                return None
            more, shape = outputs[0].ndim - index.ndim, outputs[0].shape
            return [
                change_all(
                    labelled(index), lambda x: x.reshape(*x.shape, *[1] * more).expand(shape)
                )
            ]

        def move(numbers: Tensor) -> list[Tensor]:
            if name in {"view", "view_as", "reshape_as"}:  # numbers may be laid out otherwise
                return [numbers.reshape(outputs[0].shape)]
            if args:
                found = func(numbers, *args[1:], **kwargs)
            else:
                found = func(**{**kwargs, key: numbers})
            return [t for t in tree_leaves(found) if isinstance(t, Tensor)]

        moved = {source: label.each(move) for source, label in labelled(first).items()}
        found: list[Labels] = [
            {s: Label(*(each[i] for each in label)) for s, label in moved.items()}
            for i in range(len(outputs))
            if all(i < len(label.near) for label in moved.values())
        ]
        for key_of_use, numbers, count in self._fresh.get(first, ()):
            for tensor, own in zip(outputs, move(numbers), strict=False):
                if own.shape == tensor.shape:
                    known = self._fresh.get(tensor, ()) if tensor is not first else ()
                    self._fresh[tensor] = (*known, (key_of_use, own, count))
        return found

    def _taken(self, labels: Labels, index: Tensor, axis: int) -> Labels:
        return change_all(labels, lambda x: x.gather(axis, index))

    def _joined(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        labelled: Callable[[Any], Labels],
    ) -> list[Labels] | None:
        key = next((k for k in ("tensors", "sequences") if k in kwargs), "tensors")
        parts = list(args[0] if args else kwargs[key])
        known = [labelled(part) for part in parts]
        found: dict[int, Label] = {}
        for source in dict.fromkeys(s for labels in known for s in labels):

            def kind(which: int, source: int = source) -> Tensor:
                numbers = [
                    labels[source][which] if source in labels else none_of(part)
                    for part, labels in zip(parts, known, strict=True)
                ]
                joined = (
                    func(numbers, *args[1:], **kwargs) if args else func(**{**kwargs, key: numbers})
                )
                assert isinstance(joined, Tensor)
                return joined

            ones = all(labels[source].is_one for labels in known if source in labels)
            near = kind(0)
            found[source] = Label(near, near, near) if ones else Label(near, kind(1), kind(2))
        return [found]

    def _written(
        self,
        name: str,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        labelled: Callable[[Any], Labels],
    ) -> Labels:
        """What is put in takes the place of what was there; as much as is added to it."""
        del kwargs
        into, value = args[0], args[-1]
        before, new = self.of(into), labelled(value)
        if not new and isinstance(value, Tensor) and not before:
            return NOTHING
        found: dict[int, Label] = {}
        for source in dict.fromkeys([*before, *new]):

            def kind(which: int, source: int = source) -> Tensor:
                old = before[source][which] if source in before else none_of(into)
                if isinstance(value, Tensor):
                    own = new[source][which] if source in new else none_of(value)
                else:
                    own = torch.tensor(NONE, device=into.device)
                target = old.clone(memory_format=torch.contiguous_format)
                return _put(name, func, target, args, own)

            found[source] = Label(kind(0), kind(1), kind(2))
        return found

    def _padded(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        labelled: Callable[[Any], Labels],
    ) -> Labels:
        given = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | dict(kwargs)
        mode = given.get("mode", "constant")

        def widen(numbers: Tensor) -> Tensor:
            if mode == "constant":
                return pad(numbers, given["pad"], value=NONE)
            return pad(numbers.double(), given["pad"], mode=mode).round().long()

        return change_all(labelled(given["input"]), widen)

    def _layer(
        self,
        args: Sequence[Any],
        outputs: Sequence[Tensor],
        labelled: Callable[[Any], Labels],
    ) -> list[Labels]:
        """A recurrent layer: its steps are those of its input; so are its last ones."""
        output, *last = outputs
        rows = self._over_features(labelled(args[0]), output)
        if isinstance(args[1], Tensor) and not args[1].is_floating_point():  # packed
            return [rows]
        two, batch_first = bool(args[-2]), bool(args[-1])
        axis = 0 if output.ndim == 2 or not batch_first else 1

        def final(numbers: Tensor, like: Tensor) -> Tensor:
            ends = [numbers.select(axis, -1), numbers.select(axis, 0)]
            each = [ends[i % 2 if two else 0][..., :1] for i in range(len(like))]
            return torch.stack(each).expand(like.shape)

        return [rows, *(change_all(rows, lambda x, t=t: final(x, t)) for t in last)]

    def _over_features(self, labels: Labels, output: Tensor) -> Labels:
        """The numbers of rows, the same for all features."""

        def over(numbers: Tensor) -> Tensor:
            return numbers.unsqueeze(-1).expand(output.shape)

        return {s: self._gathered(s, label, (-1,)).each(over) for s, label in labels.items()}

    def _gathered(self, source: int, label: Label, axes: Sequence[int]) -> Label:
        """One number for all entries along some axes.

        Of each coordinate of the source: where the same ones come together in every row, they are
        features, and do not count; else the highest, the lowest, and the one in the middle.
        """
        axes = sorted(axis % label.near.ndim for axis in axes)
        still = [a for a in axes if all(is_still(x, a) for x in label)]
        if still:

            def first(numbers: Tensor) -> Tensor:
                for axis in reversed(still):
                    numbers = numbers.select(axis, 0)
                return numbers

            label = label.each(first)
            axes = [a - sum(s < a for s in still) for a in axes if a not in still]
        if not axes:
            return label
        low, high = label.low, label.high
        return _one_of(low, high, axes, self._shapes[source], label.is_one)

    def _contracted(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        output: Tensor,
        labelled: Callable[[Any], Labels],
    ) -> Labels:
        equation, operands, addend = contraction_of(name, args, kwargs)
        inputs, out = equation.split("->")
        found: Labels = NOTHING
        for letters, operand in zip(inputs.split(","), operands, strict=True):
            labels = labelled(operand)
            if not labels:
                continue
            gone = [i for i, each in enumerate(letters) if each not in out]
            left = [each for each in letters if each in out]
            order = [left.index(each) for each in out if each in left]
            places = [each in left for each in out]

            def spread(numbers: Tensor, order: Any = order, places: Any = places) -> Tensor:
                numbers = numbers.permute(order)
                index = tuple(slice(None) if there else None for there in places)
                return numbers[index].expand(output.shape)

            own = {s: self._gathered(s, x, gone).each(spread) for s, x in labels.items()}
            found = either(found, own)
        if isinstance(addend, Tensor) and (labels := labelled(addend)):
            wide = change_all(labels, lambda x: x.expand(output.shape))
            found = together([found, wide]) if found else wide
        return found

    def _windows(self, labels: Labels, window: Any, output: Tensor) -> Labels:  # noqa: ANN401
        """A convolution: of each window the entry that leaves as many as possible a number."""

        def over(numbers: Tensor) -> Tensor:
            return _tapped(numbers, window).unsqueeze(1).expand(output.shape)

        return {
            s: self._gathered(s, label, (1,)).each(over)
            for s, label in labels.items()
            if label.near.ndim == output.ndim
        }

    def _summed(
        self, labels: Labels, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
    ) -> Labels:
        axes = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        axes = (axes,) if isinstance(axes, int) else axes
        if axes is None or not all(type(axis) is int for axis in axes):
            return NOTHING
        kept = output.ndim == args[0].ndim

        def shaped(numbers: Tensor) -> Tensor:
            for axis in sorted(a % args[0].ndim for a in axes) if kept else ():
                numbers = numbers.unsqueeze(axis)
            return numbers

        return {s: self._gathered(s, label, axes).each(shaped) for s, label in labels.items()}

    def _row_by_row(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Sequence[Tensor],
        labelled: Callable[[Any], Labels],
    ) -> list[Labels] | None:
        """An operation that keeps places: what it returns has the shape of what it is given."""
        shape = outputs[0].shape
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim]
        fit = [t for t in given if t.dtype != torch.bool and _fits(t.shape, shape)]
        known = [(t, labelled(t)) for t in fit]
        known = [(t, labels) for t, labels in known if labels]
        if not any(t.shape == shape for t, _ in known):
            alone = len(known) > 1 and torch.broadcast_shapes(*(t.shape for t, _ in known)) == shape
            fresh = [t for t in fit if t in self._fresh and t.shape == shape]
            if not alone and not (fresh and known):
                return None
        wide = [change_all(labels, lambda x: x.expand(shape)) for _, labels in known]
        joined = together(wide) if len(wide) > 1 else wide[0]
        alive = [t for t in fit if self.of(t) or t in self._fresh]
        if len(alive) == 1:
            self.hand_on(alive[0], outputs[0])
        self._tell(fit, joined, shape, alone=len(known) < 2)
        return [joined if t.shape == shape else NOTHING for t in outputs[:1]]

    def _tell(
        self, given: Iterable[Tensor], joined: Labels, shape: torch.Size, *, alone: bool
    ) -> None:
        """Uses whose outputs meet other rows belong to the rows that come of it."""
        for tensor in given:
            uses = self._fresh.get(tensor, ())
            if not uses or (alone and self.of(tensor)):
                continue
            for key, numbers, count in uses:
                if tensor.shape != shape and not _is_spread_along(joined, tensor, shape):
                    self.spread.add(key)
                    continue
                if tensor.shape != shape:
                    continue
                found = {
                    s: label.each(lambda x, n=numbers, c=count: _by_row(x, n, c))
                    for s, label in joined.items()
                }
                self.met[key] = _over(found, self.met.get(key, NOTHING))

    def hand_on(self, given: Tensor, output: Tensor) -> None:
        """An operation on one tensor keeps places: its output stands for that of a use as well."""
        uses = self._fresh.get(given, ())
        if uses and given.shape == output.shape:
            self._fresh[output] = uses


def _is_spread_along(joined: Labels, tensor: Tensor, shape: torch.Size) -> bool:
    """Whether what is broadcast meets the same rows in all the places that it is copied to."""
    own = (1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape)
    copied = [i for i, (a, b) in enumerate(zip(own, shape, strict=True)) if a != b]
    return all(is_still(x, i) for label in joined.values() for x in label for i in copied)


def _axis(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    axis = kwargs.get("dim", args[1] if len(args) > 1 and type(args[1]) is int else -1)
    return int(axis)


def _fits(own: torch.Size, shape: torch.Size) -> bool:
    """Whether a tensor can be broadcast to a shape."""
    if len(own) > len(shape):
        return False
    return all(a in {1, b} for a, b in zip(reversed(own), reversed(shape), strict=False))


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
    found[places[there]] = numbers[there]
    return found


def _one_of(
    low: Tensor,
    high: Tensor,
    axes: Sequence[int],
    shape: tuple[int, ...],
    is_one: bool,  # noqa: FBT001
) -> Label:
    """One number for those along some axes, coordinate by coordinate of the source."""
    most = torch.iinfo(low.dtype).max
    there = (low >= 0).amax(dim=tuple(axes), keepdim=False)
    del is_one
    lows = highs = middles = torch.zeros_like(there, dtype=low.dtype)
    stride = 1
    for size in reversed(shape):
        a = torch.where(low >= 0, low // stride % size, most).amin(dim=tuple(axes))
        b = torch.where(high >= 0, high // stride % size, -1).amax(dim=tuple(axes))
        inside_a, inside_b = a[there], b[there]
        varies = bool((inside_a != inside_b).any())
        is_feature = varies and bool(
            (inside_a == inside_a[:1]).all() and (inside_b == inside_b[:1]).all()
        )
        if not is_feature:
            lows = lows + stride * a.clamp(0, size - 1)
            highs = highs + stride * b.clamp(min=0)
            middles = middles + stride * ((a.clamp(0, size - 1) + b.clamp(min=0)) // 2)
        stride *= size
    near, high_, low_ = (torch.where(there, x, NONE) for x in (middles, highs, lows))
    if torch.equal(high_, low_):
        return Label(near, near, near)
    return Label(near, high_, low_)


def _tapped(numbers: Tensor, window: Any) -> Tensor:  # noqa: ANN401
    """Of each window of a convolution the number in one place, the same place in all."""
    for axis, (kernel, margin, stride, dilation) in enumerate(window.axes, start=1):
        reach = dilation * (kernel - 1)
        wide = pad(numbers.movedim(axis, -1).contiguous(), margin, value=NONE)
        count = (wide.shape[-1] - reach - 1) // stride + 1
        best: Tensor | None = None
        still = min(margin[0] // dilation, kernel - 1)  # where an entry keeps its place
        for tap in dict.fromkeys((still, (kernel - 1) // 2, kernel - 1, 0)):
            begin = tap * dilation
            found = wide[..., begin : begin + (count - 1) * stride + 1 : stride]
            if best is None or int((found >= 0).sum()) > int((best >= 0).sum()):
                best = found
        assert best is not None
        numbers = best.movedim(-1, axis)
    return numbers


def _put(
    name: str, func: Callable[..., Any], target: Tensor, args: Sequence[Any], own: Tensor
) -> Tensor:
    """Numbers where others are put in."""
    if name == "__setitem__":
        target[args[1]] = own
        return target
    if name == "copy_":
        return target.copy_(own)
    if name.startswith(("index_put", "masked_scatter")):
        found = func(target, args[1], own)
        return found if isinstance(found, Tensor) else target
    axis, index = args[1], args[2]
    if name.startswith("scatter"):
        return target.scatter(axis, index, own.expand(index.shape) if own.ndim == 0 else own)
    return target.index_copy(axis, index, own)
