"""The monitor in the Trainer of the transformers library."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import islice
from typing import Any, ClassVar, Unpack

import torch
from torch import nn
from torch.utils.data import IterableDataset

from ntk_monitor.keywords import with_keywords
from ntk_monitor.model.isolation.quiet import random_states
from ntk_monitor.model.step.standins import nothing
from ntk_monitor.monitor.host import require_known
from ntk_monitor.monitor.integrations.loop_host import LoopHost, LoopMonitor, LoopMonitorKeywords
from ntk_monitor.monitor.reporting.user_loggers import loggers_of, writer_in

try:
    import accelerate  # noqa: F401 (the Trainer needs it)
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        "NTKTrainerCallback needs the packages transformers and accelerate: "
        'pip install "ntk-monitor[transformers]"'
    ) from error

KEY = "ntk_monitor"
"""Where a Trainer's checkpoints have the monitor's state."""
FOLDER = "ntk_monitor"
"""Where, in the Trainer's output folder, the event files are."""


class NTKTrainerCallback(LoopMonitor, TrainerCallback):
    """Measure and log what gradient descent can do to a state, under a transformers Trainer.

    What `ntk_monitor.NTKMonitor` is to a Lightning Trainer: a probe before the first optimizer
    step, and then as planned or every ``every_n_steps`` steps, on one fixed batch; training is bit
    for bit what it would be without the callback, and no failure of a probe or of a logger ends it.

    The batch is the first of the training: it is put together from the dataset once more, and the
    random states and those of the samplers are as before. Data without a sampler, a dataset that
    counts its calls, and one that cannot be read out of turn need ``probe_batch``.

    Numbers go to ``state.log_history``, with figures and alerts to event files in ``log_dir``, or
    to ``logger``. The schedule and the alert are in the Trainer's checkpoints.
    """

    who: ClassVar[str] = "NTKTrainerCallback"

    @with_keywords(LoopMonitor.__init__)
    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        log_dir: str | os.PathLike[str] | None = None,
        logger: Any = None,  # noqa: ANN401
        **settings: Unpack[LoopMonitorKeywords],
    ) -> None:
        """Check and keep the settings; one that is out of its range raises a ValueError.

        A function for ``probe_batch`` is one of the module alone here, ``module -> batch``, and
        ``"train"`` is the only batch by name.

        Args:
            every_n_steps: Optimizer steps from probe to probe; by default 60 probes are spread over
                the training.
            log_dir: Folder for event files and ``alerts.jsonl``; by default ``ntk_monitor`` in the
                Trainer's ``output_dir``.
            logger: In place of event files: a ``SummaryWriter``, the Trainer's own
                ``TensorBoardCallback`` (to be listed before this one), a logger of Lightning, or a
                list of these.
            **settings: Those of `LoopMonitor`.
        """
        super().__init__(every_n_steps, **settings)
        self.log_dir = log_dir
        self.logger = logger

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Check the settings against the training, and probe before the first step."""
        if self._host is not None:
            self._close()  # the training before has ended without a word
        require_known(kwargs["model"])
        self._start(state)
        folder = str(self.log_dir or os.path.join(args.output_dir, FOLDER))
        if state.is_hyper_param_search:
            folder = os.path.join(folder, str(state.trial_name))
        loggers = self._loggers(folder) if state.is_world_process_zero else []
        optimizers = [kwargs["optimizer"]] if kwargs.get("optimizer") is not None else []
        self._host = LoopHost(self, kwargs["model"], optimizers, loggers, folder, args.device)
        self._require_states(self._host.module)
        self._open(self._host)
        self._fetch(kwargs)
        if not self._begun:
            self._probe(state, control, kwargs, first=True)
        return control

    def _computing_loss(self) -> AbstractContextManager[None]:
        """The step function is the Trainer's own ``compute_loss``, unless a user chose one."""
        probes = [state.probe for state in self.states]
        own = [p for p in probes if not (p.loss_fn or p.forward_fn or p.target_fn)]
        trainer = _trainer_of(self) if own else None
        return self._minimising(None if trainer is None else ComputeLoss(trainer), own)

    def _start(self, state: Any) -> None:  # noqa: ANN401
        """Begin anew, or go on with the state of a checkpoint."""
        self._begin()
        if state.global_step and KEY in state.stateful_callbacks:
            self.load_state_dict(state.stateful_callbacks[KEY])
        self.steps, self.epoch = state.global_step, int(state.epoch or 0)
        self._begun = self.steps > 0
        self.total_steps = state.max_steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Keep count of the epochs."""
        del args, control
        self.epoch = int(state.epoch or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Probe when an optimizer step has made it due."""
        del args
        self.steps = state.global_step
        if self.schedule.crosses(self.steps, self.epoch):
            self._probe(state, control, kwargs, first=False)
        return self._remember(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ANN401
        """A checkpoint may be due."""
        del args
        return self._remember(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """The last probe; then all that was logged is in files, and alerts are on their way."""
        del control
        if self._host is not None:
            with self._computing_loss(), self._noting(state):
                self._end(self._host, self.steps, changed=args.load_best_model_at_end)
        state.stateful_callbacks[KEY] = self.state_dict()
        self._close()

    def _probe(self, state: Any, control: Any, given: dict[str, Any], *, first: bool) -> None:  # noqa: ANN401
        """Take a planned probe, with what a hook was given."""
        if self._host is None:
            return
        self._fetch(given)  # once more, if it has failed
        with self._computing_loss(), self._noting(state):
            self._visit(self._host, self.steps, first=first)
        if self.should_stop:
            control.should_training_stop = True

    @contextmanager
    def _noting(self, state: Any) -> Iterator[None]:  # noqa: ANN401
        """The numbers of a probe that is taken go to the Trainer's own history, too."""
        before = self.snapshot
        yield
        if self.snapshot is not before:
            state.log_history.append({"epoch": state.epoch, **self.numbers, "step": self.steps})
            if self._own is not None:
                self._own.save()

    def _fetch(self, given: dict[str, Any]) -> None:
        """Keep the first batch of the training, if it is the one to probe on."""
        if self._wants("train"):
            self.kept.fetch(lambda: first_batch(given["train_dataloader"]))
            with suppress(Exception):  # one batch is all that a probe needs
                self.kept.keep_second(first_batch(given["train_dataloader"], skip=1))

    def _remember(self, state: Any, control: Any) -> Any:  # noqa: ANN401
        """What a checkpoint holds; the batch is found again in the data."""
        if control.should_save:
            state.stateful_callbacks[KEY] = self.state_dict()
        return control

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, with that of its alert, in types that JSON can hold."""
        without = dict.fromkeys(("batch", "batches", "second"), None)
        return {**super().state_dict(), **without, "has_second": False}

    def _loggers(self, folder: str) -> list[Any]:
        if self.logger is not None:
            return loggers_of(self.logger)
        self._own = writer_in(folder, self.steps)
        return [self._own]


class ComputeLoss:
    """A Trainer's ``compute_loss`` as a step function."""

    name: ClassVar[str] = "Trainer.compute_loss"

    def __init__(self, trainer: Any) -> None:  # noqa: ANN401
        """Keep the Trainer.

        Args:
            trainer: A Trainer of the transformers library.
        """
        self._trainer = trainer

    def __call__(self, module: nn.Module, batch: Any) -> Any:  # noqa: ANN401
        """The loss of a batch; what the method logs is lost."""
        own = vars(self._trainer)
        before = own.get("log", own)
        own["log"] = nothing
        try:
            return self._trainer.compute_loss(module, batch)
        finally:
            del own["log"]
            if before is not own:
                own["log"] = before


def _trainer_of(callback: TrainerCallback) -> Any:  # noqa: ANN401
    """The Trainer that calls a callback, which hooks are not told of: one of those that are at it.

    Args:
        callback: The callback.

    Returns:
        The Trainer, or None where there is none on the stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
        frame = frame.f_back
    return None


def first_batch(loader: Any, skip: int = 0) -> Any:  # noqa: ANN401
    """The first batch of a loader, without beginning to iterate over it.

    Args:
        loader: A ``DataLoader``, or accelerate's in its place.
        skip: How many to leave out.

    Returns:
        The batch; the generators of the loader and its samplers, and all random states, are as
        before.

    Raises:
        ValueError: If the data have no sampler.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if sampler is None or isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "probe_batch must be a batch, or a function module -> batch, where the training's data "
            f"cannot be read out of turn, got 'train' and a {type(loader.dataset).__name__}"
        )
    with ExitStack() as stack:
        stack.enter_context(random_states(nn.Identity()))
        for generator in _generators(loader):
            stack.callback(generator.set_state, generator.get_state())
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # as a loader does
        indices = next(islice(sampler, skip, None))
        together = getattr(loader.dataset, "__getitems__", None)
        items = together(indices) if callable(together) else [loader.dataset[i] for i in indices]
        return loader.collate_fn(items)


def _generators(loader: Any) -> Iterator[torch.Generator]:  # noqa: ANN401
    """The generators of a loader and of what it draws from."""
    part: Any = loader
    while part is not None:
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            yield generator
        part = getattr(part, "batch_sampler", None) or getattr(part, "sampler", None)
