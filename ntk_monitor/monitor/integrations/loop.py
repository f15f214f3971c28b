"""The monitor of a training loop of one's own, with or without Fabric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from ntk_monitor.checks import require
from ntk_monitor.model.step import LossFn
from ntk_monitor.monitor.failures import Failures
from ntk_monitor.monitor.host import require_known
from ntk_monitor.monitor.integrations.loop_host import LoopHost, LoopMonitor
from ntk_monitor.monitor.reporting.user_loggers import loggers_of, writer_in


class Monitor(LoopMonitor):
    """Measure and log what gradient descent can do to a model's state, in a loop of one's own.

    What `NTKMonitor` is to a Lightning Trainer: a probe before the first optimizer step, and then
    as planned or every ``every_n_steps`` steps, on one fixed batch; training is bit for bit what it
    would be without the monitor, and no failure of a probe or of a logger ends it. In a process
    group of several processes all of them call everything alike; each keeps its own batch, and they
    measure these together.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        ... )
        >>> x = torch.randn(16, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = Monitor(every_n_steps=5)
        >>> with monitor.attach(model, optimizer, batch=(x, x[:, :1]), total_steps=10):
        ...     for _ in range(10):
        ...         loss = torch.nn.functional.mse_loss(model(x), x[:, :1])
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         monitor.step()
        >>> monitor.steps, monitor.snapshot.state_shape, "ntk/core_cosine" in monitor.numbers
        (10, (16, 1, 8), True)
    """

    who: ClassVar[str] = "Monitor"
    _resumed: bool = False

    @contextmanager
    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] = (),
        *,
        loss_fn: LossFn | None = None,
        clip_norm: float | None = None,
        scheduler: Any = None,  # noqa: ANN401
        batch: Any = None,  # noqa: ANN401
        total_steps: int | None = None,
        log_dir: str | PathLike[str] | None = None,
        logger: Any = None,  # noqa: ANN401
        fabric: Any = None,  # noqa: ANN401
    ) -> Iterator[Monitor]:
        """Watch a training for as long as the context lasts; each begins anew.

        To go on with an interrupted training, `load_state_dict` before this.

        Args:
            model: The model, wrapped for data parallelism, compiled or set up by Fabric as it may
                be.
            optimizer: Its optimizer, or several; without one there are no steps to learn.
            loss_fn: ``(module, batch) -> loss``: what the training minimises. Without it, a
                LightningModule's ``training_step``, the loss that the model itself returns, or a
                guess by the batch, as in `probe`.
            clip_norm: Norm to which the loop clips the gradients of all parameters together.
            scheduler: What changes the learning rate, stepped once a step, or several of them; the
                rates to come are read ahead on a copy.
            batch: The first batch, to probe on before the first step; not looked at where
                ``probe_batch`` is one to probe on. Without either the batch of the first `step` is
                kept, and probed on after that.
            total_steps: Optimizer steps of the whole training, for the alert and for probes that
                are spread over it, and as dear as it can pay for.
            log_dir: Folder for event files, if there is no logger, and for ``alerts.jsonl``.
            logger: A ``SummaryWriter``, a logger of Lightning or Fabric, or a list of these.
            fabric: The Fabric that trains: its loggers, where there is neither ``logger`` nor
                ``log_dir``.

        Yields:
            This monitor.

        Raises:
            RuntimeError: If the monitor is attached already.
        """
        if self._host is not None:
            raise RuntimeError(
                "Monitor.attach: this monitor watches a training already; leave its context first, "
                "or make another Monitor"
            )
        require(isinstance(model, nn.Module), "model", "a torch.nn.Module", model)
        require_known(model)
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        good = all(isinstance(each, Optimizer) for each in optimizers)
        require(good, "optimizer", "a torch.optim.Optimizer, or a list of them", optimizer)
        own = [state.probe for state in self.states]
        asked = any(p.forward_fn or p.target_fn for p in own)
        alone = loss_fn is None or not asked
        require(alone, "loss_fn", "left out where forward_fn or target_fn are given", loss_fn)
        positive = clip_norm is None or clip_norm > 0
        require(positive, "clip_norm", "a norm above 0, or None", clip_norm)
        several = isinstance(scheduler, (list, tuple))
        schedulers = scheduler if several else [] if scheduler is None else [scheduler]
        some = total_steps is None or total_steps >= 1
        require(some, "total_steps", "at least 1 optimizer step, or None", total_steps)
        loggers = loggers_of(logger)
        if fabric is not None and not loggers and log_dir is None:
            loggers = loggers_of(list(fabric.loggers))
        folder = None if log_dir is None else str(log_dir)
        device = None if fabric is None else fabric.device
        host = LoopHost(self, model, optimizers, loggers, folder, device, clip_norm, schedulers)
        self._start(host, math.inf if total_steps is None else total_steps)
        if folder is not None and not loggers and host.is_global_zero:
            self._own = writer_in(folder, self.steps)
            host.loggers = [self._own]
        self._host = host
        try:
            with self._minimising(loss_fn, own):
                self._open(host)
                if batch is not None and self._wants("train"):
                    self.kept.keep(batch)
                if not self._begun and not self.kept.wants("train"):
                    self._visit(host, self.steps, first=True)
                yield self
                self._end(host, self.steps)
        finally:
            self._save(host.loggers)
            self._close()

    def step(self, batch: Any = None, *, epoch: int | None = None) -> None:  # noqa: ANN401
        """Say that an optimizer step was taken; probes if that makes one due.

        Args:
            batch: What the step was taken on; the first is kept to probe on, if there is none yet.
            epoch: The epoch, from 0, for ``plan="epochs"`` and ``redraw_every_n_epochs``.

        Raises:
            RuntimeError: Outside of `attach`.
            ValueError: If there is nothing to probe on.
        """
        if self._host is None:
            raise RuntimeError(
                "Monitor.step: this monitor watches no training; call it inside "
                "`with monitor.attach(model, optimizer): ...`"
            )
        if self.kept.wants("train") and batch is None:
            raise ValueError(
                "batch must be what this step was taken on, since there is nothing to probe on "
                "yet, got None: call monitor.step(batch), or monitor.attach(..., batch=batch)"
            )
        self._see(batch)
        self.steps += 1
        self.epoch = self.epoch if epoch is None else epoch
        due = self.schedule.crosses(self.steps, self.epoch)
        if due or not self._begun:
            self._visit(self._host, self.steps, first=not self._begun)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        super()._restore(state_dict)
        self._resumed = True

    def _start(self, host: LoopHost, total_steps: float) -> None:
        """Begin anew, unless a state was loaded, and check what depends on the training."""
        if not self._resumed:
            self._begin()
        self._resumed = False
        self.total_steps = total_steps
        self._require_end("total_steps")
        self._require_states(host.module)

    def _save(self, loggers: Sequence[Any]) -> None:
        """Whatever happened: all that was logged is in files."""
        failures = Failures("ending a logger", "warn", self.who)
        for logger in loggers:
            try:
                getattr(logger, "save", lambda: None)()
            except Exception as error:
                failures.failed(error)
