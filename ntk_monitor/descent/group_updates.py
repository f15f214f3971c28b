"""What each kind of optimizer makes of a gradient, group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adamax, AdamW, Optimizer, RMSprop

from ntk_monitor.descent.shadow import stepped
from ntk_monitor.descent.velocity import AVERAGING, KNOWN

Map = Callable[[Tensor], Tensor]
Gradients = Mapping[str, Tensor]


class Part(NamedTuple):
    """How one parameter is stepped.

    Attributes:
        scale: The gradient times the learning rate and ``D``, a linear map.
        decay: Coefficient of the parameter itself that is added to its gradient, or, where it is
            decoupled, what is taken off it at a step.
        decoupled: Which of both.
        held: What the momentum holds, in the gradient's place; None for nothing.
        steady: What it moves by at each step whatever the gradient, by an optimizer that is not
            known; None by one that is.
    """

    scale: Map
    decay: float = 0.0
    decoupled: bool = False
    held: Tensor | None = None
    steady: Tensor | None = None


def part_of(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
    gradient: Tensor,
    rate: float,
    factors: Sequence[Tensor] | None,
) -> Part | None:
    """How one parameter is stepped, or None if that is not known."""
    state = optimizer.state.get(parameter, {})
    decay = float(group.get("weight_decay") or 0.0)
    if isinstance(optimizer, SGD):
        held = state.get("momentum_buffer") if group.get("momentum") else None
        return Part(partial(_multiplied, rate, []), decay, held=held)
    whole = gradient + decay * parameter.detach().to(gradient) if decay else gradient
    if type(optimizer) in KNOWN:
        decoupled = isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay"))
        factor = _adaptive(optimizer, group, state, gradient if decoupled else whole, rate)
        amount = decay * rate if decoupled else decay
        held = state.get("exp_avg")
        if group.get("momentum") and "momentum_buffer" in state and rate:
            held = state["momentum_buffer"] / (factor / rate)  # RMSprop's is of scaled gradients
        return Part(partial(entrywise, factor), amount, decoupled, held)
    if factors and not group.get("momentum"):
        return Part(partial(_multiplied, rate, factors), decay)
    return None


def _adaptive(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    state: Mapping[str, Any],
    gradient: Tensor,
    rate: float,
) -> Tensor:
    """The scaling of an optimizer with second moments, at its next step."""
    if isinstance(optimizer, Adamax):
        largest = gradient.abs() + group["eps"]
        if "exp_inf" in state:
            before = float(group["betas"][1]) * state["exp_inf"].to(largest)
            largest = torch.maximum(before, largest)
        whole: Tensor = rate / largest
        return whole
    square = gradient.square()
    steps = float(state.get("step", 0)) + 1
    if isinstance(optimizer, AVERAGING):
        beta = float(group["betas"][1])
        second = beta * state["exp_avg_sq"].to(square) if "exp_avg_sq" in state else 0.0
        second = second + (1 - beta) * square
        if group.get("amsgrad") and "max_exp_avg_sq" in state:
            second = torch.maximum(second, state["max_exp_avg_sq"].to(square))
        second = second / (1 - beta**steps)
    elif isinstance(optimizer, RMSprop):
        alpha = float(group["alpha"])
        second = alpha * state["square_avg"].to(square) if "square_avg" in state else 0.0
        second = second + (1 - alpha) * square
        if group["centered"]:
            mean = alpha * state["grad_avg"].to(square) if "grad_avg" in state else 0.0 * square
            second = second - (mean + (1 - alpha) * gradient).square()
    else:
        first = torch.full_like(square, float(group.get("initial_accumulator_value", 0.0)))
        second = (state["sum"].to(square) if "sum" in state else first) + square
        rate = rate / (1 + (steps - 1) * group["lr_decay"])
    factor: Tensor = rate / (second.clamp_min(0).sqrt() + group["eps"])
    return factor


def entrywise(factor: Tensor, gradient: Tensor) -> Tensor:
    """A gradient, each entry times a factor of its own."""
    return gradient * factor.to(gradient)


def _multiplied(rate: float, factors: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """Axis by axis, with a symmetric matrix each."""
    gradient = rate * gradient
    for axis, factor in enumerate(factors):
        gradient = (gradient.movedim(axis, -1) @ factor.to(gradient)).movedim(-1, axis)
    return gradient


def factors_after(
    optimizer: Optimizer, names: Mapping[int, str], gradient: Gradients
) -> dict[str, list[Tensor]]:
    """Shampoo's matrices at its next step, in which it has the gradient of it."""
    try:
        after, copies = stepped(optimizer, names, gradient)
    except Exception:  # an optimizer that needs more than gradients
        return {}
    return {
        names[key]: _factors(after.state.get(p, {}), p) for key, p in copies.items() if key in names
    }


def _factors(state: Mapping[str, Any], parameter: Tensor) -> list[Tensor]:
    """Shampoo's matrices, one for each axis of a parameter; empty where they are not all there."""
    found = []
    for axis in range(parameter.ndim):
        keys = (f"inv_pre_cond_{axis}", f"inv_precond_{axis}")
        factor = next((state[key] for key in keys if key in state), None)
        if not isinstance(factor, Tensor) or factor.shape != (parameter.shape[axis],) * 2:
            return []
        found.append(factor)
    return found
