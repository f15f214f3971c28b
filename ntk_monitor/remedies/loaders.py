"""Where a trial under a Lightning Trainer gets its batches from, and what it is judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

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

        def train_dataloader() -> Any:  # noqa: ANN401
            return self._split(make(), source)

        source.train_dataloader = train_dataloader

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
            validation = _first(source.val_dataloader()) if own else None
            self._splits = validation is None
            if validation is not None:
                self._held = of_validation(validation)
                return loader
            self._held, rest = _apart(loader)
            return rest


def _apart(loader: Any) -> tuple[HeldOut, Any]:  # noqa: ANN401
    """Hold out some of a loader's data, or of each of several."""
    if isinstance(loader, Mapping):
        parts = {name: _apart(part) for name, part in loader.items()}
        count = min(len(held.batches) for held, _ in parts.values())
        batches: list[Any] = [
            {name: held.batches[i] for name, (held, _) in parts.items()} for i in range(count)
        ]
        first = [held for held, _ in parts.values()]
        rest: Any = {name: each for name, (_, each) in parts.items()}
    elif isinstance(loader, (list, tuple)) and loader and hasattr(loader[0], "__iter__"):
        found = [_apart(part) for part in loader]
        first = [held for held, _ in found]
        batches = [list(each) for each in zip(*(held.batches for held in first), strict=False)]
        rest = [each for _, each in found]
    else:
        return set_apart(loader)
    return HeldOut(batches, first[0].source, all(held.apart for held in first)), rest


def _first(loader: Any) -> Any:  # noqa: ANN401
    """The first of several loaders."""
    while isinstance(loader, (list, tuple)):
        loader = loader[0] if loader else None
    if isinstance(loader, Mapping):
        loader = next(iter(loader.values()), None)
    return loader
