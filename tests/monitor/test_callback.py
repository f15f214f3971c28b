"""The monitor in a Trainer: when it probes, where its numbers go, and what it leaves alone."""

import csv
import math
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monitor.helpers import Recorder, Small, data, fit
from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.model.derivatives.differences import SHORTENED
from ntk_monitor.monitor import StallWarning, base
from ntk_monitor.monitor.integrations.lightning.trainer import planned_steps
from ntk_monitor.monitor.reporting import publisher

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
    "ignore:.*logging interval:UserWarning",
    "ignore:You're resuming from a checkpoint:UserWarning",
    "ignore::ntk_monitor.monitor.StallWarning",
)
FAST: dict[str, Any] = {"max_products": 16, "tolerance": 0.0, "max_overhead": None, "modes": 2}
FAST |= {"figures": False}


@pytest.mark.parametrize(
    ("every", "settings", "steps"),
    [
        (1, {}, list(range(11))),
        (3, {}, [0, 3, 6, 9]),
        (7, {}, [0, 7]),
        (2, {"accumulate_grad_batches": 3}, [0, 2, 4]),
        (100, {"fast_dev_run": True}, [0]),
        (4, {"max_epochs": 2, "limit_train_batches": 6}, [0, 4, 8, 12]),
    ],
)
def test_probes_come_before_the_first_step_and_at_each_multiple(
    every: int, settings: dict[str, Any], steps: list[int]
) -> None:
    recorder = Recorder()
    fit([NTKMonitor(every, **FAST), recorder], **settings)
    assert recorder.steps == steps


def test_two_optimizers_count_every_step_and_jump_over_no_multiple() -> None:
    recorder = Recorder()
    fit([recorder, NTKMonitor(5, **FAST)], Small(optimizers=2))
    # global_step goes 2, 4, 6, ...: multiples of 5 are crossed in batches 3, 5, 8 and 10.
    assert recorder.steps == [0, 3, 5, 8, 10]


@pytest.mark.parametrize(
    ("settings", "batches"), [({}, 10), ({"max_steps": 12}, 6), ({"max_epochs": 3}, 30)]
)
def test_two_optimizers_do_not_end_the_plan_early(settings: dict[str, Any], batches: int) -> None:
    recorder, monitor = Recorder(), NTKMonitor(**FAST)
    trainer, _ = fit([recorder, monitor], Small(optimizers=2), **settings)
    assert trainer.global_step == monitor.schedule.total == 2 * batches
    assert recorder.steps == list(range(batches + 1))


def test_monitored_training_is_bit_for_bit_the_plain_one() -> None:
    def run(*callbacks: Any) -> tuple[Any, ...]:
        random.seed(0)
        np.random.seed(0)
        trainer, module = fit(list(callbacks), max_epochs=2)
        return (
            module.state_dict(),
            trainer.optimizers[0].state_dict()["state"],
            torch.get_rng_state(),
            torch.tensor(random.random()),
            torch.tensor(np.random.rand()),
        )

    plain = run()
    short = {"max_overhead_seconds": 1.0}
    for monitor in (NTKMonitor(1, **FAST), NTKMonitor(**short), NTKMonitor(7, **short)):
        watched = run(monitor, StallAlert())
        torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    stopped = run(StopAtOnce())
    watched = run(NTKMonitor(**short), StopAtOnce())
    torch.testing.assert_close(watched, stopped, rtol=0, atol=0)


