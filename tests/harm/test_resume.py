"""A run cut in two logs the metric stream of one piece."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from harm.worlds import World, train
from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.monitor.base import STATE_VERSION

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ntk_monitor.monitor.StallWarning"),
]
WALL_CLOCK = ("ntk/probe_seconds", "ntk/overhead")


def callbacks() -> list[Any]:
    monitor = NTKMonitor(
        4, max_products=24, modes=2, tolerance=0.2, max_overhead=None, redraw_every_n_epochs=2
    )
    return [monitor, StallAlert(patience=2)]


def run(path: Path, epochs: int, ckpt: Path | None = None) -> tuple[Any, list[Any]]:
    """Train without noise, so that a cut run can be compared with a whole one."""
    world = World(loggers=lambda p: CSVLogger(p, "csv"))
    found = callbacks()
    # The first piece is planned for as long as the whole, and interrupted.
    more = [*found, StopAfter(epochs)]
    settings = {"ckpt_path": ckpt, "shuffle": False, "max_epochs": 4}
    trainer, _ = train("conv", world, more, path, **settings)
    return trainer, found


class StopAfter(Callback):
    """Ends a training after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def stream(path: Path) -> list[dict[str, str]]:
    """What the monitor and the alert logged, in order, without times."""
    text = (path / "csv" / "version_0" / "metrics.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    kept = [
        {k: v for k, v in row.items() if v and k not in WALL_CLOCK and ("/" in k or k == "step")}
        for row in rows
    ]
    return [row for row in kept if "ntk/trace" in row or "alert/mode_1" in row]


def test_the_metric_stream_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    whole, (_, whole_alert) = run(tmp_path / "whole", 4)
    cut, _ = run(tmp_path / "cut", 2)
    cut.save_checkpoint(tmp_path / "cut.ckpt")
    rest, (_, rest_alert) = run(tmp_path / "rest", 4, tmp_path / "cut.ckpt")
    assert whole.global_step == rest.global_step == 24
    wanted = stream(tmp_path / "whole")
    assert [int(row["step"]) for row in wanted if "ntk/trace" in row] == [0, 4, 8, 12, 16, 20, 24]
    assert stream(tmp_path / "cut") + stream(tmp_path / "rest") == wanted
    assert rest_alert.messages == whole_alert.messages
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_hold_plain_types_alone(tmp_path: Path) -> None:
    trainer, found = run(tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    for callback in found:
        assert callback.state_key in stored


def test_a_state_of_another_version_is_told_of_and_begins_anew() -> None:
    monitor, other = NTKMonitor(), NTKMonitor()
    other.schedule.seen = 3
    words = f"version 1, and this is version {STATE_VERSION}: it begins anew"
    with pytest.warns(UserWarning, match=words):
        monitor.load_state_dict({**other.state_dict(), "version": 1})
    assert monitor.schedule.seen == 0
    monitor.load_state_dict(other.state_dict())
    assert monitor.schedule.seen == 3


@pytest.mark.parametrize(
    "state",
    [
        {"version": 99},
        {"version": 2},
        {"version": STATE_VERSION, "schedule": None},
        {
            **NTKMonitor().state_dict(),
            "score": {"said": [[0, [[0.0], [1.0, 2.0]], 1.0]], "found": []},
        },
        {**NTKMonitor().state_dict(), "score": {"said": [[0, [[0.0]], 1.0]], "found": []}},
        {**NTKMonitor().state_dict(), "score": {}},
        {**NTKMonitor().state_dict(), "schedule": {"seen": float("nan")}},
        {**NTKMonitor().state_dict(), "schedule": {"seen": -1}},
        {**NTKMonitor().state_dict(), "schedule": {"elapsed": "long"}},
        {**NTKMonitor().state_dict(), "schedule": {"seen": 10**400}},
        {**NTKMonitor().state_dict(), "version": torch.zeros(2)},
        {**NTKMonitor().state_dict(), "methods": 3},
        {**NTKMonitor().state_dict(), "methods": [["magic"]]},
    ],
)
def test_a_state_that_cannot_be_read_is_told_of_and_begins_anew(state: dict[str, Any]) -> None:
    monitor = NTKMonitor()
    with pytest.warns(UserWarning, match="NTKMonitor"):
        monitor.load_state_dict(state)
    assert monitor.schedule.seen == 0
    assert monitor.failures.enabled
    assert monitor.probe.order == NTKMonitor().probe.order


@pytest.mark.parametrize(
    "state",
    [
        {"version": 3, "watches": {"x": {}}},
        {"version": 3, "watches": [1]},
        {"version": 3, "watches": {"1": {"state": "sleepy"}}},
        {"version": 3, "alerts": [{}]},
        {"version": 3, "last_step": float("inf")},
        {"version": 2, "watches": {"2": {"learned": [0.0], "stalled": True}}},
        {"version": "x"},
    ],
)
def test_an_alert_that_cannot_be_read_begins_anew(state: dict[str, Any]) -> None:
    alert = StallAlert()
    with pytest.warns(UserWarning, match="StallAlert"):
        alert.load_state_dict(state)
    assert alert.stalled == ()


def test_a_monitor_used_again_in_a_new_training_begins_anew(tmp_path: Path) -> None:
    monitor, alert = callbacks()
    streams = []
    for name in ("a", "b"):
        world = World(loggers=lambda p: CSVLogger(p, "csv"))
        train("dropout", world, [monitor, alert], tmp_path / name)
        streams.append(stream(tmp_path / name))
    assert streams[0] == streams[1]
    assert len(streams[0]) >= 4


def test_two_monitors_of_the_same_tags_are_refused(tmp_path: Path) -> None:
    pair = [NTKMonitor(4), NTKMonitor(6)]
    with pytest.raises(Exception, match="would log under the same tags: name their states"):
        train("dropout", World(), pair, tmp_path)
