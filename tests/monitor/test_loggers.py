"""The same numbers, pictures and words through every logger, read back from what it wrote."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import pickle
import posixpath
import runpy
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from monitor.helpers import Small, fit
from ntk_monitor import NTKMonitor
from ntk_monitor.monitor.reporting import reporter as logs
from ntk_monitor.monitor.reporting import sinks
from ntk_monitor.monitor.reporting.reporter import Reporter
from ntk_monitor.monitor.reporting.sinks import (
    CSVSink,
    MLFlowSink,
    WandbSink,
    WriterSink,
    register_sink,
    sink_of,
)
from ntk_monitor.views import own_style, snapshot_figures

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
)
STEPS = [0, 3, 6]
ODD = {"ntk/nan": math.nan, "ntk/inf": math.inf, "ntk/minus_inf": -math.inf, "ntk/tiny": 1e-300}
LATE = "alert/mode_1"
"""A tag that comes up only in the second probe."""
FIGURES = {"ntk/cumulative_variance", "ntk/temporal_modes", "target/modes"}
Rows = list[tuple[int, float]]
Series = dict[str, Rows]


def words(step: int) -> list[str]:
    return [f"**Target mode {i} is stalled** at step {step}: `{'long ' * 20}`." for i in (1, 2)]


class Memory(Logger):
    """Keeps every number as it was sent to the loggers."""

    name, version, experiment = "memory", 0, None

    def __init__(self) -> None:
        super().__init__()
        self.scalars: Series = defaultdict(list)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        for tag, value in metrics.items():
            self.scalars[tag].append((step, float(value)))


class Watcher(Callback):
    """Keeps what was measured, and speaks through the reporter, as the alert does."""

    def __init__(self, monitor: NTKMonitor, memory: Memory) -> None:
        self.monitor = monitor
        self.sent = memory.scalars
        self.measured: Series = defaultdict(list)
        self.figures: dict[tuple[str, int], bytes] = {}

    def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
        spoken = ODD if step == 0 else {LATE: float(step)}
        self.monitor.reporter.scalars(trainer, spoken, step)
        for tag, value in {**snapshot.scalars(), **spoken}.items():
            self.measured[tag].append((step, value))
        with own_style():
            for tag, figure in snapshot_figures(snapshot).items():
                picture = io.BytesIO()
                figure.savefig(picture, format="png")
                self.figures[tag, step] = picture.getvalue()
        for text, severity in zip(words(step), ("warning", "info"), strict=True):
            self.monitor.reporter.text(trainer, "alert", text, step, severity)


class Mine(Small):
    """A module whose user logs, too: through Lightning, and past it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        if isinstance(self.logger, WandbLogger):
            self.logger.experiment.log({"mine": batch_idx})
        return loss


@dataclass
class Found:
    """What was read back of a training, in the order in which it was written."""

    scalars: Series = field(default_factory=lambda: defaultdict(list))
    figures: dict[tuple[str, int], bytes] = field(default_factory=dict)
    words: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    alerts: list[tuple[str, str, str]] = field(default_factory=list)


def train(logger: Any, *, watched: bool = True) -> Watcher:
    monitor = NTKMonitor(
        3, max_products=24, tolerance=0.0, max_overhead=None, modes=2, on_error="raise"
    )
    memory = Memory()
    watcher = Watcher(monitor, memory)
    callbacks = [monitor, watcher] if watched else []
    fit(callbacks, Mine(), logger=[logger, memory], limit_train_batches=6, log_every_n_steps=1)
    return watcher


def read_csv(folder: Path) -> Found:
    found = Found()
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for tag, value in row.items():
                if value and tag != "step":
                    found.scalars[tag].append((int(row["step"]), float(value)))
    for path in (folder / "figures").rglob("*"):
        if path.is_file():
            tag = str(path.parent.relative_to(folder / "figures").as_posix())
            assert path.suffix == ".png"
            found.figures[tag, int(path.stem.removeprefix("step_"))] = path.read_bytes()
    return found


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: LevelDB's log format after seven bytes."""
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # a full record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def read_wandb(folder: Path) -> Found:
    found = Found()
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "alert":
            alert = record.alert
            found.alerts.append((alert.title, alert.text, alert.level))
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            *outer, last = item.nested_key or [item.key]
            place = row
            for name in outer:
                place = place.setdefault(name, {})
            place[last] = json.loads(item.value_json)
        step = row.pop("trainer/global_step", row.get("mine"))
        for tag, value in row.items():
            if not isinstance(value, dict):
                found.scalars[tag].append((step, value))
                continue
            content = (path.parent / "files" / value["path"]).read_bytes()
            if value["_type"] == "image-file":
                found.figures[tag, step] = content
            else:
                table = json.loads(content)
                assert table["columns"] == ["step", "text"]
                assert tag == "alert"
                assert table["data"][-1][0] == step
                found.words.clear()
                for when, text in table["data"]:  # all that was said so far
                    found.words[when].append(text)
    return found


