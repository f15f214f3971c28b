"""Which activations are the state, and how they become a tensor of shape (B, T, n)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ntk_monitor.model.batch.structure import first_tensor
from ntk_monitor.model.parameters.unwrapping import plain_name
from ntk_monitor.model.state.automatic import automatic_state
from ntk_monitor.model.state.calls import RECURRENT, Call, Ends, WeightUse, is_channels_first
from ntk_monitor.model.state.row_labels import Label, Labels
from ntk_monitor.model.state.sources import StateSource, is_time_first, read_rows, unpack

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
        found = {}
        for s in own[0].rows:
            if all(s in call.rows for call in own):
                each = (
                    call.rows[s].each(partial(_narrow_rows, source, call.output)) for call in own
                )
                found[s] = Label(*(source.together(kind) for kind in zip(*each, strict=True)))
        parts.append(found)
    if len(parts) == 1:
        return parts[0]
    joined = {}
    for s in dict.fromkeys(s for part in parts for s in part):
        those = [part[s] for part in parts if s in part]
        joined[s] = Label(*(torch.cat(kind, dim=-1) for kind in zip(*those, strict=True)))
    return joined


def _narrow_rows(source: StateSource, output: Any, numbers: Tensor) -> Tensor:  # noqa: ANN401
    """Row numbers as the state is laid out, in one column where all are the same."""
    numbers = read_rows(source, output, numbers)
    first = numbers[..., :1]
    return first.clone() if bool((numbers == first).all()) else numbers


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
    weights: Sequence[WeightUse],
    ends: Ends,
    mask: Tensor | None,
    *,
    must_fit: bool,
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
        ends: The outputs.
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
        path = automatic_state(calls, weights, ends) if wanted == "auto" else wanted
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
