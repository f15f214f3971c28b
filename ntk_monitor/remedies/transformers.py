"""A training by the Trainer of the transformers library, for trials."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import DefaultFlowCallback, Trainer, TrainerCallback

from ntk_monitor.model.isolation.quiet import random_states
from ntk_monitor.monitor.integrations.transformers import ComputeLoss, NTKTrainerCallback
from ntk_monitor.remedies.course import Course
from ntk_monitor.remedies.held_out import HeldOut, looker, losses, of_validation, set_apart
from ntk_monitor.remedies.optimization import changed_optimizers
from ntk_monitor.remedies.remedy import Loop, Remedy

OWN: dict[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "disable_tqdm": True,
    "push_to_hub": False,
}
"""How a trial's arguments are, whatever the user's are."""


@dataclass
class TransformersTraining:
    """A training by a transformers Trainer, as far as trials have to know it.

    Attributes:
        trainer: The Trainer, before its first step.
        held_out: Batches that are not trained on; by default of the evaluation data, or, without
            these, some of the training's.
    """

    trainer: Trainer
    held_out: Any = None

    def run(self, remedy: Remedy, course: Course, monitor: dict[str, Any], ckpt: Any) -> None:  # noqa: ANN401
        """Train as far as a trial goes.

        Args:
            remedy: What to change.
            course: Is told of every step.
            monitor: Settings of the monitor.
            ckpt: A checkpoint's folder to begin from, or None.
        """
        trainer: Any = self.trainer
        model = trainer.model
        assert isinstance(model, nn.Module)
        loss_fn = ComputeLoss(trainer)
        held, data = self._data()
        with tempfile.TemporaryDirectory() as folder:
            self._without_files(folder, course)
            batch = trainer._prepare_inputs(next(iter(data)))

            def change() -> None:
                with random_states(model):
                    remedy.change_model(model, looker(model, batch, loss_fn))

            if ckpt is None:
                change()
            self._change_steps(remedy)
            batches = [trainer._prepare_inputs(b) for b in held.batches]
            watch = NTKTrainerCallback(probe_batch=batches[0], log_dir=folder, **monitor)
            watch.on_probe = lambda snapshot, _: course.snapshots.append(snapshot)
            trainer.add_callback(
                _Stages(
                    course,
                    held,
                    remedy,
                    trainer,
                    watch,
                    lambda: losses(model, batches, loss_fn),
                    restored=None if ckpt is None else change,
                )
            )
            trainer.add_callback(watch)
            trainer.get_train_dataloader = lambda: _noted(data, course)
            trainer.train(resume_from_checkpoint=ckpt)

    def _data(self) -> tuple[HeldOut, Any]:
        """What is held out, and what is trained on."""
        trainer = self.trainer
        loader = trainer.get_train_dataloader()
        if self.held_out is None and trainer.eval_dataset is not None:
            return of_validation(trainer.get_eval_dataloader()), loader
        return set_apart(loader, self.held_out)

    def _without_files(self, folder: str, course: Course) -> None:
        """Neither checkpoints nor logs, nor callbacks that may write some."""
        trainer = self.trainer
        for name, value in OWN.items():
            setattr(trainer.args, name, type(getattr(trainer.args, name))(value))
        trainer.args.output_dir = folder
        left = [c for c in trainer.callback_handler.callbacks if type(c) is not DefaultFlowCallback]
        course.without(c for c in left if not type(c).__module__.startswith("transformers."))
        for callback in left:
            trainer.remove_callback(callback)

    def _change_steps(self, remedy: Remedy) -> None:
        """How the Trainer makes a step."""
        trainer: Any = self.trainer
        args = trainer.args
        before = Loop(
            clip_norm=args.max_grad_norm or None, accumulate=args.gradient_accumulation_steps
        )
        loop = remedy.change_loop(before)
        args.max_grad_norm = loop.clip_norm or 0.0
        args.gradient_accumulation_steps = loop.accumulate


def _noted(data: Any, course: Course) -> Any:  # noqa: ANN401
    """A loader whose first batches the course notes."""
    collate = data.collate_fn

    def noting(samples: Any) -> Any:  # noqa: ANN401
        batch = collate(samples)
        course.see(batch)
        return batch

    data.collate_fn = noting
    return data


@dataclass(eq=False)
class _Stages(TrainerCallback):
    """Tells a trial's course of every step, and ends the training with it."""

    course: Course
    held: HeldOut
    remedy: Remedy
    trainer: Trainer
    watch: NTKTrainerCallback
    measure: Callable[[], tuple[float, ...]]
    restored: Callable[[], None] | None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        del args, control
        if self.restored is not None:
            self.restored()
        trainer: Any = self.trainer  # which has made its optimizer, or read it off a checkpoint
        optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
        inner = getattr(scheduler, "scheduler", scheduler)
        (changed,) = changed_optimizers(self.remedy, [optimizer.optimizer], [inner])
        optimizer.optimizer = changed
        self.course.begin(state.global_step, state.max_steps, self.held, self.measure)
        self.watch.schedule.plan = [self.course.last]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        del args, control
        if self.remedy.changes_data:
            progress = state.global_step / state.max_steps
            self.remedy.change_data(self.trainer.train_dataset, progress)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        del args
        if self.course.step(state.global_step):
            control.should_training_stop = True
