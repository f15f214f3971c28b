"""Data that no trial trains on, and the loss on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from ntk_monitor.model import quiet
from ntk_monitor.model.batch.copies import keep_batch
from ntk_monitor.model.step import LossFn, step_function

BATCHES = 4
"""Most batches that are held out."""
SHARE = 5
"""At most one in so many samples, or batches, is held out."""


@dataclass(frozen=True)
class HeldOut:
    """Batches that are held out.

    Attributes:
        batches: The batches.
        source: Where they come from, in words.
        apart: Whether none of them is trained on.
    """

    batches: Sequence[Any]
    source: str
    apart: bool = True


def given(batches: Iterable[Any]) -> HeldOut:
    """Batches that a user holds out.

    Args:
        batches: The batches.

    Returns:
        These.
    """
    return HeldOut(list(batches), "what was given")


def of_validation(loader: Iterable[Any]) -> HeldOut:
    """The first batches of validation data.

    Args:
        loader: Gives them.

    Returns:
        Copies of these.
    """
    return HeldOut([keep_batch(b) for b in islice(iter(loader), BATCHES)], "validation data")


def set_apart(data: Any, held_out: Iterable[Any] | None = None) -> tuple[HeldOut, Any]:  # noqa: ANN401
    """Hold out some of a training's data, unless a user holds out others.

    Args:
        data: A loader, another iterable of batches, or a function that draws a batch.
        held_out: The batches that a user holds out.

    Returns:
        What is held out, and the data without it: samples, where a loader says which are its own;
        else batches. Of a single batch nothing can be held out.
    """
    if held_out is not None:
        return given(held_out), data
    if callable(data) and not isinstance(data, Iterable):
        return HeldOut([keep_batch(data()) for _ in range(BATCHES)], "fresh training data"), data
    if _has_samples(data):
        return _by_samples(data)
    count = min(BATCHES, length_hint(data, BATCHES * SHARE) // SHARE)
    held = [keep_batch(b) for b in islice(iter(data), max(count, 1))]
    if not count:
        return HeldOut(held, "the data that were trained on", apart=False), data
    return HeldOut(held, "training data that were left out"), _Rest(data, count)


def _has_samples(data: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(data, DataLoader)
        and not isinstance(data.dataset, IterableDataset)
        and data.batch_size is not None
        and type(data.sampler) in {RandomSampler, SequentialSampler}
        and len(data.dataset) >= 2 * SHARE  # type: ignore[arg-type]
    )


def _by_samples(data: DataLoader[Any]) -> tuple[HeldOut, Any]:
    """Hold out samples of a loader that says which are its own."""
    size: int = data.batch_size or 1
    samples = len(data.dataset)  # type: ignore[arg-type]
    count = max(min(BATCHES * size, samples // SHARE), 1)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).tolist()
    dataset = data.dataset
    held = [
        keep_batch(data.collate_fn([dataset[i] for i in order[at : min(at + size, count)]]))
        for at in range(0, count, size)
    ]
    rest = DataLoader(
        Subset(dataset, sorted(order[count:])),
        batch_size=size,
        shuffle=isinstance(data.sampler, RandomSampler),
        num_workers=data.num_workers,
        collate_fn=data.collate_fn,
        pin_memory=data.pin_memory,
        drop_last=data.drop_last,
        generator=data.generator,
        worker_init_fn=data.worker_init_fn,
    )
    return HeldOut(held, "training data that were left out"), rest


class _Rest:
    """All batches but the first ones of every round."""

    def __init__(self, data: Any, count: int) -> None:  # noqa: ANN401
        self._data, self._count = data, count

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._data, name)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._data), self._count, None)

    def __len__(self) -> int:
        return len(self._data) - self._count


def loss_of(module: nn.Module, loss_fn: LossFn | None = None) -> Callable[[Any], Any]:
    """The loss that a training minimises, as a function of a batch.

    Args:
        module: The module.
        loss_fn: What training minimises; the module's own training step where left out.

    Returns:
        The function; it gives None where a step has no loss.
    """
    step = step_function(module, loss_fn=loss_fn)
    return lambda batch: step.loss(step(module, batch), ())


def losses(
    module: nn.Module, batches: Sequence[Any], loss_fn: LossFn | None = None
) -> tuple[float, ...]:
    """The loss of each of some batches, in evaluation mode; the module is left as it was.

    Args:
        module: The module.
        batches: The batches.
        loss_fn: What training minimises; the module's own training step where left out.

    Returns:
        The losses; nan where there is none.
    """
    with quiet(module), torch.no_grad():
        loss = loss_of(module, loss_fn)
        found = [loss(keep_batch(batch)) for batch in batches]
    return tuple(math.nan if each is None else float(each) for each in found)


def looker(
    module: nn.Module,
    batch: Any,  # noqa: ANN401
    loss_fn: LossFn | None = None,
) -> Callable[[], Any]:
    """A function that gives the loss of a batch, always the same, in evaluation mode.

    Args:
        module: The module.
        batch: The batch.
        loss_fn: What training minimises; the module's own training step where left out.

    Returns:
        The function.
    """
    loss = loss_of(module, loss_fn)

    def look() -> Any:  # noqa: ANN401
        with quiet(module):
            return loss(keep_batch(batch))

    return look
