"""The next steps of a training as its optimizers take them, one by one, on copies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ntk_monitor.descent.lossmap import LossMap, NoLossError
from ntk_monitor.descent.optimizers import Descent
from ntk_monitor.descent.shadow import make_step, parameters_of


class Walk(NamedTuple):
    """Steps that were taken on copies.

    Attributes:
        losses: Of the observed batch, at the beginning and after each step.
        outputs: Likewise, each of shape ``(N,)``.
        end: The loss at the end, on the batch that steps are made on; to be closed by the caller.
        descent: How the training steps from there on.
    """

    losses: list[float]
    outputs: list[Tensor]
    end: LossMap
    descent: Descent


def walk(source: LossMap, observed: LossMap, descent: Descent, count: int) -> Walk:
    """Take the next steps on one batch; each costs a training step.

    Args:
        source: The batch on which steps are made, at the present parameters.
        observed: The batch on which they are observed.
        descent: How the training steps.
        count: How many steps.

    Returns:
        What they come to; fewer where the loss ceases to be finite.
    """
    losses, outputs, here = [observed.loss], [observed.outputs], source
    walker = _Walker(descent, source.space.split(source.theta))
    for k in range(count):
        values = walker.step(here.space.split(here.gradient), k)
        try:
            there = source.moved(source.joined(values))
        except NoLossError:  # as where it is not finite
            break
        if here is not source:
            here.close()
        here = there
        y = here.outputs if observed is source else observed.outputs_at(here.theta)
        loss = here.loss if observed is source else float(observed.evaluate([y])[0][0])
        losses.append(loss)
        outputs.append(y)
        if not math.isfinite(loss):
            break
    return Walk(losses, outputs, here, walker.after(len(losses) - 1))


class _Walker:
    """Copies of parameters, and of the optimizers that step them."""

    def __init__(self, descent: Descent, values: Mapping[str, Tensor]) -> None:
        """Copy.

        Args:
            descent: How the training steps.
            values: The values of parameters by name; those that it lacks are as they are.
        """
        self._descent, self._values = descent, dict(values)
        self._copy = descent.on_copies(values)

    def step(self, gradient: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
        """Take a step.

        Args:
            gradient: Of the loss, by the parameters' names.
            k: Which of the coming steps, from 0.

        Returns:
            The parameters after it, by name.
        """
        clipped = self._descent.clipped(gradient)
        names, references = self._copy.names, self._copy.references
        for shadow in self._copy.optimizers:
            for group in shadow.param_groups:
                if id(group) in references:
                    group["lr"] = references[id(group)] * self._copy.rate_at(k)
            for p in parameters_of(shadow):
                given = clipped.get(names[id(p)])
                p.grad = None if given is None else given.to(p.dtype, copy=True).reshape(p.shape)
            make_step(shadow)
            own = {names[id(p)]: p.detach() for p in parameters_of(shadow)}
            self._values.update({n: p for n, p in own.items() if n in self._values})
        return self._values

    def after(self, steps: int) -> Descent:
        """How the training steps after some steps."""
        return self._copy.after(steps)
