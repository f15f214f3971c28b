"""Where a trial under a Lightning Trainer gets its batches from, and what it is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ntk_monitor.compat import tree_flatten, tree_leaves, tree_unflatten
from ntk_monitor.model.isolation.quiet import random_states
from ntk_monitor.monitor.integrations.lightning.trainer import overrides
from ntk_monitor.remedies.held_out import HeldOut, given, of_validation, set_apart


class Loaders:
    """Training data, with something held out.

    What is held out is known when the Trainer has asked for its training data, since a data module
    may make them then.

    Attributes:
        given: What `Trainer.fit` gets.
    """

    def __init__(self, module: Any, data: Any, held_out: Sequence[Any] | None) -> None:  # noqa: ANN401
        """Look at what there is.

        Args:
            module: The Lightning module.
            data: A data module, a loader or several, or None where the module has its own.
            held_out: Batches that are not trained on; None to find some.

        Raises:
            ValueError: If there are no training data.
        """
        whole = hasattr(data, "setup") and hasattr(data, "train_dataloader")
        self._held = None if held_out is None else given(held_out)
        self._splits = False
        if data is not None and not whole:
            self.given: dict[str, Any] = {"train_dataloaders": self._split(data, module)}
            return
        source = data if whole else module
        if not overrides(source, "train_dataloader"):
            raise ValueError(
                "datamodule must be a LightningDataModule or a loader of training batches, got "
                f"{data!r}, and {type(module).__name__} has no train_dataloader"
            )
        self.given = {"datamodule": data} if whole else {}
        make = source.train_dataloader
        source.train_dataloader = lambda: self._split(make(), source)

    @property
    def held(self) -> HeldOut:
        """What is held out; to be asked for when training has begun."""
        if self._held is None:
            raise RuntimeError("the Trainer has not asked for its training data")
        return self._held

    def _split(self, loader: Any, source: Any) -> Any:  # noqa: ANN401
        """Training data without what is held out, the same whenever they are asked for."""
        if self._held is not None and not self._splits:
            return loader
        own = overrides(source, "val_dataloader")
        with random_states(nn.Identity()):  # whoever asks first, and whenever
            loaders = tree_leaves(source.val_dataloader()) if own else []
            validation = next(iter(loaders), None)  # the first of several
            self._splits = validation is None
            if validation is not None:
                self._held = of_validation(validation)
                return loader
            self._held, rest = _apart(loader)
            return rest


def _apart(loader: Any) -> tuple[HeldOut, Any]:  # noqa: ANN401
    """Hold out some of a loader's data, or of each of several."""
    loaders, structure = tree_flatten(loader)
    held, rest = zip(*map(set_apart, loaders), strict=True)
    batches = [
        tree_unflatten(parts, structure)
        for parts in zip(*(each.batches for each in held), strict=False)
    ]
    found = HeldOut(batches, held[0].source, all(each.apart for each in held))
    return found, tree_unflatten(rest, structure)
