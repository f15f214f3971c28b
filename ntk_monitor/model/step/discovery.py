"""Finding the calls of a step that may compare outputs with a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ntk_monitor.compat import tree_leaves, without_torch_function
from ntk_monitor.model.isolation.memory import address_of
from ntk_monitor.model.state.row_labels import NOTHING, Labels
from ntk_monitor.model.step.losses import BY_HAND, LOSSES, RATES, SYMMETRIC
from ntk_monitor.model.step.standins import HARMLESS, REMEDY, StepError
from ntk_monitor.model.step.watch import (
    COMPARING,
    DIFFERENCES,
    DISTANCES,
    PRODUCTS,
    LossWatch,
    Place,
    Reading,
    argument_at,
    sums_of,
)

PROBABILITIES = frozenset({"sigmoid", "softmax"})
"""Functions whose results are taken for probabilities."""
LOGARITHMS = frozenset({"log", "log_softmax", "logsigmoid"})
"""Functions whose results are taken for log-probabilities."""
ARRANGING = frozenset({
    *("view", "reshape", "flatten", "unsqueeze", "squeeze", "permute", "transpose")
})
"""Functions that put the same numbers in another shape."""
FLATTENING = frozenset({"view", "reshape", "flatten", "ravel"})
"""Functions that may put rows and features into fewer axes."""
SELECTING = frozenset({"squeeze", "select", "__getitem__"})
"""Functions that may take one of the features on the last axis."""
CONSTANT = frozenset({
    *("zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty"),
})
"""Functions whose results hold nothing of their arguments."""
AS_THE_FIRST = frozenset({"type_as", "to", "expand_as", "view_as", "reshape_as"})
"""Functions whose results hold nothing of their arguments but the first."""
VARYING = frozenset({
    *("tensor", "as_tensor", "asarray", "from_numpy", "frombuffer", "from_dlpack"),
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "poisson", "multinomial"),
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_"),
})
"""Functions whose results are others at every batch, whatever their arguments."""

NORMALISING = frozenset({"embedding", "embedding_bag"})
"""Functions that scale rows of their weight, if they are given a ``max_norm``."""


@dataclass(frozen=True)
class Candidate:
    """A call that may compare outputs with a target.

    Attributes:
        number: Its number.
        reading: How it compares.
        node: The outputs in the graph of the pass.
        result: What it returned, in the graph.
        shape: Of the outputs.
        target: Names the target's numbers.
        by_hand: Whether it is no loss function of torch's.
        tensors: What it returned, and the target; None where none are kept.
        is_column: Whether the outputs are one of the features of a tensor with one more axis.
        whole: The outputs' shape before they were flattened; None if they were not.
        rows: The rows of the outputs.
    """

    number: int
    reading: Reading
    node: Any
    result: Any
    shape: tuple[int, ...]
    target: tuple[Any, ...]
    by_hand: bool
    tensors: tuple[Tensor, Tensor] | None
    is_column: bool
    whole: tuple[int, ...] | None
    rows: Labels


class Discovery(LossWatch):
    """Finds the calls that may compare outputs with a target.

    A target is data: what is the same for every batch (ones, the numbers of the rows) is none.

    Attributes:
        candidates: What was found, in order.
        constant_targets: Results of comparisons with what is the same for every batch, in the
            graph.
        sums: What torch's own functions compare, as sums that tell whether another pass compares
            the same; by number.
    """

    def __init__(
        self,
        protected: frozenset[int] = frozenset(),
        *,
        keep: bool = True,
        rows_of: Callable[[Tensor], Labels] = lambda _: NOTHING,
    ) -> None:
        """Begin with nothing known.

        Args:
            protected: Addresses of memory that no call may write to.
            keep: Whether candidates keep tensors.
            rows_of: Tells the rows of a tensor.
        """
        super().__init__()
        self._rows_of = rows_of
        self._protected, self._keep = protected, keep
        self.candidates: list[Candidate] = []
        self.constant_targets: list[Any] = []
        self.sums: dict[int, Tensor] = {}
        # Of tensors that are still there: nothing is kept for this.
        self._constants: Any = WeakIdKeyDictionary()
        self._logarithms: Any = WeakIdKeyDictionary()
        self._probabilities: Any = WeakIdKeyDictionary()
        self._columns: Any = WeakIdKeyDictionary()
        self._flattened: Any = WeakIdKeyDictionary()

    def see(self, func: Any, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Make a call, and look at what it compares and where its result comes from."""
        writes = name.endswith("_") and not name.startswith("__") and name not in HARMLESS
        if self._protected and writes and args:
            self._protect(args[0])
        if (
            self._protected
            and name in NORMALISING
            and _given(args, kwargs, 3, "max_norm") is not None
        ):
            self._protect(_given(args, kwargs, 1, "weight"), "max_norm")
        reading = self._reading(name, args, kwargs) if name in COMPARING else None
        y, t = _compared(reading, args, kwargs)
        node, rows = (None, NOTHING) if y is None else (y.grad_fn, self._rows_of(y))
        output = func(*args, **kwargs)
        result = output.grad_fn if node is not None and isinstance(output, Tensor) else None
        if result is not None and self.is_constant(t):
            self.constant_targets.append(result)
        elif result is not None and reading is not None:
            if name in LOSSES:
                self.sums[number] = sums_of(y, t)
            self.candidates.append(
                Candidate(
                    number,
                    reading,
                    node,
                    result,
                    tuple(y.shape),
                    (address_of(t) or 0, t.storage_offset(), tuple(t.shape)),
                    by_hand=name not in LOSSES,
                    is_column=y in self._columns,
                    whole=self._flattened.get(y),
                    tensors=(output, t) if self._keep and name not in LOSSES else None,
                    rows=rows,
                )
            )
        self._learn(name, args, kwargs, output)
        return output

    def _protect(
        self, written: object, how: str = "a target network, weights that are clipped"
    ) -> None:
        """Refuse a call that would write into the parameters themselves."""
        for tensor in tree_leaves(written):
            if not isinstance(tensor, Tensor) or type(tensor).__name__ == "DTensor":
                continue
            if tensor.numel() and address_of(tensor) in self._protected:
                raise StepError(
                    f"the step writes into parameters of the model ({how}), and "
                    "method='in-place' keeps no copy of them: leave the method out, or "
                    f"{REMEDY}"
                )

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is known to be the same for every batch."""
        return tensor in self._constants

    def _reading(self, name: str, args: Any, kwargs: Any) -> Reading | None:  # noqa: ANN401
        """How a call compares; None where it does not."""
        other = _place(args, 1, "other")
        reading: Reading | None
        if name in LOSSES:
            log_input = _given(args, kwargs, 2, "log_input", True)
            loss = RATES if name == "poisson_nll_loss" and not log_input else LOSSES[name]
            reading = Reading(loss, _place(args, 0, "input"), _place(args, 1, "target"))
            if name in SYMMETRIC:
                reading = self._turned(reading, args, kwargs)
        elif name in DISTANCES:
            reading = Reading(BY_HAND["difference"], _place(args, 0, "x1"), _place(args, 1, "x2"))
            reading = self._turned(reading, args, kwargs)
        elif name in DIFFERENCES:
            turned = self._turned(Reading(BY_HAND["difference"], (0,), other), args, kwargs)
            whole = kwargs.get("alpha", 1) == 1 and _is_whole(turned, args, kwargs)
            reading = turned if whole else None
        elif name in PRODUCTS:
            turned = self._turned(Reading(BY_HAND["product"], (0,), other), args, kwargs)
            reading = self._weighs(turned, args, kwargs)
        else:
            reading = self._picked(name, args, kwargs)
        y, t = _compared(reading, args, kwargs)
        floating = isinstance(y, Tensor) and y.is_floating_point() and y.ndim > 0
        floating = floating and y.requires_grad
        return reading if floating and isinstance(t, Tensor) and not t.requires_grad else None

    def _turned(self, reading: Reading, args: Any, kwargs: Any) -> Reading:  # noqa: ANN401
        """The reading in which the outputs are what can be trained."""
        y = argument_at(args, kwargs, reading.output)
        if isinstance(y, Tensor) and not y.requires_grad:
            return reading._replace(output=reading.target, target=reading.output)
        return reading

    def _weighs(self, reading: Reading, args: Any, kwargs: Any) -> Reading | None:  # noqa: ANN401
        """How (log-)probabilities are multiplied with data that could be such."""
        y, t = _compared(reading, args, kwargs)
        if not isinstance(y, Tensor) or not isinstance(t, Tensor) or y.shape != t.shape:
            return None
        if y not in self._logarithms and y not in self._probabilities:
            return None
        with without_torch_function():
            if not bool(((t >= 0) & (t <= 1)).all()):
                return None
        is_logarithm = y in self._logarithms
        return reading if is_logarithm else reading._replace(loss=BY_HAND["overlap"])

    def _picked(self, name: str, args: Any, kwargs: Any) -> Reading | None:  # noqa: ANN401
        """How log-probabilities are picked by class indices."""
        source = args[0] if args else None
        if not isinstance(source, Tensor) or source not in self._logarithms:
            return None
        last = source.ndim - 1
        if name == "gather":
            dim, which = _given(args, kwargs, 1, "dim"), _given(args, kwargs, 2, "index")
            fits = isinstance(dim, int) and dim % source.ndim == last and which.shape[-1] == 1
            return Reading(BY_HAND["gather"], (0,), _place(args, 2, "index")) if fits else None
        index: Any = args[1] if len(args) > 1 else None
        pair = isinstance(index, tuple) and len(index) == source.ndim == 2
        if not pair or not all(isinstance(i, Tensor) and i.ndim == 1 for i in index):
            return None
        fits = self.is_constant(index[0]) and len(index[0]) == len(source)
        return Reading(BY_HAND["pick"], (0,), (1, 1)) if fits else None

    def _learn(self, name: str, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
        """Take note of what a call returned."""
        if output is None and name != "__setitem__":
            return
        inputs = [*_tensors_in(args), *_tensors_in(tuple(kwargs.values()))]
        outputs = _tensors_in((output,))
        inputs_that_count = inputs[:1] if name in AS_THE_FIRST else inputs
        constant = name in CONSTANT or (
            name not in VARYING
            and all(map(self.is_constant, inputs_that_count))
            and name != "__get__"
        )
        for t in outputs:
            if constant and not t.requires_grad:
                self._constants[t] = True
            else:
                self._constants.pop(t, None)
        if name == "__setitem__" and not all(map(self.is_constant, inputs)):
            self._constants.pop(args[0], None)
        if not isinstance(output, Tensor):
            return
        if name in SELECTING and inputs and output.shape == inputs[0].shape[:-1]:
            self._columns[output] = True
        if name in FLATTENING and inputs and output.ndim < inputs[0].ndim:
            self._flattened[output] = tuple(inputs[0].shape)
        kinds = ((LOGARITHMS, self._logarithms), (PROBABILITIES, self._probabilities))
        for names, known in kinds:
            if name in names or (name in ARRANGING and inputs and inputs[0] in known):
                known[output] = True


def _tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some arguments, and in lists and tuples among these."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors_in(value)
    return found


def _compared(reading: Reading | None, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """The outputs and the target of a call; nothing where it does not compare."""
    if reading is None:
        return None, None
    output = argument_at(args, kwargs, reading.output)
    return output, argument_at(args, kwargs, reading.target)


def _given(args: Any, kwargs: Any, index: int, name: str, default: Any = None) -> Any:  # noqa: ANN401
    """An argument that may have been given by position or by name."""
    return args[index] if len(args) > index else kwargs.get(name, default)


def _place(args: Sequence[Any], index: int, name: str) -> Place:
    return (index,) if len(args) > index else (name,)


def _is_whole(reading: Reading, args: Any, kwargs: Any) -> bool:  # noqa: ANN401
    """Whether a difference compares rows of outputs with rows of a target."""
    y, t = _compared(reading, args, kwargs)
    if not isinstance(y, Tensor) or not isinstance(t, Tensor) or t.numel() < 2 or y.ndim == 0:
        return False
    if not t.is_floating_point() or t.ndim > y.ndim:
        return False
    same = all(a in {b, 1} for a, b in zip(t.shape[::-1], y.shape[::-1], strict=False))
    return same and t.ndim == y.ndim and t.shape[0] == y.shape[0]
