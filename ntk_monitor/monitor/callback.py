"""The callback that watches the NTK of a training."""

from __future__ import annotations

import traceback
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torchmetrics import MetricCollection

from ntk_monitor.model import quiet
from ntk_monitor.model.batch import ForwardFn, MaskFn, TargetFn, keep_batch
from ntk_monitor.model.parameters import ParameterFilter
from ntk_monitor.monitor.followed import (
    FollowedState,
    NamedStates,
    metrics_by_tag,
    named_states,
    paths_of,
)
from ntk_monitor.monitor.logs import batches_that_stepped, log_figures, log_scalars, writers
from ntk_monitor.monitor.schedule import Schedule
from ntk_monitor.probe import Probe, Tier
from ntk_monitor.snapshot import Snapshot
from ntk_monitor.views import (
    band_scalars,
    custom_scalars_layout,
    introduction,
    snapshot_figures,
)

OnError = Literal["warn", "raise", "disable"]
STATE_VERSION = 1
FAILURES_IN_A_ROW = 3
"""Failed probes in a row after which ``on_error="warn"`` switches the monitor off."""
FIGURE_SECONDS = 0.3
"""What drawing the figures takes, until it has been measured."""
FEWEST_PRODUCTS = 16
"""Products that a probe may have however short the training."""
SERIES = 8
"""Probes that a training should be able to pay for: a number that is followed says more than one
number that is accurate, so where whole probes would be fewer, each is smaller."""


@runtime_checkable
class ProbeListener(Protocol):
    """A callback that wants to see every snapshot."""

    def on_probe(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot, step: int
    ) -> None:
        """Called after each probe; ``step`` is its place on the loggers' x-axis."""


