"""What a remedy is: small changes to a training, made before its first step or beside its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ntk_monitor.checks import require
from ntk_monitor.reason import Reason

Look = Callable[[], Tensor]
"""Calls the step function on a training batch, always the same, and gives the loss."""


class NotApplicableError(ValueError):
    """A remedy does not fit a training; says why."""


@dataclass
class Loop:
    """How a training makes a step of gradients.

    Attributes:
        clip_norm: Norm to which gradients are clipped; None for no clipping by norm.
        clip_value: Size to which entries of gradients are clipped; None for no such clipping.
        accumulate: Batches that make a step.
    """

    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1


class Remedy:
    """One thing to change in a training that learns nothing.

    A subclass overrides the ``change_...`` methods for what it changes; each raises a
    `NotApplicableError` where it does not fit, which is told in the table of trials. It is its
    arguments: they say how to make it again in a process of its own and in a YAML file.

    Attributes:
        name: What a table calls it.
        reasons: The stall's reasons for which it is tried first.
        fresh: Whether it makes sense only before the first step.
        changes_data: Whether it changes what is trained on.
        cost: Batches that one of its steps takes, over those of a step without it.
    """

    name: str = "as it is"
    reasons: tuple[Reason, ...] = ()
    fresh: bool = False
    changes_data: bool = False
    cost: float = 1.0

    def change_model(self, model: nn.Module, look: Look) -> None:
        """Change a model before its first step, in place.

        Args:
            model: The model.
            look: Calls the step function on a training batch.
        """

    def change_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Change an optimizer in place, or make another one of the same parameters.

        Args:
            optimizer: The optimizer.

        Returns:
            The one to train with.
        """
        return optimizer

    def change_loop(self, loop: Loop) -> Loop:
        """Change how a step's gradients are made.

        Args:
            loop: As it is.

        Returns:
            As it should be.
        """
        return loop

    def change_data(self, data: Any, progress: float) -> None:  # noqa: ANN401
        """Change the data, called before each batch.

        Args:
            data: Where they come from: a data module, a loader, a data set.
            progress: Share of the planned steps that were taken.
        """

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that make it again, in plain types."""
        return {name: value for name, value in vars(self).items() if not hasattr(Remedy, name)}

    def __repr__(self) -> str:
        """As it is written."""
        inside = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{type(self).__name__}({inside})"


class Together(Remedy):
    """Several remedies at once."""

    def __init__(self, remedies: Sequence[Remedy]) -> None:
        """Put them together.

        Args:
            remedies: The remedies, in the order in which they act.
        """
        known = all(isinstance(each, Remedy) for each in remedies)
        require(known and len(remedies) > 0, "remedies", "a sequence of remedies", remedies)
        self.remedies = list(remedies)
        self.name = " and ".join(each.name for each in remedies)
        self.cost = max(each.cost for each in remedies)
        self.fresh = any(each.fresh for each in remedies)
        self.reasons = tuple(reason for each in remedies for reason in each.reasons)
        self.changes_data = any(each.changes_data for each in remedies)

    def change_model(self, model: nn.Module, look: Look) -> None:  # noqa: D102
        for each in self.remedies:
            each.change_model(model, look)

    def change_optimizer(self, optimizer: Optimizer) -> Optimizer:  # noqa: D102
        for each in self.remedies:
            optimizer = each.change_optimizer(optimizer)
        return optimizer

    def change_loop(self, loop: Loop) -> Loop:  # noqa: D102
        for each in self.remedies:
            loop = each.change_loop(loop)
        return loop

    def change_data(self, data: Any, progress: float) -> None:  # noqa: ANN401, D102
        for each in self.remedies:
            each.change_data(data, progress)
