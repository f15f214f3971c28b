"""The tab's server side: what it answers to every request."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.event_runs import (
    MESSAGE,
    SINCE,
    STEPS,
    alert,
    small_snapshot,
    write_changes,
    write_garbage,
    write_plain_run,
    write_run,
    write_tensor,
    write_three_runs,
)
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from ntk_monitor.views.dashboard.data import DashboardData
from ntk_monitor.views.dashboard.files import static_files
from ntk_monitor.views.dashboard.plugin import NTKPlugin
from ntk_monitor.views.events import open_runs
from ntk_monitor.views.record import CHANGES_TAG, SNAPSHOT_TAG, snapshot_record, write_record


def plugin_of(folder: Path) -> NTKPlugin:
    return NTKPlugin(TBContext(data_provider=open_runs([folder])))


def ask(plugin: NTKPlugin, route: str, **values: Any) -> tuple[int, dict[str, Any]]:
    response = Client(plugin.get_plugin_apps()[route]).post("/", data=values)
    return response.status_code, json.loads(response.get_data(), parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("runs")
    write_three_runs(top)
    return top


@pytest.fixture(scope="module")
def plugin(folder: Path) -> NTKPlugin:
    return plugin_of(folder)


def test_runs_with_and_without_data(plugin: NTKPlugin) -> None:
    code, found = ask(plugin, "/runs")
    assert code == 200
    runs = {run["name"]: run for run in found["runs"]}
    assert set(runs) == {"bad", "good", "plain"}
    assert runs["bad"]["states"] == [""]
    assert runs["bad"]["reason"] is None
    assert "no numbers of NTKMonitor" in runs["plain"]["reason"]
    assert {term["tag"] for term in found["glossary"]} >= {"ntk/core_cosine", "record/gain"}


def test_curves_come_by_column(plugin: NTKPlugin) -> None:
    code, found = ask(plugin, "/series", run=["bad", "good"])
    assert code == 200
    assert found["notes"] == []
    run = found["runs"]["bad"]
    curve = run["series"]["ntk/effective_rank"]
    assert run["axes"][curve["axis"]]["steps"] == list(STEPS)
    assert curve["values"] == [3.0 + step / 100 for step in STEPS]
    twin = run["series"]["ntk/effective_rank_stderr"]
    assert (twin["axis"], twin["values"]) == (curve["axis"], [0.1] * len(STEPS))
    assert run["step"] == STEPS[-1]
    assert "train/loss" in run["series"]


def test_verdict_modes_and_alerts_of_a_run_without_recorded_states(plugin: NTKPlugin) -> None:
    _, found = ask(plugin, "/series", run=["bad", "good"])
    bad, good = found["runs"]["bad"], found["runs"]["good"]
    assert bad["verdict"]["state"] == "stalled"
    assert f"(mode 2) is out of reach since step {SINCE} (95 % sure)" in bad["verdict"]["text"]
    assert bad["verdict"]["advice"].startswith("Start from an initialisation")
    first, second = bad["modes"]
    assert (first["state"], second["state"]) == ("learned", "stalled")
    assert second["history"] == [[0, "not judged"], [SINCE, "stalled"]]
    assert second["gain"] > 0
    assert 0 <= second["core_overlap"] <= 1
    assert second["steps_to_learn"] == pytest.approx(3e10, rel=1e-6)
    assert [alert["message"] for alert in bad["alerts"]] == [MESSAGE]
    assert good["verdict"]["state"] == "learned"
    assert good["alerts"] == []


def test_recorded_states_and_alerts_go_before_the_fallback(tmp_path: Path) -> None:
    write_run(tmp_path)
    alerts = [
        {"step": step, "mode": 2, "kind": kind, "severity": "info", "reason": "learning rate",
         "message": f"{kind}. What helps: a larger rate."}
        for step, kind in ((200, "stalled"), (400, "recovered"))
    ]  # fmt: skip
    with SummaryWriter(str(tmp_path)) as writer:
        states = [{"2": "warming up"}, {"2": "stalled"}, {"2": "recovered", "1": "learned"}]
        for i, step in enumerate((0, 200, 400)):
            record = {"states": states[i], "alerts": alerts[max(i - 1, 0) : i]}
            write_record(writer, "alert/changes", record, step)
    run = ask(plugin_of(tmp_path), "/series", run=tmp_path.name)[1]["runs"][tmp_path.name]
    assert run["modes"][1]["history"] == [[0, "warming up"], [200, "stalled"], [400, "recovered"]]
    assert run["modes"][1]["since"] == 400
    assert [alert["step"] for alert in run["alerts"]] == [400, 200]
    assert run["alerts"][0]["reason"] == "learning rate"


def series_of(folder: Path, state: str = "") -> dict[str, Any]:
    """What the tab is told of the one run in a folder."""
    code, found = ask(plugin_of(folder), "/series", run=folder.name, state=state)
    assert code == 200
    return found["runs"][folder.name] | {"notes": found["notes"]}


def states_of(run: dict[str, Any]) -> list[str]:
    return [mode["state"] for mode in run["modes"]]


def write_two_states(folder: Path) -> Path:
    """A run of which the encoder is stalled, and the decoder does not yet learn."""
    write_run(folder, prefix="encoder/", records=False)
    slow = {step: {"target/mode_2/learned": 0.1} for step in STEPS}
    return write_run(folder, prefix="decoder/", stalled=False, records=False, changed=slow)


def test_alerts_are_those_of_the_state_that_they_name(tmp_path: Path) -> None:
    write_two_states(tmp_path)
    with SummaryWriter(str(tmp_path)) as writer:
        write_changes(writer, 300, [(0, "learning"), (300, "stalled")], [alert(300)], "encoder")
    encoder, decoder = (series_of(tmp_path, f"{name}/") for name in ("encoder", "decoder"))
    assert states_of(encoder) == ["learned", "stalled"]
    assert [one["step"] for one in encoder["alerts"]] == [300]
    assert states_of(decoder) == ["learned", "not judged"]
    assert decoder["alerts"] == []
    assert "alert/mode_2" in encoder["series"]
    assert "alert/mode_2" not in decoder["series"]
    assert encoder["notes"] == decoder["notes"] == []


@pytest.mark.parametrize("recorded", [True, False])
def test_alerts_without_a_state_are_not_those_of_every_state(
    tmp_path: Path, *, recorded: bool
) -> None:
    write_two_states(tmp_path)
    with SummaryWriter(str(tmp_path)) as writer:
        if recorded:  # as versions before this one did
            record = {"states": {"2": "stalled"}, "alerts": [alert(300)]}
            write_record(writer, CHANGES_TAG, record, 300)
    for state in ("encoder/", "decoder/"):
        run = series_of(tmp_path, state)
        assert states_of(run) == ["learned", "not judged"]
        assert run["alerts"] == []
        assert "do not say of which state they are (decoder and encoder)" in run["notes"][0]


def test_the_alerts_of_the_only_state_are_its_own_without_records(tmp_path: Path) -> None:
    write_run(tmp_path, prefix="encoder/", records=False)
    run = series_of(tmp_path, "encoder/")
    assert states_of(run) == ["learned", "stalled"]
    assert [one["message"] for one in run["alerts"]] == [MESSAGE]


def test_nothing_is_lost_where_a_reader_keeps_few_records(tmp_path: Path) -> None:
    write_run(tmp_path, records=False)
    kinds = ["stalled" if i % 2 else "recovered" for i in range(40)]
    with SummaryWriter(str(tmp_path)) as writer:
        for i in range(40):
            past = [(10 * j, kinds[j]) for j in range(i + 1)]
            write_changes(writer, 10 * i, past, [alert(*one) for one in past])
    multiplexer = EventMultiplexer(size_guidance={"tensors": 10})  # as TensorBoard has it
    multiplexer.AddRun(str(tmp_path), "run")
    multiplexer.Reload()
    data = DashboardData(MultiplexerDataProvider(multiplexer, ""))
    run = data.series(["run"])["runs"]["run"]
    assert [one["step"] for one in run["alerts"]] == list(range(390, -1, -10))
    assert run["modes"][1]["history"] == [[10 * i, kind] for i, kind in enumerate(kinds)]


def test_records_with_all_and_with_less_are_joined(tmp_path: Path) -> None:
    write_run(tmp_path, records=False)
    with SummaryWriter(str(tmp_path)) as writer:
        for step, state in ((0, "warming up"), (100, "stalled")):  # an older version
            old = {"states": {"2": state}, "alerts": [alert(step)] if step else []}
            write_record(writer, CHANGES_TAG, old, step)
        write_changes(writer, 200, [(200, "recovered")], [alert(200, "recovered")])
        past = [(200, "recovered"), (300, "stalled")]
        write_changes(writer, 300, past, [alert(200, "recovered"), alert(300)])
    run = series_of(tmp_path)
    assert run["modes"][1]["history"] == [
        [0, "warming up"], [100, "stalled"], [200, "recovered"], [300, "stalled"],
    ]  # fmt: skip
    assert [one["step"] for one in run["alerts"]] == [300, 200, 100]


def test_a_future_that_a_resumed_training_has_left_is_forgotten(tmp_path: Path) -> None:
    write_run(tmp_path, records=False)
    first = [(0, "learning"), (300, "stalled")]
    with SummaryWriter(str(tmp_path)) as writer:
        write_changes(writer, 0, first[:1])
        write_changes(writer, 300, first, [alert(300)])
        write_changes(writer, 400, [*first, (400, "recovered")], [alert(300), alert(400, "x")])
    with SummaryWriter(str(tmp_path)) as writer:  # from a checkpoint at step 200
        write_changes(writer, 300, [(0, "learning")])
        write_changes(writer, 500, [(0, "learning"), (500, "stalled")], [alert(500)])
    run = series_of(tmp_path)
    assert run["modes"][1]["history"] == [[0, "learning"], [500, "stalled"]]
    assert [one["step"] for one in run["alerts"]] == [500]


def odd_records() -> dict[str, tuple[str, bytes]]:
    """Records that are JSON, and that no number or program can hold."""
    large = json.loads(json.dumps(snapshot_record(small_snapshot())))
    large["target_modes"][0]["gain"] = 10**400
    deep = b'{"a":' + b"[" * 480 + b"]" * 480 + b"}"
    step = {"states": {}, "alerts": [alert(1) | {"step": 10**400}]}
    return {
        "deep": (SNAPSHOT_TAG, deep),
        "large": (SNAPSHOT_TAG, json.dumps(large).encode()),
        "deep change": (CHANGES_TAG, deep),
        "large change": (CHANGES_TAG, json.dumps(step).encode()),
    }


@pytest.mark.parametrize("name", odd_records())
def test_an_odd_record_is_skipped_with_a_note(tmp_path: Path, name: str) -> None:
    tag, content = odd_records()[name]
    write_run(tmp_path, records=False)
    with SummaryWriter(str(tmp_path)) as writer:
        write_tensor(writer, tag, content, 700)
    run = series_of(tmp_path)
    (note,) = run["notes"]
    assert f"{tag} at step 700 was skipped" in note
    assert states_of(run) == ["learned", "stalled"]


def test_a_run_without_the_chosen_state_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", prefix="encoder/")
    plugin = plugin_of(tmp_path)
    for state, lacks, words in (
        ("encoder/", "a", "no state of the name encoder: it follows the default state."),
        ("", "b", "no default state: it follows encoder."),
    ):
        _, found = ask(plugin, "/series", run=["a", "b"], state=state)
        run = found["runs"].pop(lacks)
        assert words in run["verdict"]["text"]
        assert (run["series"], run["modes"], run["alerts"]) == ({}, [], [])
        (other,) = found["runs"].values()
        assert states_of(other) == ["learned", "stalled"]


def test_snapshots_of_every_probe(plugin: NTKPlugin) -> None:
    code, found = ask(plugin, "/snapshots", run="bad")
    assert code == 200
    assert found["steps"] == list(STEPS)
    assert found["records"][0]["state_shape"] == [4, 5, 6]


@pytest.mark.parametrize(
    ("route", "values", "word"),
    [
        ("/series", {}, "run is missing"),
        ("/series", {"run": "bad", "state": "x"}, "state must be empty"),
        ("/series", {"run": [str(i) for i in range(501)]}, "at most 500"),
        ("/snapshots", {}, "run must be given once"),
        ("/snapshots", {"run": ["a", "b"]}, "got 2"),
        ("/snapshots", {"run": "bad", "state": "a/b/"}, "state must be empty"),
    ],
)
def test_bad_parameters_are_answered_with_400(
    plugin: NTKPlugin, route: str, values: dict[str, Any], word: str
) -> None:
    code, found = ask(plugin, route, **values)
    assert code == 400
    assert word in found["error"]


def test_an_unknown_run_is_empty(plugin: NTKPlugin) -> None:
    code, found = ask(plugin, "/series", run="never/was")
    assert (code, found["runs"]["never/was"]["modes"]) == (200, [])
    assert ask(plugin, "/snapshots", run="never/was")[1]["steps"] == []


def test_a_provider_that_fails_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    plugin = NTKPlugin(TBContext(data_provider=object()))
    with caplog.at_level(logging.CRITICAL):
        code, found = ask(plugin, "/runs")
    assert code == 503
    assert "could not read the data" in found["error"]


def test_states_are_kept_apart(tmp_path: Path) -> None:
    write_run(tmp_path, prefix="encoder/")
    write_run(tmp_path, prefix="decoder/", stalled=False)
    plugin = plugin_of(tmp_path)
    (run,) = ask(plugin, "/runs")[1]["runs"]
    assert run["states"] == ["decoder/", "encoder/"]
    found = {
        state: ask(plugin, "/series", run=tmp_path.name, state=state)[1]["runs"][tmp_path.name]
        for state in run["states"]
    }
    learned = [found[s]["series"]["target/mode_2/learned"]["values"][-1] for s in run["states"]]
    assert learned == pytest.approx([0.97, 0.0])
    assert all("ntk/overhead" in one["series"] for one in found.values())
    snapshots = ask(plugin, "/snapshots", run=tmp_path.name, state="encoder/")[1]
    assert snapshots["steps"] == list(STEPS)


def test_numbers_that_are_not_finite_stay_text(tmp_path: Path) -> None:
    lost = {"ntk/trace": float("nan"), "target/mode_1/learned": float("nan"),
            "target/mode_1/steps_to_learn": float("inf")}  # fmt: skip
    write_run(tmp_path, changed={STEPS[-1]: lost})
    code, found = ask(plugin_of(tmp_path), "/series", run=tmp_path.name)
    assert code == 200
    run = found["runs"][tmp_path.name]
    assert run["series"]["ntk/trace"]["values"][-1] == "NaN"
    assert run["modes"][0]["state"] == "insufficient data"
    assert run["modes"][0]["steps_to_learn"] == "Infinity"


def test_garbage_under_our_tags_is_skipped_with_a_note(tmp_path: Path) -> None:
    write_garbage(tmp_path)
    plugin = plugin_of(tmp_path)
    code, found = ask(plugin, "/snapshots", run=tmp_path.name)
    assert code == 200
    assert found["steps"] == [80]
    assert len(found["notes"]) == 7
    assert found["notes"][-1] == "and 2 more like these"
    code, found = ask(plugin, "/series", run=tmp_path.name)
    assert code == 200
    assert any("alert/changes" in note for note in found["notes"])
    assert found["runs"][tmp_path.name]["verdict"]["state"] == "stalled"


def test_many_points_are_thinned_but_not_the_last(tmp_path: Path) -> None:
    write_run(tmp_path, records=False, steps=range(0, 2000, 5))
    data = DashboardData(open_runs([tmp_path]))
    run = data.series([tmp_path.name], points=50)["runs"][tmp_path.name]
    for tag, curve in run["series"].items():
        steps = run["axes"][curve["axis"]]["steps"]
        assert len(steps) == len(curve["values"])
        assert steps[-1] == 1995
        assert len(steps) == (400 if tag.startswith("alert/") else 50)
    assert run["modes"][1]["since"] == SINCE


def write_mixed(folder: Path) -> Path:
    """Cheap probes often, and whole ones at steps 0 and 300."""
    write_run(folder, stalled=False, steps=(0, 300))
    cheap = [step for step in range(0, 500, 20) if step not in {0, 300}]
    return write_run(folder, stalled=False, steps=cheap, tier="modes")


def test_among_cheap_probes_the_kernel_is_the_last_known_one(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    run = series_of(tmp_path)
    assert run["step"] == 480
    assert run["verdict"]["when"] == "step 480"
    assert "core cosine 0.8 ± 0.02 (at step 300)" in run["verdict"]["detail"]
    assert run["verdict"]["detail"].endswith("core effective rank 2")
    assert [mode["alignment_step"] for mode in run["modes"]] == [300.0, 300.0]
    assert all(mode["gain"] > 0 for mode in run["modes"])
    assert all(one["step"] in {480, None} for one in run["now"])
    found = DashboardData(open_runs([tmp_path])).snapshots(tmp_path.name, most=8)
    assert len(found["steps"]) <= 8
    assert found["steps"][-1] == 480
    whole = [step for step, record in zip(found["steps"], found["records"], strict=True)
             if record["temporal_spectrum"]]  # fmt: skip
    assert whole == [0, 300]


def test_the_last_probe_is_that_of_the_probes_not_of_the_training_loss(tmp_path: Path) -> None:
    write_run(tmp_path)
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("train/loss", 0.1, 9000)
    assert series_of(tmp_path)["step"] == STEPS[-1]


def test_what_the_alert_plans_and_risks_is_in_the_verdict(tmp_path: Path) -> None:
    write_run(tmp_path)
    past = [[0, "learning"], [300, "stalled"]]
    record = {"state": "", "states": {"2": "stalled"}, "history": {"2": past}, "alerts": [],
              "planned": 1500.0, "level": 0.01}  # fmt: skip
    with SummaryWriter(str(tmp_path)) as writer:
        write_record(writer, CHANGES_TAG, record, 300)
    verdict = series_of(tmp_path)["verdict"]
    assert verdict["when"] == "step 500 of 1500"
    assert "out of reach since step 300 (99 % sure): needs 3e10 more steps." in verdict["text"]


def test_without_an_alert_nothing_is_being_learned(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (0, 100):
            writer.add_scalar("target/mode_1/learned", 0.3, step)
            writer.add_scalar("target/mode_1/steps_to_learn", 30.0, step)
    run = series_of(tmp_path)
    assert states_of(run) == ["not judged"]
    assert run["modes"][0]["since"] is None
    assert run["verdict"]["text"] == (
        "Mode 1 is not judged. Adding StallAlert() would judge what is not learned."
    )


def test_steps_of_older_versions_are_those_of_the_optimizer(tmp_path: Path) -> None:
    scaled = {step: {"target/mode_2/preconditioned_steps_to_learn": 4000.0} for step in STEPS}
    write_run(tmp_path, records=False, changed=scaled)
    assert series_of(tmp_path)["modes"][1]["steps_text"] == "4000"


@pytest.mark.parametrize("most", [1, 2, 5, 40])
def test_snapshots_are_thinned_evenly(tmp_path: Path, most: int) -> None:
    write_run(tmp_path, steps=range(0, 50, 5))
    found = DashboardData(open_runs([tmp_path])).snapshots(tmp_path.name, most=most)
    steps = {1: [45], 2: [0, 45], 5: [0, 10, 20, 35, 45], 40: list(range(0, 50, 5))}
    assert found["steps"] == steps[most]
    assert len(found["records"]) == len(found["steps"])


def test_a_step_that_comes_twice_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path, records=False)
    # TensorBoard orders event files by name, which begins with the second: the first run is older.
    (first,) = tmp_path.glob("*tfevents*")
    first.rename(first.with_name(first.name.replace("tfevents.1", "tfevents.0")))
    write_run(tmp_path, records=False, steps=(300, 400), changed={400: {"ntk/trace": 77.0}})
    run = DashboardData(open_runs([tmp_path])).series([tmp_path.name])["runs"][tmp_path.name]
    curve = run["series"]["ntk/trace"]
    steps = run["axes"][curve["axis"]]["steps"]
    assert list(steps) == list(STEPS)
    assert curve["values"][steps.index(400)] == 77.0


@pytest.mark.parametrize("records", [True, False])
def test_the_tab_is_active_where_there_is_data(tmp_path: Path, *, records: bool) -> None:
    write_plain_run(tmp_path / "plain")
    assert not plugin_of(tmp_path).is_active()
    write_run(tmp_path / "run", prefix="" if records else "named/", records=records)
    assert plugin_of(tmp_path).is_active()


def test_every_file_of_the_page_is_served(plugin: NTKPlugin) -> None:
    apps = plugin.get_plugin_apps()
    assert {"index.js", "dashboard.js", "style.css", "vendor/uPlot.esm.js"} <= set(static_files())
    for name in static_files():
        response = Client(apps[f"/{name}"]).get("/")
        kind = "text/css" if name.endswith("css") else "text/javascript"
        assert response.status_code == 200
        assert response.mimetype == kind
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        if not name.startswith("vendor/"):
            assert b"://" not in response.data
    assert plugin.frontend_metadata().tab_name == "NTK"
    assert apps.get(plugin.frontend_metadata().es_module_path) is not None


def test_the_installed_package_has_the_entry_point_and_the_files() -> None:
    from importlib.metadata import entry_points  # noqa: PLC0415

    (entry,) = entry_points(group="tensorboard_plugins", name="ntk")
    assert entry.load() is NTKPlugin


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[tuple[Path, SummaryWriter]]:
    with SummaryWriter(str(tmp_path)) as writer:
        yield tmp_path, writer


def test_a_file_that_ends_inside_a_record_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    write_run(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-2000])
    run = DashboardData(open_runs([tmp_path])).series([tmp_path.name])["runs"][tmp_path.name]
    assert len(run["series"]["ntk/trace"]["values"]) >= len(STEPS) - 1


def test_a_file_that_grows_is_read_again(growing: tuple[Path, SummaryWriter]) -> None:
    folder, writer = growing
    for step in (0, 100):
        writer.add_scalar("ntk/trace", 1.0, step)
        writer.flush()
        found = DashboardData(open_runs([folder])).series([folder.name])["runs"][folder.name]
        assert found["step"] == step
