"""Perturbations of a forward pass: at the state, at a weight site, or of the state it goes on with.

The operators of the paper are derivatives of a forward pass in which something was added:
``P`` of the state in what is added to every step of it, ``P_l`` of the state in what is added to
the outputs of weight site ``l``; and the constraint ``F(h) = h - f(h)`` compares a given state
with what the model computes from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

from torch import Tensor, nn

from ntk_monitor.model.batch.structure import first_tensor
from ntk_monitor.model.sites.records import Tap
from ntk_monitor.model.state.calls import RECURRENT, Call, Recurrent
from ntk_monitor.model.state.finding import State, recurrent_source
from ntk_monitor.model.state.unroll import Reach, unroll


@dataclass(frozen=True)
class Intervention:
    """What to change in a forward pass; nothing by default.

    Attributes:
        state: Added to the state at every step, (B, T, n).
        given: The state to go on with in place of the computed one, (B, T, n).
        through_time: Whether a recurrent layer, too, carries the given state on from step to
            step; otherwise only what comes after the layer sees it.
        sites: Added to the outputs of weight sites, each (B, T, q).
        made: Likewise, made when it is needed; not at those of recurrent layers.
    """

    state: Tensor | None = None
    given: Tensor | None = None
    through_time: bool = False
    sites: Mapping[Tap, Tensor] = field(default_factory=dict)
    made: Mapping[Tap, Callable[[], Tensor]] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return self.state is not None or self.given is not None or bool(self.sites or self.made)

    @property
    def at_operations(self) -> dict[Tap, Callable[[], Tensor]]:
        """What is added to the outputs of operations."""
        known = {tap: partial(_known, u) for tap, u in self.sites.items() if tap.path is None}
        return {**known, **self.made}

    def paths(self, state: State) -> set[str]:
        """The modules at which the pass is read or changed."""
        return {*state.paths, *(tap.path for tap in self.sites if tap.path is not None)}

    def instead(self, path: str, module: nn.Module) -> Callable[..., Any] | None:
        """What takes the place of a module's ``forward`` where that computes in vain.

        Args:
            path: The module's path.
            module: The module.

        Returns:
            A function, where something is added inside of a recurrent layer; else None.
        """
        if isinstance(module, RECURRENT) and any(tap.path == path for tap in self.sites):
            return _in_place_of(module)
        return None

    def apply(self, call: Call, index: int, state: State) -> tuple[Any, Tensor | None]:
        """Change what one call returned.

        Args:
            call: The call.
            index: Its number among the calls of its module.
            state: Where the state is.

        Returns:
            The output to go on with, and the state that was computed, if this call computes (a
            part of) it.
        """
        source = next((s for s in state.sources if s.path == call.path), None)
        added = {
            str(tap.place): tap.write(u, tap.calls.index(index))
            for tap, u in self.sites.items()
            if tap.path == call.path and index in tap.calls
        }
        extra, given = (
            None if u is None or source is None else source.span(state.part(u, call.path), index)
            for u in (self.state, self.given)
        )
        inside = source is not None and source.recurrent
        inside = inside and (extra is not None or self.through_time)
        output, computed = call.output, None
        if isinstance(call.module, RECURRENT) and (added or inside):
            reach = Reach(added, extra, given) if inside else Reach(added)
            computed, final = unroll(call, reach)
            output = _laid_out(call, computed, final)
        if source is None:
            return output, None
        computed = source.read(output) if computed is None else computed
        if extra is not None and not inside:
            computed = computed + extra
            output = source.write(output, computed)
        if given is not None:
            output = source.write(output, given)
        return output, computed


def _in_place_of(module: Recurrent) -> Callable[..., Any]:
    """A layer's ``forward`` that returns no more than the shape, but for packed sequences."""
    inner = module.forward

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):
            return inner(*args, **kwargs)
        size = (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
        return x.new_empty(*x.shape[:-1], size), None

    return forward


def _laid_out(call: Call, states: Tensor, final: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """States and final hidden state as the recurrent layer itself returns them."""
    source, old = recurrent_source(call), first_tensor(call.output)
    assert old is not None
    if source.layout == "unbatched":
        final = tuple(h.squeeze(1) for h in final) if isinstance(final, tuple) else final.squeeze(1)
    return source.laid_out(old, states), final


def _known(u: Tensor) -> Tensor:
    return u
