"""Finding the calls of a step that may compare outputs with a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ntk_monitor.compat import tree_leaves
from ntk_monitor.model.isolation.memory import address_of
from ntk_monitor.model.state.row_labels import NOTHING, Labels
from ntk_monitor.model.step.bits import Halves
from ntk_monitor.model.step.losses import LINKED, LOSSES
from ntk_monitor.model.step.origins import Origins
from ntk_monitor.model.step.reader import Reader, both_of, given
from ntk_monitor.model.step.standins import HARMLESS, REMEDY, StepError
from ntk_monitor.model.step.watch import COMPARING, LossWatch, Reading, sums_of

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
        other: What a second call returned that compares the same, a part of one loss; None for
            none.
        is_trained: Whether the target was computed from what is trained.
        part_of: What they are some features of, in the graph; None for nothing.
        evenly: Whether a loss pulls alike at all outputs that have one target.
        varies: Whether the target's numbers are known not to be all the same, or nothing is known.
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
    other: Tensor | None = None
    is_trained: bool = False
    part_of: Any = None
    evenly: bool = False
    varies: bool = True


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
        self._origins = Origins()
        self._reader = Reader(self.links, self._origins)
        self._halves = Halves()

    def see(self, func: Any, name: str, number: int, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Make a call, and look at what it compares and where its result comes from."""
        writes = name.endswith("_") and not name.startswith("__") and name not in HARMLESS
        if self._protected and writes and args:
            self._protect(args[0])
        if (
            self._protected
            and name in NORMALISING
            and given(args, kwargs, 3, "max_norm") is not None
        ):
            self._protect(given(args, kwargs, 1, "weight"), "max_norm")
        reading = self._reader.read(name, args, kwargs) if name in COMPARING else None
        p, t = both_of(reading, args, kwargs)
        linked = None if reading is None or reading.source is None else self.links.of(p)
        y = p if linked is None else linked.logits
        node, rows = (None, NOTHING) if y is None else (y.grad_fn, self._rows_of(y))
        output = func(*args, **kwargs)
        result = output.grad_fn if node is not None and isinstance(output, Tensor) else None
        if result is not None and self._origins.is_constant(t):
            self.constant_targets.append(result)
        elif result is not None and reading is not None:
            if name in LOSSES:
                self.sums[number] = sums_of(p, t)
            found = Candidate(
                number,
                reading,
                node,
                result,
                tuple(y.shape),
                (address_of(t) or 0, t.storage_offset(), tuple(t.shape)),
                by_hand=name not in LOSSES,
                is_column=self._origins.is_column(y),
                whole=self._origins.shape_before(y),
                tensors=(output, t) if self._keep and name not in LOSSES else None,
                rows=rows,
                is_trained=self._origins.is_trained(t),
                part_of=self._origins.whole_of(y),
            )
            self.candidates += self._wholes(found, p, t, output)
        self._origins.learn(name, args, kwargs, output)
        return output

    def _wholes(self, found: Candidate, p: Tensor, t: Tensor, output: Tensor) -> list[Candidate]:
        """A candidate, if it is one without another, or with another that was seen."""
        linked = self.links.of(p)
        if found.reading.loss is not LINKED["both"] or linked is None:
            return [found]
        half = self._halves.other(linked, t, output)
        return [] if half is None else [replace(found, other=half.result)]

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
