"""Records of the operations in which weights multiply activity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ntk_monitor.model.sites.operations.use import Use, product
from ntk_monitor.model.state.calls import RECURRENT, Call
from ntk_monitor.model.state.unroll import layer_activity, layer_input

REGISTERED = -1
"""Stands for the number of an operation where a registered layer told of the use."""


@dataclass(frozen=True)
class Origin:
    """Which parameters a tensor holds or is computed from.

    Attributes:
        names: Their names; none for a constant.
        derived: Whether it is computed from them, rather than one of them or a view.
        pending: Uses on a constant (an initial state of zeros, the positions in a sequence) that
            led to it. They count unless what came out serves as a weight itself.
        scale: What it is multiplied with, as far as that is a number.
        is_scaled: Whether it is one of them, or a view, but for that.
        part: Of a derived one, tells from which entries it is computed: others are other weights.
        is_held: Whether it is, or is computed from, what the module holds beside its buffers: a
            constant where it makes a weight of a weight of its shape, as a mask does; data else.
    """

    names: tuple[str, ...] = ()
    derived: bool = False
    pending: tuple[Record, ...] = ()
    scale: float = 1.0
    is_scaled: bool = False
    part: int = 0
    is_held: bool = False

    @property
    def is_computed(self) -> bool:
        """Whether it is computed from them by more than a number that multiplies it."""
        return self.derived and not self.is_scaled


@dataclass(frozen=True)
class Tap:
    """Where the outputs of a weight site are in a forward pass.

    Attributes:
        calls: Which of the operations that can have one, by number, one for each time step if
            there are several; or which call of a recurrent layer.
        place: Which of the operation's weights, or the local name of the layer's.
        path: The recurrent layer; None for an operation.
        write: From what is added to the weight's outputs, (B, T, q), or (B, q) at each of several
            steps, to what is added to the operation's output.
        group: Which of the weight's groups.
    """

    calls: tuple[int, ...]
    place: int | str
    path: str | None
    write: Callable[[Tensor, int], Tensor] = field(compare=False)
    group: int = 0


@dataclass(frozen=True)
class Record:
    """One use of a studied weight in a forward pass.

    Attributes:
        use: The use.
        weight: Where the weight comes from; None if it is not studied.
        bias: Likewise.
        key: Names the use in a pass: of an operation its number, and which of the uses read there;
            of a layer its path, which of its calls, and the place.
        output: The operation's output; None where its tensors are not kept.
        nodes: What the operation returned, in the graph of the pass: where the state comes from.
        label: Names the operation and the part of the weight, the same at every time step.
        call: The number of the operation, or of the layer's call, or `REGISTERED`.
        path: The recurrent layer, if it is one.
        local: The weight's local name there.
        valid: For packed sequences, which steps there are, (B, T).
        instead: Keys of uses in whose place it is, if it is one: either of two constants that a
            weight is between may be what it acts on.
    """

    use: Use
    weight: Origin | None
    bias: Origin | None
    key: tuple[Any, ...]
    output: Tensor | None
    nodes: tuple[Any, ...]
    label: tuple[Any, ...]
    call: int
    path: str | None = None
    local: str | None = None
    valid: Tensor | None = None
    instead: frozenset[tuple[Any, ...]] = frozenset()

    @property
    def size(self) -> int:
        """How many numbers the weight and the bias hold."""
        tensors = (self.use.weight, self.use.bias)
        return sum(t.numel() for t in tensors if t is not None)

    @property
    def is_pending(self) -> bool:
        """Whether it is not yet known which parameters act here."""
        return any(o is not None and o.pending for o in (self.weight, self.bias))


def layer_uses(call: Call) -> Iterator[tuple[str, Use, Tensor | None]]:
    """The uses of weights in one call of a recurrent layer.

    Args:
        call: The call.

    Yields:
        The weight's local name, the use, and which steps there are, for packed sequences.
    """
    module = call.module
    assert isinstance(module, RECURRENT)
    with torch.no_grad():
        valid = layer_input(call)[1]
        seen = layer_activity(call, module)
    for local, activity in seen.items():
        bias = getattr(module, local.replace("weight", "bias"), None)
        yield local, product(activity, getattr(module, local), bias), valid


def has_copies(tensor: Tensor | None) -> bool:
    """Whether a tensor is expanded: the same all along an axis."""
    return tensor is not None and any(
        size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
