"""Recurrent layers step by step, with places to reach in.

A fused recurrent layer shows neither what its weights return at a time step nor the state that it
carries on. Written out (paper, A.5.1 and A.5.2),

    q(t) = W_hh h(t-1) + b_hh,    p(t) = W_ih x(t) + b_ih,    h(t) = phi_step(q(t), p(t), h(t-1)),

it lets a perturbation be added to any of the three, and its state be given from outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ntk_monitor.model.state import CELLS, Call, Cell, Recurrent

Hidden = tuple[Tensor, Tensor]
"""Hidden state and, for an LSTM, cell state (elsewhere unused)."""


def step(module: nn.Module, p: Tensor, q: Tensor, h: Tensor, c: Tensor) -> Hidden:
    """One step of a recurrent layer or cell from its weighted sums.

    Args:
        module: The layer, which tells the equations.
        p: Weighted input, shape ``(B, g n)``.
        q: Weighted hidden state, of the same shape.
        h: Hidden state before the step, shape ``(B, n)``.
        c: Cell state before the step, for an LSTM.

    Returns:
        Hidden and cell state after the step.
    """
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        (p_r, p_z, p_n), (q_r, q_z, q_n) = p.chunk(3, 1), q.chunk(3, 1)
        r, z = torch.sigmoid(p_r + q_r), torch.sigmoid(p_z + q_z)
        return (1 - z) * torch.tanh(p_n + r * q_n) + z * h, c
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        i, f, g, o = (p + q).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    activation = torch.relu if getattr(module, "nonlinearity", "tanh") == "relu" else torch.tanh
    return activation(p + q), c


def unroll(
    call: Call,
    added: Mapping[str, Tensor],
    state: Tensor | None = None,
    given: Tensor | None = None,
    seen: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Any]:
    """Run a recurrent layer again, step by step, without its dropout.

    Args:
        call: The call of the layer in the forward pass.
        added: What to add to a weight's output, by the local name of the weight, (B, T, g n).
        state: What to add to the top layer's state at each step, (B, T, n); the layer carries
            the sum on.
        given: The state to carry on instead of the computed one, (B, T, n).
        seen: Where to put what each weight multiplies, by the local name of the weight, (B, T, m).

    Returns:
        The states computed from what was carried on, ``(B, T, D n)``, batch first, and the final
        hidden state as the layer returns it.

    Raises:
        ValueError: If a state is to be added or given to a layer of two directions, or the
            layer's input is packed.
    """
    module = call.module
    assert isinstance(module, (nn.RNN, nn.GRU, nn.LSTM))
    if module.bidirectional and (state is not None or given is not None):
        raise ValueError(
            f"{call.path!r} runs in two directions, so its state has no one-step dynamics: the "
            "propagator and the parameter operator are those of a layer of one direction"
        )
    x = call.args[0] if call.args else call.kwargs["input"]
    if not isinstance(x, Tensor):
        raise ValueError(
            f"{call.path!r} takes a packed sequence, which is not unrolled here: pad it"
        )
    x = batch_first(x, module)
    hidden = _initial(call, x, module)
    directions = 2 if module.bidirectional else 1
    finals: list[Hidden] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            top = layer == module.num_layers - 1
            states, final = _run_layer(
                module,
                suffix,
                x,
                hidden[layer * directions + direction],
                added,
                state if top else None,
                given if top else None,
                seen,
            )
            outputs.append(states)
            finals.append(final)
        x = torch.cat(outputs, dim=2)
    h, c = (torch.stack(parts) for parts in zip(*finals, strict=True))
    return x, (h, c) if isinstance(module, nn.LSTM) else h


def _run_layer(
    module: Recurrent,
    suffix: str,
    x: Tensor,
    hidden: Hidden,
    added: Mapping[str, Tensor],
    state: Tensor | None,
    given: Tensor | None,
    seen: dict[str, Tensor] | None,
) -> tuple[Tensor, Hidden]:
    """One layer in one direction."""
    W_ih, W_hh = (getattr(module, name + suffix) for name in ("weight_ih", "weight_hh"))
    b_ih, b_hh = (getattr(module, name + suffix, None) for name in ("bias_ih", "bias_hh"))
    W_hr = getattr(module, "weight_hr" + suffix, None)
    extra_p, extra_q, extra_r = (
        added.get(name + suffix) for name in ("weight_ih", "weight_hh", "weight_hr")
    )
    p = nn.functional.linear(x, W_ih, b_ih)
    if extra_p is not None:
        p = p + extra_p
    h, c = hidden
    states: dict[int, Tensor] = {}
    before: dict[int, Tensor] = {}
    unprojected: dict[int, Tensor] = {}
    order = range(x.shape[1])
    for t in reversed(order) if suffix.endswith("_reverse") else order:
        before[t] = h
        q = nn.functional.linear(h, W_hh, b_hh)
        if extra_q is not None:
            q = q + extra_q[:, t]
        h, c = step(module, p[:, t], q, h, c)
        if W_hr is not None:
            unprojected[t] = h
            h = nn.functional.linear(h, W_hr)
            if extra_r is not None:
                h = h + extra_r[:, t]
        if state is not None:
            h = h + state[:, t]
        states[t] = h
        if given is not None:
            h = given[:, t]
    if seen is not None:
        inputs = dict(enumerate(x.unbind(1)))
        steps = {"weight_ih": inputs, "weight_hh": before, "weight_hr": unprojected}
        seen.update({
            name + suffix: torch.stack([activity[t] for t in order], dim=1)
            for name, activity in steps.items()
            if activity
        })
    return torch.stack([states[t] for t in order], dim=1), (h, c)


def unroll_cell(call: Call, added: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    """Run a recurrent cell again.

    Args:
        call: The call of the cell in the forward pass.
        added: What to add to a weight's output, by the local name of the weight, (B, g n).

    Returns:
        What the cell returns.
    """
    module = call.module
    assert isinstance(module, CELLS)
    x, h, c = cell_inputs(call, module)
    p = nn.functional.linear(x, module.weight_ih, module.bias_ih)
    q = nn.functional.linear(h, module.weight_hh, module.bias_hh)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    p, q = p + added.get("weight_ih", zero), q + added.get("weight_hh", zero)
    h, c = step(module, p, q, h, c)
    return (h, c) if isinstance(module, nn.LSTMCell) else h


def cell_inputs(call: Call, module: Cell) -> tuple[Tensor, Tensor, Tensor]:
    """Input, hidden state and cell state that a recurrent cell was called with.

    Args:
        call: The call.
        module: The cell.

    Returns:
        Three tensors with a batch axis.
    """
    x = call.args[0] if call.args else call.kwargs["input"]
    hx = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
    zero = torch.zeros_like(x[:, :1]).expand(-1, module.hidden_size)
    h, c = hx if isinstance(hx, tuple) else (hx, None)
    return x, zero if h is None else h, zero if c is None else c


def batch_first(x: Tensor, module: Recurrent) -> Tensor:
    """A sequence as (B, T, features).

    Args:
        x: As the layer takes it.
        module: The layer.

    Returns:
        Batch first; an unbatched sequence is a batch of one.
    """
    if x.ndim == 2:
        return x.unsqueeze(0)
    return x if module.batch_first else x.transpose(0, 1)


def _initial(call: Call, x: Tensor, module: Recurrent) -> list[Hidden]:
    """Hidden and cell state of every layer and direction before the first step."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    hx = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
    h, c = hx if isinstance(hx, tuple) else (hx, None)
    size = module.proj_size or module.hidden_size
    if h is None:
        h = torch.zeros_like(x[:, 0, :1]).expand(-1, size).expand(count, -1, -1)
    if c is None:
        c = torch.zeros_like(x[:, 0, :1]).expand(-1, module.hidden_size).expand(count, -1, -1)
    return [(a.reshape(len(x), -1), b.reshape(len(x), -1)) for a, b in zip(h, c, strict=True)]
