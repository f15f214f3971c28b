"""Which activations are the state, and how they become a tensor of shape (B, T, n)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ntk_monitor.model.batch import first_tensor

RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
Recurrent = nn.RNN | nn.GRU | nn.LSTM
CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
Cell = nn.RNNCell | nn.GRUCell | nn.LSTMCell


def is_time_first(module: nn.Module) -> bool:
    """Whether the module's sequences are laid out (T, B, features).

    Args:
        module: The module under study.

    Returns:
        True when it has recurrent layers and none of them is ``batch_first``.
    """
    layers = [m for m in module.modules() if isinstance(m, RECURRENT)]
    return bool(layers) and not any(layer.batch_first for layer in layers)


@dataclass(frozen=True)
class Call:
    """One call of a submodule in a forward pass.

    Attributes:
        path: The submodule's path.
        module: The submodule.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned.
    """

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class StateSource:
    """One module whose output is (a part of) the state.

    A module called once per forward pass returns the whole of it; one that is called several
    times with outputs of shape (B, n), a cell, returns a time step at each call.

    Attributes:
        path: The module's path.
        time_first: Whether its output is laid out (T, B, n) rather than (B, T, n).
        unbatched: Whether a two-axis output is (T, n), one sequence, rather than (B, n).
        calls: How often it is called in a forward pass.
        recurrent: Whether it is a recurrent layer, which carries its state from step to step.
    """

    path: str
    time_first: bool = False
    unbatched: bool = False
    calls: int = 1
    recurrent: bool = False

    def read(self, output: Any) -> Tensor:  # noqa: ANN401
        """The state in what one call returned.

        Args:
            output: What the module returned.

        Returns:
            Shape ``(B, T, n)``; ``T = 1`` for an output of shape ``(B, n)``.

        Raises:
            ValueError: If the output has no floating tensor, or one with other axes.
        """
        tensor = first_tensor(output)
        if tensor is None or tensor.ndim not in {2, 3}:
            found = f"a {type(output).__name__}" if tensor is None else f"{tuple(tensor.shape)}"
            raise ValueError(
                f"the state {self.path!r} must be a floating tensor of shape (B, T, n) or (B, n), "
                f"got {found}: choose another module with state='path.of.module'"
            )
        if tensor.ndim == 2:
            return tensor.unsqueeze(0 if self.unbatched else 1)
        return tensor.transpose(0, 1) if self.time_first else tensor

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
        if old is not None and old.ndim == 2:
            new = state.squeeze(0 if self.unbatched else 1)
        else:
            new = state.transpose(0, 1) if self.time_first else state
        replaced = _replace(output, old, new)
        if self.recurrent and isinstance(replaced, tuple) and len(replaced) == 2:
            return new, _follow(replaced[1], state[:, -1])
        return replaced


def _replace(output: Any, old: Tensor | None, new: Tensor) -> Any:  # noqa: ANN401
    """Put ``new`` where ``old`` stands."""
    if output is old:
        return new
    if isinstance(output, tuple):
        return tuple(new if item is old else item for item in output)
    if isinstance(output, list):
        return [new if item is old else item for item in output]
    return type(output)({k: new if v is old else v for k, v in output.items()})


def _follow(hidden: Any, last: Tensor) -> Any:  # noqa: ANN401
    """The final hidden state of a recurrent layer, made equal to the last step of its output."""
    if isinstance(hidden, tuple) and len(hidden) == 2:  # an LSTM's (h, c): c is not in the state
        return _follow(hidden[0], last), hidden[1]
    if not isinstance(hidden, Tensor):
        return hidden
    batched = last if hidden.ndim == 3 else last.squeeze(0)
    if hidden.shape[1:] != batched.shape:  # two directions, or a projection: leave it
        return hidden
    return torch.cat([hidden[:-1], batched.unsqueeze(0)])


def find_state(module: nn.Module, state: str, calls: list[Call]) -> StateSource:
    """Decide which module's output is the state.

    Args:
        module: The module under study.
        state: A module path, or ``"auto"``: the last recurrent layer or cell called; without
            one, the module called before the readout, which is the last ``nn.Linear`` called;
            without a readout, the last module called.
        calls: All calls of submodules in one forward pass, in order.

    Returns:
        Where to read the state.

    Raises:
        ValueError: If the path does not exist, or its module is not called, or several times with
            whole sequences.
    """
    modules = dict(module.named_modules())
    if state != "auto" and state not in modules:
        paths = [path for path in modules if path]
        near = difflib.get_close_matches(state, paths, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"state={state!r} is not a module of {type(module).__name__}{hint}; its modules are "
            f"{', '.join(paths)}"
        )
    path = _automatic(calls) if state == "auto" else state
    found = [call for call in calls if call.path == path]
    steps = [first_tensor(call.output) for call in found]
    is_cell = len(found) > 1 and all(t is not None and t.ndim == 2 for t in steps)
    if len(found) != 1 and not is_cell:
        raise ValueError(
            f"the state {path!r} must be the output of a module that is called once per forward "
            f"pass, or of a cell that returns one time step (B, n) per call; got {len(found)} "
            "calls: choose another module with state='path.of.module'"
        )
    source, inputs = modules[path], found[0].args
    if isinstance(source, RECURRENT):
        unbatched = bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2
        return StateSource(path, not source.batch_first, unbatched, recurrent=True)
    return StateSource(path, is_time_first(module) and not is_cell, calls=len(found))


def _automatic(calls: list[Call]) -> str:
    """The path that ``state="auto"`` stands for."""
    recurrent = [call.path for call in calls if isinstance(call.module, (*RECURRENT, *CELLS))]
    if recurrent:
        return recurrent[-1]
    leaves = [call for call in calls if not any(True for _ in call.module.children())]
    readouts = [i for i, call in enumerate(leaves) if isinstance(call.module, nn.Linear)]
    if readouts and readouts[-1] > 0:
        return leaves[readouts[-1] - 1].path
    if not leaves:
        raise ValueError(
            "state='auto' found no submodule call to read a state from: name one with "
            "state='path.of.module'"
        )
    return leaves[-1].path
