"""The same numbers, and the same training, in every way to train."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.loggers import CSVLogger as FabricCSVLogger
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback

from monitor.ways import BATCH, DRAWING, FAST, STEPS, WAYS, Run, Texts, gpt, train
from ntk_monitor import Monitor, NTKMonitor, StallAlert
from ntk_monitor.model.parameters.unwrapping import plain_module
from ntk_monitor.monitor import StallDetector, StallWarning
from ntk_monitor.monitor.base import STATE_VERSION
from ntk_monitor.monitor.integrations.transformers import NTKTrainerCallback, first_batch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def by_lightning(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("lightning", tmp_path_factory.mktemp("lightning"))


def without_transfers(run: Run) -> list[tuple[int, dict[str, float]]]:
    """All numbers but those that a second batch is asked for, which not every way has."""
    asked = ("transfer", "loss/in_", "loss/forecast_holds_for")
    return [
        (step, {tag: x for tag, x in numbers.items() if not any(part in tag for part in asked)})
        for step, numbers in run.seen
    ]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "lightning"])
def test_numbers_are_those_of_the_callback(way: str, by_lightning: Run, tmp_path: Path) -> None:
    run = train(way, tmp_path)
    assert [step for step, _ in run.seen] == [0, 2, 4, 6]
    assert without_transfers(run) == without_transfers(by_lightning)  # to the bit
    assert {"target/mode_2/steps_to_learn", "loss/now"} <= set(run.seen[-1][1])
    if way != "transformers":  # which has the same second batch all the time
        assert run.seen[1:] == by_lightning.seen[1:]
    assert run.monitor.failures.count == 0
    logged = run.monitor.numbers
    for tag, value in run.seen[-1][1].items():  # the metrics compute in single precision
        assert logged[tag] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_training_is_bit_for_bit_the_plain_one(way: str, tmp_path: Path) -> None:
    def differences(a: Run, b: Run) -> set[str]:
        found = set()
        states = [(run.model.state_dict(), run.optimizer.state_dict()["state"]) for run in (a, b)]
        for name, x, y in zip(("weights", "optimizer"), *states, strict=True):
            try:
                torch.testing.assert_close(x, y, rtol=0, atol=0)
            except AssertionError:
                found.add(name)
        for name, x, y in zip(("torch", "python", "numpy"), a.random, b.random, strict=True):
            same = torch.equal(x, y) if name == "torch" else x == y
            found |= set() if same else {name}
        return found

    settings: dict[str, Any] = {"shuffle": True, "dropout": 0.3}
    bare = train(way, tmp_path / "bare", watched=False, **settings)
    watched = train(way, tmp_path / "watched", alert=StallAlert(), **settings)
    assert len(watched.seen) == 4
    assert watched.steps_taken == bare.steps_taken == STEPS
    assert differences(watched, bare) == set()

    def harm(module: nn.Module) -> None:
        with torch.no_grad():
            next(module.parameters()).add_(0.1)

    assert {"weights", "optimizer"} <= differences(
        train(way, tmp_path / "harmed", damage=harm, **settings), bare
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_failing_probe_ends_no_training(way: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no evaluation today") as caught:
        run = train(way, tmp_path, fails=True)
    assert run.steps_taken == STEPS
    assert run.seen == []
    assert run.monitor.failures.count == 3
    said = [str(w.message) for w in caught if "a probe failed" in str(w.message)]
    assert len(said) == 2
    assert said[0].startswith(f"{type(run.monitor).__name__}: a probe failed")
    with pytest.raises(ArithmeticError, match="no evaluation today"):
        train(way, tmp_path, fails=True, settings={"on_error": "raise"})


def alert(**settings: Any) -> StallAlert:
    """One that finds a stall as soon as it can."""
    return StallAlert(1, 1.0, level=0.999, horizon=1, **settings)


@pytest.mark.parametrize("way", WAYS)
def test_an_alert_is_given_and_stops(way: str, tmp_path: Path) -> None:
    told: list[Any] = []
    loggers = {
        "lightning": lambda: TensorBoardLogger(tmp_path),
        "fabric": lambda: FabricCSVLogger(tmp_path),
        "plain": lambda: SummaryWriter(tmp_path / "run"),
        "transformers": lambda: None,
    }
    watch = alert(actions=("warn", "stop"), on_alert=told.append)
    settings = {"every_n_steps": 1, "learning_rate": 1e-12}
    # Of tokens without a meaning it would say that they are unpredictable.
    known = {"counting": True, "settings": settings}
    with pytest.warns(StallWarning, match="is stalled at step"):
        run = train(way, tmp_path, alert=watch, logger=loggers[way](), **known)
    assert 0 < run.steps_taken < STEPS
    assert told == watch.alerts
    (file,) = tmp_path.rglob("alerts.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["message"] for line in lines] == watch.messages
    if way != "lightning":
        assert run.monitor.should_stop
        assert 1.0 in {run.monitor.numbers["alert/mode_1"], run.monitor.numbers["alert/mode_2"]}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def check_events(folder: Path, run: Run) -> None:
    """Every number is there at its step, with the records for the NTK tab."""
    found = scalars(folder)
    for tag in run.seen[-1][1]:
        wanted = [(step, numbers[tag]) for step, numbers in run.seen if tag in numbers]
        assert [step for step, _ in found[tag]] == [step for step, _ in wanted]
        values = [value for _, value in wanted]
        assert [v for _, v in found[tag]] == pytest.approx(values, rel=1e-5, nan_ok=True)
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert "ntk/snapshot" in tags["tensors"]
    assert "ntk/temporal_modes" in tags["images"]


def test_a_plain_loop_logs_to_a_folder_a_writer_and_to_loggers(tmp_path: Path) -> None:
    writer = SummaryWriter(tmp_path / "writer")
    csv = CSVLogger(tmp_path, "csv")
    run = train("plain", tmp_path, logger=[writer, csv], settings=DRAWING)
    writer.add_scalar("mine", 1.0, 0)  # it is still open
    writer.close()
    check_events(tmp_path / "writer", run)
    text = (Path(csv.log_dir) / "metrics.csv").read_text()
    assert text.count("\n") == 5
    assert "ntk/trace" in text.splitlines()[0]
    assert list((Path(csv.log_dir) / "figures").rglob("step_000006.png"))

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    seen = Run(tmp_path)
    monitor = Monitor(2, on_probe=seen.hear, **FAST | DRAWING)
    with monitor.attach(linear()[0], batch=(x, x[:, :2]), log_dir=tmp_path / "own"):
        for _ in range(4):
            monitor.step()
    check_events(tmp_path / "own", seen)


def test_a_folder_of_another_training_is_told_of(tmp_path: Path) -> None:
    model, optimizer, batch = linear()
    settings: dict[str, Any] = {"total_steps": 4, "batch": batch, "log_dir": tmp_path}
    SummaryWriter(str(tmp_path)).close()  # a writer of the user's is none of ours
    first, same, again = Monitor(**FAST), Monitor(**FAST), Monitor(**FAST)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with first.attach(model, optimizer, **settings):
            first.step()
        same.load_state_dict(first.state_dict())
        with same.attach(model, optimizer, **settings):
            same.step()
    assert not [each for each in told if "earlier training" in str(each.message)]
    with (
        pytest.warns(UserWarning, match="earlier training.*log_dir= another folder"),
        again.attach(model, optimizer, **settings),
    ):
        again.step()


def test_fabric_s_own_loggers_are_used(tmp_path: Path) -> None:
    run = train("fabric", tmp_path, logger=FabricCSVLogger(tmp_path), settings=DRAWING)
    rows = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert len(rows) == 1 + len(run.seen)
    assert list(tmp_path.rglob("step_000006.png"))


def test_a_transformers_trainer_logs_to_its_folder_and_its_history(tmp_path: Path) -> None:
    run = train("transformers", tmp_path, settings=DRAWING)
    check_events(tmp_path / "ntk_monitor", run)
    assert not (tmp_path / "runs").exists()
    other = train("transformers", tmp_path / "b", watched=False)
    assert not (tmp_path / "b" / "ntk_monitor").exists()
    assert other.seen == []


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder), **{
            "max_steps": STEPS, "per_device_train_batch_size": BATCH, "use_cpu": True,
            "report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
            **settings,
        },
    )  # fmt: skip


def test_numbers_are_in_the_history_and_beside_those_of_the_trainer(tmp_path: Path) -> None:
    board = TensorBoardCallback(SummaryWriter(tmp_path / "board"))
    seen = Run(tmp_path)
    ours = NTKTrainerCallback(3, on_probe=seen.hear, logger=board, **FAST | DRAWING)
    settings = {"logging_strategy": "steps", "logging_steps": 2}
    trainer = Trainer(
        gpt(), arguments(tmp_path, **settings), train_dataset=Texts(), callbacks=[board, ours]
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "ntk/trace" in entry]
    assert [entry["step"] for entry in history] == [0, 3, 6]
    assert [e["ntk/trace"] for e in history] == pytest.approx(
        [numbers["ntk/trace"] for _, numbers in seen.seen], rel=1e-5
    )
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in losses] == [2, 4, 6]
    check_events(tmp_path / "board", seen)
    assert "train/loss" in scalars(tmp_path / "board")


def test_a_transformers_run_cut_in_two_goes_on(tmp_path: Path) -> None:
    def run(folder: Path, *, stop: int | None = None, resume: bool = False) -> tuple[Run, Any]:
        seen = Run(folder)
        ours = NTKTrainerCallback(3, on_probe=seen.hear, alert=StallAlert(horizon=9), **FAST)
        # In the second epoch, whose first batch is another one.
        settings = {"save_strategy": "steps", "save_steps": 8, "max_steps": 12}
        trainer = Trainer(
            gpt(), arguments(folder, **settings), train_dataset=Texts(), callbacks=[ours]
        )
        if stop is not None:
            inner = ours.on_step_end

            def on_step_end(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
                control = inner(args, state, control, **kwargs)
                control.should_training_stop = state.global_step == stop
                return control

            ours.on_step_end = on_step_end
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-8") if resume else None)
        return seen, ours

    whole, whole_monitor = run(tmp_path / "whole")
    first, _ = run(tmp_path / "cut", stop=8)
    second, monitor = run(tmp_path / "cut", resume=True)
    assert [step for step, _ in first.seen] == [0, 3, 6]
    assert [step for step, _ in second.seen] == [9, 12]
    assert first.seen + second.seen == whole.seen
    assert monitor.alert.state_dict() == whole_monitor.alert.state_dict()
    state = json.loads((tmp_path / "cut" / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["ntk_monitor"]["steps"] == 8


def test_the_first_batch_is_read_without_a_trace() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(Texts(), BATCH, shuffle=True, generator=generator)
    before = generator.get_state(), torch.get_rng_state()
    found = first_batch(loader)
    assert torch.equal(before[0], generator.get_state())
    assert torch.equal(before[1], torch.get_rng_state())
    torch.testing.assert_close(found, next(iter(loader)))
    own = DataLoader(Texts(), BATCH, shuffle=True)
    torch.manual_seed(2)
    found = first_batch(own)
    torch.testing.assert_close(found, next(iter(own)))


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([Texts()[i] for i in range(len(Texts()))])


def test_data_that_cannot_be_read_out_of_turn_need_a_probe_batch(tmp_path: Path) -> None:
    ours = NTKTrainerCallback(2, **FAST)
    with pytest.warns(UserWarning, match="probe_batch must be a batch"):
        Trainer(gpt(), arguments(tmp_path), train_dataset=Stream(), callbacks=[ours]).train()
    assert ours.snapshot is None
    batch = next(iter(DataLoader(Texts(), BATCH)))
    ours = NTKTrainerCallback(2, probe_batch=batch, **FAST)
    trainer = Trainer(gpt(), arguments(tmp_path), train_dataset=Stream(), callbacks=[ours])
    trainer.train()
    assert ours.snapshot is not None
    assert trainer.state.global_step == STEPS


def linear() -> tuple[nn.Module, torch.optim.Optimizer, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(12, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), (x, x[:, :2])


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    optimizer.zero_grad()
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
    optimizer.step()


def test_a_plain_loop_cut_in_two_goes_on() -> None:
    def watch(seen: Run) -> Monitor:
        return Monitor(2, on_probe=seen.hear, alert=StallAlert(), **FAST)

    whole, cut = Run(Path()), Run(Path())
    model, optimizer, batch = linear()
    monitor = watch(whole)
    with monitor.attach(model, optimizer, batch=batch, total_steps=10):
        for _ in range(10):
            advance(model, optimizer, batch)
            monitor.step()
    model, optimizer, batch = linear()
    first = watch(cut)
    with first.attach(model, optimizer, batch=batch, total_steps=10):
        for _ in range(5):
            advance(model, optimizer, batch)
            first.step()
    second = watch(cut)
    second.load_state_dict(first.state_dict())
    with second.attach(model, optimizer, total_steps=10):
        for _ in range(5):
            advance(model, optimizer, batch)
            second.step()  # the batch is that of the state
    assert cut.seen == whole.seen
    assert [step for step, _ in whole.seen] == [0, 2, 4, 6, 8, 10]
    assert second.alert is not None
    assert monitor.alert is not None
    assert second.alert.state_dict() == monitor.alert.state_dict()
    with monitor.attach(model, optimizer, total_steps=10):  # another training
        assert monitor.steps == 0
        assert monitor.snapshot is None
        assert monitor.alert.states == {}


def test_a_state_that_cannot_be_read_begins_anew() -> None:
    for state in (
        {"version": STATE_VERSION},
        {**Monitor().state_dict(), "steps": "many"},
        "nothing",
    ):
        monitor = Monitor()
        with pytest.warns(UserWarning, match="Monitor: ") as caught:
            monitor.load_state_dict(state)  # type: ignore[arg-type]
        assert "its state in the checkpoint cannot be read" in str(caught[-1].message)
        assert monitor.steps == 0


def test_without_a_batch_at_first_the_first_step_is_probed() -> None:
    model, optimizer, batch = linear()
    seen = Run(Path())
    monitor = Monitor(3, on_probe=seen.hear, **FAST)
    with monitor.attach(model, optimizer):
        for i in range(6):
            advance(model, optimizer, batch)
            monitor.step(batch, epoch=i // 3)
    assert [step for step, _ in seen.seen] == [1, 3, 6]
    assert monitor.epoch == 1
    made = Monitor(3, probe_batch=lambda module: (torch.ones(2, 3), torch.ones(2, 2)), **FAST)
    with made.attach(model, optimizer):
        assert made.snapshot is not None  # before the first step
    assert made.snapshot.state_shape[0] == 2


def test_all_is_closed_when_a_training_raises(tmp_path: Path) -> None:
    model, optimizer, batch = linear()
    watch = alert()
    closed: list[bool] = []
    threads = threading.active_count()  # a writer has one of its own
    watch.close = lambda: closed.append(True)  # type: ignore[method-assign]
    monitor = Monitor(1, alert=watch, **FAST)
    with (
        pytest.raises(KeyboardInterrupt),
        monitor.attach(model, optimizer, batch=batch, log_dir=tmp_path),
    ):
        raise KeyboardInterrupt
    assert closed == [True]
    assert threading.active_count() == threads
    assert "ntk/trace" in scalars(tmp_path)
    with pytest.raises(RuntimeError, match="watches no training"):
        monitor.step(batch)


class Sharded(nn.Module):
    """Stands for one that FSDP has taken apart."""


Sharded.__name__ = "FullyShardedDataParallel"
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "model": (lambda: attach(model="net"), ValueError, "model must be a torch.nn.Module, got"),
    "sharded": (lambda: attach(model=Sharded()), ValueError, "model must be whole in every"),
    "optimizer": (lambda: attach(optimizer=["Adam"]), ValueError, "optimizer must be a torch"),
    "steps": (lambda: attach(total_steps=0), ValueError, "total_steps must be at least 1"),
    "logger": (lambda: attach(logger=3), ValueError, "logger must be a logger with log_metrics"),
    "state": (lambda: attach(settings={"state": "rnn"}), ValueError, "'rnn' is not a module of"),
    "no end": (
        lambda: attach(settings={"alert": StallAlert()}),
        ValueError,
        "total_steps must be the number of optimizer steps.*StallAlert.horizon",
    ),
    "alert": (lambda: Monitor(alert="yes"), ValueError, "alert must be a StallAlert"),
    "no modes": (lambda: Monitor(alert=StallAlert(), modes=0), ValueError, "modes must be at"),
    "on_probe": (lambda: Monitor(on_probe=3), ValueError, "on_probe must be a function"),
    "val": (lambda: Monitor(probe_batch="val"), ValueError, "probe_batch must be 'train', a"),
    "no batch": (lambda: attach(step=True), ValueError, "batch must be what this step was"),
    "twice": (lambda: attach(twice=True), RuntimeError, "watches a training already"),
    "setting": (lambda: Monitor(every=3), TypeError, "every"),
}  # fmt: skip


def attach(
    *, settings: dict[str, Any] | None = None, step: bool = False, twice: bool = False, **given: Any
) -> None:
    model, optimizer, _ = linear()
    monitor = Monitor(**(settings or {}))
    with monitor.attach(**{"model": model, "optimizer": optimizer, **given}):
        if step:
            monitor.step()
        if twice:
            with monitor.attach(model):
                pass


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_at_once(name: str) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_a_logger_that_cannot_be_ended_ends_nothing() -> None:
    def save() -> None:
        raise OSError("no luck today")

    logger = SimpleNamespace(log_metrics=lambda *_, **__: None, save=save)
    model, optimizer, batch = linear()
    monitor = Monitor(**FAST)
    with (
        pytest.warns(UserWarning, match="ending a logger failed"),
        monitor.attach(model, optimizer, batch=batch, logger=logger),
    ):
        pass


def test_wrappers_are_taken_off(tmp_path: Path) -> None:
    from lightning.fabric import Fabric  # noqa: PLC0415

    model, optimizer, _ = linear()
    wrapped = Fabric(accelerator="cpu", devices=1).setup(model, optimizer)[0]
    assert wrapped is not model
    assert plain_module(wrapped) is model
    assert plain_module(torch.compile(wrapped, backend="eager")) is model


def test_a_plain_loop_needs_no_lightning() -> None:
    code = """
import sys, torch, torchmetrics  # an old torchmetrics imports some of them itself
others = set(sys.modules)
import ntk_monitor
from ntk_monitor import Monitor
from ntk_monitor.monitor import StallDetector
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
x = torch.randn(8, 3)
monitor = Monitor(1, alert=StallDetector(), max_overhead=None)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with monitor.attach(model, optimizer, batch=(x, x[:, :2]), total_steps=9, log_dir=sys.argv[1]):
    monitor.step()
assert monitor.failures.count == 0 and "alert/mode_1" in monitor.numbers
heavy = {"lightning", "pytorch_lightning", "lightning_fabric", "accelerate"}
new = set(sys.modules) - others
print(sorted(heavy & new), "transformers.trainer" in new)
ntk_monitor.NTKMonitor
print("lightning" in sys.modules)
"""
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[] False", "True"]


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ntk_monitor.monitor.integrations.transformers")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"ntk-monitor\[transformers\]"):
        import ntk_monitor.monitor.integrations.transformers  # noqa: F401, PLC0415


def test_the_alert_is_one_for_all() -> None:
    assert issubclass(StallAlert, StallDetector)
    assert math.isinf(Monitor().total_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NTKMonitor()
