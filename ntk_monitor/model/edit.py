"""Perturbations of a forward pass: at the state, at a weight site, or of the state it goes on with.

The operators of the paper are derivatives of a forward pass in which something was added:
``P`` of the state in what is added to every step of it, ``P_l`` of the state in what is added to
the outputs of weight site ``l``; and the constraint ``F(h) = h - f(h)`` compares a given state
with what the model computes from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ntk_monitor.model.batch import first_tensor
from ntk_monitor.model.state import CELLS, RECURRENT, Call, StateSource
from ntk_monitor.model.unroll import unroll, unroll_cell


@dataclass(frozen=True)
class Tap:
    """Where the outputs of a weight site are.

    Attributes:
        path: The module that owns the weight.
        weight: Local name of the weight, for a module with several.
        call: Which call of the module; None where every call is a time step.
        time_first: Whether a sequence passes as (T, B, features).
    """

    path: str
    weight: str
    call: int | None
    time_first: bool = False


@dataclass(frozen=True)
class Edit:
    """What to change in a forward pass; nothing by default.

    Attributes:
        state: Added to the state at every step, (B, T, n).
        given: The state to go on with in place of the computed one, (B, T, n).
        through_time: Whether a recurrent layer, too, carries the given state on from step to
            step; otherwise only what comes after the layer sees it.
        sites: Added to the outputs of weight sites, each (B, T, q).
    """

    state: Tensor | None = None
    given: Tensor | None = None
    through_time: bool = False
    sites: Mapping[Tap, Tensor] = field(default_factory=dict)

    def paths(self, source: StateSource) -> set[str]:
        """The modules at which the pass is read or changed."""
        return {source.path, *(tap.path for tap in self.sites)}

    def apply(self, call: Call, index: int, source: StateSource) -> tuple[Any, Tensor | None]:
        """Change what one call returned.

        Args:
            call: The call.
            index: Its number among the calls of its module.
            source: Where the state is.

        Returns:
            The output to go on with, and the state that was computed, if this call computes it.
        """
        here = call.path == source.path
        taps = [t for t in self.sites if t.path == call.path and t.call in {None, index}]
        added = {
            tap.weight: self.sites[tap] if tap.call is not None else self.sites[tap][:, index]
            for tap in taps
        }
        inside = here and source.recurrent and (self.state is not None or self.through_time)
        output, computed = call.output, None
        if isinstance(call.module, RECURRENT) and (added or inside):
            state, given = (self.state, self.given) if inside else (None, None)
            computed, final = unroll(call, added, state, given)
            output = _laid_out(call, computed, final)
        elif isinstance(call.module, CELLS) and added:
            output = unroll_cell(call, added)
        for tap in taps if output is call.output else ():
            output = output + _like(added[tap.weight], output, time_first=tap.time_first)
        if not here:
            return output, None
        step = slice(index, index + 1) if source.calls > 1 else slice(None)
        computed = source.read(output) if computed is None else computed
        if self.state is not None and not inside:
            computed = computed + self.state[:, step]
            output = source.write(output, computed)
        if self.given is not None:
            output = source.write(output, self.given[:, step])
        return output, computed


def _laid_out(call: Call, states: Tensor, final: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
    """States and final hidden state as the recurrent layer itself returns them."""
    old = first_tensor(call.output)
    if old is not None and old.ndim == 2:
        parts = tuple(h.squeeze(1) for h in (final if isinstance(final, tuple) else (final,)))
        return states.squeeze(0), parts if isinstance(final, tuple) else parts[0]
    batch_first = getattr(call.module, "batch_first", True)
    return (states if batch_first else states.transpose(0, 1)), final


def _like(u: Tensor, output: Tensor, *, time_first: bool) -> Tensor:
    """A perturbation (B, T, q) in the layout of a module's output."""
    if time_first and output.ndim == u.ndim == 3:
        u = u.transpose(0, 1)
    return u.reshape(output.shape)