def read_mlflow(uri: str) -> Found:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    found, client = Found(), MlflowClient(uri)
    experiment = client.get_experiment_by_name("ours")
    (run,) = client.search_runs([experiment.experiment_id])
    for tag in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, tag):
            found.scalars[tag].append((metric.step, metric.value))
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    for path in root.rglob("*"):
        if not path.is_file():
            continue
        tag, step = path.parent.relative_to(root).as_posix(), int(path.stem.removeprefix("step_"))
        if path.suffix == ".md":
            assert tag == "alert"
            found.words[step] = path.read_text().split("\n\n")
        else:
            assert path.suffix == ".png"
            found.figures[tag, step] = path.read_bytes()
    return found


def check(found: Found, plain: Found, watcher: Watcher) -> None:
    """Every number and picture is there, at its step, and nothing is lost or added."""
    assert found.scalars.keys() - {"mine", "_step", "_runtime", "_timestamp"} == watcher.sent.keys()
    for tag, sent in watcher.sent.items():
        np.testing.assert_array_equal(found.scalars[tag], sent, err_msg=tag)
    assert watcher.sent.keys() - watcher.measured.keys() == {"loss", "epoch", "ntk/overhead"}
    assert {"ntk/core_cosine_stderr", "target/mode_2/learned"} < watcher.measured.keys()
    for tag, measured in watcher.measured.items():  # the metrics compute in single precision
        np.testing.assert_allclose(found.scalars[tag], measured, rtol=1e-5, err_msg=tag)
    assert len(plain.scalars["loss"]) == 6
    for tag in ("loss", "mine"):
        assert found.scalars.get(tag) == plain.scalars.get(tag)
    assert found.figures.keys() == {(tag, step) for tag in FIGURES for step in STEPS}
    for place, content in found.figures.items():
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == "PNG"
            wanted_pixels = np.asarray(Image.open(io.BytesIO(watcher.figures[place])))
            np.testing.assert_array_equal(np.asarray(picture), wanted_pixels, err_msg=str(place))


def test_csv(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name, 0, flush_logs_every_n_steps=1) for name in "ab"]
    watcher = train(loggers[0])
    train(loggers[1], watched=False)
    found, plain = (read_csv(Path(logger.log_dir)) for logger in loggers)
    check(found, plain, watcher)


class JSONLinesSink(CSVSink):
    """Figures as of a `CSVSink`; words as Markdown in ``text/<tag>/``, a file for each step."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._said: tuple[str, list[str]] = ("", [])

    def text(self, logger: Any, tag: str, text: str, step: int, severity: Any) -> None:
        if not logger.log_dir:
            return
        files = sinks.file_system(logger.log_dir)
        path = f"{logger.log_dir}/text/{sinks.file_of(tag, step, 'md')}"
        before = self._said[1] if self._said[0] == path else []
        self._said = (path, [*before, f"{severity}: {text}"])  # two modes may stall in one step
        files.makedirs(posixpath.dirname(path), exist_ok=True)
        with files.open(path, "w") as file:
            file.write("\n\n".join(self._said[1]))


class JSONLinesLogger(Logger):
    """A stranger's logger, that keeps a row of JSON for each call."""

    name, version, experiment = "lines", 0, None

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir()
        self.folder = folder

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        row = {"step": step, **{tag: float(value) for tag, value in metrics.items()}}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def lines_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "REGISTERED", {})
    register_sink(JSONLinesLogger, JSONLinesSink)


def read_lines(folder: Path) -> Found:
    found = Found()
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for tag, value in row.items():
            found.scalars[tag].append((step, value))
    for path in (folder / "figures").rglob("*.png"):
        tag = path.parent.relative_to(folder / "figures").as_posix()
        found.figures[tag, int(path.stem.removeprefix("step_"))] = path.read_bytes()
    for path in (folder / "text").rglob("*.md"):
        assert path.parent == folder / "text" / "alert"
        found.words[int(path.stem.removeprefix("step_"))] = path.read_text().split("\n\n")
    return found


def test_a_logger_of_somebodys_own(tmp_path: Path, lines_sink: None) -> None:
    loggers = [JSONLinesLogger(tmp_path / name) for name in "ab"]
    watcher = train(loggers[0])
    train(loggers[1], watched=False)
    found, plain = (read_lines(Path(logger.log_dir)) for logger in loggers)
    check(found, plain, watcher)
    assert found.words == {
        step: [f"{level}: {t}" for level, t in zip(("warning", "info"), words(step), strict=True)]
        for step in STEPS
    }


