"""Whatever fails in a probe, training ends as it would have, and the log says so once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from harm.evidence import Witness, differences, evidence
from harm.worlds import Module, World, loader, train
from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.model.derivatives.derivative import Derivative
from ntk_monitor.model.derivatives.differences import SHORTENED, Differences
from ntk_monitor.model.derivatives.forward_map import ForwardMap
from ntk_monitor.model.derivatives.jacobian import ParameterJacobian
from ntk_monitor.monitor.integrations.lightning.alert import StallAlert as Alert
from ntk_monitor.monitor.reporting.sinks import CSVSink
from ntk_monitor.monitor.tracked_state import TrackedState
from ntk_monitor.probe import Probe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::ntk_monitor.monitor.StallWarning"),
]
NIGHTLY = "NTK_MONITOR_NIGHTLY" in os.environ
FAST: dict[str, Any] = {"max_products": 16, "modes": 1, "tolerance": 1.0, "max_overhead": None}
FAST |= {"learning_rate": 0.01, "figures": False}
KIND = "dropout"
quieting = sys.modules["ntk_monitor.model.isolation.quiet"]
kept_module = sys.modules["ntk_monitor.monitor.probe_batch"]
publisher_module = sys.modules["ntk_monitor.monitor.reporting.publisher"]
reporter_module = sys.modules["ntk_monitor.monitor.reporting.reporter"]
linearize_module = sys.modules["ntk_monitor.model.linearize"]
discovery_module = sys.modules["ntk_monitor.model.discovery"]
passes_module = sys.modules["ntk_monitor.model.passes"]
probe_module = sys.modules["ntk_monitor.probe"]
kernel_module = sys.modules["ntk_monitor.probing.kernel"]


class Listener(Callback):
    """Another user of snapshots."""

    def on_probe(self, *_: Any) -> None:
        """Nothing."""


def run(path: Path, callbacks: list[Any], world: World | None = None) -> dict[str, Any]:
    random.seed(0)
    np.random.seed(0)
    witness = Witness()
    world = world or World(loggers=lambda p: [TensorBoardLogger(p, "tb"), CSVLogger(p, "csv")])
    trainer, module = train(KIND, world, [*callbacks, witness], path)
    return evidence(trainer, module, witness)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(tmp_path_factory.mktemp("plain"), [])


def said(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if str(w.message).startswith("NTKMonitor")]


Patch = tuple[Any, str]
STAGES: dict[str, Patch] = {
    "keeping the batch": (kept_module, "keep_batch"),
    "entering the quiet context": (quieting, "kernels_for"),
    "casting the batch": (linearize_module, "cast_batch"),
    "forward pass": (ForwardMap, "record"),
    "finding the state": (passes_module, "find_state"),
    "finding weight sites": (discovery_module, "place_uses"),
    "target": (probe_module, "pull_back"),
    "tangent product": (Derivative, "_products"),
    "adjoint product": (ParameterJacobian, "pulls_apart"),
    "sampling": (kernel_module, "sample_kernel"),
    "snapshot": (probe_module, "assembled"),
    "introduction": (publisher_module, "introduction"),
    "metrics": (TrackedState, "scalars"),
    "numbers to a logger": (TensorBoardLogger, "log_metrics"),
    "layout to a logger": (SummaryWriter, "add_custom_scalars"),
    "drawing figures": (publisher_module, "snapshot_figures"),
    "figures to a logger": (SummaryWriter, "add_figure"),
    "figures to a file": (CSVSink, "figures"),
    "record": (publisher_module, "snapshot_record"),
    "record to a logger": (reporter_module, "write_record"),
    "another callback": (Listener, "on_probe"),
    "the alert": (Alert, "on_probe"),
}
ERRORS: dict[str, Callable[[], Exception]] = {
    "error": lambda: RuntimeError("no luck today"),
    "out of memory": lambda: torch.OutOfMemoryError("CUDA out of memory: no luck today"),
    "disk full": lambda: OSError(28, "No space left on device: no luck today"),
}
ALLOCATES = {
    *("casting the batch", "forward pass", "finding weight sites", "target", "tangent product"),
    *("adjoint product", "sampling", "snapshot", "drawing figures"),
}
"""Stages that memory runs out in."""
WRITES = {
    *("numbers to a logger", "layout to a logger", "figures to a logger", "figures to a file"),
    *("record to a logger", "another callback"),
}
"""Stages that fill a disk."""


def happens(stage: str, kind: str) -> bool:
    """Whether a stage is likely to fail so; nightly all stages do in all ways."""
    likely = {"out of memory": ALLOCATES, "disk full": WRITES}
    return NIGHTLY or kind not in likely or stage in likely[kind]


def breaking(monkeypatch: pytest.MonkeyPatch, stage: str, fault: Callable[[], Exception]) -> None:
    owner, name = STAGES[stage]
    honest = getattr(owner, name)

    def broken(*args: Any, **kwargs: Any) -> Any:
        if name == "log_metrics" and not any(
            "ntk" in tag for tag in kwargs.get("metrics", args[-1])
        ):
            return honest(*args, **kwargs)  # the user's own numbers
        raise fault()

    monkeypatch.setattr(owner, name, broken)


@pytest.mark.parametrize(
    ("stage", "kind"), [(s, kind) for s in STAGES for kind in ERRORS if happens(s, kind)]
)
def test_a_stage_that_always_fails(
    stage: str, kind: str, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, stage, ERRORS[kind])
    monitor = NTKMonitor(4, **FAST | {"figures": "figures" in stage})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(tmp_path, [monitor, StallAlert(1), Listener()])
    assert differences(watched, plain) == set()
    messages = said(caught)
    assert 1 <= len(messages) <= 2
    assert "no luck today" in messages[0]
    assert "training goes on" in messages[0]
    if len(messages) == 2:
        assert "switched off" in messages[1]


@pytest.mark.parametrize("stage", ["tangent product", "numbers to a logger", "another callback"])
def test_a_stage_that_fails_once_is_tried_again(
    stage: str, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, stage, ERRORS["error"])

    class Repair(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            monkeypatch.undo()

    monitor = NTKMonitor(3, **FAST)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(tmp_path, [Repair(), monitor, Listener()])
    assert differences(watched, plain) == set()
    (message,) = said(caught)
    assert "it will be tried again" in message
    assert monitor.snapshot is not None
    assert monitor.failures.enabled


def test_a_failing_logger_does_not_keep_numbers_from_another(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, "numbers to a logger", ERRORS["disk full"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(tmp_path, [NTKMonitor(3, **FAST)])
    assert differences(watched, plain) == set()
    assert "logging to TensorBoardLogger failed" in said(caught)[0]
    rows = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert "ntk/trace" in rows


class Broken(CSVLogger):
    """A logger that never takes our numbers."""

    calls = 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "ntk/trace" in metrics:
            type(self).calls += 1
            raise OSError("no luck today")
        super().log_metrics(metrics, step)


def test_a_logger_that_always_fails_is_left_out_after_three_times(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    Broken.calls = 0
    world = World(loggers=lambda p: [Broken(p, "broken"), CSVLogger(p, "csv")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(tmp_path, [NTKMonitor(2, **FAST)], world)
    assert differences(watched, plain) == set()
    assert Broken.calls == 3
    first, last = said(caught)
    assert "it will be tried again" in first
    assert "switched off" in last
    rows = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert rows.count("\n") > 7


class Slow(CSVLogger):
    """A logger that takes its time over our numbers."""

    calls = 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "ntk/trace" in metrics:
            type(self).calls += 1
            time.sleep(1.3)
        super().log_metrics(metrics, step)


def test_a_hanging_logger_is_waited_for_once(plain: dict[str, Any], tmp_path: Path) -> None:
    Slow.calls = 0
    world = World(loggers=lambda p: [Slow(p, "slow"), CSVLogger(p, "csv")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(tmp_path, [NTKMonitor(3, time_limit=1.0, **FAST)], world)
    assert differences(watched, plain) == set()
    (message,) = said(caught)
    assert "logging to Slow took 1 s" in message
    assert Slow.calls == 1


def test_a_wedged_probe_ends_at_its_time_limit(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ForwardMap.run

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        return honest(*args, **kwargs)

    monkeypatch.setattr(ForwardMap, "run", slow)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = NTKMonitor(12, time_limit=0.3, **FAST)
        watched = run(tmp_path, [monitor], World())
    assert differences(watched, plain) == set()
    (message,) = said(caught)
    assert "a probe took longer than time_limit=0.3 s" in message
    assert monitor.failures.count == 2
    assert time.perf_counter() - started < 10


def test_a_slow_probe_makes_do_with_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Differences._product

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return honest(*args, **kwargs)

    monkeypatch.setattr(Differences, "_product", slow)
    module = Module(KIND)
    module.configure_model()
    settings = {"tolerance": 1e-3, "max_products": 90, "method": "finite-difference", "modes": 0}
    batch = next(iter(loader()))
    snapshot = Probe(time_limit=1.0, **settings)(module, batch)
    assert snapshot.trace.is_finite
    assert not snapshot.tolerance_met
    assert 10 < snapshot.products < 80
    assert snapshot.seconds < 1.0
    assert Probe(time_limit=None, **settings)(module, batch).products >= 90 - SHORTENED - 2


def spoil(what: str) -> tuple[World, list[Any]]:
    """A world in which something is not finite, without and with a monitor."""

    class Spoiled(Module):
        def configure_model(self) -> None:
            super().configure_model()
            if what == "weights":
                with torch.no_grad():
                    self.readout.weight.fill_(torch.nan)
                    self.body.rnn.weight_ih_l0[0, 0] = torch.inf

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y / 0 if what == "outputs" else y

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, y = batch
            if what == "inputs":
                x = x / 0
            if what == "targets":
                y = y * torch.nan
            return x, y

    return World(module=Spoiled), [NTKMonitor(3, **FAST), StallAlert(1)]


@pytest.mark.parametrize("what", ["weights", "inputs", "targets", "outputs"])
def test_what_is_not_finite_is_recorded_and_passed_over(what: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Ears(Callback):
        def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
            seen.append(snapshot)

    world, callbacks = spoil(what)
    before = run(tmp_path, [], world)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert differences(run(tmp_path, [*callbacks, Ears()], world), before) == set()
    assert said(caught) == []
    told = [str(w.message) for w in caught if "nan or infinite" in str(w.message)]
    assert len(told) == len(set(told))  # each said once
    first = seen[0]
    assert len(seen) == 5
    if what in {"weights", "inputs"}:
        assert told
        assert not first.is_finite
    if what == "targets":
        assert "targets" in told[0]
        assert first.is_finite
        assert first.target_modes == ()


@pytest.mark.parametrize("stage", ["forward pass", "tangent product", "numbers to a logger"])
def test_an_interrupt_passes_through(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, stage, KeyboardInterrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path, [NTKMonitor(3, **FAST)])


def test_a_request_to_end_is_heard_after_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ForwardMap.record

    def record(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*args, **kwargs)

    monkeypatch.setattr(ForwardMap, "record", record)
    before = signal.getsignal(signal.SIGTERM)
    monitor = NTKMonitor(3, **FAST)
    with pytest.raises(SIGTERMException):
        run(tmp_path, [monitor])
    assert monitor.snapshot is not None
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("kind", ["warn", "disable"])
def test_warnings_that_are_errors_do_not_end_training(
    kind: Any, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, "tangent product", ERRORS["error"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "NTKMonitor")
        assert differences(run(tmp_path, [NTKMonitor(3, on_error=kind, **FAST)]), plain) == set()


def test_raise_raises_the_error_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("tangent product", "figures to a logger", "another callback"):
        with monkeypatch.context() as patch:
            breaking(patch, stage, ERRORS["error"])
            monitor = NTKMonitor(3, on_error="raise", **FAST | {"figures": True})
            with pytest.raises(RuntimeError, match=r"^no luck today$"):
                run(tmp_path, [monitor, Listener()])


def test_out_of_memory_halves_the_chunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ntk_monitor.model.derivatives.products import ForwardAD  # noqa: PLC0415

    honest, tried = ForwardAD.__call__, []

    def limited(self: ForwardAD, G: Tensor) -> Tensor:
        tried.append(self.chunk_size)
        if self.chunk_size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, G)

    monkeypatch.setattr(ForwardAD, "__call__", limited)
    module = Module(KIND)
    module.configure_model()
    x = next(iter(loader()))[0]
    measure = Probe(method="forward-ad", chunk_size=8, max_products=16, modes=0, tolerance=1.0)
    limit = 4
    assert measure(module, x).trace.is_finite
    assert set(tried[1:]) == {4}
    limit = 1
    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):
        measure(module, x)
    assert tried == [4, 2]
    tried.clear()
    assert measure(module, x).trace.is_finite
    assert tried[0] == 2
    assert set(tried[1:]) == {1}


KILLED = Path(__file__).with_name("killed.py")


def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path) -> None:
    folders = os.pathsep.join(map(str, (KILLED.parents[1], KILLED.parents[2])))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folders}
    done = subprocess.run(
        [sys.executable, str(KILLED), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 6
    for stage, result in found.items():
        assert result == {"killed": True, "snapshots": True, "events": True, "resumed": True}, stage
