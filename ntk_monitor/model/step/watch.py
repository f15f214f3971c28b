"""Watching one call of a step: what its loss compares, and that it optimises nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from ntk_monitor.compat import backward_seen, tree_leaves, without_torch_function
from ntk_monitor.model.batch.structure import of_the_class, plain_tensor
from ntk_monitor.model.isolation.interception import Args, Function, FunctionMode, Kwargs
from ntk_monitor.model.step.comparison import Seen
from ntk_monitor.model.step.links import LINKING, Links
from ntk_monitor.model.step.losses import LINKED, LOSSES, Loss
from ntk_monitor.model.step.tape import Tape

DIFFERENCES = frozenset({"sub", "subtract", "rsub", "__rsub__", "sub_", "__isub__"})
PRODUCTS = frozenset({"mul", "multiply", "mul_", "__rmul__"})
DISTANCES = frozenset({"dist", "pairwise_distance"})
PICKS = frozenset({"gather", "take_along_dim", "__getitem__"})
COMPARING = frozenset(LOSSES) | DIFFERENCES | PRODUCTS | DISTANCES | PICKS
"""Functions that may compare outputs with a target, by name; each call of one has a number."""
NUMBERED = COMPARING | LINKING
MOST_SHAKEN = 2**26
"""Entries of outputs up to which it is asked which of them count; of more, all do."""
Place = tuple[int | str, ...]
"""Where an argument is: its position or its name, and where in it if it is a tuple."""


class Reading(NamedTuple):
    """How one call compares.

    Attributes:
        loss: What is compared.
        output: Where the outputs are.
        target: Where the target is.
        source: The call in which the outputs enter, where they are logits and what is compared is
            made of these; None where they enter in the comparing call.
    """

    loss: Loss
    output: Place
    target: Place
    source: int | None = None


class LossWatch(FunctionMode):
    """Numbers the calls that may compare, the same in every pass, and keeps a step from optimising.

    Attributes:
        meant: What the step would have gone backward from.
        differentiates: Whether the step goes backward, or takes derivatives.
        links: Of which logits tensors hold probabilities.
    """

    def __init__(self, *, cut: bool = False) -> None:
        """Begin at zero.

        Args:
            cut: Whether what follows may depend on less than it does in training, so that
                derivatives that the step takes are zero where there is no way.
        """
        super().__init__()
        self.meant: list[Tensor] = []
        self.differentiates = False
        self._cut = cut
        self.links = Links()
        self._count = 0
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._entered.enter_context(backward_seen())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:  # noqa: ANN401
        """End it."""
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._entered.close()

    def call(self, func: Function, name: str, args: Args, kwargs: Kwargs) -> Any:  # noqa: ANN401
        """Look at a call, and make it, unless it goes backward."""
        if name == "backward":
            self.differentiates = True
            given = args[0] if args else kwargs.get("tensors")
            self.meant += [t for t in tree_leaves(given) if isinstance(t, Tensor)]
            return None
        if name == "grad":
            self.differentiates = True
            if self._cut:
                kwargs = {**kwargs, "allow_unused": True, "materialize_grads": True}
        if name == "linear_cross_entropy":
            func, args, kwargs = _in_two(args, kwargs)
            name = "cross_entropy"
        if name == "nll_loss" and (logits := self._logits(args, kwargs)) is not None:
            func, args, kwargs = functional.cross_entropy, *_with(args, kwargs, *logits)
            name = "cross_entropy"
        number, self._count = self._count, self._count + (name in NUMBERED)
        output = self.see(func, name, number, args, kwargs)
        self.links.follow(func, name, number, args, kwargs, output)
        return output

    def _logits(self, args: Args, kwargs: Kwargs) -> tuple[Place, Tensor] | None:
        """What log-probabilities were made of: with these the loss is the same, and linear."""
        place: Place = (0,) if args else ("input",)
        y = argument_at(args, kwargs, place)
        linked = self.links.of(y)
        if linked is None or linked.kind != "softmax" or not (linked.is_log and linked.exact):
            return None
        if not linked.has_classes_on(min(1, y.ndim - 1)):
            return None
        return place, linked.ordered(linked.logits)

    def see(self, func: Any, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Make a call, and do what this watch is for."""
        del name, number
        return func(*args, **kwargs)


