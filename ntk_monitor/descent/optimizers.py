"""How a training steps: from its optimizers to updates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, NAdam, Optimizer, RMSprop

from ntk_monitor.descent.group_updates import (
    KNOWN,
    Gradients,
    Part,
    entrywise,
    factors_after,
    part_of,
)
from ntk_monitor.descent.shadow import parameters_of, real_update, shadow_of
from ntk_monitor.descent.velocity import AVERAGING, Velocity, advance
from ntk_monitor.model.parameters.unwrapping import plain_name

Clip = Callable[[Optimizer], None]


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


class Clipping(NamedTuple):
    """How gradients are clipped before a step.

    Attributes:
        norm: Norm to which those of all parameters together are, or None.
        value: Likewise each entry.
        own: What clips those of an optimizer's parameters in their place, where that is the user's.
    """

    norm: float | None = None
    value: float | None = None
    own: Clip | None = None


NO_CLIPPING = Clipping()


@dataclass(frozen=True)
class Descent:
    """How a training steps.

    Attributes:
        optimizers: Its optimizers.
        rates: The learning rates of the coming steps over the present one; the last holds from then
            on.
        clipping: How gradients are clipped.
    """

    optimizers: tuple[Optimizer, ...]
    names: Mapping[int, str]
    rates: tuple[float, ...] = (1.0,)
    clipping: Clipping = NO_CLIPPING
    references: Mapping[int, float] = field(default_factory=dict)

    @property
    def learning_rate(self) -> float | None:
        """The present learning rate, of the first group of parameters that has one above 0."""
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        rates = (_number(group.get("lr")) for group in groups)
        return next((rate for rate in rates if rate), None)

    def rate_at(self, step: int) -> float:
        """The learning rate of a coming step over the present one."""
        return self.rates[min(step, len(self.rates) - 1)]

    def rates_until(self, step: float) -> float:
        """The sum of the rates up to a coming step, in present ones."""
        whole = self._sums
        if step < len(whole):
            below = int(step)
            start = whole[below - 1] if below else 0.0
            return start + (step - below) * self.rate_at(below)
        return whole[-1] + (step - len(whole)) * self.rates[-1]

    def largest_ahead(self, horizon: float, start: int = 0) -> float:
        """The largest learning rate of the coming steps over that of one of them.

        Args:
            horizon: How many steps are to come, or inf.
            start: Which of them.

        Returns:
            At least 1; inf where that of ``start`` is 0 and a later one is not.
        """
        coming = self.rates[start : int(min(horizon, len(self.rates)))]
        here, largest = self.rate_at(start), max(coming, default=0.0)
        if not here:
            return math.inf if largest else 1.0
        return max(largest / here, 1.0)

    @cached_property
    def _sums(self) -> tuple[float, ...]:
        return tuple(itertools.accumulate(self.rates))

    def update(self, gradient: Gradients) -> dict[str, Tensor]:
        """The step that the optimizers take, on copies; nothing of theirs is touched.

        Args:
            gradient: Of the loss, by the parameters' names.

        Returns:
            What each parameter moves by; nothing for those that no optimizer has.
        """
        clipped = self.clipped(gradient)
        found: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            found.update(real_update(optimizer, self.names, clipped))
        return found

    def clipped(self, gradient: Gradients) -> dict[str, Tensor]:
        """A gradient as the optimizers get it.

        Args:
            gradient: Of the loss, by the parameters' names.

        Returns:
            The same, clipped.
        """
        found = {name: gradient[name] for name in self.stepped if name in gradient}
        norm, value, own = self.clipping
        if own is not None:
            return self._clipped_by_the_user(found, own)
        if value is not None:
            found = {n: g.clamp(-value, value) for n, g in found.items()}
        if norm is not None and found:
            sizes = [torch.linalg.vector_norm(g) for g in found.values()]
            size = float(torch.linalg.vector_norm(torch.stack(sizes)))
            left = norm / (size + 1e-6)  # as torch has it
            if left < 1:
                found = {n: g * left for n, g in found.items()}
        return found

    def _clipped_by_the_user(self, gradient: dict[str, Tensor], own: Clip) -> dict[str, Tensor]:
        """Inside `quiet`, where no parameter has a gradient, and which puts them back."""
        parameters = {n: p for o in self.optimizers for n, p in self._named(o)}
        try:
            for name, g in gradient.items():
                parameters[name].grad = g.to(parameters[name].dtype).clone()
            for optimizer in self.optimizers:
                own(optimizer)
            left = {n: parameters[n].grad for n in gradient}
            return {n: gradient[n] * 0 if g is None else g for n, g in left.items()}
        finally:
            for parameter in parameters.values():
                parameter.grad = None

    def _named(self, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
        every = parameters_of(optimizer)
        return [(self.names[id(p)], p) for p in every if id(p) in self.names]

    @property
    def stepped(self) -> tuple[str, ...]:
        """Names of the parameters that an optimizer has."""
        return tuple(name for optimizer in self.optimizers for name, _ in self._named(optimizer))

    @property
    def velocity(self) -> Velocity:
        """How steps are carried on; of the first optimizer and its first group."""
        optimizer = self.optimizers[0]
        group = optimizer.param_groups[0]
        if not isinstance(optimizer, SGD) and type(optimizer) not in KNOWN:
            return Velocity()  # its step without a gradient has what momentum holds
        if isinstance(optimizer, AVERAGING):
            beta = float(group["betas"][0])
            states = (optimizer.state.get(p, {}) for p in group["params"])
            state: Mapping[str, Any] = next((each for each in states if "step" in each), {})
            growing = float(group["momentum_decay"]) if isinstance(optimizer, NAdam) else None
            product = float(state.get("mu_product", 1.0))
            taken = int(float(state.get("step", 0)))
            return Velocity(beta, 1 - beta, taken=taken, growing=growing, product=product)
        beta = float(group.get("momentum") or 0.0)
        if isinstance(optimizer, (SGD, RMSprop)) and 0 < beta < 1:
            gain = 1 - float(group.get("dampening") or 0.0)
            return Velocity(beta, gain, nesterov=bool(group.get("nesterov")))
        return Velocity()

    def parts(self, gradient: Gradients) -> dict[str, Part]:
        r"""How each parameter is stepped when the gradient is near a given one.

        For Adam, AdamW and NAdam

        .. math::
            D = 1/(\sqrt{v / (1 - \beta_2^t)} + \epsilon),

        :math:`v` being what it will be at the next step (the largest so far for AMSGrad), with
        :math:`v` itself for RMSprop and the sum of squares for Adagrad. For Adamax :math:`D = 1/u`,
        the infinity norm that it will have at the next step. For Shampoo, as
        pytorch-optimizer and torch-optimizer have it, ``D`` multiplies each axis of the gradient
        with the inverse root of that axis' second moments. For SGD it is one. For any other
        optimizer it is what the real step makes of each entry.

        Args:
            gradient: Of the loss, by the parameters' names.

        Returns:
            A part for each parameter that is stepped.
        """
        clipped = self.clipped(gradient)
        found: dict[str, Part] = {}
        for optimizer in self.optimizers:
            known = self._known(optimizer, clipped)
            found.update(self._secant(optimizer, clipped) if known is None else known)
        return found

    def _known(self, optimizer: Optimizer, gradient: Gradients) -> dict[str, Part] | None:
        """The parts of an optimizer that is known, or None."""
        found = {}
        after = {} if type(optimizer) in KNOWN else factors_after(optimizer, self.names, gradient)
        for group in optimizer.param_groups:
            rate = self.references.get(id(group), _number(group.get("lr")))
            if rate is None or group.get("maximize") or isinstance(group.get("lr"), Mapping):
                return None
            for parameter in group["params"]:
                name = self.names.get(id(parameter))
                if name is None or name not in gradient:
                    continue
                given = gradient[name]
                part = part_of(optimizer, group, parameter, given, rate, after.get(name))
                if part is None:
                    return None
                found[name] = part
        return found

    def _secant(self, optimizer: Optimizer, gradient: Gradients) -> dict[str, Part]:
        """The parts of any optimizer, from two of its steps: with the gradient, and without."""
        own = {name for name, _ in self._named(optimizer)}
        some = {name: g for name, g in gradient.items() if name in own}
        zero = {name: torch.zeros_like(g) for name, g in some.items()}
        there, without = (real_update(optimizer, self.names, g) for g in (some, zero))
        found = {}
        for name, g in some.items():
            moved = there[name].to(g) - without[name].to(g)
            ratio = torch.where(g == 0, 0.0, -moved / torch.where(g == 0, 1.0, g)).clamp_min(0)
            found[name] = Part(partial(entrywise, ratio), steady=without[name])
        return found

    def later(
        self, steps: int, parameters: Gradients, held: Gradients, first: Gradients, last: Gradients
    ) -> Descent:
        """How a training steps some steps later.

        Args:
            steps: How many.
            parameters: The parameters then.
            held: What momentum then holds.
            first: The gradient now.
            last: The gradient then.

        Returns:
            Another descent, with optimizers of its own.
        """
        found = self.on_copies(parameters)
        for shadow in found.optimizers:
            for p in parameters_of(shadow):
                if (name := found.names[id(p)]) in first:
                    mean = (first[name].square() + last[name].square()) / 2
                    advance(shadow, p, steps, held[name], mean)
        return found.after(steps)

    def on_copies(self, parameters: Gradients) -> Descent:
        """The same by copies of the optimizers, which step copies of the parameters.

        Args:
            parameters: Values by name; those that it lacks are as they are.

        Returns:
            Another descent.
        """
        optimizers, names, references = [], {}, {}
        for optimizer in self.optimizers:
            copies = {}
            for p in parameters_of(optimizer):
                name = self.names.get(id(p), "")
                copies[id(p)] = parameters.get(name, p).detach().to(p.dtype).clone()
                names[id(copies[id(p)])] = name
            shadow = shadow_of(optimizer, copies)
            for before, after in zip(optimizer.param_groups, shadow.param_groups, strict=True):
                if id(before) in self.references:
                    references[id(after)] = self.references[id(before)]
            optimizers.append(shadow)
        return replace(self, optimizers=tuple(optimizers), names=names, references=references)

    def after(self, steps: int) -> Descent:
        """The same when some of the coming steps are taken: with the rates from there on.

        Args:
            steps: How many.

        Returns:
            Another descent, by the same optimizers.
        """
        return replace(self, rates=self.rates[steps:] or self.rates[-1:])


def descent_of(
    optimizers: Sequence[Optimizer],
    module: nn.Module,
    *,
    rates: Mapping[int, Sequence[float]] | None = None,
    clipping: Clipping = NO_CLIPPING,
) -> Descent | None:
    """How a training steps, read off its optimizers.

    Args:
        optimizers: All of them.
        module: Whose parameters they step.
        rates: The learning rates to come, the first being that of the next step, of each group of
            parameters by its id; see `read_ahead`. The present ones where left out.
        clipping: How gradients are clipped.

    Returns:
        How it steps; None without an optimizer. Nothing is copied: it looks into the optimizers'
        states when it is used.
    """
    if not optimizers:
        return None
    names = {id(p): plain_name(name) for name, p in module.named_parameters()}
    rates = rates or {}
    ahead: dict[int, Sequence[float]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            own = _number(group.get("lr"))
            if own is not None:
                ahead[id(group)] = (own, *rates.get(id(group), ())[1:])
    references = {key: next((r for r in some if r > 0), 0.0) for key, some in ahead.items()}
    leading = next((key for key, rate in references.items() if rate), None)
    relative: tuple[float, ...] = (1.0,)
    if leading is not None:
        relative = tuple(rate / references[leading] for rate in ahead[leading])
    return Descent(tuple(optimizers), names, relative, clipping, references)


def plain_descent(module: nn.Module, learning_rate: float) -> Descent:
    """Plain gradient descent.

    Args:
        module: Whose trained parameters are stepped.
        learning_rate: Its rate.

    Returns:
        How it steps.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    found = descent_of([SGD(trained, lr=learning_rate)], module)
    assert found is not None
    return found


def _number(value: Any) -> float | None:  # noqa: ANN401
    return None if value is None else float(value)
