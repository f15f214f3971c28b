"""The step function: from a module and a batch to the loss that training minimises."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ntk_monitor.model.batch.reading import ForwardFn, TargetFn, default_forward, default_target
from ntk_monitor.model.batch.structure import described, main_output
from ntk_monitor.model.step.comparison import Comparison, Head
from ntk_monitor.model.step.standins import REMEDY, StepError, Training

LossFn = Callable[[nn.Module, Any], Any]


class StepFunction:
    """One call of what training minimises, with nothing optimised: of a user's ``loss_fn``, say.

    Attributes:
        name: What is called.
        is_watched: Whether its loss tells what is compared.
    """

    is_watched: bool = True

    def __init__(self, name: str, call: LossFn, training: Training) -> None:
        """Keep it.

        Args:
            name: What is called.
            call: ``(module, batch)`` to what is returned.
            training: Stands in for a Trainer.
        """
        self.name, self._call, self._training = name, call, training

    def __call__(self, module: nn.Module, batch: Any) -> Any:  # noqa: ANN401
        """Call it.

        Args:
            module: The module.
            batch: What training would call it on; it may be changed.

        Returns:
            What it returned.
        """
        with self._training.standing_in():
            return self._call(module, batch)

    def loss(self, returned: Any, meant: Sequence[Tensor]) -> Tensor | None:  # noqa: ANN401
        """The loss.

        Args:
            returned: What the call returned.
            meant: Losses that it would have gone backward from.

        Returns:
            A scalar; None where there is none. Where there should be one, a StepError is raised.
        """
        meant = [*self._training.meant, *meant]
        return _sum(meant) if meant else self._scalar(returned)

    def _scalar(self, returned: Any) -> Tensor:  # noqa: ANN401
        found = loss_in(returned)
        if found is not None:
            return found
        told = "None" if returned is None else f"a {type(returned).__name__} without a loss"
        raise StepError(
            f"{self.name} returned {told}, where a scalar tensor, a mapping with 'loss', or an "
            f"object with .loss is expected: {REMEDY}"
        )

    def plain_output(self, returned: Any, batch: Any) -> Comparison | None:  # noqa: ANN401
        """What is compared where no loss tells it.

        Args:
            returned: What the call returned.
            batch: What it was called on.

        Returns:
            The comparison, or None.
        """
        del returned, batch
        return None

    def without_target(self, batch: Any) -> str:  # noqa: ANN401
        """Why a batch has no target where no loss tells it, and what to do about it.

        Args:
            batch: The batch.

        Returns:
            A sentence; empty where it has one.
        """
        del batch
        return ""


class TrainingStep(StepFunction):
    """A Lightning module's own ``training_step``."""

    def __init__(self, module: nn.Module, training: Training) -> None:
        """Look at how it is called.

        Args:
            module: The module.
            training: Stands in for its Trainer.

        Raises:
            StepError: If it cannot be called with one batch.
        """
        name = f"{type(module).__name__}.training_step"
        self._automatic = bool(getattr(module, "automatic_optimization", True))
        step: Any = module.training_step
        parameters = inspect.signature(step).parameters
        if "dataloader_iter" in parameters:
            raise StepError(
                f"{name} takes a dataloader_iter and fetches its batches itself, so that it "
                f"cannot be repeated on one: {REMEDY}"
            )
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positional = [p for p in parameters.values() if p.kind in kinds]
        # As Lightning does: a second argument, by whatever name, is the number of the batch.
        any_number = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
        numbers = (0,) * (len(positional) > 1 or any_number)
        named = {n: 0 for n in ("dataloader_idx", "batch_idx") if n in parameters}
        if len(positional) > 1:
            named.pop(positional[1].name, None)

        def call(module: Any, batch: Any) -> Any:  # noqa: ANN401
            return module.training_step(batch, *numbers, **named)

        super().__init__(name, call, training)

    def loss(self, returned: Any, meant: Sequence[Tensor]) -> Tensor | None:  # noqa: ANN401, D102
        meant = [*self._training.meant, *meant]
        if not self._automatic and not meant:
            raise StepError(
                f"{self.name} optimises by itself and handed no loss to manual_backward on this "
                f"batch: {REMEDY}"
            )
        if self._automatic and returned is None:
            raise SkippedBatchError(
                f"{self.name} returned None for the kept batch, which training skips: another "
                "batch is kept in its place"
            )
        return self._scalar(returned) if self._automatic else _sum(meant)