def test_what_is_derived_from_a_registered_logger_has_its_sink(lines_sink: None) -> None:
    derived = type("Derived", (JSONLinesLogger,), {})
    stranger = type("JSONLinesLogger", (), {})
    assert type(sink_of(derived.__new__(derived))) is JSONLinesSink
    assert type(sink_of(stranger())) is WriterSink


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without a network, with all of its files below one folder, and ended afterwards."""
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    for name, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    import wandb  # noqa: PLC0415

    wandb.teardown()
    assert not [thread for thread in threading.enumerate() if "wandb" in thread.name.lower()]


def test_wandb(tmp_path: Path, offline: None) -> None:
    import wandb  # noqa: PLC0415

    folders = [tmp_path / name for name in ("watched", "plain")]
    watchers = []
    for folder in folders:
        folder.mkdir()
        watchers.append(train(WandbLogger(save_dir=folder), watched=folder.name == "watched"))
        wandb.finish()
    wandb.teardown()  # its process may write to the end
    found, plain = map(read_wandb, folders)
    check(found, plain, watchers[0])
    assert found.words == {step: words(step) for step in STEPS}
    assert [text for _, text, _ in found.alerts] == [t for step in STEPS for t in words(step)]
    titles = [title for title, _, _ in found.alerts]
    assert titles[0].startswith("Target mode 1 is stalled at step 0: long long")
    assert len(set(titles)) == len(titles)
    assert max(map(len, titles)) < 64
    assert [level for *_, level in found.alerts] == ["WARN", "INFO"] * len(STEPS)


def test_wandb_that_is_disabled(tmp_path: Path, offline: None, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train(WandbLogger(save_dir=tmp_path))
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.fixture
def file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of MLflow's store in files, which newer versions have to be allowed."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: PLC0415

    before = mlflow.get_tracking_uri()
    yield (tmp_path / "mlruns").as_uri()
    mlflow.set_tracking_uri(before)


def test_mlflow(tmp_path: Path, file_store: str) -> None:
    uris = [f"{file_store}/{name}" for name in "ab"]
    watcher = train(MLFlowLogger("ours", tracking_uri=uris[0]))
    train(MLFlowLogger("ours", tracking_uri=uris[1]), watched=False)
    found, plain = map(read_mlflow, uris)
    kept = {tag: values for tag, values in found.scalars.items() if tag.startswith("probe/")}
    assert "probe/loss/now" in kept  # a folder "loss" could not lie beside a number "loss"
    for tag, values in kept.items():
        found.scalars[tag.removeprefix("probe/")] = values
        del found.scalars[tag]
    check(found, plain, watcher)
    assert found.words == {step: words(step) for step in STEPS}


NAMES = {"CSVLogger": CSVSink, "WandbLogger": WandbSink, "MLFlowLogger": MLFlowSink}


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("name", NAMES)
def test_loggers_of_both_packages_and_those_derived_from_them(package: str, name: str) -> None:
    kind = getattr(importlib.import_module(f"{package}.loggers"), name)
    derived = type("Ours", (kind,), {})
    for cls in (kind, derived):
        assert type(sink_of(cls.__new__(cls))) is NAMES[name]


def test_a_logger_of_the_same_name_is_a_stranger() -> None:
    stranger = type("CSVLogger", (), {})
    assert type(sink_of(stranger())) is WriterSink
    assert not sink_of(stranger()).takes_figures(stranger())


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    said: list[Any] = []
    writer = SimpleNamespace(
        add_figure=lambda *a, **k: said.append(a), add_text=lambda *a, **k: said.append(a)
    )
    loggers = [CSVLogger(tmp_path), SimpleNamespace(experiment=writer)]
    for first in (False, True):
        trainer: Any = SimpleNamespace(loggers=loggers, is_global_zero=first)
        reporter = Reporter("raise", None)
        assert reporter.takes_figures(trainer) is first
        reporter.figures(trainer, {"ntk/a": Figure()}, 1)
        reporter.text(trainer, "alert", "so", 1)
        assert len(said) == 2 * first
        assert len(list(tmp_path.rglob("step_000001.png"))) == first
        pickle.dumps(reporter)  # it keeps no logger, which might not be copied


def test_nobody_s_package_is_imported_for_another_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it is an error
    for module in (logs, sinks):
        runpy.run_path(str(module.__file__))
    train(CSVLogger(tmp_path))