def read_csv(logger: CSVLogger) -> list[dict[str, str]]:
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_logger_gets_every_number(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")]
    monitor = NTKMonitor(4, **FAST | {"figures": True})
    trainer, _ = fit([monitor, StallAlert(patience=1)], logger=loggers)
    assert monitor.snapshot is not None
    wanted = {*monitor.snapshot.scalars(), "alert/mode_1", "alert/mode_2"}
    assert "target/mode_2/steps_to_learn" in wanted
    assert "ntk/core_cosine_stderr" in wanted

    rows = [row for row in read_csv(loggers[0]) if row.get("ntk/trace")]
    assert [int(row["step"]) for row in rows] == [0, 4, 8]
    assert wanted <= rows[0].keys()
    assert float(rows[-1]["ntk/trace"]) == pytest.approx(monitor.snapshot.trace.value)

    events = EventAccumulator(loggers[1].log_dir)
    events.Reload()
    tags = events.Tags()
    assert wanted <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("ntk/core_cosine")] == [0, 4, 8]
    assert set(tags["images"]) == {"ntk/cumulative_variance", "ntk/temporal_modes", "target/modes"}
    assert "custom_scalars__config__" in tags["tensors"]
    for name in ("lower", "upper"):
        assert f"ntk_bands/core_cosine/{name}" in tags["scalars"]

    assert wanted <= trainer.callback_metrics.keys()
    found = trainer.callback_metrics["ntk/temporal_core_cosine"]
    assert float(found) == pytest.approx(monitor.snapshot.temporal_core_cosine.value)


def test_logged_numbers_are_those_of_the_metrics() -> None:
    monitor = NTKMonitor(100, **FAST)
    trainer, _ = fit([monitor])
    for tag, value in monitor.metrics.compute().items():
        assert float(value) == pytest.approx(monitor.snapshot.scalars()[tag]), tag
        assert float(trainer.callback_metrics[tag]) == pytest.approx(float(value))


def test_early_stopping_can_watch_a_number() -> None:
    stop = EarlyStopping("ntk/trace", mode="min", stopping_threshold=1e9, patience=100)
    trainer, _ = fit([NTKMonitor(2, **FAST), stop], limit_val_batches=1, max_epochs=3)
    assert trainer.current_epoch < 3


