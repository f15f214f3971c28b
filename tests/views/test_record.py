"""A snapshot's record: small, complete, and the same after an event file."""

import functools
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from support.event_runs import small_snapshot
from torch.utils.tensorboard import SummaryWriter

from ntk_monitor import Estimate, NTKMonitor, Snapshot
from ntk_monitor.models import GRURegression
from ntk_monitor.monitor.reporting import publisher
from ntk_monitor.tasks import MemoryProDataModule
from ntk_monitor.views.dashboard.checks import checked_changes, checked_snapshot
from ntk_monitor.views.dashboard.data import NOBODY, DashboardData
from ntk_monitor.views.events import open_runs
from ntk_monitor.views.reach import reached_patterns
from ntk_monitor.views.record import PLUGIN, SNAPSHOT_TAG, plain, snapshot_record, write_record
from ntk_monitor.views.summary import summary_tables

MOST_BYTES = 30_000


def large(trials: int, steps: int) -> Snapshot:
    """A snapshot with patterns of this size."""
    generator = torch.Generator().manual_seed(0)
    modes = torch.randn(12, trials, steps, generator=generator)
    return replace(
        small_snapshot(),
        state_shape=(trials, steps, 6),
        temporal_modes=modes,
        temporal_spectrum=torch.linspace(2, 1, 12),
        core_spectrum=torch.linspace(9, 1, 500),
        target_patterns=torch.randn(3, trials, steps, generator=generator),
    )


@pytest.mark.parametrize(
    "shape", [(1, 1), (4, 5), (500, 1), (20, 90), (256, 1000), (3, 5000), (5000, 3)]
)
def test_a_record_is_small_and_keeps_the_ends_of_both_axes(shape: tuple[int, int]) -> None:
    record = snapshot_record(large(*shape))
    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    assert len(text) <= MOST_BYTES
    for name in ("temporal_modes", "target_patterns"):
        trials, steps = record[name]["trials"], record[name]["steps"]
        assert (trials[0], trials[-1], steps[0], steps[-1]) == (0, shape[0] - 1, 0, shape[1] - 1)
        assert len(steps) <= 200
        assert len(trials) <= 20 or shape[1] == 1
        assert len(record[name]["items"]) == 3
    assert len(record["core_spectrum"]) == 64
    assert checked_snapshot(text) == record


def test_patterns_come_back_to_a_thousandth_of_their_largest_value() -> None:
    snapshot = large(30, 300)
    patterns = snapshot_record(snapshot)["temporal_modes"]
    for mode, item in zip(snapshot.temporal_modes, patterns["items"], strict=False):
        found = torch.tensor(item["values"]) * item["scale"]
        wanted = mode[patterns["trials"]][:, patterns["steps"]]
        assert (found - wanted).abs().max() <= 0.0006 * mode.abs().max()


def test_what_the_ntk_sees_is_that_of_the_figures() -> None:
    snapshot = small_snapshot()
    record = snapshot_record(snapshot)
    seen = reached_patterns(snapshot)
    assert seen is not None
    for wanted, item in zip(seen, record["seen_patterns"]["items"], strict=True):
        found = torch.tensor(item["values"]).double() * item["scale"]
        assert (found - wanted).abs().max() <= 0.0006 * wanted.abs().max()
    assert record["seen_patterns"]["trials"] == record["target_patterns"]["trials"]


def test_targets_on_other_rows_have_nothing_in_grey() -> None:
    snapshot = replace(small_snapshot(), target_patterns=torch.ones(2, 4, 1))
    assert snapshot_record(snapshot)["seen_patterns"] is None


def test_numbers_that_are_not_finite_survive() -> None:
    modes = small_snapshot().temporal_modes.clone()
    modes[0, 1, 2] = math.nan
    lost = replace(small_snapshot().target_modes[0], gain=math.nan, steps_to_learn=math.inf)
    snapshot = replace(
        small_snapshot(),
        trace=Estimate(math.nan, math.inf),
        temporal_modes=modes,
        target_modes=(lost,),
    )
    record = checked_snapshot(json.dumps(snapshot_record(snapshot), allow_nan=False))
    assert record["trace"] == "NaN"
    assert record["trace_stderr"] == "Infinity"
    assert record["target_modes"][0]["gain"] == "NaN"
    assert record["target_modes"][0]["steps_to_learn"] == "Infinity"
    assert record["temporal_modes"]["items"][0]["values"][1][2] is None
    assert plain([-math.inf]) == ["-Infinity"]


