"""Of which logits a tensor holds (log-)probabilities, as the calls tell that made it."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from ntk_monitor.compat import without_torch_function
from ntk_monitor.model.isolation.interception import Args, Function, Kwargs

LOG_SOFTMAX = frozenset({"log_softmax", "special_log_softmax"})
SOFTMAX = LOG_SOFTMAX | {"softmax", "special_softmax"}
LOG_SIGMOID = frozenset({"logsigmoid", "log_sigmoid"})
SIGMOID = LOG_SIGMOID | {"sigmoid", "special_expit"}
NEGATIVE = frozenset({"neg", "negative"})
LINKING = SOFTMAX | SIGMOID | NEGATIVE
"""Functions that make probabilities of logits; each call of one has a number."""
SHAPING = frozenset({
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose"),
    *("movedim", "moveaxis", "swapaxes", "swapdims", "select", "narrow", "__getitem__"),
})
"""Functions whose results are entries of their first argument, perhaps in another order."""
COPYING = frozenset({"to", "float", "double", "half", "bfloat16", "contiguous", "clone"})
"""Functions whose results are the entries of their first argument, in its shape."""
LIMITING = frozenset({"clamp", "clamp_min", "clamp_max", "clip"})
SMALL = 1e-3
"""What probabilities are kept from zero and one by, at most."""
LEAST_LOGARITHM = -5.0
"""Where logarithms of probabilities are cut off, at most."""


class Linked(NamedTuple):
    """What a tensor is of some logits.

    Attributes:
        kind: ``"softmax"`` or ``"sigmoid"``; ``"neg"`` for what is only their negative.
        logits: The logits, as the first function of them was given them.
        number: Of that function's call.
        version: Of the logits, which other calls may write to.
        axis: Where their classes are, for a softmax.
        is_log: Whether it holds logarithms.
        turned: Whether the probabilities are those of a no.
        exact: Whether nothing keeps the probabilities from zero and one.
        chain: What has put the entries in another order.
    """

    kind: str
    logits: Tensor
    number: int
    version: int
    axis: int = 0
    is_log: bool = False
    turned: bool = False
    exact: bool = True
    chain: tuple[Callable[[Tensor], Tensor], ...] = ()

    def ordered(self, x: Tensor) -> Tensor:
        """Entries of the logits' shape in the tensor's order.

        Args:
            x: Of the logits' shape.

        Returns:
            Of the tensor's shape.
        """
        with without_torch_function():
            return reduce(lambda found, change: change(found), self.chain, x)

    def made_of(self, z: Tensor) -> Tensor:
        """What the tensor would be of other logits, but for what keeps from zero and one.

        Args:
            z: The logits.

        Returns:
            Of the tensor's shape.
        """
        if self.kind == "softmax":
            found = z.log_softmax(self.axis) if self.is_log else z.softmax(self.axis)
        else:
            z = -z if self.turned else z
            found = functional.logsigmoid(z) if self.is_log else z.sigmoid()
        return self.ordered(found)

    def has_classes_on(self, axis: int) -> bool:
        """Whether the classes are whole on an axis of the tensor.

        Args:
            axis: Which; -1 for the last.

        Returns:
            True if they are.
        """
        z, count = self.logits, self.logits.shape[self.axis]
        classes = torch.arange(count, dtype=torch.int32, device=z.device)
        shape = [count if i == self.axis else 1 for i in range(z.ndim)]
        found = self.ordered(classes.view(shape).expand(z.shape))
        if found.ndim == 0 or found.ndim <= axis or found.shape[axis] != count:
            return False
        found = found.movedim(axis, -1)
        once = [slice(1) if step == 0 else slice(None) for step in found.stride()[:-1]]
        return bool((found[tuple(once)] == classes).all())

    @property
    def classes_second(self) -> bool | None:
        """Whether classes are on the second axis of more than two; None where on neither."""
        last = self.logits.ndim - 1
        return False if self.axis == last else True if self.axis == 1 else None

    def placed(self, t: Tensor) -> Tensor | None:
        """A target of the tensor's, as one of the logits.

        Args:
            t: Class indices for all axes of the tensor but the last, which is that of its classes;
                or probabilities of its shape, of classes perhaps in proportion.

        Returns:
            Class indices for all axes of the logits but that of the classes, negative where there
            is none; or probabilities of their shape; None where they do not fit.
        """
        if not t.is_floating_point():
            return self._indices(t)
        found = self._entries(t)
        if found is None:
            return None
        if self.kind == "softmax":
            total = found.sum(self.axis, keepdim=True)
            return torch.where(total > 0, found / total, 0)
        return 1 - found if self.turned else found

    def _indices(self, t: Tensor) -> Tensor | None:
        shape = [n for i, n in enumerate(self.logits.shape) if i != self.axis]
        rows = torch.arange(prod(shape), device=t.device).view(shape).unsqueeze(self.axis)
        found = self.ordered(rows.expand(self.logits.shape))[..., 0]
        if found.shape != t.shape:
            return None
        return t.new_full((prod(shape),), -1).scatter_(0, found.flatten(), t.flatten()).view(shape)

    def _entries(self, t: Tensor) -> Tensor | None:
        if not self.chain:
            return t if t.shape == self.logits.shape else None
        shape = self.logits.shape
        found = self.ordered(torch.arange(shape.numel(), device=t.device).view(shape))
        if found.shape != t.shape or t.numel() != shape.numel():
            return None
        return torch.empty_like(t.flatten()).scatter_(0, found.flatten(), t.flatten()).view(shape)


class Links:
    """What is known of all tensors that are there."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._known: Any = WeakIdKeyDictionary()
        self._numbers: Any = WeakIdKeyDictionary()

    def of(self, tensor: object) -> Linked | None:
        """What a tensor is of some logits.

        Args:
            tensor: The tensor.

        Returns:
            None where that is not known, or one of both was written to since.
        """
        found = self._known.get(tensor) if isinstance(tensor, Tensor) else None
        if found is None:
            return None
        linked, version = found
        now = [_version(x) for x in (tensor, linked.logits) if isinstance(x, Tensor)]
        written = now != [version, linked.version]
        return None if written else linked

    def follow(
        self, func: Function, name: str, number: int, args: Args, kwargs: Kwargs, output: object
    ) -> None:
        """Take note of what a call returned.

        Args:
            func: The function.
            name: Its name.
            number: Of the call.
            args: Its positional arguments.
            kwargs: Its arguments by name.
            output: What it returned.
        """
        first = args[0] if args else kwargs.get("input")
        if name in {"sub", "subtract"} and len(args) > 1 and _near(args[:1], 1):
            name, args, first = "rsub", (args[1], args[0]), args[1]
        if not isinstance(output, Tensor) or not isinstance(first, Tensor) or output is first:
            return
        if name in LINKING:
            self._numbers.setdefault(first, number)
            found = self._made(name, first, args, kwargs)
        else:
            before = self.of(first)
            found = None if before is None else self._changed(before, func, name, args, kwargs)
        if found is not None:
            self._known[output] = found, _version(output)

    def _made(self, name: str, first: Tensor, args: Args, kwargs: Kwargs) -> Linked | None:
        linked = Linked("neg", first, self._numbers[first], _version(first))
        if name in SOFTMAX:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if type(axis) is not int or not first.ndim:
                return None
            is_log = name in LOG_SOFTMAX
            return linked._replace(kind="softmax", axis=axis % first.ndim, is_log=is_log)
        if name in SIGMOID:
            before = self.of(first)
            negative = before is not None and before.kind == "neg"
            linked = before if before is not None and negative else linked
            return linked._replace(kind="sigmoid", turned=negative, is_log=name in LOG_SIGMOID)
        return linked

    def _changed(
        self, linked: Linked, func: Function, name: str, args: Args, kwargs: Kwargs
    ) -> Linked | None:
        if name in COPYING:
            return linked
        if name in SHAPING:

            def change(x: Tensor) -> Tensor:
                found: Tensor = func(x, *args[1:], **kwargs)
                return found

            return linked._replace(chain=(*linked.chain, change)) if args else None
        return self._of_probabilities(linked, name, args, kwargs)

    def _of_probabilities(
        self, linked: Linked, name: str, args: Args, kwargs: Kwargs
    ) -> Linked | None:
        if name == "log1p" and linked.kind == "neg" and not linked.chain:
            inner = self.of(linked.logits)
            return None if inner is None else _logarithm(_complement(inner))
        if name == "log":
            return _logarithm(linked)
        if name in {"rsub", "__rsub__"} and _near(args[1:2], 1) and not kwargs:
            return _complement(linked._replace(exact=linked.exact and args[1] == 1))
        adds = name in {"add", "__radd__"} and _near(args[1:2], 0) and not kwargs
        kept = adds and linked.kind != "neg" and not linked.is_log
        kept = kept or _only_limits(linked, name, args, kwargs)
        return linked._replace(exact=False) if kept else None


def _logarithm(linked: Linked | None) -> Linked | None:
    known = linked is not None and linked.kind != "neg" and not linked.is_log
    return linked._replace(is_log=True) if linked is not None and known else None


def _complement(linked: Linked) -> Linked | None:
    known = linked.kind == "sigmoid" and not linked.is_log
    return linked._replace(turned=not linked.turned) if known else None


def _near(values: Args, wanted: float) -> bool:
    return any(type(x) in {int, float} and abs(x - wanted) <= SMALL for x in values)


def _only_limits(linked: Linked, name: str, args: Args, kwargs: Kwargs) -> bool:
    """Whether a call keeps probabilities from zero and one, and does no more."""
    if name not in LIMITING or linked.kind == "neg":
        return False
    names = ("max",) if name == "clamp_max" else ("min", "max")
    given = dict(zip(names, args[1:], strict=False)) | kwargs
    low, high = given.get("min"), given.get("max")
    if not all(x is None or type(x) in {int, float} for x in (low, high)):
        return False
    least, most = (LEAST_LOGARITHM, -SMALL) if linked.is_log else (SMALL, 1 - SMALL)
    return (low is None or low <= least) and (high is None or high >= most)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to."""
    return 0 if tensor.is_inference() else tensor._version
