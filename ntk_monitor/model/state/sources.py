"""Calls whose outputs are a state: reading them as rows, and replacing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ntk_monitor.model.batch.structure import first_tensor, of_the_class, plain_tensor
from ntk_monitor.model.state.calls import RECURRENT
from ntk_monitor.model.state.row_labels import NONE

Layout = Literal["batch", "time", "unbatched", "channels"]
"""``"batch"``: (B, T, n), (B, n), or (B, ..., n). ``"time"``: (T, B, n). ``"unbatched"``: (T, n),
one sequence. ``"channels"``: (B, n, ...), positions last."""


def is_time_first(module: nn.Module) -> bool:
    """Whether the module's sequences are laid out (T, B, features).

    Args:
        module: The module under study.

    Returns:
        True when it has recurrent or attention layers and none of them is ``batch_first``.
    """
    kinds = (*RECURRENT, nn.MultiheadAttention)
    layers = [m for m in module.modules() if isinstance(m, kinds)]
    return bool(layers) and not any(layer.batch_first for layer in layers)


def unpack(sequence: PackedSequence) -> tuple[Tensor, Tensor]:
    """A packed sequence as a tensor.

    Args:
        sequence: The packed sequence.

    Returns:
        The steps, (B, T, features), zero beyond the lengths; and which there are, (B, T).
    """
    padded, lengths = pad_packed_sequence(sequence, batch_first=True)
    steps = torch.arange(padded.shape[1], device=padded.device)
    return padded, steps < lengths.to(padded.device).unsqueeze(1)


def _pack_like(old: PackedSequence, padded: Tensor) -> PackedSequence:
    """Pack steps, (B, T, features), in the order of another packed sequence."""
    if old.sorted_indices is not None:
        padded = padded.index_select(0, old.sorted_indices)
    steps = [padded[:count, t] for t, count in enumerate(old.batch_sizes.tolist())]
    return old._replace(data=torch.cat(steps))


@dataclass(frozen=True)
class StateSource:
    """One module whose output is (a part of) the state.

    A module called once per forward pass returns the whole of it. A cell, which is called several
    times and returns (B, n), returns a time step at each call; a recurrent layer that is called
    several times, the next steps.

    Attributes:
        path: The module's path.
        layout: How its output is laid out.
        spans: How many time steps each of its calls returns; none for a single call.
        axis: Along which axis of the state calls follow one another: 1, time; or 0, where their
            trials differ in number.
        recurrent: Whether it is a recurrent layer, which carries its state from step to step.
    """

    path: str
    layout: Layout = "batch"
    spans: tuple[int, ...] = ()
    recurrent: bool = False
    axis: int = 1

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole of what several calls returned.

        Args:
            parts: What each returned, (B, its steps, n).

        Returns:
            Shape ``(B, T, n)``.
        """
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=self.axis)

    def span(self, tensor: Tensor, call: int) -> Tensor:
        """The time steps of one call.

        Args:
            tensor: Shape ``(B, T, n)``.
            call: The number of the call.

        Returns:
            Shape ``(B, its steps, n)``.
        """
        if not self.spans:
            return tensor
        return tensor.narrow(self.axis, sum(self.spans[:call]), self.spans[call])

    def read(self, output: Any) -> Tensor:  # noqa: ANN401
        """The state in what one call returned.

        Args:
            output: What the module returned.

        Returns:
            Shape ``(B, T, n)``; ``T = 1`` for an output of shape ``(B, n)``.

        Raises:
            ValueError: If the output has no floating tensor, or one with fewer axes.
        """
        tensor = first_tensor(output)
        if isinstance(tensor, PackedSequence):
            return unpack(tensor)[0]
        if tensor is None or tensor.ndim < 2:
            found = f"a {type(output).__name__}" if tensor is None else f"{tuple(tensor.shape)}"
            raise ValueError(
                f"the state {self.path!r} must be a floating tensor of shape (B, T, n), (B, n), "
                f"or (B, n, H, W), got {found}: choose another module with "
                "state='path.of.module'"
            )
        tensor = plain_tensor(tensor)
        if tensor.ndim == 2:
            return tensor.unsqueeze(0 if self.layout == "unbatched" else 1)
        if self.layout == "channels":
            return tensor.flatten(2).transpose(1, 2)
        return tensor.transpose(0, 1) if self.layout == "time" else tensor.flatten(1, -2)

    def write(self, output: Any, state: Tensor) -> Any:  # noqa: ANN401
        """A copy of what one call returned, in which the state is replaced.

        Args:
            output: What the module returned.
            state: The new state, shape ``(B, T, n)``; one step of it for a cell.

        Returns:
            An output of the same structure. The last hidden state that a recurrent layer returns
            beside its sequence follows the new state, so that nothing bypasses it.
        """
        old = first_tensor(output)
        assert old is not None
        new = self.laid_out(old, state)
        whole = replaced(output, old, new)
        if self.recurrent and isinstance(whole, tuple) and len(whole) == 2:
            return new, _follow(whole[1], old, state)
        return whole

    def laid_out(self, old: Tensor | PackedSequence, state: Tensor) -> Any:  # noqa: ANN401
        """A state as the module itself returns it.

        Args:
            old: What the module returned, or the first tensor in it.
            state: Shape ``(B, T, n)``.

        Returns:
            A tensor or packed sequence like the old one.
        """
        if isinstance(old, PackedSequence):
            return _pack_like(old, state)
        if old.ndim == 2:
            new = state.squeeze(0 if self.layout == "unbatched" else 1)
        elif self.layout == "channels":
            new = state.transpose(1, 2).reshape(old.shape)
        else:
            new = state.transpose(0, 1) if self.layout == "time" else state.reshape(old.shape)
        return of_the_class(new, old)


