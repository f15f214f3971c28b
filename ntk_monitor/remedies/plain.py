"""A training in a loop, for trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ntk_monitor.model.isolation.quiet import random_states
from ntk_monitor.model.step import LossFn
from ntk_monitor.monitor import Monitor
from ntk_monitor.remedies.course import Course
from ntk_monitor.remedies.held_out import looker, loss_of, losses, set_apart
from ntk_monitor.remedies.optimization import changed_optimizers
from ntk_monitor.remedies.remedy import Loop, NotApplicableError, Remedy


@dataclass
class PlainTraining:
    """A training in a loop of one's own, as far as trials have to know it.

    Attributes:
        model: The model.
        optimizer: Its optimizer, or ``parameters -> optimizer``, which remedies need that change
            which parameters there are.
        batches: A loader, another iterable of batches, which is begun anew when it ends, or a
            function that draws a batch.
        max_steps: Optimizer steps of the whole training.
        loss_fn: ``(module, batch) -> loss``; without it the model's own loss, or a guess by the
            batch, as in `ntk_monitor.probe`.
        scheduler: What changes the learning rate, stepped once a step, or ``optimizer ->
            scheduler``.
        clip_norm: Norm to which gradients are clipped.
        accumulate: Batches that make a step.
        held_out: Batches that are not trained on; some of the training's where left out.
    """

    model: nn.Module
    optimizer: Optimizer | Callable[[Any], Optimizer]
    batches: Iterable[Any] | Callable[[], Any]
    max_steps: int
    loss_fn: LossFn | None = None
    scheduler: Any = None
    clip_norm: float | None = None
    accumulate: int = 1
    held_out: Any = None

    def run(self, remedy: Remedy, course: Course, monitor: dict[str, Any], ckpt: Any) -> None:  # noqa: ANN401
        """Train as far as a trial goes.

        Args:
            remedy: What to change.
            course: Is told of every step.
            monitor: Settings of the monitor.
            ckpt: A checkpoint: a file or mapping with the model's ``state_dict``.
        """
        model = self.model
        if ckpt is not None:
            record = ckpt if isinstance(ckpt, dict) else torch.load(ckpt, weights_only=True)
            model.load_state_dict(record.get("state_dict", record))
        held, data = set_apart(self.batches, self.held_out)
        stream = _endless(data)
        first = next(stream)
        with random_states(model):
            remedy.change_model(model, looker(model, first, self.loss_fn))
        optimizer = self._optimizer(model)
        scheduler = self.scheduler
        if callable(scheduler) and not hasattr(scheduler, "step"):
            scheduler = scheduler(optimizer)
        schedulers = [] if scheduler is None else [scheduler]
        (optimizer,) = changed_optimizers(remedy, [optimizer], schedulers)
        loop = remedy.change_loop(Loop(clip_norm=self.clip_norm, accumulate=self.accumulate))
        watch = Monitor(probe_batch=held.batches[0], **monitor)
        watch.on_probe = lambda snapshot, _: course.snapshots.append(snapshot)
        loss = loss_of(model, self.loss_fn)
        course.begin(0, self.max_steps, held, lambda: losses(model, held.batches, self.loss_fn))
        watch.schedule.plan = [course.last]
        attached = watch.attach(
            model, optimizer, loss_fn=self.loss_fn, clip_norm=loop.clip_norm,
            scheduler=schedulers, batch=first, total_steps=self.max_steps,
        )  # fmt: skip
        with attached:
            for taken in range(1, course.steps + 1):
                optimizer.zero_grad()
                for _ in range(loop.accumulate):
                    remedy.change_data(data, course.progress)
                    batch = next(stream)
                    course.see(batch)
                    (loss(batch) / loop.accumulate).backward()
                if loop.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), loop.clip_norm)
                optimizer.step()
                for each in schedulers:
                    each.step()
                watch.step(batch)
                if course.step(taken):
                    break

    def _optimizer(self, model: nn.Module) -> Optimizer:
        trained = [p for p in model.parameters() if p.requires_grad]
        if not isinstance(self.optimizer, Optimizer):
            return self.optimizer(trained)
        known = {p for group in self.optimizer.param_groups for p in group["params"]}
        if set(trained) - known:
            raise NotApplicableError(
                "it changes which parameters train: optimizer must be a function of the parameters"
            )
        return self.optimizer


def _endless(data: Any) -> Iterator[Any]:  # noqa: ANN401
    """Batches without end."""
    if callable(data) and not isinstance(data, Iterable):
        while True:
            yield data()
    while True:
        some = False
        for batch in data:
            some = True
            yield batch
        if not some:
            raise ValueError("batches must have at least one batch that is not held out, got none")