class NTKMonitor(Callback):
    """Measure and log what gradient descent can do to a model's state, while the model trains.

    A probe is taken before the first optimizer step, and then every ``every_n_steps`` steps, on one
    fixed batch and with fixed random tangents, so that successive probes differ by what the
    training did and little else. Where ``max_overhead`` of the whole training would not pay for
    eight probes of ``max_products``, each has fewer products, 16 at least. Training is bit for bit
    what it would be without the monitor. Numbers go to every logger and to
    ``trainer.callback_metrics``, under the tags of `Snapshot.scalars`; with TensorBoard there are
    also figures and a layout with error bands.

    Attributes:
        states: The states that are followed, each with its latest ``snapshot`` and its ``metrics``;
            ``metrics.compute()`` pools all snapshots of the run.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[NTKMonitor(every_n_steps=200)],
        ...     logger=False, enable_checkpointing=False, accelerator="cpu",
        ... )
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        max_overhead: float | None = 0.02,
        probe_batch: Any = "train",  # noqa: ANN401
        on_error: OnError = "warn",
        figures: bool = True,
        *,
        plan: Literal["steps", "log", "epochs"] | list[int] = "steps",
        redraw_every_n_epochs: int | None = None,
        state: NamedStates = "auto",
        parameters: ParameterFilter = None,
        forward_fn: ForwardFn | None = None,
        target_fn: TargetFn | None = None,
        mask_fn: MaskFn | None = None,
        modes: int = 3,
        learning_rate: float | None = None,
        tolerance: float = 0.05,
        max_products: int = 96,
        tier: Tier = "kernel",
        method: str = "auto",
        dtype: str | torch.dtype | None = "float32",
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Check and keep the settings.

        Args:
            every_n_steps: Optimizer steps from probe to probe.
            max_overhead: Largest share of wall time to spend in probes; where the interval would
                cost more, probes are skipped, and this is said once. None for no limit.
            probe_batch: What to probe on: ``"train"`` or ``"val"`` for the first batch that the
                Trainer draws there (cloned and kept), a batch, or ``(trainer, module) -> batch``.
            on_error: What to do when a probe fails: ``"warn"`` once and go on (after three
                failures in a row, stop probing), ``"disable"`` probing at the first failure, or
                ``"raise"``.
            figures: Draw figures for loggers that take them.
            plan: When to probe: ``"steps"``, every ``every_n_steps``; ``"log"``, twice per doubling
                of the step; ``"epochs"``, at the start of each; or a list of steps.
            redraw_every_n_epochs: Draw new random tangents every so many epochs. With fixed ones
                (None) successive probes share their sampling error, which hides nothing of a
                trend; the jump at a redraw shows how uncertain the level is.
            state: See `probe`, as for all that follow. Several states by name,
                ``{"encoder": "encoder.rnn", "decoder": "decoder.rnn"}``, are measured one after the
                other, each under tags that begin with its name; alerts look at the first.
            parameters: Which parameters to study.
            forward_fn: How to call the module on a batch.
            target_fn: How to read the target off a batch.
            mask_fn: How to read off a batch what is padding.
            modes: How many target modes to follow.
            learning_rate: For steps to learn; read off the first optimizer if left out.
            tolerance: Wanted relative standard error.
            max_products: Most products a probe may spend.
            tier: How far a probe goes; figures need all of it.
            method: How products are computed.
            dtype: Arithmetic of the probe.
            chunk_size: Tangents carried at once.
            seed: Names the random tangents.

        Raises:
            ValueError: If a value is out of its range.
        """
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if max_overhead is not None and not 0 < max_overhead <= 1:
            raise ValueError(
                f"max_overhead must be a share of wall time in (0, 1], or None, got {max_overhead}"
            )
        if isinstance(probe_batch, str) and probe_batch not in {"train", "val"}:
            raise ValueError(
                "probe_batch must be 'train', 'val', a batch, or a callable (trainer, module) -> "
                f"batch, got {probe_batch!r}"
            )
        if isinstance(plan, str) and plan not in {"steps", "log", "epochs"}:
            raise ValueError(
                f"plan must be 'steps', 'log', 'epochs' or a list of steps, got {plan!r}"
            )
        if not isinstance(plan, str) and (not plan or min(plan) < 1):
            raise ValueError(f"plan must list steps of at least 1, got {plan}")
        if redraw_every_n_epochs is not None and redraw_every_n_epochs < 1:
            raise ValueError(
                f"redraw_every_n_epochs must be at least 1, or None, got {redraw_every_n_epochs}"
            )
        if on_error not in {"warn", "raise", "disable"}:
            raise ValueError(f"on_error must be 'warn', 'raise' or 'disable', got {on_error!r}")
        settings: dict[str, Any] = {
            "parameters": parameters,
            "forward_fn": forward_fn,
            "target_fn": target_fn,
            "mask_fn": mask_fn,
            "modes": modes,
            "learning_rate": learning_rate,
            "tolerance": tolerance,
            "max_products": max_products,
            "tier": tier,
            "method": method,
            "dtype": dtype,
            "chunk_size": chunk_size,
            "seed": seed,
        }
        self.states = [
            FollowedState(name, Probe(state=path, **settings), metrics_by_tag(modes, tier))
            for name, path in named_states(state).items()
        ]
        self.schedule = Schedule(every_n_steps, max_overhead, plan)
        self.redraw_every_n_epochs = redraw_every_n_epochs
        self.probe_batch = probe_batch
        self.on_error = on_error
        self.figures = figures
        self._state_key = self._generate_state_key(
            state=state, every_n_steps=every_n_steps, seed=seed
        )
        self._batch: Any = None
        self._failures = 0
        self._enabled = True
        self._laid_out = False
        self._figure_seconds = FIGURE_SECONDS

    @property
    def probe(self) -> Probe:
        """The measurement of the (first) state."""
        return self.states[0].probe

    @property
    def snapshot(self) -> Snapshot | None:
        """The latest snapshot of the (first) state, or None."""
        return self.states[0].snapshot

    @property
    def metrics(self) -> MetricCollection:
        """The torchmetrics of the (first) state."""
        return self.states[0].metrics

    @property
    def state_key(self) -> str:
        """Names this monitor's state in a checkpoint."""
        return self._state_key  # made once: the Trainer asks for it at every hook of every step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the settings against the Trainer.

        Raises:
            MisconfigurationException: If the monitor cannot work in this Trainer.
        """
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise MisconfigurationException(
                f"NTKMonitor supports one process so far, got {trainer.world_size}: use "
                "Trainer(devices=1), or `probe` on checkpoints"
            )
        paths = [path for path, _ in pl_module.named_modules() if path]
        lazy = is_overridden("configure_model", pl_module)
        wanted = [path for state in self.states for path in paths_of(state.probe.state)]
        unknown = [path for path in wanted if path not in {"auto", *paths}]
        if unknown and not lazy:
            raise MisconfigurationException(
                f"NTKMonitor(state=...): {', '.join(map(repr, unknown))} is not a module of "
                f"{type(pl_module).__name__}; its modules are {', '.join(paths)}"
            )
        if self.probe_batch == "val" and trainer.limit_val_batches == 0:
            raise MisconfigurationException(
                "NTKMonitor(probe_batch='val') needs validation batches, and the Trainer has "
                "limit_val_batches=0: use probe_batch='train'"
            )
        if not trainer.loggers:
            rank_zero_info(
                "NTKMonitor: the Trainer has no logger; the numbers are in "
                "trainer.callback_metrics and in monitor.snapshot"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        del pl_module
        self.schedule.start(trainer.global_step, trainer.current_epoch)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first validation batch, if that is the one to probe on."""
        del trainer, pl_module
        if self._wants("val") and batch_idx == 0 and dataloader_idx == 0:
            self._batch = keep_batch(batch)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Keep the first training batch, if wanted, and probe before the first step."""
        del batch_idx
        if self._wants("train"):
            self._batch = keep_batch(batch)
        if self.snapshot is None and not self._failures and trainer.global_step == 0:
            self._probe(trainer, pl_module, batches_that_stepped(trainer, in_batch_end=False))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Probe when an optimizer step has made it due."""
        del outputs, batch, batch_idx
        skipped = self.schedule.skipped
        if self.schedule.is_due(trainer.global_step, trainer.current_epoch):
            self._probe(trainer, pl_module, batches_that_stepped(trainer, in_batch_end=True))
        elif self.schedule.skipped == 1 and not skipped:
            rank_zero_info(
                f"NTKMonitor: a probe takes {self.schedule.last:.2g} s; to stay within "
                f"max_overhead={self.schedule.max_overhead:.1%} of the time, there will be fewer "
                "than planned"
            )

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state in plain types and tensors."""
        keep = self.probe_batch == "train" and _is_plain(self._batch)
        return {
            "version": STATE_VERSION,
            "seen": self.schedule.seen,
            "spent": self.schedule.spent,
            "last": self.schedule.last,
            "enabled": self._enabled,
            "batch": self._batch if keep else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Raises:
            ValueError: If the state was written by a newer version.
        """
        version = state_dict.get("version", 0)
        if version > STATE_VERSION:
            raise ValueError(
                f"the checkpoint holds an NTKMonitor state of version {version}, this version "
                f"reads up to {STATE_VERSION}: upgrade ntk-monitor"
            )
        self.schedule.seen = state_dict.get("seen", 0)
        self.schedule.spent = state_dict.get("spent", 0.0)
        self.schedule.last = state_dict.get("last", 0.0)
        self._enabled = state_dict.get("enabled", True)
        self._batch = state_dict.get("batch")

    def _wants(self, kind: str) -> bool:
        return (
            isinstance(self.probe_batch, str) and self.probe_batch == kind and self._batch is None
        )

    def _probe(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Take a probe and pass it on; whatever fails is handled as `on_error` says."""
        if not self._enabled:
            return
        started = self.schedule.clock()
        try:
            batch = self._probe_batch(trainer, pl_module)
            if batch is None:
                return
            rate = self.probe.learning_rate or _learning_rate(trainer)
            seed = self.probe.seed + self._redraws(trainer.current_epoch)
            most = self._most_products(trainer)
            for state in self.states:
                snapshot = state.probe(
                    pl_module, batch, learning_rate=rate, seed=seed, max_products=most
                )
                if state.snapshot is None:
                    rank_zero_info(introduction(snapshot))
                self._publish(trainer, pl_module, state, snapshot, step, started)
        except Exception as error:
            self._handle(error)
        else:
            self._failures = 0
        finally:
            self.schedule.record(self.schedule.clock() - started)

    def _redraws(self, epoch: int) -> int:
        return epoch // self.redraw_every_n_epochs if self.redraw_every_n_epochs else 0

    def _probe_batch(self, trainer: Trainer, pl_module: LightningModule) -> Any:  # noqa: ANN401
        if self._batch is None and not isinstance(self.probe_batch, str):
            batch = self.probe_batch
            if callable(batch):
                with quiet(pl_module):
                    batch = batch(trainer, pl_module)
            self._batch = keep_batch(batch)
        return self._batch

    def _publish(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        state: FollowedState,
        snapshot: Snapshot,
        step: int,
        started: float,
    ) -> None:
        """Metrics, loggers, figures, listeners: in this order."""
        scalars = {f"{state.prefix}{tag}": v for tag, v in state.scalars(snapshot).items()}
        scalars["ntk/overhead"] = self.schedule.overhead
        log_scalars(trainer, scalars, step)
        for writer in writers(trainer, "add_custom_scalars"):
            if not self._laid_out:
                names = [state.prefix for state in self.states]
                writer.add_custom_scalars(custom_scalars_layout(self.probe.modes, names))
            for tag, value in band_scalars(snapshot).items():
                writer.add_scalar(f"{state.prefix}{tag}", value, global_step=step)
        self._laid_out = True
        if self.figures and snapshot.trace.is_finite and any(writers(trainer, "add_figure")):
            self._draw(trainer, state, snapshot, step, started)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ProbeListener) and state is self.states[0]:
                callback.on_probe(trainer, pl_module, snapshot, step)

    def _draw(
        self,
        trainer: Trainer,
        state: FollowedState,
        snapshot: Snapshot,
        step: int,
        started: float,
    ) -> None:
        """Figures, unless they would cost more than is left after this probe."""
        now = self.schedule.clock()
        if trainer.global_step == 0:
            affordable = self._most_products(trainer) > FEWEST_PRODUCTS
        else:
            affordable = self.schedule.affords(now - started + self._figure_seconds)
        if affordable:
            figures = snapshot_figures(snapshot)
            log_figures(trainer, {f"{state.prefix}{t}": f for t, f in figures.items()}, step)
            self._figure_seconds = self.schedule.clock() - now

    def _most_products(self, trainer: Trainer) -> int:
        """What one of `SERIES` probes may cost, a product being an optimizer step at most."""
        most, share = self.probe.max_products, self.schedule.max_overhead
        if share is None:
            return most
        affordable = share * trainer.estimated_stepping_batches / SERIES / len(self.states)
        return int(min(max(affordable, FEWEST_PRODUCTS), most))

    def _handle(self, error: Exception) -> None:
        if self.on_error == "raise":
            raise error
        self._failures += 1
        off = self.on_error == "disable" or self._failures >= FAILURES_IN_A_ROW
        self._enabled = not off
        if self._failures == 1 or off:
            where = "".join(traceback.format_exception(error, limit=-3))
            consequence = "it is now switched off" if off else "it will try again"
            rank_zero_warn(
                f"NTKMonitor: a probe failed; training goes on, and {consequence}. "
                f"NTKMonitor(on_error='raise') would stop here.\n{where}"
            )


def _learning_rate(trainer: Trainer) -> float | None:
    """The first optimizer's present learning rate, if it has a usable one."""
    groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
    rate = float(groups[0].get("lr", 0.0)) if groups else 0.0
    return rate if rate > 0 else None


def _is_plain(batch: Any) -> bool:  # noqa: ANN401
    """Whether a batch consists of plain containers of tensors and numbers."""
    if type(batch) in {tuple, list}:
        return all(map(_is_plain, batch))
    if type(batch) is dict:
        return all(type(k) is str for k in batch) and all(map(_is_plain, batch.values()))
    return type(batch) in {torch.Tensor, int, float, bool, str}
