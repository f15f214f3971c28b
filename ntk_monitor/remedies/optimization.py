"""Remedies that change how a gradient becomes a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ntk_monitor.checks import require
from ntk_monitor.descent import plain_optimizer
from ntk_monitor.remedies.remedy import Loop, NotApplicableError, Remedy

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Entries of a parameter group that are learning rates, its own and those of schedulers."""
OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
"""Entries of a parameter group that schedulers put there."""


class LearningRate(Remedy):
    """A learning rate that is larger or smaller by a factor, with its schedule."""

    reasons = ("learning rate", "gradient noise")

    def __init__(self, factor: float = 10.0) -> None:
        """Choose the factor.

        Args:
            factor: What all learning rates are multiplied with.
        """
        require(0 < factor < math.inf, "factor", "a positive number", factor)
        self.factor = factor
        self.name = f"learning rate x {factor:g}"

    def change_optimizer(self, optimizer: Optimizer) -> Optimizer:  # noqa: D102
        if all(_reference(group) == 0 for group in optimizer.param_groups):
            raise NotApplicableError("the learning rate is zero, and so is any multiple of it")
        for group in optimizer.param_groups:
            group.update({rate: group[rate] * self.factor for rate in RATES if rate in group})
        return optimizer


class _Replacement(Remedy):
    """Another optimizer."""

    def __init__(self, lr: float) -> None:
        require(0 < lr < math.inf, "lr", "a positive number", lr)
        self.lr = lr
        self.name = f"{type(self).__name__}, lr {lr:g}"


class Adam(_Replacement):
    """Adam in place of an optimizer without a scale of its own for each parameter."""

    reasons = ("propagator", "core", "learning rate", "saturated")

    def __init__(self, lr: float = 1e-3) -> None:
        """Choose the learning rate.

        Args:
            lr: Of the first group of parameters; others keep their ratio to it.
        """
        super().__init__(lr)

    def change_optimizer(self, optimizer: Optimizer) -> Optimizer:  # noqa: D102
        return replaced(optimizer, torch.optim.AdamW, self.lr)


class Shampoo(_Replacement):
    """Shampoo of pytorch-optimizer, which the paper trains with, where that is installed."""

    reasons = ("propagator",)

    def __init__(self, lr: float = 0.1) -> None:
        """Choose the learning rate.

        Args:
            lr: Of the first group of parameters; others keep their ratio to it.
        """
        super().__init__(lr)

    def change_optimizer(self, optimizer: Optimizer) -> Optimizer:  # noqa: D102
        if find_spec("pytorch_optimizer") is None:
            raise NotApplicableError("the package pytorch-optimizer is not installed")
        return replaced(optimizer, import_module("pytorch_optimizer").Shampoo, self.lr)


class WeightDecay(Remedy):
    """Another weight decay: none by default."""

    reasons = ("decay",)

    def __init__(self, value: float = 0.0) -> None:
        """Choose it.

        Args:
            value: The weight decay of all parameters.
        """
        require(0 <= value < math.inf, "value", "0 or more", value)
        self.value = value
        self.name = f"weight decay {value:g}" if value else "no weight decay"

    def change_optimizer(self, optimizer: Optimizer) -> Optimizer:  # noqa: D102
        groups = [group for group in optimizer.param_groups if "weight_decay" in group]
        if not groups:
            raise NotApplicableError(f"{type(optimizer).__name__} has no weight decay")
        if all(group["weight_decay"] == self.value for group in groups):
            raise NotApplicableError(f"weight decay is {self.value:g} already")
        for group in groups:
            group["weight_decay"] = self.value
        return optimizer


class Clipping(Remedy):
    """Gradients that are clipped at another norm, or not at all."""

    reasons = ("clipping",)

    def __init__(self, norm: float | None = None) -> None:
        """Choose the norm.

        Args:
            norm: To which the gradients of all parameters together are clipped; None not to clip.
        """
        require(norm is None or norm > 0, "norm", "a norm above 0, or None", norm)
        self.norm = norm
        self.name = "no clipping" if norm is None else f"clipped at norm {norm:g}"

    def change_loop(self, loop: Loop) -> Loop:  # noqa: D102
        if self.norm is None and loop.clip_norm is None and loop.clip_value is None:
            raise NotApplicableError("gradients are not clipped")
        if self.norm is not None and self.norm == loop.clip_norm:
            raise NotApplicableError(f"gradients are clipped at {self.norm:g} already")
        return replace(loop, clip_norm=self.norm, clip_value=None)


class LargerBatches(Remedy):
    """Several batches for each step."""

    reasons = ("gradient noise",)

    def __init__(self, times: int = 4) -> None:
        """Choose how many.

        Args:
            times: Batches for each step where there was one.
        """
        require(times >= 2, "times", "at least 2", times)
        self.times = times
        self.name = f"batches x {times}"
        self.cost = float(times)

    def change_loop(self, loop: Loop) -> Loop:  # noqa: D102
        return replace(loop, accumulate=loop.accumulate * self.times)


