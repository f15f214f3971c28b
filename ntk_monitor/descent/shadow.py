"""The step that an optimizer would take, taken by a copy of it on copies of the parameters."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ntk_monitor.compat import tree_map

HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All that an optimizer steps.

    Args:
        optimizer: Any optimizer.

    Returns:
        The parameters, group by group.
    """
    return [p for group in optimizer.param_groups for p in group["params"]]


def shadow_of(optimizer: Optimizer, parameters: Mapping[int, Tensor] | None) -> Optimizer:
    """A copy of an optimizer, without its hooks.

    Args:
        optimizer: Any optimizer.
        parameters: What takes the place of each of its parameters, by id; None for a copy that has
            the parameters themselves and no state, to read learning rates off.

    Returns:
        An optimizer that shares no tensor with it, but for such parameters.
    """
    own = parameters_of(optimizer)
    memo: dict[int, Any] = {id(p): p if parameters is None else parameters[id(p)] for p in own}
    attributes = dict(vars(optimizer))
    state, groups = attributes.pop("state"), attributes.pop("param_groups")
    attributes.pop("step", None)  # wrapped by a scheduler
    shadow: Optimizer = object.__new__(type(optimizer))
    for name, value in attributes.items():
        vars(shadow)[name] = OrderedDict() if name in HOOKS else _copied(value, memo)
    shadow.param_groups = [
        {
            key: [memo[id(p)] for p in value] if key == "params" else _copied(value, memo)
            for key, value in group.items()
        }
        for group in groups
    ]
    shadow.state = defaultdict(dict)
    if parameters is not None:
        for p, kept in state.items():
            key = memo.get(id(p), p) if isinstance(p, Tensor) else p
            shadow.state[key] = _copied(kept, memo)
    return shadow


def _copied(value: Any, memo: dict[int, Any]) -> Any:  # noqa: ANN401
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a handle, a lock: it is looked at, and not copied
        return value


def real_update(
    optimizer: Optimizer, names: Mapping[int, str], gradient: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What each parameter moves by at the next step of an optimizer.

    Args:
        optimizer: Any optimizer; it, its state and its parameters stay as they are.
        names: The parameters' names by their ids.
        gradient: By the parameters' names; parameters that it lacks have none.

    Returns:
        The differences by name, taken in float64 where the optimizer can: a step may be smaller
        than what the parameters' own arithmetic resolves.
    """
    _, copies = stepped(optimizer, names, gradient)
    return {
        names[id(p)]: (copies[id(p)] - p).detach()
        for p in parameters_of(optimizer)
        if id(p) in names
    }


def stepped(
    optimizer: Optimizer, names: Mapping[int, str], gradient: Mapping[str, Tensor]
) -> tuple[Optimizer, dict[int, Tensor]]:
    """A copy of an optimizer after its next step.

    Args:
        optimizer: Any optimizer; it, its state and its parameters stay as they are.
        names: The parameters' names by their ids.
        gradient: By the parameters' names; parameters that it lacks have none.

    Returns:
        The copy, and what it has stepped, by the ids of the parameters.
    """
    for precise in (True, False):
        copies = _copies(optimizer, names, gradient, precise=precise)
        shadow = shadow_of(optimizer, copies)
        if precise:
            _widen(shadow)
        try:
            make_step(shadow)
            break
        except Exception:
            if not precise:
                raise
    return shadow, copies


def make_step(shadow: Optimizer) -> None:
    """Have a copy of an optimizer step, without what a scheduler has wrapped around that.

    Args:
        shadow: The copy, whose parameters have gradients.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inspect.unwrap(type(shadow).step)(shadow)


def _copies(
    optimizer: Optimizer, names: Mapping[int, str], gradient: Mapping[str, Tensor], *, precise: bool
) -> dict[int, Tensor]:
    """Copies of an optimizer's parameters, with gradients, by the ids of the parameters."""
    copies: dict[int, Tensor] = {}
    for p in parameters_of(optimizer):
        dtype = torch.float64 if precise and p.is_floating_point() else p.dtype
        own = p.detach().to(dtype, copy=True).requires_grad_(p.requires_grad)
        given = gradient.get(names.get(id(p), ""))
        own.grad = None if given is None else given.to(dtype, copy=True).reshape(p.shape)
        copies[id(p)] = own
    return copies


def _widen(optimizer: Optimizer) -> None:
    """Have the tensors of its state in float64, but for counts."""
    for state in optimizer.state.values():
        for name, value in list(state.items()) if isinstance(state, dict) else []:
            state[name] = tree_map(_wide, value)


def _wide(value: Any) -> Any:  # noqa: ANN401
    floating = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0
    return value.double() if floating else value