def test_figures_can_be_left_out(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit([NTKMonitor(5, **FAST | {"figures": False})], logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["images"] == []


def test_probe_batch_may_be_chosen() -> None:
    generator = torch.Generator().manual_seed(3)
    mine = tuple(torch.randn(3, 4, 2, generator=generator) for _ in range(2))
    shapes = {}
    for name, choice, settings in [
        ("train", "train", {}),
        ("val", "val", {"limit_val_batches": 2}),
        ("own", mine, {}),
        ("made", lambda trainer, module: mine, {}),
    ]:
        monitor = NTKMonitor(100, probe_batch=choice, **FAST)
        fit([monitor], **settings)
        assert monitor.snapshot is not None, name
        shapes[name] = monitor.snapshot.state_shape
    assert shapes == {"train": (4, 5, 8), "val": (4, 5, 8), "own": (3, 4, 8), "made": (3, 4, 8)}


def test_the_probe_batch_is_a_copy() -> None:
    class Spoiler(Small):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            batch[0].fill_(math.nan)
            return loss

    recorder = Recorder()
    fit([NTKMonitor(2, **FAST), recorder], Spoiler())
    assert all(map(math.isfinite, recorder.traces))


def test_learning_rate_is_read_off_the_optimizer() -> None:
    read, given = NTKMonitor(100, **FAST), NTKMonitor(100, learning_rate=0.001, **FAST)
    for monitor in (read, given):
        fit([monitor])
    first, second = (m.snapshot.target_modes[0].steps_to_learn for m in (read, given))
    assert second > 5 * first


class Failing(Small):
    """A model whose forward fails in evaluation mode, which is how it is probed."""

    failures = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            type(self).failures += 1
            raise ArithmeticError("no evaluation today")
        return super().forward(x)


def test_a_failing_probe_warns_and_training_goes_on() -> None:
    Failing.failures = 0
    with pytest.warns(UserWarning, match="NTKMonitor") as caught:
        trainer, _ = fit([NTKMonitor(2, **FAST)], Failing())
    assert trainer.global_step == 10
    messages = [str(w.message) for w in caught if "NTKMonitor" in str(w.message)]
    assert len(messages) == 2
    assert "no evaluation today" in messages[0]
    assert "it will be tried again" in messages[0]
    assert "switched off" in messages[1]
    assert Failing.failures == 3


def test_on_error_raise_and_disable() -> None:
    with pytest.raises(ArithmeticError, match="no evaluation today"):
        fit([NTKMonitor(2, on_error="raise", **FAST)], Failing())
    Failing.failures = 0
    with pytest.warns(UserWarning, match="switched off"):
        fit([NTKMonitor(2, on_error="disable", **FAST)], Failing())
    assert Failing.failures == 1


def test_keyboard_interrupt_passes_through() -> None:
    class Interrupted(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit([NTKMonitor(2, **FAST)], Interrupted())


def test_non_finite_activations_do_not_stop_training() -> None:
    class Broken(Small):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.rnn.weight_ih_l0.fill_(math.nan)

    monitor = NTKMonitor(5, **FAST)
    with pytest.warns(RuntimeWarning, match="nan or infinite activations"):
        trainer, _ = fit([monitor], Broken())
    assert trainer.global_step == 10
    assert not monitor.snapshot.is_finite


def test_state_survives_a_checkpoint(tmp_path: Path) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    fit([NTKMonitor(3, **FAST), whole], max_steps=10)
    trainer, _ = fit([NTKMonitor(3, **FAST), first], max_steps=5)
    path = tmp_path / "cut.ckpt"
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)["callbacks"]
    assert any("NTKMonitor" in key for key in stored)
    fit([NTKMonitor(3, **FAST), second], max_steps=10, max_epochs=2, ckpt_path=path)
    assert first.steps + second.steps == whole.steps == [0, 3, 6, 9]


def test_the_callback_can_be_pickled() -> None:
    pickle.loads(pickle.dumps(NTKMonitor()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"every_n_steps": 0},
            "every_n_steps must be a whole number of steps.*, got 0",
        ),
        ({"max_overhead": 2.0}, "max_overhead must be a share"),
        ({"max_overhead_seconds": -1.0}, "max_overhead_seconds must be 0 seconds or more"),
        ({"probe_batch": "test"}, "probe_batch must be 'train', 'val'"),
        ({"on_error": "ignore"}, "on_error must be 'warn', 'raise' or 'disable'"),
        ({"modes": -1}, "modes must be"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NTKMonitor(**settings)


def test_what_does_not_fit_the_trainer_is_refused_in_setup() -> None:
    with pytest.raises(MisconfigurationException, match="its modules are rnn, dropout, readout"):
        fit([NTKMonitor(state="lstm")])
    with pytest.raises(MisconfigurationException, match="limit_val_batches=0"):
        fit([NTKMonitor(probe_batch="val")])
    with pytest.raises(MisconfigurationException, match="add NTKMonitor"):
        fit([StallAlert()])
    with pytest.raises(MisconfigurationException, match="horizon"):
        fit([NTKMonitor(), StallAlert()], max_epochs=-1)


class StopAtOnce(Callback):
    """Ends a training after its first batch."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = True


class Tiers(Recorder):
    """Listens to how far probes go, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tiers: list[str] = []

    def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
        super().on_probe(trainer, pl_module, snapshot, step)
        self.tiers.append(snapshot.tier)


class SimulatedClock(Callback):
    """A clock that steps, probes and figures advance by what they take on a usual machine."""

    now = 0.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def measured(*args: Any, **settings: Any) -> Any:
            snapshots = measure(*args, **settings)
            self.now += sum(0.1 + 0.01 * snapshot.products for snapshot in snapshots)
            return snapshots

        def drawn(snapshot: Any) -> Any:
            self.now += 0.8
            return snapshot_figures(snapshot)

        measure, snapshot_figures = base.measure, publisher.snapshot_figures
        monkeypatch.setattr(base, "measure", measured)
        monkeypatch.setattr(publisher, "snapshot_figures", drawn)

    def on_train_batch_start(self, *args: Any) -> None:
        self.now += 0.01


def test_by_default_the_first_probe_is_cheap_and_the_last_one_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor, tiers, clock = NTKMonitor(), Tiers(), SimulatedClock(monkeypatch)
    monitor.schedule.clock = lambda: clock.now
    logger = TensorBoardLogger(tmp_path)
    with caplog.at_level("INFO"):
        fit([clock, monitor, tiers], logger=logger, max_epochs=30)
    assert (tiers.steps[0], tiers.tiers[0]) == (0, "modes")
    assert (tiers.steps[-1], tiers.tiers[-1]) == (300, "kernel")
    assert len(tiers.steps) >= 8
    assert monitor.snapshot is not None
    assert monitor.snapshot.trace.is_finite
    assert monitor.schedule.spent < 10
    assert len([r for r in caplog.records if "what is measured" in r.message]) == 1
    (said,) = [r.message for r in caplog.records if "probes planned" in r.message]
    assert said.startswith("NTKMonitor: ")
    events = EventAccumulator(logger.log_dir).Reload()
    steps = [event.step for event in events.Images("ntk/temporal_modes")]
    probes = zip(tiers.steps, tiers.tiers, strict=True)
    kernels = [step for step, tier in probes if tier == "kernel"]
    assert steps[0] < 150  # figures are dearer than a probe, and wait until they are afforded
    assert set(steps) < set(kernels)


@pytest.mark.parametrize("every", [None, 3, 100])
def test_a_training_that_is_stopped_ends_with_a_whole_probe(every: int | None) -> None:
    tiers = Tiers()
    fit([NTKMonitor(every), tiers, StopAtOnce()], max_epochs=50)
    assert tiers.steps == [0, 1]
    assert tiers.tiers == ["modes", "kernel"]


def test_without_a_limit_every_probe_is_whole() -> None:
    tiers = Tiers()
    fit([NTKMonitor(max_overhead=None, max_products=24), tiers])
    assert tiers.steps == list(range(11))
    assert set(tiers.tiers) == {"kernel"}


@pytest.mark.parametrize("every", [None, 2])
def test_what_a_training_cannot_pay_for_is_not_probed(
    every: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, tiers = NTKMonitor(every, max_overhead=1e-9, max_overhead_seconds=0), Tiers()
    logger = TensorBoardLogger(tmp_path)
    with caplog.at_level("INFO"):
        fit([monitor, tiers], logger=logger)
    assert tiers.steps == [0]
    assert EventAccumulator(logger.log_dir).Reload().Tags()["images"] == []
    (said,) = [r.message for r in caplog.records if "too few for the verdict" in r.message]
    assert "max_overhead_seconds=" in said


def test_a_tier_below_the_kernel_is_taken_whole() -> None:
    tiers = Tiers()
    fit([NTKMonitor(tier="core", max_products=0), tiers])
    assert tiers.steps == list(range(11))
    assert set(tiers.tiers) == {"core"}


def test_probes_have_the_same_size_after_a_resume(tmp_path: Path) -> None:
    rich: dict[str, Any] = {"max_overhead_seconds": 1000, "method": "finite-difference"}
    first, again = (NTKMonitor(2, tolerance=0.0, on_error="raise", **rich) for _ in range(2))
    trainer, _ = fit([first])
    assert first.schedule.size == 96
    first.schedule.size = 24
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit([again], max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert again.snapshot is not None
    assert again.snapshot.products == 24 - SHORTENED


class Steps(Callback):
    """Reads what is planned, at each batch."""

    def __init__(self) -> None:
        self.planned: set[float] = set()

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.planned.add(planned_steps(trainer))


@pytest.mark.parametrize(
    ("scheduling", "settings"),
    [
        ({0: 4, 2: 3, 4: 1}, {"max_epochs": 6}),
        ({2: 4}, {"max_epochs": 4}),
        ({0: 2, 9: 5}, {"max_epochs": 3}),
        ({1: 2}, {"max_epochs": 5, "max_steps": 17}),
        ({1: 2}, {"max_epochs": -1, "max_steps": 17}),
        ({0: 3, 1: 2}, {"max_epochs": 3, "limit_train_batches": 7}),
    ],
)
def test_accumulation_that_changes_with_the_epoch_is_counted(
    scheduling: dict[int, int], settings: dict[str, Any]
) -> None:
    steps, recorder = Steps(), Recorder()
    monitor = NTKMonitor(**FAST | {"tier": "core"})
    trainer, _ = fit(
        [GradientAccumulationScheduler(scheduling), monitor, steps, recorder], **settings
    )
    assert steps.planned == {trainer.global_step}
    assert recorder.steps == list(range(trainer.global_step + 1))


def test_early_stopping_counts_a_number_that_stood_still_between_probes() -> None:
    stop = EarlyStopping("ntk/trace", mode="min", patience=3, check_on_train_epoch_end=True)
    trainer, _ = fit([NTKMonitor(1000, **FAST), stop], max_epochs=9)
    assert trainer.current_epoch == 4  # the first check, and three of the same number


class StopAtProbes(EarlyStopping):
    """Looks at a number whenever there is a new one."""

    def on_train_epoch_end(self, *_: Any) -> None:
        pass

    def on_validation_end(self, *_: Any) -> None:
        pass

    def on_probe(self, trainer: Any, *_: Any) -> None:
        self._run_early_stopping_check(trainer)


def test_early_stopping_can_look_at_new_numbers_alone() -> None:
    recorder = Recorder()
    stop = StopAtProbes("ntk/trace", mode="min", patience=3, min_delta=1e9)
    trainer, _ = fit([NTKMonitor(20, **FAST), stop, recorder], max_epochs=9)
    assert recorder.steps == [0, 20, 40, 60]
    assert trainer.global_step == 60


def test_several_states_are_followed_by_name(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    monitor = NTKMonitor(5, state={"early": "rnn", "late": "readout"}, **FAST)
    recorder = Recorder()
    fit([monitor, recorder], logger=logger)
    assert [state.name for state in monitor.states] == ["early", "late"]
    shapes = [state.snapshot.state_shape for state in monitor.states if state.snapshot]
    assert shapes == [(4, 5, 8), (4, 5, 2)]
    assert recorder.steps == [0, 5, 10]  # listeners see the first
    rows = read_csv(logger)
    for state in monitor.states:
        assert state.snapshot is not None
        logged = [row[tag] for row in rows if row.get(tag := f"{state.name}/ntk/trace")]
        assert float(logged[-1]) == pytest.approx(state.snapshot.trace.value)
    assert "ntk/trace" not in rows[-1]
    with pytest.raises(MisconfigurationException, match="'inner' is not a module of Small"):
        fit([NTKMonitor(5, state={"a": "rnn", "b": ["readout", "inner"]}, **FAST)])
    for wrong in ({}, {"a/b": "rnn"}):
        with pytest.raises(ValueError, match="state must be a module path"):
            NTKMonitor(state=wrong)


def test_the_first_probe_says_what_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit([NTKMonitor(5, **FAST)], logger=CSVLogger(tmp_path))
    (said,) = [r.message for r in caplog.records if "what is measured" in r.message]
    for part in (
        "rnn: 4 trials x 5 steps x 8 units",
        "2 weight sites with 100%",
        "3 -> 24",
        "9 -> 24",
    ):
        assert part in said


def test_what_forward_logs_is_logged_by_the_training_alone(tmp_path: Path) -> None:
    class Talking(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            self.log("size", y.abs().mean(), on_step=False, on_epoch=True, reduce_fx="sum")
            self.log_dict({"calls": 1.0}, on_step=False, on_epoch=True, reduce_fx="sum")
            return y

    found = []
    for callbacks in ([], [NTKMonitor(2, on_error="raise", **FAST)]):
        trainer, module = fit(callbacks, Talking())
        found.append({tag: float(trainer.callback_metrics[tag]) for tag in ("size", "calls")})
        assert not {"log", "log_dict"} & vars(module).keys()
    assert found[0] == found[1]
    assert found[0]["calls"] == 10


def test_an_alert_follows_the_first_of_two_monitors() -> None:
    first = NTKMonitor(5, state={"rnn": "rnn"}, **FAST)
    second = NTKMonitor(2, state={"readout": "readout"}, **FAST)
    alert = StallAlert(patience=5)
    fit([first, second, alert])
    assert first.snapshot is not None
    watch = alert.state_dict()["watches"]["1"]
    assert watch["learned"][-1] == first.snapshot.target_modes[0].learned
    assert alert.state_dict()["last_step"] == 10
    assert watch["steps"] == [0, 5, 10]


def test_validation_outside_of_training_gives_no_probe_batch() -> None:
    monitor = NTKMonitor(5, probe_batch="val", **FAST)
    trainer, module = fit([monitor], max_steps=0, limit_val_batches=1, num_sanity_val_steps=0)
    trainer.validate(module, data(2, shuffle=False), verbose=False)
    trainer.test(module, data(2, shuffle=False), verbose=False)
    trainer.predict(module, data(2, shuffle=False))
    assert monitor.kept.content is None
    assert monitor.snapshot is None


def test_a_log_that_a_submodule_was_given_is_muted_too() -> None:
    class Block(torch.nn.Module):
        def __init__(self, log: Any) -> None:
            super().__init__()
            self.log_size = log

        def forward(self, y: torch.Tensor) -> torch.Tensor:
            self.log_size("size", y.abs().mean(), on_step=True)
            return y

    class Handing(Small):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(self.log)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(super().forward(x))

    monitor = NTKMonitor(2, on_error="raise", state="rnn", **FAST)
    found = [float(fit(cs, Handing())[0].callback_metrics["size"]) for cs in ([], [monitor])]
    assert found[0] == found[1]


def test_loggers_and_listeners_may_draw_random_numbers(tmp_path: Path) -> None:
    class Drawing(Callback):
        def on_probe(self, *_: Any) -> None:
            random.random()
            np.random.rand()
            torch.rand(1)

    class Jitter(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if "ntk/trace" in metrics:
                Drawing().on_probe()
            super().log_metrics(metrics, step)

    def run(*callbacks: Any) -> Any:
        random.seed(0)
        np.random.seed(0)
        _, module = fit(list(callbacks), max_epochs=2, logger=Jitter(tmp_path))
        return module.state_dict(), torch.get_rng_state(), random.getstate(), np.random.rand()

    plain = run()
    watched = run(NTKMonitor(2, **FAST), Drawing())
    torch.testing.assert_close(watched[:2], plain[:2], rtol=0, atol=0)
    assert watched[2:] == plain[2:]


class Endless(torch.utils.data.IterableDataset):
    """Data without a length."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            x = torch.randn(5, 2, generator=generator)
            yield x, x.flip(-1) - x.mean(0)


@pytest.mark.parametrize("horizon", [None, 1])
def test_without_a_known_end_there_is_no_alert_unless_a_horizon_is_given(
    horizon: int | None,
) -> None:
    alert = StallAlert(1, 1.0, level=0.999, horizon=horizon, actions=("warn", "stop"))
    trainer = fit([], max_epochs=0)[0]
    trainer.fit_loop.max_epochs = 4
    trainer.callbacks += [NTKMonitor(2, **FAST), alert]
    loader = torch.utils.data.DataLoader(Endless(), batch_size=4)
    with pytest.warns(UserWarning, match="horizon" if horizon is None else "is stalled") as caught:
        trainer.fit(Small(), loader, data(2, shuffle=False))
    if horizon is None:
        assert trainer.global_step == 40
        assert alert.messages == []
        assert sum("give StallAlert(horizon" in str(w.message) for w in caught) == 1
    else:
        assert trainer.global_step < 40
        assert alert.messages


def test_an_alert_under_warnings_as_errors_loses_nothing() -> None:
    alert = StallAlert(1, 1.0, level=0.999, horizon=1)
    monitor, recorder = NTKMonitor(2, on_error="raise", **FAST), Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error", StallWarning)
        trainer, _ = fit([monitor, alert, recorder])
    assert trainer.global_step == 10
    assert monitor.failures.count == 0
    assert alert.messages
    assert recorder.steps == [0, 2, 4, 6, 8, 10]
