"""The callback that watches the NTK of a training."""

from __future__ import annotations

import logging
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torchmetrics import MetricCollection

from ntk_monitor.model import quiet
from ntk_monitor.model.batch import ForwardFn, MaskFn, TargetFn, is_plain, keep_batch
from ntk_monitor.model.compiled import plain_name
from ntk_monitor.model.linearization import Preconditioner
from ntk_monitor.model.parameters import ParameterFilter
from ntk_monitor.model.quiet import random_states
from ntk_monitor.monitor.failures import Failures, OnError, reading_state
from ntk_monitor.monitor.followed import (
    FollowedState,
    NamedStates,
    metrics_by_tag,
    named_states,
    paths_of,
)
from ntk_monitor.monitor.logs import Reporter
from ntk_monitor.monitor.optimizers import learning_rate, preconditioner
from ntk_monitor.monitor.schedule import Schedule
from ntk_monitor.monitor.trainers import (
    batches_that_stepped,
    muted,
    planned_steps,
    require_whole_model,
    shared,
)
from ntk_monitor.probe import Probe, Tier
from ntk_monitor.snapshot import Snapshot
from ntk_monitor.views import (
    band_scalars,
    custom_scalars_layout,
    introduction,
    snapshot_figures,
)
from ntk_monitor.views.record import SNAPSHOT_TAG, snapshot_record, write_record

logger = logging.getLogger(__name__)

STATE_VERSION = 2
FIGURE_SECONDS = 0.3
"""What drawing the figures takes, until it has been measured."""
FEWEST_PRODUCTS = 16
"""Products that a probe may have however short the training."""
SERIES = 8
"""Probes that a training should be able to pay for: a number that is followed says more than one
number that is accurate, so where whole probes would be fewer, each is smaller."""


