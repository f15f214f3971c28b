"""What is noted of a forward pass: calls of submodules, uses of weights, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ntk_monitor.compat import CONVOLUTION, NORMS_OF_CHANNELS, POOLINGS
from ntk_monitor.model.batch.structure import first_tensor
from ntk_monitor.model.state.row_labels import Labels

RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
Recurrent = nn.RNN | nn.GRU | nn.LSTM
CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
CHANNELS_FIRST = (CONVOLUTION, *NORMS_OF_CHANNELS, nn.GroupNorm, *POOLINGS)
FEATURES_LAST = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.MultiheadAttention,
    nn.RNNBase,
)


@dataclass(frozen=True)
class Call:
    """One call of a submodule in a forward pass.

    Attributes:
        path: The submodule's path.
        module: The submodule.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned.
        uses: How many uses of weights had been seen when it returned.
        nodes: The tensors that it returned in the graph of the pass; none if no studied parameter
            is behind them.
        node: The first floating one of them; None if that has no studied parameter behind it.
        varies: Whether what it returned depends on data.
        rows: The rows of the first tensor that it returned.
    """

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    uses: int = 0
    nodes: tuple[Any, ...] = ()
    node: Any = None
    varies: bool = True
    rows: Labels = field(default_factory=dict)

    def argument(self, name: str) -> Any:  # noqa: ANN401
        """The first argument, by position or by name."""
        return self.args[0] if self.args else self.kwargs.get(name)


class WeightUse(NamedTuple):
    """One use of a weight in a forward pass.

    Attributes:
        rows: How many rows the weight acts on.
        size: How many numbers it has.
        nodes: What the operation returned, in the graph of the pass; none of a bias alone.
    """

    rows: int
    size: int
    nodes: tuple[Any, ...]


class Ends(NamedTuple):
    """The outputs in the graph of a pass.

    Attributes:
        nodes: For each output, where it is; of a loss that compares none, the loss.
        are_compared: Whether a loss tells what they are.
    """

    nodes: tuple[tuple[Any, ...], ...]
    are_compared: bool = False


def is_channels_first(call: Call, calls: Sequence[Call]) -> bool:
    """Whether features come before positions, by the last layer whose output had this shape.

    Args:
        call: A call that returned three axes or more.
        calls: All calls, in order.

    Returns:
        True if they do.
    """
    output = first_tensor(call.output)
    assert isinstance(output, Tensor)
    before = calls[: 1 + next(i for i, c in enumerate(calls) if c is call)]
    for earlier in reversed(before):
        shape = getattr(first_tensor(earlier.output), "shape", None)
        if shape == output.shape and isinstance(earlier.module, CHANNELS_FIRST):
            return True
        if shape == output.shape and isinstance(earlier.module, FEATURES_LAST):
            return False
    return output.ndim > 3