class Following(LossWatch):
    """Reads comparisons that were found before.

    Attributes:
        seen: The comparisons by number.
        sums: As in `Discovery`, where outputs are shaken.
        shaken: What was put in the outputs' places, where the loss alone is differentiated.
    """

    def __init__(
        self,
        readings: Mapping[int, Reading],
        *,
        shake: bool = False,
        cut: bool = False,
        tape: Tape | None = None,
    ) -> None:
        """Prepare for a pass.

        Args:
            readings: How the calls compare, by their numbers.
            shake: Whether to go on from other outputs, in which the loss is then differentiable.
            cut: See `LossWatch`.
            tape: Records what is computed from the outputs; whoever made it stops it.
        """
        super().__init__(cut=cut)
        self.seen: dict[int, Seen] = {}
        self.sums: dict[int, Tensor] = {}
        self.shaken: dict[int, Tensor] = {}
        self._readings, self._shake, self._tape = readings, shake, tape
        self._entering: dict[int, list[int]] = {}
        for number, reading in readings.items():
            if reading.source is not None:
                self._entering.setdefault(reading.source, []).append(number)
        self._logits_of: dict[int | None, tuple[Tensor, Tensor]] = {}
        self._others: Any = WeakIdKeyDictionary()

    def see(self, func: Any, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Make a call, and read what it compares."""
        if number in self._entering and name in LINKING:
            self._enter(number, args[0] if args else kwargs["input"])
        found, given = self._instead(args), self._instead(kwargs)
        reading = self._readings.get(number) if name in COMPARING else None
        if reading is None:
            return func(*found, **given)
        y, t = argument_at(args, kwargs, reading.output), argument_at(args, kwargs, reading.target)
        if reading.source is not None:
            self._read_logits(number, reading, y, t, kwargs)
            found, given = self._with_shaken(number, reading, y, found, given)
            return func(*found, **given)
        with without_torch_function():
            whole, y, t = y, plain_tensor(y), plain_tensor(t)
            target, reach = reading.loss.target(t, kwargs, y), reading.loss.reach(kwargs)
            self.seen[number] = Seen(y, target, reach=reach)
        if self._tape is not None:
            self._tape.start(number, y)
            found, given = _with(found, given, reading.output, y)
        if self._shake:
            self.sums[number] = sums_of(y, t)
        if self._shake and y.numel() <= MOST_SHAKEN:
            self.shaken[number] = z = self._shaken(y, t, reading.loss)
            # With the leaf itself, what is in place would fail.
            found, given = _with(found, given, reading.output, of_the_class(z.view_as(z), whole))
        return func(*found, **given)

    def _shaken(self, y: Tensor, t: Tensor, loss: Loss) -> Tensor:
        torch.set_grad_enabled(True)  # put back by whoever runs the pass
        return _generic(y, t, loss).requires_grad_()

    def _enter(self, call: int, whole: Tensor) -> None:
        """Let logits enter: all that follows is computed from what is put in their place."""
        numbers = self._entering[call]
        with without_torch_function():
            y = plain_tensor(whole)
        self._logits_of[call] = whole, y
        if self._tape is not None:
            for number in numbers:
                self._tape.start(number, y)
            self._others[whole] = y
        numbers = [n for n in numbers if self._readings[n].loss is LINKED["both"]]
        if self._shake and y.numel() <= MOST_SHAKEN and numbers:
            z = self._shaken(y, y, LINKED["both"])
            self.shaken |= dict.fromkeys(numbers, z)
            self._others[whole] = of_the_class(z.view_as(z), whole)

    def _with_shaken(
        self, number: int, reading: Reading, p: Tensor, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        """Arguments with what shaken logits give: what else is made of these tells no count."""
        linked, read = self.links.of(p), self.seen.get(number)
        if not self._shake or linked is None or read is None or number in self.shaken:
            return args, kwargs
        y = read.output
        if y.numel() > MOST_SHAKEN:
            return args, kwargs
        self.shaken[number] = z = self._shaken(y, y, reading.loss)
        return _with(args, kwargs, reading.output, of_the_class(linked.made_of(z).to(p.dtype), p))

    def _instead(self, given: Any) -> Any:  # noqa: ANN401
        """Arguments with what is put in the place of logits."""
        if not self._others:
            return given
        if isinstance(given, dict):
            return {name: self._instead(value) for name, value in given.items()}
        if type(given) in {tuple, list}:
            return type(given)(self._instead(value) for value in given)
        return self._others.get(given, given) if isinstance(given, Tensor) else given

    def _read_logits(self, number: int, reading: Reading, p: Any, t: Any, kwargs: Any) -> None:  # noqa: ANN401
        """Read what is compared with logits that have entered before."""
        linked = self.links.of(p)
        whole, y = self._logits_of.get(reading.source, (None, None))
        if linked is None or linked.logits is not whole or y is None:
            return
        with without_torch_function():
            target = linked.placed(reading.loss.target(plain_tensor(t), kwargs, plain_tensor(p)))
            if target is not None:
                self.seen[number] = Seen(y, target, reach=reading.loss.reach(kwargs))


def sums_of(y: Tensor, t: Tensor) -> Tensor:
    """Two sums that tell whether two comparisons are of the same outputs and target.

    Args:
        y: The outputs.
        t: The target.

    Returns:
        The norm of floating numbers, the sum of others.
    """
    with without_torch_function():
        found = []
        for x in (plain_tensor(y).detach(), plain_tensor(t).detach()):
            size = torch.linalg.vector_norm(x) if x.is_floating_point() else x.sum()
            found.append(size.to(y.device, torch.float64))
        return torch.stack(found)


def _generic(y: Tensor, t: Tensor, loss: Loss) -> Tensor:
    """Outputs at which a loss has no derivative that is zero by chance.

    Args:
        y: The outputs.
        t: The target.
        loss: The loss.

    Returns:
        Of the outputs' shape and type.
    """
    generator = torch.Generator(device=y.device).manual_seed(0)
    noise = torch.randn(y.shape, generator=generator, device=y.device, dtype=torch.float32)
    noise = noise.to(y.dtype) if y.is_floating_point() else noise
    return loss.generic(noise, t.detach()).to(y.dtype).expand_as(y).clone()


def _in_two(args: Any, kwargs: Any) -> tuple[Function, Args, Kwargs]:  # noqa: ANN401
    """A linear layer and its cross-entropy, which torch also has as one."""
    given = dict(zip(("input", "linear_weight", "target"), args, strict=False)) | kwargs
    x, weight, target = (given.pop(name) for name in ("input", "linear_weight", "target"))
    bias = given.pop("linear_bias", None)
    given.pop("options", None)
    if given.get("ignore_index") is None:
        given.pop("ignore_index", None)
    return functional.cross_entropy, (functional.linear(x, weight, bias), target), given


def argument_at(args: Sequence[Any], kwargs: Mapping[str, Any], place: Place) -> Any:  # noqa: ANN401
    """An argument of a call.

    Args:
        args: The arguments by position.
        kwargs: The arguments by name.
        place: Which one.

    Returns:
        The argument; None where there is none.
    """
    first, *rest = place
    value: Any = None
    if isinstance(first, str):
        value = kwargs.get(first)
    elif first < len(args):
        value = args[first]
    for inner in rest:
        value = value[inner]
    return value


def _with(args: Args, kwargs: Kwargs, place: Place, value: object) -> tuple[Args, Kwargs]:
    """Arguments with another one in a place."""
    first = place[0]
    if isinstance(first, str):
        return args, {**kwargs, first: value}
    return (*args[:first], value, *args[first + 1 :]), kwargs