def read_rows(source: StateSource, output: Any, numbers: Tensor) -> Tensor:  # noqa: ANN401
    """Row numbers laid out as the state is.

    Args:
        source: How the state is read off an output.
        output: The output, or one of its shape.
        numbers: Of the entries of its first tensor.

    Returns:
        Shape ``(B, T, n)``, `NONE` for steps that a packed sequence lacks.
    """
    found = first_tensor(output)
    if isinstance(found, PackedSequence):
        packed = found._replace(data=(numbers - NONE).double())
        return unpack(packed)[0].long() + NONE
    return source.read(numbers.double()).long()


def replaced(output: Any, old: Any, new: Any) -> Any:  # noqa: ANN401
    """Put a tensor in another's place.

    Args:
        output: What a module returned.
        old: A tensor in it.
        new: What takes its place.

    Returns:
        An output of the same structure.
    """
    if output is old:
        return new
    if isinstance(output, (tuple, list)):
        items = [replaced(item, old, new) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    if isinstance(output, dict):
        entries = {k: replaced(v, old, new) for k, v in output.items()}
        return type(output)(**entries) if hasattr(output, "to_tuple") else entries
    return output


def _follow(hidden: Any, old: Any, state: Tensor) -> Any:  # noqa: ANN401
    """The final hidden states of a recurrent layer, made equal to the ends of its output.

    Forward it ends at the last step, backward at the first; other layers' are left as they are.

    Args:
        hidden: What the layer returned beside its output.
        old: Its output.
        state: What takes the place of that, (B, T, n).

    Returns:
        Of the structure of the first.
    """
    if isinstance(hidden, tuple) and len(hidden) == 2:  # an LSTM's (h, c): c is not in the state
        return _follow(hidden[0], old, state), hidden[1]
    if not isinstance(hidden, Tensor) or state.shape[-1] not in {
        hidden.shape[-1],
        2 * hidden.shape[-1],
    }:
        return hidden
    last = state[:, -1]
    if isinstance(old, PackedSequence):
        steps = unpack(old)[1].sum(1) - 1
        last = state[torch.arange(len(state), device=state.device), steps]
    size = hidden.shape[-1]
    ends = [last[:, :size], state[:, 0, size:]] if state.shape[-1] > size else [last]
    ends = [end if hidden.ndim == 3 else end.squeeze(0) for end in ends]
    if hidden.shape[1:] != ends[0].shape:
        return hidden
    return torch.cat([hidden[: -len(ends)], torch.stack(ends)])
