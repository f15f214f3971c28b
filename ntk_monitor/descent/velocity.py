"""Momentum: what optimizers remember of earlier gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RMSprop

Place = NDArray[np.float64]
KNOWN: frozenset[type[Optimizer]] = frozenset({SGD, Adam, Adamax, AdamW, NAdam, RMSprop, Adagrad})
"""Optimizers whose steps are known from their state; what is derived from them is not."""
AVERAGING = (Adam, Adamax, AdamW, NAdam)
"""Optimizers whose momentum is an average, of a gain of one."""


class Velocity(NamedTuple):
    """How an optimizer carries steps on from one to the next.

    Attributes:
        beta: What is kept of it at each step.
        gain: With what a new gradient comes in.
        nesterov: Whether the step looks one ahead.
        taken: Steps taken so far, for a mean that is corrected for its beginning; None for one that
            is not.
        growing: For NAdam, whose momentum comes in by and by, its ``momentum_decay``.
        product: Of its momenta so far.
    """

    beta: float = 0.0
    gain: float = 1.0
    nesterov: bool = False
    taken: int | None = None
    growing: float | None = None
    product: float = 1.0

    def step(self, momentum: Place, gradient: Place, k: int) -> Place:
        """What is stepped by.

        Args:
            momentum: With the present gradient in it.
            gradient: The present gradient.
            k: Which of the coming steps, from 0.

        Returns:
            A combination of both.
        """
        if self.growing is not None:
            done = self.product * math.prod(self._grown(j) for j in range(k + 1))
            now, then = self._grown(k), self._grown(k + 1)
            return (1 - now) / (1 - done) * gradient + then / (1 - done * then) * momentum
        if self.nesterov:
            return gradient + self.beta * momentum
        if self.taken is not None and self.beta:
            return momentum / (1 - self.beta ** (self.taken + k + 1))
        return momentum.copy()

    def _grown(self, k: int) -> float:
        """NAdam's momentum at one of the coming steps."""
        step = (self.taken or 0) + k + 1
        return self.beta * (1 - 0.5 * math.pow(0.96, step * (self.growing or 0.0)))

    @property
    def total(self) -> float:
        """What one gradient comes to over all later steps."""
        return self.gain / (1 - self.beta) if self.beta < 1 else math.inf

    @property
    def stable(self) -> float:
        """By how much of its slope a gradient may change at a step along it, at most.

        With more, steps swing ever farther: ``2 (1 + beta) / gain``, of Nesterov's kind
        ``2 (1 + beta) / (1 + 2 beta)``.
        """
        return 2 * (1 + self.beta) / (1 + 2 * self.beta if self.nesterov else self.gain)


def advance(
    optimizer: Optimizer, parameter: Tensor, steps: int, held: Tensor, square: Tensor
) -> None:
    """Bring what a known optimizer keeps of one parameter to where it is some steps later."""
    state = optimizer.state[parameter]
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if isinstance(optimizer, SGD):
        if group.get("momentum"):
            state["momentum_buffer"] = held.clone()
        return
    if type(optimizer) not in KNOWN:
        return
    state["step"] = torch.tensor(float(state.get("step", 0)) + steps)
    if isinstance(optimizer, AVERAGING):
        kept = float(group["betas"][1]) ** steps
        state["exp_avg"] = held.clone()
        if isinstance(optimizer, Adamax):
            recent = square.sqrt() + group["eps"]
            state["exp_inf"] = torch.maximum(kept * state.get("exp_inf", 0.0 * recent), recent)
        else:
            state["exp_avg_sq"] = kept * state.get("exp_avg_sq", 0.0) + (1 - kept) * square
        if isinstance(optimizer, NAdam):
            begun = int(float(state["step"])) - steps
            growing = float(group["momentum_decay"])
            velocity = Velocity(float(group["betas"][0]), taken=begun, growing=growing)
            momenta = math.prod(velocity._grown(k) for k in range(steps))
            state["mu_product"] = torch.tensor(float(state.get("mu_product", 1.0)) * momenta)
    elif isinstance(optimizer, RMSprop):
        kept = float(group["alpha"]) ** steps
        state["square_avg"] = kept * state.get("square_avg", 0.0) + (1 - kept) * square
        if group.get("momentum"):  # whose buffer is scaled already
            state["momentum_buffer"] = held / (state["square_avg"].sqrt() + group["eps"])
    elif isinstance(optimizer, Adagrad):
        state["sum"] = state.get("sum", 0.0) + steps * square
