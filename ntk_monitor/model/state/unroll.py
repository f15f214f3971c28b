"""Recurrent layers step by step, with places to reach in.

A fused recurrent layer shows neither what its weights return at a time step nor the state that it
carries on. Written out (paper, A.5.1 and A.5.2),

    q(t) = W_hh h(t-1) + b_hh,    p(t) = W_ih x(t) + b_ih,    h(t) = phi_step(q(t), p(t), h(t-1)),

it lets a perturbation be added to any of the three, and its state be given from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from ntk_monitor.model.state.calls import Call, Recurrent
from ntk_monitor.model.state.finding import recurrent_source
from ntk_monitor.model.state.sources import unpack

Hidden = tuple[Tensor, Tensor]
"""Hidden state and, for an LSTM, cell state (elsewhere unused)."""
CELL_STEPS = {
    "rnn_tanh_cell": "RNN_TANH",
    "rnn_relu_cell": "RNN_RELU",
    "gru_cell": "GRU",
    "lstm_cell": "LSTM",
}
"""The recurrent cells among torch's operations, and the kind of step that each takes."""


def step(kind: str, p: Tensor, q: Tensor, h: Tensor, c: Tensor) -> Hidden:
    """One step of a recurrent layer or cell from its weighted sums.

    Args:
        kind: ``"RNN_TANH"``, ``"RNN_RELU"``, ``"GRU"`` or ``"LSTM"``.
        p: Weighted input, shape ``(B, g n)``.
        q: Weighted hidden state, of the same shape.
        h: Hidden state before the step, shape ``(B, n)``.
        c: Cell state before the step, for an LSTM.

    Returns:
        Hidden and cell state after the step.
    """
    if kind == "GRU":
        sizes = [2 * h.shape[-1], h.shape[-1]]
        (p_gates, p_n), (q_gates, q_n) = (torch.split(sums, sizes, -1) for sums in (p, q))
        r, z = torch.sigmoid(p_gates + q_gates).chunk(2, -1)
        return torch.lerp(torch.tanh(torch.addcmul(p_n, r, q_n)), h, z), c
    if kind == "LSTM":
        i, f, g, o = (p + q).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    return (torch.relu if kind == "RNN_RELU" else torch.tanh)(p + q), c


def run_cell(
    name: str,
    x: Tensor,
    hidden: Any,  # noqa: ANN401
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    added: Mapping[int, Tensor],
) -> Any:  # noqa: ANN401
    """Run a recurrent cell again with something added to its weighted sums.

    Args:
        name: The operation's name.
        x: Its input.
        hidden: Its hidden state; with the cell state for an LSTM.
        w_ih: Weight of the input.
        w_hh: Weight of the hidden state.
        b_ih: Bias of the input.
        b_hh: Bias of the hidden state.
        added: What to add to the weighted input (0) and to the weighted hidden state (1).

    Returns:
        What the operation returns.
    """
    h, c = (hidden, hidden) if isinstance(hidden, Tensor) else hidden
    p, q = linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)
    p, q = (p + added[0] if 0 in added else p), (q + added[1] if 1 in added else q)
    h, c = step(CELL_STEPS[name], p, q, h, c)
    return h if isinstance(hidden, Tensor) else (h, c)


@dataclass(frozen=True)
class Reach:
    """Where to reach into a recurrent layer.

    Attributes:
        added: What to add to a weight's output, by the local name of the weight, (B, T, g n).
        state: What to add to the top layer's state at each step, (B, T, n); the layer carries
            the sum on.
        given: The state to carry on instead of the computed one, (B, T, n).
        seen: Where to put what each weight multiplies, by the local name of the weight, (B, T, m).
    """

    added: Mapping[str, Tensor] = field(default_factory=dict)
    state: Tensor | None = None
    given: Tensor | None = None
    seen: dict[str, Tensor] | None = None


def unroll(call: Call, reach: Reach) -> tuple[Tensor, Any]:
    """Run a recurrent layer again, step by step, without its dropout.

    Args:
        call: The call of the layer in the forward pass.
        reach: Where to reach in.

    Returns:
        The states computed from what was carried on, ``(B, T, D n)``, batch first and zero beyond
        the length of a packed sequence; and the final hidden state as the layer returns it.

    Raises:
        ValueError: If a state is to be added or given to a layer of two directions.
    """
    module = call.module
    assert isinstance(module, (nn.RNN, nn.GRU, nn.LSTM))
    if module.bidirectional and (reach.state is not None or reach.given is not None):
        raise ValueError(
            f"{call.path!r} runs in two directions, so its state has no one-step dynamics: the "
            "propagator and the parameter operator are those of a layer of one direction"
        )
    x, valid = layer_input(call)
    hidden = _initial(call, x, module)
    finals: list[Hidden] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(2 if module.bidirectional else 1):
            here = _Direction(module, f"_l{layer}" + ("_reverse" if direction else ""))
            top = layer == module.num_layers - 1
            inside = reach if top else Reach(reach.added, seen=reach.seen)
            states, final = here.run(x, next(hidden), valid, inside)
            outputs.append(states)
            finals.append(final)
        x = torch.cat(outputs, dim=2)
    h, c = (torch.stack(parts) for parts in zip(*finals, strict=True))
    return x, (h, c) if isinstance(module, nn.LSTM) else h