@pytest.mark.parametrize("package", ["torch.utils.tensorboard", "tensorboardX"])
def test_a_record_comes_back_from_an_event_file(package: str, tmp_path: Path) -> None:
    module = pytest.importorskip(package)
    record = snapshot_record(small_snapshot())
    writer = module.SummaryWriter(str(tmp_path))
    write_record(writer, SNAPSHOT_TAG, record, 7)
    writer.close()
    read = open_runs([tmp_path]).read_tensors(
        NOBODY.ctx, experiment_id="", plugin_name=PLUGIN, downsample=10
    )
    ((datum,),) = (tags[SNAPSHOT_TAG] for tags in read.values())
    assert datum.step == 7
    assert checked_snapshot(datum.numpy) == record


def test_a_writer_without_files_is_refused_or_ignored() -> None:
    class Silent:
        def _get_file_writer(self) -> None:
            return None

    write_record(Silent(), SNAPSHOT_TAG, {}, 0)
    with pytest.raises(TypeError, match="SummaryWriter"):
        write_record(object(), SNAPSHOT_TAG, {}, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"core_spectrum": ["x"]},
        {"trace": None},
        {"state_shape": [1, 2]},
        {"temporal_modes": {"trials": [0], "steps": [0], "items": [{"scale": 1, "values": [[]]}]}},
        {"target_modes": [{"index": "1"}]},
        {"format": 3},
        {"format": 0},
        {"dead_units": "many"},
        {"trace": 10**400},
        {"trace": 2**60},
        {"trace_by_site": [["a", 0.5, 0.1, "more"]]},
        {"state_shape": [1, 2, 10**400]},
        {"more": functools.reduce(lambda inner, _: [inner], range(400), [])},
    ],
)
def test_what_is_no_record_is_named(change: dict[str, Any]) -> None:
    text = json.dumps(snapshot_record(small_snapshot()) | change)
    with pytest.raises(ValueError, match=r"its|it is"):
        checked_snapshot(text)


def test_a_record_holds_loss_forecast_and_what_modes_need() -> None:
    snapshot = small_snapshot()
    record = snapshot_record(snapshot)
    assert record["loss"] == pytest.approx(snapshot.loss, rel=1e-3)
    assert record["forecast"]["steps"][0] == 0
    assert len(record["forecast"]["loss"]) == len(record["forecast"]["steps"]) == 20
    assert [len(row) for row in record["forecast"]["learned"]] == [20, 20]
    assert record["instruments"]["gradient_norm"] > 0
    assert len(record["instruments"]["signal_to_noise"]) == 2
    for mode, found in zip(snapshot.target_modes, record["target_modes"], strict=True):
        assert found["share"] == pytest.approx(mode.share, rel=1e-3)
        assert len(found["transfer"]) == len(found["steps_band"]) == 2
    bare = replace(snapshot, loss=None, transfer=None, forecast=None, instruments=None)
    assert snapshot_record(bare)["forecast"] is None
    assert checked_snapshot(json.dumps(snapshot_record(bare)))["loss"] is None


def test_a_record_says_where_a_mode_can_be_learned() -> None:
    snapshot = small_snapshot()
    record = checked_snapshot(json.dumps(snapshot_record(snapshot)))
    for kept, mode in zip(record["target_modes"], snapshot.target_modes, strict=True):
        (name, share), *_ = mode.by_site
        assert kept["by_site"][0] == [name, pytest.approx(share, rel=1e-3)]
        assert sum(share for _, share in mode.by_site) == pytest.approx(1.0)
    record["target_modes"][0]["by_site"] = [[1, "weight"]]
    with pytest.raises(ValueError, match="by_site"):
        checked_snapshot(json.dumps(record))