class Outcome(NamedTuple):
    """What came of a planned probe in the first process, for all processes."""

    snapshots: tuple[Snapshot, ...] = ()
    overhead: float = 0.0
    error: Exception | None = None


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
    what it would be without the monitor, and no failure of a probe or of a logger ends it. With DDP
    the first process measures, on its own part of the data, and all have the result.

    Numbers go to every logger and to ``trainer.callback_metrics``, under the tags of
    `Snapshot.scalars`; figures go to TensorBoard, W&B, MLflow and, as files, beside the numbers of
    a ``CSVLogger``. TensorBoard also has a layout with error bands.

    Attributes:
        states: The states that are followed, each with its latest ``snapshot`` and its ``metrics``;
            ``metrics.compute()`` pools all snapshots since training began or was resumed.
        failures: How many probes failed, and whether there will be more.

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
        time_limit: float | None = 120.0,
        max_memory: int | None = None,
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
                ``"raise"``. Likewise for each logger.
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
            time_limit: Seconds that a probe may take: it then makes do with the samples it has, or
                fails. A call of a logger that takes longer is the last one of that logger.
            max_memory: Bytes that activations kept to find the weight sites may take; by default
                half of the free memory.
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
            "time_limit": time_limit,
            "max_memory": max_memory,
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
        self.time_limit = time_limit
        self._state_key = self._generate_state_key(
            state=state, every_n_steps=every_n_steps, seed=seed
        )
        self._begin()

    def _begin(self) -> None:
        """A training begins: nothing is known of it yet."""
        self.failures = Failures("a probe", self.on_error)
        self.reporter = Reporter(self.on_error, self.time_limit)
        self.schedule.reset()
        for state in self.states:
            state.reset()
        self._batch: Any = None
        self._begun = False
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
        del pl_module
        if stage != "fit":
            return
        require_whole_model(trainer)
        if self.probe_batch == "val" and trainer.limit_val_batches == 0:
            raise MisconfigurationException(
                "NTKMonitor(probe_batch='val') needs validation batches, and the Trainer has "
                "limit_val_batches=0: use probe_batch='train'"
            )
        others = [
            c
            for c in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(c, NTKMonitor) and c is not self
        ]
        names = {state.name for state in self.states}
        if any(state.name in names for other in others for state in other.states):
            raise MisconfigurationException(
                "two NTKMonitors would log under the same tags: name their states, as in "
                "NTKMonitor(state={'encoder': 'path.of.module'})"
            )
        if trainer.global_step == 0:
            self._begin()
        if not trainer.loggers:
            rank_zero_info(
                "NTKMonitor: the Trainer has no logger; the numbers are in "
                "trainer.callback_metrics and in monitor.snapshot"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the settings against the model, which is complete by now.

        Raises:
            MisconfigurationException: If a state is not a module of the model.
        """
        del trainer
        paths = [plain_name(path) for path, _ in pl_module.named_modules()]
        wanted = [path for state in self.states for path in paths_of(state.probe.state)]
        unknown = [path for path in wanted if plain_name(path) not in {"auto", *paths}]
        if unknown:
            raise MisconfigurationException(
                f"NTKMonitor(state=...): {', '.join(map(repr, unknown))} is not a module of "
                f"{type(pl_module).__name__}; its modules are {', '.join(filter(None, paths))}"
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
        del pl_module
        first = batch_idx == 0 and dataloader_idx == 0
        if first and trainer.state.fn == "fit" and self._wants(trainer, "val"):
            self._keep(batch)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Keep the first training batch, if wanted, and probe before the first step."""
        del batch_idx
        if self._wants(trainer, "train"):
            self._keep(batch)
        if trainer.global_step == 0 and not self._begun:
            step = batches_that_stepped(trainer, in_batch_end=False)
            self._visit(trainer, pl_module, step, first=True)

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
        if self.schedule.crosses(trainer.global_step, trainer.current_epoch):
            step = batches_that_stepped(trainer, in_batch_end=True)
            self._visit(trainer, pl_module, step, first=False)

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state in plain types and tensors."""
        keep = self.probe_batch == "train" and is_plain(self._batch)
        return {
            "version": STATE_VERSION,
            "schedule": self.schedule.state_dict(),
            "methods": [list(state.probe.order) for state in self.states],
            "batch": self._batch if keep else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; what cannot be read is warned of and begins anew.

        A monitor that had switched itself off tries again.

        Args:
            state_dict: What `state_dict` gave, now or in another version.
        """
        with reading_state("NTKMonitor", state_dict, STATE_VERSION, self._begin):
            state_dict = _upgraded(state_dict)
            self.schedule.load_state_dict(state_dict["schedule"])
            for state, order in zip(self.states, state_dict["methods"], strict=False):
                state.probe.prefer(order)
            self._batch = state_dict["batch"]

    def _wants(self, trainer: Trainer, kind: str) -> bool:
        return (
            isinstance(self.probe_batch, str)
            and self.probe_batch == kind
            and self._batch is None
            and self.failures.enabled
            and trainer.is_global_zero
        )

    def _keep(self, batch: Any) -> None:  # noqa: ANN401
        try:
            self._batch = keep_batch(batch)
        except Exception as error:
            self.failures.failed(error)

    def _visit(
        self, trainer: Trainer, pl_module: LightningModule, step: int, *, first: bool
    ) -> None:
        """A planned probe: the first process takes it, unless it is dear; all publish it."""
        self._begun = True
        started = self.schedule.clock()
        outcome = Outcome()
        if trainer.is_global_zero and self.failures.enabled and (first or self._affords()):
            outcome = self._take(trainer, pl_module)
        outcome = shared(trainer, outcome)
        if outcome.error is not None:
            raise outcome.error
        if not outcome.snapshots:
            return
        try:
            with random_states(pl_module):  # loggers and listeners may draw, too
                for state, snapshot in zip(self.states, outcome.snapshots, strict=True):
                    self._publish(
                        trainer, pl_module, state, snapshot, step, started, outcome.overhead
                    )
        except Exception as error:
            self.failures.failed(error)
        else:
            self.failures.succeeded()
        finally:
            self.schedule.record(self.schedule.clock() - started)

    def _affords(self) -> bool:
        """Whether a probe may be taken now; when first not, this is said."""
        affordable = self.schedule.affords(self.schedule.last)
        if not affordable:
            self.schedule.skipped += 1
            if self.schedule.skipped == 1:
                rank_zero_info(
                    f"NTKMonitor: a probe takes {self.schedule.last:.2g} s; to stay within "
                    f"max_overhead={self.schedule.max_overhead:.1%} of the time, there will be "
                    "fewer than planned"
                )
        return affordable

    def _take(self, trainer: Trainer, pl_module: LightningModule) -> Outcome:
        """Measure every state; whatever fails is handled as `on_error` says."""
        started = self.schedule.clock()
        try:
            batch = self._probe_batch(trainer, pl_module)
            if batch is None:
                return Outcome()
            rate, scales = self._optimization(trainer, pl_module)
            seed = self.probe.seed + self._redraws(trainer.current_epoch)
            most = self._most_products(trainer)
            with muted(trainer, pl_module):
                snapshots = [
                    state.probe(
                        pl_module,
                        batch,
                        learning_rate=rate,
                        preconditioner=scales,
                        seed=seed,
                        max_products=most,
                    )
                    for state in self.states
                ]
            return Outcome(tuple(snapshots), self.schedule.overhead)
        except Exception as error:
            self.schedule.record(self.schedule.clock() - started)
            try:
                self.failures.failed(error)
            except Exception:
                if trainer.world_size == 1:
                    raise
                # Not every exception can travel to the other processes.
                return Outcome(
                    error=RuntimeError(f"a probe failed in the first process: {error!r}")
                )
            return Outcome()

    def _optimization(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> tuple[float | None, Preconditioner | None]:
        """What the optimizers do; one that cannot be read costs these numbers, and no probe."""
        rate, scales = self.probe.learning_rate, None
        try:
            rate = rate or learning_rate(trainer.optimizers)
            if self.probe.modes and self.probe.tier != "core":
                scales = preconditioner(trainer.optimizers, pl_module)
        except Exception as error:
            logger.info("the optimizers could not be read: %r", error)
        return rate, scales

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
        overhead: float,
    ) -> None:
        """Metrics, loggers, figures, listeners: in this order."""
        if state.snapshot is None:
            rank_zero_info(introduction(snapshot))
        scalars = {f"{state.prefix}{tag}": v for tag, v in state.scalars(snapshot).items()}
        scalars["ntk/overhead"] = overhead
        self.reporter.scalars(trainer, scalars, step)
        if not self._laid_out:
            names = [state.prefix for state in self.states]
            layout = custom_scalars_layout(self.probe.modes, names)
            self.reporter.write(
                trainer, "add_custom_scalars", lambda writer: writer.add_custom_scalars(layout)
            )
            self._laid_out = True
        bands = {f"{state.prefix}{tag}": v for tag, v in band_scalars(snapshot).items()}

        def add_bands(writer: Any) -> None:  # noqa: ANN401
            for tag, value in bands.items():
                writer.add_scalar(tag, value, global_step=step)

        self.reporter.write(trainer, "add_custom_scalars", add_bands)

        def add_record(writer: Any) -> None:  # noqa: ANN401
            write_record(writer, f"{state.prefix}{SNAPSHOT_TAG}", snapshot_record(snapshot), step)

        self.reporter.write(trainer, "_get_file_writer", add_record)
        if self.figures and snapshot.trace.is_finite and self.reporter.takes_figures(trainer):
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
            named = {f"{state.prefix}{tag}": figure for tag, figure in figures.items()}
            self.reporter.figures(trainer, named, step)
            self._figure_seconds = self.schedule.clock() - now

    def _most_products(self, trainer: Trainer) -> int:
        """What one of `SERIES` probes may cost, a product being an optimizer step at most."""
        most, share = self.probe.max_products, self.schedule.max_overhead
        if share is None:
            return most
        affordable = share * planned_steps(trainer) / SERIES / len(self.states)
        return int(min(max(affordable, FEWEST_PRODUCTS), most))


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """A state of another version, with what is known of it."""
    if state.get("version") == STATE_VERSION or "schedule" in state:
        return state
    known = {name: state[name] for name in ("seen", "spent", "last") if name in state}
    return {
        "schedule": known,
        "methods": [],
        "batch": state.get("batch"),
    }