@dataclass(frozen=True)
class _Direction:
    """One layer of a recurrent module in one direction."""

    module: Recurrent
    suffix: str

    def weight(self, name: str) -> Tensor | None:
        found: Tensor | None = getattr(self.module, name + self.suffix, None)
        return found

    def weighted(self, name: str, x: Tensor, added: Tensor | None) -> Tensor:
        """A weight's output, with what is added to it."""
        W = self.weight(f"weight_{name}")
        assert W is not None
        sums = linear(x, W, self.weight(f"bias_{name}"))
        return sums if added is None else sums + added

    def run(
        self, x: Tensor, hidden: Hidden, valid: Tensor | None, reach: Reach
    ) -> tuple[Tensor, Hidden]:
        """All steps; beyond its length, a sequence keeps its hidden state and returns zero."""
        extra = {
            name: reach.added.get(f"weight_{name}{self.suffix}") for name in ("ih", "hh", "hr")
        }
        # Cut once, not at each step: going backward, a step would fill a sequence with zeros.
        p = self.weighted("ih", x, extra["ih"]).unbind(1)
        more = {name: None if u is None else u.unbind(1) for name, u in extra.items()}
        projects = self.weight("weight_hr") is not None
        states, before, unprojected = (dict[int, Tensor]() for _ in range(3))
        h, c = hidden
        order = range(x.shape[1])
        for t in reversed(order) if self.suffix.endswith("_reverse") else order:
            before[t] = h
            q = self.weighted("hh", h, _at(more["hh"], t))
            new, new_c = step(self.module.mode, p[t], q, h, c)
            if projects:
                unprojected[t] = new
                new = self.weighted("hr", new, _at(more["hr"], t))
            if reach.state is not None:
                new = new + reach.state[:, t]
            states[t] = new
            if reach.given is not None:
                new = reach.given[:, t]
            h, c = _going_on(valid, t, (new, new_c), (h, c))
        if reach.seen is not None:
            inputs = dict(enumerate(x.unbind(1)))
            for name, seen in (("ih", inputs), ("hh", before), ("hr", unprojected)):
                if seen:
                    reach.seen[f"weight_{name}{self.suffix}"] = _sequence(seen, valid)
        return _sequence(states, valid), (h, c)


def _at(steps: Sequence[Tensor] | None, t: int) -> Tensor | None:
    return None if steps is None else steps[t]


def _going_on(valid: Tensor | None, t: int, new: Hidden, old: Hidden) -> Hidden:
    """The new state where the sequence has a step ``t``, the old one elsewhere."""
    if valid is None:
        return new
    here = valid[:, t, None]
    return torch.where(here, new[0], old[0]), torch.where(here, new[1], old[1])


def _sequence(steps: Mapping[int, Tensor], valid: Tensor | None) -> Tensor:
    """Steps side by side, (B, T, features); zero where the sequence has none."""
    joined = torch.stack([steps[t] for t in range(len(steps))], dim=1)
    return joined if valid is None else joined.where(valid.unsqueeze(2), 0)


def layer_input(call: Call) -> tuple[Tensor, Tensor | None]:
    """The input of a recurrent layer.

    Args:
        call: The layer's call.

    Returns:
        The sequences, (B, T, m), batch first; an unbatched one is a batch of one. And, for packed
        sequences, which of their steps there are, (B, T).
    """
    x = call.argument("input")
    if isinstance(x, PackedSequence):
        return unpack(x)
    return recurrent_source(call).read(x), None


def layer_activity(call: Call, module: Recurrent) -> dict[str, Tensor]:
    """What each weight of a recurrent layer multiplies.

    Args:
        call: The layer's call.
        module: The layer.

    Returns:
        Activity by the local name of the weight, each (B, T, m).
    """
    x, valid = layer_input(call)
    if module.num_layers > 1 or module.bidirectional or module.proj_size or valid is not None:
        seen: dict[str, Tensor] = {}
        unroll(call, Reach(seen=seen))
        return seen
    # One layer in one direction: its outputs tell all.
    states = recurrent_source(call).read(call.output)
    first, _ = next(_initial(call, x, module))
    return {
        "weight_ih_l0": x.detach(),
        "weight_hh_l0": torch.cat([first.unsqueeze(1), states[:, :-1]], dim=1).detach(),
    }


def _initial(call: Call, x: Tensor, module: Recurrent) -> Iterator[Hidden]:
    """Hidden and cell state of every layer and direction before the first step."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    hx = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
    h, c = hx if isinstance(hx, (tuple, list)) else (hx, None)
    size = module.proj_size or module.hidden_size
    if h is None:
        h = torch.zeros_like(x[:, 0, :1]).expand(-1, size).expand(count, -1, -1)
    if c is None:
        c = torch.zeros_like(x[:, 0, :1]).expand(-1, module.hidden_size).expand(count, -1, -1)
    return ((a.reshape(len(x), -1), b.reshape(len(x), -1)) for a, b in zip(h, c, strict=True))