def test_a_record_says_which_weights_the_trace_is_in() -> None:
    shares = (("a", 0.75), ("b", 0.25))
    snapshot = replace(small_snapshot(), trace_by_site=shares, trace_by_site_stderr=(0.075, 0.05))
    record = checked_snapshot(json.dumps(snapshot_record(snapshot)))
    assert record["trace_by_site"] == [["a", 0.75, 0.075], ["b", 0.25, 0.05]]
    names = [cell for table in summary_tables(snapshot) for cell in table.columns[0].cells]
    assert "share of the trace in a" in names
    record["trace_by_site"] = [["a", "b", 1.0]]
    with pytest.raises(ValueError, match="trace_by_site"):
        checked_snapshot(json.dumps(record))


def test_a_record_of_the_first_format_is_read() -> None:
    old = snapshot_record(small_snapshot()) | {"format": 1}
    for name in ("loss", "transfer", "forecast", "instruments", "dead_units", "saturated_units"):
        del old[name]
    for mode in old["target_modes"]:
        for name in ("share", "rate", "steps_band", "transfer", "steps_if", "rate_if", "readout"):
            del mode[name]
        del mode["by_site"]
        mode["preconditioned_steps_to_learn"] = None
    assert checked_snapshot(json.dumps(old)) == old


def test_changes_are_checked() -> None:
    alert = {"step": 1, "mode": 2, "kind": "stalled", "severity": "high", "message": "m"}
    old = {"states": {"2": "stalled"}, "alerts": [alert]}
    found = checked_changes(json.dumps(old), 7)
    assert found.history == {2: [(7, "stalled")]}
    assert found.alerts == [alert | {"severity": "info", "reason": None}]
    assert (found.state, found.whole) == (None, False)
    past = {"2": [[5, "stalled"], [0, "warming up"]]}
    for name, prefix in (("", ""), ("encoder", "encoder/")):
        found = checked_changes(json.dumps(old | {"state": name, "history": past}), 7)
        assert found.history == {2: [(0, "warming up"), (5, "stalled")]}
        assert (found.state, found.whole) == (prefix, True)
    more = {"planned": 1500.0, "level": 0.01, "endless": True, "unsure": [2]}
    found = checked_changes(json.dumps(old | more), 7)
    assert found[4:] == (1500.0, 0.01, True, frozenset({2}))
    odd = {"planned": "x", "level": -1, "endless": 3}
    assert checked_changes(json.dumps(old | odd), 7)[4:] == (None, None, False, frozenset())
    for change in (
        {"states": 1}, {"states": {"x": "y"}}, {"state": 3}, {"history": [1]},
        {"history": {"2": [[1]]}}, {"history": {"2": [[10**30, "stalled"]]}},
        {"alerts": [alert | {"step": 10**400}]}, {"alerts": [alert | {"mode": 1e999}]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r".+"):
            checked_changes(json.dumps(old | change), 7)
    with pytest.raises(ValueError, match="not a record"):
        checked_changes("[]", 7)


def test_the_writer_of_torch_is_left_open(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        write_record(writer, SNAPSHOT_TAG, {"format": 1}, 0)
        writer.add_scalar("still/works", 1.0, 0)


def fit(folder: Path) -> Trainer:
    """A short training under the monitor, which logs to TensorBoard."""
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version="run"),
        callbacks=[NTKMonitor(every_n_steps=1, max_products=16, figures=False, max_overhead=None)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model, data = GRURegression(hidden_size=4), MemoryProDataModule(batch_size=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(workers|log_every_n_steps|LeafSpec).*")
        trainer.fit(model, data)
    return trainer


def test_the_monitor_writes_a_record_at_every_probe(tmp_path: Path) -> None:
    fit(tmp_path)
    found = DashboardData(open_runs([tmp_path])).snapshots("run")
    assert found["steps"] == [0, 1, 2]
    assert found["notes"] == []
    assert found["records"][0]["state_shape"][2] == 4


def test_a_record_that_fails_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(snapshot: Snapshot) -> None:
        raise RuntimeError("no record today")

    monkeypatch.setattr(publisher, "snapshot_record", fail)
    with pytest.warns(UserWarning, match="no record today"):
        trainer = fit(tmp_path)
    assert trainer.global_step == 2
    run = DashboardData(open_runs([tmp_path])).series(["run"])["runs"]["run"]
    curve = run["series"]["ntk/trace"]
    assert list(run["axes"][curve["axis"]]["steps"]) == [0, 1, 2]