class SkippedBatchError(StepError):
    """The step leaves this batch out."""


class ForwardStep(StepFunction):
    """A forward pass, and a target that the batch holds.

    Where the module computes a loss of its own (as those of the transformers library do, of a batch
    with labels), that tells what is compared.
    """

    def __init__(
        self,
        module: nn.Module,
        forward_fn: ForwardFn | None,
        target_fn: TargetFn | None,
        training: Training,
    ) -> None:
        """Keep how the module is called.

        Args:
            module: The module.
            forward_fn: ``(module, batch) -> outputs``; None for the usual kinds of batches.
            target_fn: ``batch -> target``; None for the usual places.
            training: Stands in for a Trainer, where the module may have one.
        """
        name = f"{type(module).__name__}.forward" if forward_fn is None else "forward_fn"
        super().__init__(name, default_forward if forward_fn is None else forward_fn, training)
        self.target_fn = default_target if target_fn is None else target_fn
        self.is_watched = forward_fn is None and target_fn is None

    def loss(self, returned: Any, meant: Sequence[Tensor]) -> Tensor | None:  # noqa: ANN401, D102
        del meant
        own = self.is_watched and not isinstance(returned, (Tensor, tuple, list))
        found = loss_in(returned) if own else None
        return found if found is not None and found.requires_grad else None

    def plain_output(self, returned: Any, batch: Any) -> Comparison | None:  # noqa: ANN401, D102
        return Comparison(Head("outputs"), main_output(returned), self.target_fn(batch))

    def without_target(self, batch: Any) -> str:  # noqa: ANN401, D102
        if self.target_fn(batch) is not None:
            return ""
        return (
            f"no target was found in {described(batch)}, so that there are no target modes: pass "
            "loss_fn=lambda module, batch: ..., or target_fn=lambda batch: ..."
        )


def loss_in(returned: Any) -> Tensor | None:  # noqa: ANN401
    """The loss in what a step returned, as Lightning allows it.

    Args:
        returned: A scalar, a mapping with ``"loss"``, an object with ``.loss``, or a tuple that
            begins with one of these.

    Returns:
        The scalar, or None.
    """
    if isinstance(returned, (tuple, list)) and returned and not hasattr(returned, "loss"):
        returned = returned[0]
    if isinstance(returned, Mapping):
        returned = returned.get("loss")
    elif not isinstance(returned, Tensor):
        returned = getattr(returned, "loss", None)
    scalar = isinstance(returned, Tensor) and returned.numel() == 1
    return returned.reshape(()) if scalar else None


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.sum() for loss in losses]).sum()


def step_function(
    module: nn.Module,
    *,
    forward_fn: ForwardFn | None = None,
    target_fn: TargetFn | None = None,
    loss_fn: LossFn | None = None,
) -> StepFunction:
    """The step function of a training.

    Args:
        module: The module.
        forward_fn: A user's; the forward pass is then taken for the step.
        target_fn: Likewise.
        loss_fn: A user's loss.

    Returns:
        ``loss_fn`` if there is one; else, unless a forward pass is asked for, a Lightning module's
        ``training_step``; else a forward pass.
    """
    training = Training(module)
    if loss_fn is not None:
        return StepFunction(str(getattr(loss_fn, "name", "loss_fn")), loss_fn, training)
    asked = forward_fn is not None or target_fn is not None
    if not asked and has_training_step(module):
        return TrainingStep(module, training)
    return ForwardStep(module, forward_fn, target_fn, training)


def has_training_step(module: nn.Module) -> bool:
    """Whether a module is a Lightning module with a training step of its own.

    Args:
        module: The module.

    Returns:
        True if it is.
    """
    if not all(hasattr(module, name) for name in ("_trainer", "automatic_optimization")):
        return False
    if "training_step" in vars(module):
        return True
    owner = next((kind for kind in type(module).__mro__ if "training_step" in vars(kind)), None)
    return owner is not None and owner.__name__ != "LightningModule"
