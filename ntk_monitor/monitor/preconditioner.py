"""The linear map by which an optimizer multiplies the gradient, where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from ntk_monitor.model.compiled import plain_name
from ntk_monitor.model.linearization import Preconditioner


def preconditioner(optimizer: Optimizer, module: nn.Module) -> Preconditioner | None:
    r"""How an optimizer maps the gradient of each parameter at present.

    A step is :math:`-\mathrm{lr}\, D\, \nabla L`, up to momentum. For Adam, AdamW and NAdam

    .. math::
        D = 1/(\sqrt{v / (1 - \beta_2^t)} + \epsilon)

    (:math:`v` being the largest so far for AMSGrad), with :math:`v` itself for RMSprop and the sum
    of squares for Adagrad. For Shampoo, as pytorch-optimizer and torch-optimizer have it, ``D``
    multiplies each axis of the gradient with the inverse root of that axis' second moments. The
    kernel that such an optimizer descends by is :math:`J D J^*`.

    Args:
        optimizer: The optimizer.
        module: Whose parameters it steps.

    Returns:
        ``D`` as a map of each parameter's gradient, by the parameters' names, those that the
        optimizer does not step being left out; None for other optimizers, and before the first
        step.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    maps: dict[str, Callable[[Tensor], Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state or id(parameter) not in names:
                continue
            if "step" in state and not float(state["step"]):  # Adagrad has one before its first
                return None
            scale = _diagonal(optimizer, group, state)
            factors = _factors(state, parameter) if scale is None else []
            relative = float(group["lr"]) / float(optimizer.param_groups[0]["lr"] or 1.0)
            name = plain_name(names[id(parameter)])
            if scale is not None:
                maps[name] = _Scaled(relative * scale)
            elif factors:
                maps[name] = _Multiplied([relative * factors[0], *factors[1:]])
            else:
                return None
    return maps or None


class _Scaled:
    """Entry by entry."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * self.scale.to(gradient)


class _Multiplied:
    """Axis by axis, with a symmetric matrix each."""

    def __init__(self, factors: list[Tensor]) -> None:
        self.factors = factors

    def __call__(self, gradient: Tensor) -> Tensor:
        for axis, factor in enumerate(self.factors):
            gradient = (gradient.movedim(axis, -1) @ factor.to(gradient)).movedim(-1, axis)
        return gradient


def _diagonal(
    optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]
) -> Tensor | None:
    """``D`` of one parameter of an Adam-like optimizer."""
    if isinstance(optimizer, (Adam, AdamW, NAdam)):
        squares = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        squares = squares.float() / (1 - group["betas"][1] ** float(state["step"]))
    elif isinstance(optimizer, RMSprop):
        squares = state["square_avg"].float()
        if group["centered"]:
            squares = squares - state["grad_avg"].float().square()
    elif isinstance(optimizer, Adagrad):
        squares = state["sum"].float()
    else:
        return None
    scale: Tensor = 1 / (squares.clamp_min(0).sqrt() + group["eps"])
    return scale


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
