"""Which activations are the state, and how they become a tensor of shape (B, T, n)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ntk_monitor.model.batch.structure import first_tensor, of_the_class, plain_tensor
from ntk_monitor.model.parameters.unwrapping import plain_name
from ntk_monitor.model.state.automatic import automatic_state
from ntk_monitor.model.state.calls import (
    RECURRENT,
    Call,
    Ends,
    WeightUse,
    is_channels_first,
)
from ntk_monitor.model.state.row_labels import NONE, Label, Labels

Layout = Literal["batch", "time", "unbatched", "channels"]
"""``"batch"``: (B, T, n), (B, n), or (B, ..., n). ``"time"``: (T, B, n). ``"unbatched"``: (T, n),
one sequence. ``"channels"``: (B, n, ...), positions last."""
StatePath = str | Sequence[str]


def require_paths(state: Any) -> None:  # noqa: ANN401
    """Refuse a state that is not named by its path.

    Args:
        state: What was given.

    Raises:
        ValueError: If it is neither a path nor several.
    """
    several = isinstance(state, Sequence) and all(isinstance(path, str) for path in state)
    if isinstance(state, str) or (several and state):
        return
    told = f"a {type(state).__name__}" if isinstance(state, nn.Module) else repr(state)
    raise ValueError(
        "state must be 'auto', the path of a module, such as 'rnn' where model.rnn is meant (model."
        f"named_modules() lists them), or several paths, got {told}"
    )


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
    return PackedSequence(
        torch.cat(steps), old.batch_sizes, old.sorted_indices, old.unsorted_indices
    )


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
        packed = PackedSequence(
            (numbers - NONE).double(),
            found.batch_sizes,
            found.sorted_indices,
            found.unsorted_indices,
        )
        return unpack(packed)[0].long() + NONE
    return source.read(numbers.double()).long()


def state_rows(state: State, calls: Sequence[Call]) -> Labels:
    """The rows of the state.

    Args:
        state: Where it is.
        calls: All calls of submodules in the pass.

    Returns:
        Their numbers, shape ``(B, T, c)``: one column where all features of a module have the same.
    """
    parts = []
    for source in state.sources:
        own = [call for call in calls if call.path == source.path]
        sources = dict.fromkeys(s for call in own for s in call.rows)
        found = {}
        for s in sources:
            each = [
                label.each(partial(_narrow_rows, source, call.output))
                if (label := call.rows.get(s)) is not None
                else None
                for call in own
            ]
            known = next(label for label in each if label is not None)
            if len(each) == 1:
                found[s] = known
            elif all(label is not None for label in each):
                found[s] = Label(
                    *(source.together([label[i] for label in each if label]) for i in range(3))
                )
        parts.append(found)
    if len(parts) == 1:
        return parts[0]
    joined = {}
    for s in dict.fromkeys(s for part in parts for s in part):
        those = [part[s] for part in parts if s in part]
        joined[s] = Label(*(torch.cat([label[i] for label in those], dim=-1) for i in range(3)))
    return joined


def _narrow_rows(source: StateSource, output: Any, numbers: Tensor) -> Tensor:  # noqa: ANN401
    """Row numbers as the state is laid out, in one column where all are the same."""
    numbers = read_rows(source, output, numbers)
    first = numbers[..., :1]
    return first.clone() if bool((numbers == first).all()) else numbers


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


@dataclass(frozen=True)
class State:
    """The state: the outputs of one module, or of several side by side.

    Attributes:
        sources: The modules.
        widths: How many features each has.
        valid: Which rows there are, (B, T); the others are padding and are zero in the state.
            None for all.
    """

    sources: tuple[StateSource, ...]
    widths: tuple[int, ...]
    valid: Tensor | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules' paths."""
        return tuple(source.path for source in self.sources)

    def part(self, tensor: Tensor, path: str) -> Tensor:
        """The features of one module.

        Args:
            tensor: Shape ``(B, T, n)``.
            path: The module's path.

        Returns:
            Shape ``(B, T, its width)``.
        """
        at = self.paths.index(path)
        return tensor.narrow(-1, sum(self.widths[:at]), self.widths[at])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The state from the outputs of its modules.

        Args:
            parts: One for each module, ``(B, T, its width)``.

        Returns:
            Shape ``(B, T, n)``.
        """
        h = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)
        return h if self.valid is None else h.where(self.valid.unsqueeze(-1), 0)


def find_state(
    module: nn.Module,
    state: StatePath,
    calls: Sequence[Call],
    weights: Sequence[WeightUse] = (),
    ends: Ends | None = None,
    mask: Tensor | None = None,
    *,
    must_fit: bool = True,
) -> tuple[State, Tensor]:
    """Decide which modules' outputs are the state.

    Args:
        module: The module under study.
        state: A module path, several whose features are put side by side, or ``"auto"``: of the
            modules on the way from studied parameters to every output that is compared, the
            last recurrent layer or cell; without one, the last module before the readout (a linear
            or convolutional layer, if that is the last one with weights), or, if its rows are those
            of a minor part of the weights (a pooled state), the last one on whose rows most weights
            act; never the outputs themselves, where there is another.
        calls: All calls of submodules in one forward pass, in order.
        weights: The uses of weights, in order.
        ends: The outputs; None where they are not known.
        mask: Which rows there are, (B, T), or how many of each trial, (B,); None for all.
        must_fit: Whether a mask of another shape is an error; otherwise it is left aside.

    Returns:
        Where to read the state, and the state.

    Raises:
        ValueError: If a path does not exist, or its module is not called, or several times with
            whole sequences; or if the rows of several modules differ.
    """
    paths = [plain_name(path) for path in ([state] if isinstance(state, str) else state)]
    modules = dict(module.named_modules())
    sources, parts = [], []
    for wanted in paths:
        if wanted != "auto" and wanted not in modules:
            known = [path for path in modules if path]
            near = difflib.get_close_matches(wanted, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"state={wanted!r} is not a module of {type(module).__name__}{hint}; its modules "
                f"are {', '.join(known)}"
            )
        path = automatic_state(calls, weights, ends or Ends()) if wanted == "auto" else wanted
        source = _source(module, path, calls)
        steps = [source.read(call.output) for call in calls if call.path == path]
        if len(steps) > 1:
            axis = 1 if len({len(step) for step in steps}) == 1 else 0
            spans = tuple(step.shape[axis] for step in steps)
            source = replace(source, spans=spans, axis=axis)
        sources.append(source)
        parts.append(source.together(steps))
        output = first_tensor(next(call.output for call in calls if call.path == path))
        if isinstance(output, PackedSequence) and len(steps) == 1:
            mask, must_fit = unpack(output)[1], True
    if len({part.shape[:2] for part in parts}) > 1:
        found = {p: tuple(part.shape) for p, part in zip(paths, parts, strict=True)}
        raise ValueError(
            f"the modules of state={paths} must agree in trials and time steps (B, T), got {found}"
        )
    rows = (parts[0].shape[0], parts[0].shape[1])
    valid = None if mask is None else _valid(mask.to(parts[0].device), rows, must_fit=must_fit)
    whole = State(tuple(sources), tuple(part.shape[2] for part in parts), valid)
    return whole, whole.join(parts)


def _valid(mask: Tensor, rows: tuple[int, int], *, must_fit: bool) -> Tensor | None:
    """Which rows there are, (B, T); None for all."""
    B, T = rows
    if tuple(mask.shape) == (B,) and mask.dtype != torch.bool and T > 1:
        mask = torch.arange(T, device=mask.device) < mask.unsqueeze(1)
    if tuple(mask.shape) != rows:
        if not must_fit:
            return None
        raise ValueError(
            f"a mask must have the state's rows (B, T) = {rows}, or be lengths of shape ({B},); "
            f"got {tuple(mask.shape)} of {mask.dtype}: change mask_fn, or choose another state"
        )
    valid = mask != 0
    return None if bool(valid.all()) else valid


def _source(module: nn.Module, path: str, calls: Sequence[Call]) -> StateSource:
    found = [call for call in calls if call.path == path]
    steps = [first_tensor(call.output) for call in found]
    is_cell = len(found) > 1 and all(isinstance(t, Tensor) and t.ndim == 2 for t in steps)
    goes_on = len(found) > 1 and isinstance(found[0].module, RECURRENT)
    if len(found) != 1 and not is_cell and not goes_on:
        raise ValueError(
            f"the state {path!r} must be the output of a module that is called once per forward "
            "pass, of a cell that returns one time step (B, n) per call, or of a recurrent layer; "
            f"got {len(found)} calls: choose another module with state='path.of.module'"
        )
    output, source = steps[0], StateSource(path)
    if isinstance(found[0].module, RECURRENT):
        return recurrent_source(found[0])
    if isinstance(output, Tensor) and output.ndim > 2 and is_channels_first(found[0], calls):
        return replace(source, layout="channels")
    three = isinstance(output, Tensor) and output.ndim == 3
    return replace(source, layout="time") if three and is_time_first(module) else source


def recurrent_source(call: Call) -> StateSource:
    """A recurrent layer as a source of states.

    Args:
        call: A call of the layer.

    Returns:
        The source, which knows how the layer lays out its sequences.
    """
    inputs = call.argument("input")
    if isinstance(inputs, Tensor) and inputs.ndim == 2:
        return StateSource(call.path, "unbatched", recurrent=True)
    return StateSource(call.path, "batch" if call.module.batch_first else "time", recurrent=True)