class Curriculum(Remedy):
    """A task that begins easy, where the data offer a difficulty.

    They, or their data set, do by a method ``set_difficulty(difficulty)``, with a number from 0
    (easiest) to 1 (as it is), which holds from the next batch on.
    """

    reasons = ("core",)
    changes_data = True

    def __init__(self, over: float = 0.5) -> None:
        """Choose how long it takes.

        Args:
            over: Share of the planned steps after which the task is as it is.
        """
        require(0 < over <= 1, "over", "a share above 0 and up to 1", over)
        self.over = over
        self.name = f"curriculum over {over:.0%}"

    def change_data(self, data: Any, progress: float) -> None:  # noqa: ANN401, D102
        part = data
        while part is not None and not callable(getattr(part, "set_difficulty", None)):
            part = getattr(part, "dataset", None)
        if part is None:
            kind = type(data).__name__
            raise NotApplicableError(f"{kind} has no set_difficulty(difficulty) that could be used")
        part.set_difficulty(min(progress / self.over, 1.0))


def changed_optimizers(
    remedy: Remedy, optimizers: Sequence[Optimizer], schedulers: Iterable[Any]
) -> list[Optimizer]:
    """Optimizers with a remedy, and schedulers that go on with these.

    Args:
        remedy: The remedy.
        optimizers: The optimizers.
        schedulers: What changes their learning rates; changed in place.

    Returns:
        The optimizers to train with.
    """
    found = []
    every = list(with_parts(schedulers))
    for optimizer in optimizers:
        before = [_reference(group) for group in optimizer.param_groups]
        other = remedy.change_optimizer(optimizer)
        after = [_reference(group) for group in other.param_groups]
        factors = [b / a if a else 1.0 for a, b in zip(before, after, strict=True)]
        for scheduler in every:
            own = getattr(scheduler, "optimizer", None)
            if own is optimizer:
                scheduler.optimizer = other
            if own is not None and plain_optimizer(own) in {optimizer, other}:
                _rebind(scheduler, other, factors)
        if other is not optimizer and every:
            _known_to_schedulers(other)
        found.append(other)
    return found


def with_parts(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Schedulers, and those that they are made of.

    Args:
        schedulers: The schedulers.

    Yields:
        Each, before its parts.
    """
    for scheduler in schedulers:
        yield scheduler
        yield from with_parts(getattr(scheduler, "_schedulers", ()))


def _rebind(scheduler: Any, optimizer: Optimizer, factors: Sequence[float]) -> None:  # noqa: ANN401
    for name in ("base_lrs", "_last_lr"):
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list) and len(rates) == len(factors):
            scaled = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
            setattr(scheduler, name, scaled)
    if hasattr(scheduler, "use_beta1"):  # OneCycleLR's momentum
        scheduler.use_beta1 = "betas" in optimizer.defaults
        if not scheduler.use_beta1 and "momentum" not in optimizer.defaults:
            scheduler.cycle_momentum = False


def _known_to_schedulers(optimizer: Optimizer) -> None:
    """Let an optimizer count its steps, as schedulers ask for, and nothing else."""
    before = [dict(group) for group in optimizer.param_groups]
    LambdaLR(optimizer, lambda _: 1.0)  # does that when it is made
    for group, old in zip(optimizer.param_groups, before, strict=True):
        group.clear()
        group.update(old)


def replaced(optimizer: Optimizer, make: Callable[..., Optimizer], lr: float) -> Optimizer:
    """Another optimizer of the same parameters, with their weight decay.

    Args:
        optimizer: The optimizer.
        make: The class of the other.
        lr: Learning rate of the first group; others keep their ratio to it.

    Returns:
        The other optimizer.

    Raises:
        NotApplicableError: If it has one with as much of a scale of its own already.
    """
    kind = type(optimizer).__name__
    name = getattr(make, "__name__", "")
    if name in {kind, f"{kind}W"} or ("betas" in optimizer.defaults and "Adam" in name):
        raise NotApplicableError(f"the optimizer is {kind} already")
    first = _reference(optimizer.param_groups[0])
    factor = lr / first if first else 1.0
    groups = []
    for group in optimizer.param_groups:
        kept = {"weight_decay": group["weight_decay"]} if "weight_decay" in group else {}
        groups.append({"params": group["params"], "lr": _reference(group) * factor or lr, **kept})
    other = make(groups, lr=lr, weight_decay=0.0)
    for group, old in zip(other.param_groups, optimizer.param_groups, strict=True):
        for entry in OF_SCHEDULERS:
            if entry in old:
                group[entry] = old[entry] * (factor if entry in RATES else 1)
        if first:
            group["lr"] = old["lr"] * factor
    return other


def _reference(group: dict[str, Any]) -> float:
    """The learning rate of a group without its schedule."""
    return float(group.get("initial_lr", group["lr"]))
