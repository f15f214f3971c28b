"""What optimizers do with a gradient: their learning rate, and what they multiply it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from ntk_monitor.model.compiled import plain_name
from ntk_monitor.model.linearization import Preconditioner

Step = Callable[[Tensor], Tensor]


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside what Fabric or accelerate wraps around it.

    Args:
        optimizer: Wrapped or not.

    Returns:
        The optimizer that steps.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def learning_rate(optimizers: Sequence[Optimizer]) -> float | None:
    r"""The present learning rate: of the first group of parameters that has one above 0.

    With heavy-ball momentum :math:`\mu` and dampening :math:`d` it is
    :math:`\mathrm{lr} (1 - d)/(1 - \mu)`, what a gradient comes to over all later steps.

    Args:
        optimizers: All optimizers of a training.

    Returns:
        The rate, or None if there is none.
    """
    groups = ((optimizer, group) for optimizer in optimizers for group in optimizer.param_groups)
    rates = (_rate(optimizer, group) for optimizer, group in groups)
    return next((rate for rate in rates if rate), None)


def preconditioner(optimizers: Sequence[Optimizer], module: nn.Module) -> Preconditioner | None:
    r"""How optimizers map the gradient of each parameter at present.

    A step is :math:`-\mathrm{lr}\, D\, \nabla L`, up to averaging over steps, with lr that of
    `learning_rate`. For Adam, AdamW and NAdam

    .. math::
        D = 1/(\sqrt{v / (1 - \beta_2^t)} + \epsilon)

    (:math:`v` being the largest so far for AMSGrad), with :math:`v` itself for RMSprop and the sum
    of squares for Adagrad. For Shampoo, as pytorch-optimizer and torch-optimizer have it, ``D``
    multiplies each axis of the gradient with the inverse root of that axis' second moments. For
    SGD it is one. Groups with other learning rates have a ``D`` in proportion. The kernel that such
    optimizers descend by is :math:`J D J^*`.

    Args:
        optimizers: All optimizers of a training.
        module: Whose parameters they step.

    Returns:
        ``D`` as a map of each parameter's gradient, by the parameters' names; those that no
        optimizer steps are left out. None where it is one for all parameters, where it is not known
        for one of them, and before the first step. Nothing is copied: the maps look into the
        optimizers' states when they are used.
    """
    reference = learning_rate(optimizers)
    if reference is None:
        return None
    names = {id(p): plain_name(name) for name, p in module.named_parameters()}
    maps: dict[str, Step] = {}
    uniform = True
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = _rate(optimizer, group)
            if rate is None:
                return None
            for parameter in group["params"]:
                if id(parameter) not in names:
                    continue
                plain = isinstance(optimizer, SGD)
                if not plain and not optimizer.state.get(parameter):
                    continue  # no gradient has come to it
                step = _step(optimizer, group, parameter, rate / reference)
                if step is None:
                    return None
                uniform &= plain and rate == reference
                maps[names[id(parameter)]] = step
    trained = {names[id(p)] for p in module.parameters() if p.requires_grad}
    return None if uniform and trained <= maps.keys() else maps or None


def _rate(optimizer: Optimizer, group: Mapping[str, Any]) -> float | None:
    """The learning rate of a group; None if it has none of its own."""
    if group.get("lr") is None:
        return None
    rate = float(group["lr"])
    momentum = float(group.get("momentum") or 0.0)
    if isinstance(optimizer, (SGD, RMSprop)) and 0 < momentum < 1:  # others average
        rate *= (1 - float(group.get("dampening") or 0.0)) / (1 - momentum)
    return rate


def _step(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, relative: float
) -> Step | None:
    """The map of one parameter's gradient, or None if it is not known."""
    state = optimizer.state.get(parameter, {})
    if isinstance(optimizer, SGD):
        return partial(_multiplied, relative, [])
    if "step" in state and not float(state["step"]):  # Adagrad has a state before its first step
        return None
    moments = _moments(optimizer, group, state)
    if moments is not None:
        squares, mean, factor = moments
        return partial(_scaled, relative, squares, factor, mean, group["eps"])
    factors = _factors(state, parameter)
    known = bool(factors) and not group.get("momentum")
    return partial(_multiplied, relative, factors) if known else None


def _moments(
    optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None, float] | None:
    """Second moments, the mean to take off them, and the factor that corrects them."""
    if isinstance(optimizer, (Adam, AdamW, NAdam)):
        key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
        if key in state and "step" in state and "betas" in group:  # else a kind of its own
            factor = 1 - float(group["betas"][1]) ** float(state["step"])
            return state[key], None, 1 / factor
    elif isinstance(optimizer, RMSprop) and "square_avg" in state:
        return state["square_avg"], state["grad_avg"] if group["centered"] else None, 1.0
    elif isinstance(optimizer, Adagrad) and "sum" in state:
        return state["sum"], None, (1 + (float(state["step"]) - 1) * group["lr_decay"]) ** 2
    return None


def _scaled(
    relative: float,
    squares: Tensor,
    factor: float,
    mean: Tensor | None,
    eps: float,
    gradient: Tensor,
) -> Tensor:
    """Entry by entry, over the root of second moments."""
    squares = factor * squares.float()
    if mean is not None:
        squares = squares - mean.float().square()
    return gradient * (relative / (squares.clamp_min(0).sqrt() + eps)).to(gradient)


def _multiplied(relative: float, factors: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """Axis by axis, with a symmetric matrix each."""
    gradient = relative * gradient
    for axis, factor in enumerate(factors):
        gradient = (gradient.movedim(axis, -1) @ factor.to(gradient)).movedim(-1, axis)
    return gradient


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
