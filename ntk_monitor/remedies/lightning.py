"""Remedies in a Lightning Trainer: as a callback, and in trials."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ntk_monitor.model.isolation.quiet import random_states
from ntk_monitor.monitor import NTKMonitor
from ntk_monitor.monitor.integrations.lightning.trainer import (
    clipping_of,
    first_batch,
    overrides,
    planned_steps,
)
from ntk_monitor.remedies.course import Course
from ntk_monitor.remedies.held_out import HeldOut, looker, losses
from ntk_monitor.remedies.loaders import Loaders
from ntk_monitor.remedies.optimization import changed_optimizers, with_parts
from ntk_monitor.remedies.remedy import Look, Loop, NotApplicableError, Remedy
from ntk_monitor.snapshot import Snapshot

KEPT = ("GradientAccumulationScheduler", "BaseFinetuning", "StochasticWeightAveraging")
"""Callbacks of Lightning that are part of how a model trains."""
OWN: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
    "devices": 1,
    "num_nodes": 1,
}
"""How a trial's Trainer is, whatever the user's is."""
NOT_OURS = ("min_steps", "min_epochs", "strategy", "profiler", "callbacks", "default_root_dir")
"""Arguments of the user's Trainer that its trials do without."""


class ApplyRemedy(Callback):
    """Train with a remedy; what the YAML file that `try_remedies` writes adds to a Trainer.

    The model is changed before its first step; where a checkpoint of a training without the remedy
    is resumed, with the weights of that. Optimizers and schedulers are changed when all is
    restored. A checkpoint of a training with the remedy goes on as it is.

    Example:
        >>> from ntk_monitor.remedies import Adam
        >>> trainer = Trainer(
        ...     callbacks=[ApplyRemedy(Adam(lr=1e-3))],
        ...     logger=False, enable_checkpointing=False, accelerator="cpu",
        ... )
    """

    def __init__(self, remedy: Remedy) -> None:
        """Keep the remedy.

        Args:
            remedy: What to change.
        """
        self.remedy = remedy
        self._states: list[Any] | None = None
        self._misfit: NotApplicableError | None = None

    @property
    def state_key(self) -> str:
        """Names the remedy in a checkpoint."""
        return self._generate_state_key(remedy=repr(self.remedy))

    def state_dict(self) -> dict[str, Any]:
        """That the training already goes on with the remedy."""
        return {"applied": True}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Change the model that was restored, or keep what was changed already.

        Raises:
            NotApplicableError: If the remedy does not fit, or is for initial weights.
        """
        self._misfit = None
        if checkpoint.get("callbacks", {}).get(self.state_key):
            self._states = checkpoint.get("optimizer_states")
            return
        if self.remedy.fresh:
            raise NotApplicableError(
                f"{self.remedy.name}: it needs a training from its beginning, and not the "
                "checkpoint of one without it"
            )
        self._change_model(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Change the model, and how gradients are made.

        Raises:
            NotApplicableError: If the Trainer does not decide how gradients are made.
        """
        if stage != "fit":
            return
        if overrides(pl_module, "configure_model"):
            pl_module.configure_model()  # which may be called twice, as the Trainer does
        self._states = self._misfit = None
        try:
            self._change_model(trainer, pl_module)
        except NotApplicableError as error:  # which may fit the weights of a checkpoint
            self._misfit = error
        clipping = clipping_of(trainer)
        before = Loop(clipping.norm, clipping.value, trainer.accumulate_grad_batches)
        loop = self.remedy.change_loop(before)
        if loop == before:
            return
        if overrides(pl_module, "configure_gradient_clipping") and (
            loop.clip_norm != before.clip_norm
        ):
            raise NotApplicableError(
                f"{type(pl_module).__name__} clips gradients itself, in configure_gradient_clipping"
            )
        if not pl_module.automatic_optimization:
            raise NotApplicableError(
                f"{type(pl_module).__name__} makes its steps itself, so that neither clipping nor "
                "accumulation can be changed"
            )
        trainer.gradient_clip_val = loop.clip_norm or loop.clip_value
        trainer.gradient_clip_algorithm = None  # by norm
        trainer.accumulate_grad_batches = loop.accumulate

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model that the remedy does not fit; by now a checkpoint would be restored."""
        del trainer, pl_module
        if self._misfit is not None:
            raise self._misfit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the optimizers; those of a checkpoint that has the remedy go on."""
        del pl_module
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        before, every = list(trainer.optimizers), list(with_parts(schedulers))
        rates = [_rates(each) for each in every]
        after = changed_optimizers(self.remedy, before, schedulers)
        if self._states is not None:
            for optimizer, state in zip(after, self._states, strict=True):
                optimizer.load_state_dict(state)
            for each, kept in zip(every, rates, strict=True):
                vars(each).update(kept)
        if any(a is not b for a, b in zip(after, before, strict=True)):
            trainer.strategy.optimizers = after

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Change the data that come next."""
        del pl_module
        if self.remedy.changes_data:
            data = getattr(trainer, "datamodule", None) or trainer.train_dataloader
            self.remedy.change_data(data, trainer.global_step / planned_steps(trainer))

    def _change_model(self, trainer: Trainer, module: LightningModule) -> None:
        with random_states(module):
            self.remedy.change_model(module, self._look(trainer, module))

    def _look(self, trainer: Trainer, module: LightningModule) -> Look:
        """Calls the training step on the first training batch, which is drawn when it is needed."""
        found: list[Any] = []

        def look() -> Any:  # noqa: ANN401
            if not found:
                source: Any = getattr(trainer, "datamodule", None) or module
                given = trainer.fit_loop._data_source.instance
                loader = given if isinstance(given, Iterable) else source.train_dataloader()
                found.append(looker(module, first_batch(loader)))
            return found[0]()

        return look


def _rates(scheduler: Any) -> dict[str, Any]:  # noqa: ANN401
    """The learning rates that a scheduler remembers."""
    found = vars(scheduler)
    return {name: found[name] for name in ("base_lrs", "_last_lr") if name in found}


@dataclass
class LightningTraining:
    """A training by a Trainer, as far as trials have to know it.

    Attributes:
        model: The model.
        data: A data module, a loader of training batches, or None where the model has its own.
        trainer: Arguments of its Trainer.
        max_steps: Optimizer steps of the whole training, where the Trainer cannot tell.
        held_out: Batches that are not trained on; by default of the validation data, or, without
            these, some of the training's.
    """

    model: LightningModule
    data: Any = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    held_out: Any = None

    def run(self, remedy: Remedy, course: Course, monitor: dict[str, Any], ckpt: Any) -> None:  # noqa: ANN401
        """Train as far as a trial goes.

        Args:
            remedy: What to change.
            course: Is told of every step.
            monitor: Settings of the monitor.
            ckpt: A checkpoint to begin from, or None.
        """
        loaders = Loaders(self.model, self.data, self.held_out)
        settings = {k: v for k, v in self.trainer.items() if k not in NOT_OURS}
        if self.max_steps is not None:
            settings = {"max_epochs": -1, **settings, "max_steps": self.max_steps}
        callbacks = list(self.trainer.get("callbacks") or ())
        kept = [c for c in callbacks if {kind.__name__ for kind in type(c).__mro__} & set(KEPT)]
        course.without(c for c in callbacks if c not in kept)
        watch = NTKMonitor(
            probe_batch=lambda trainer, _: held_on_device(trainer, loaders.held)[0], **monitor
        )
        stages = _Stages(course, loaders, watch)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                **{**settings, **OWN},
                default_root_dir=folder,
                callbacks=[ApplyRemedy(remedy), *kept, stages, watch],
            )
            trainer.fit(self.model, **loaders.given, ckpt_path=ckpt)


def held_on_device(trainer: Trainer, held: HeldOut) -> list[Any]:
    """Held-out batches where the model is.

    Args:
        trainer: The Trainer.
        held: The batches.

    Returns:
        Copies, as the Trainer hands batches over.
    """
    return [trainer.strategy.batch_to_device(batch) for batch in held.batches]


class _Stages(Callback):
    """Tells a trial's course of every step, and ends the training with it."""

    def __init__(self, course: Course, loaders: Loaders, watch: NTKMonitor) -> None:
        self._course, self._loaders, self._watch = course, loaders, watch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        held = self._loaders.held
        batches = held_on_device(trainer, held)
        for config in trainer.lr_scheduler_configs:
            config.strict = False  # what a scheduler looks at may be of a validation that is not
        self._course.begin(
            trainer.global_step, planned_steps(trainer), held, lambda: losses(pl_module, batches)
        )
        self._watch.schedule.plan = [self._course.last]

    def on_train_batch_start(self, _: Trainer, __: LightningModule, batch: Any, ___: int) -> None:  # noqa: ANN401
        self._course.see(batch)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401
        if self._course.step(trainer.global_step):
            trainer.should_stop = True

    def on_probe(self, _: Trainer, __: LightningModule, snapshot: Snapshot, ___: int) -> None:
        self._course.snapshots.append(snapshot)
