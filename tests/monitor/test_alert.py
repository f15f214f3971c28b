"""The alert as a callback: what it says, when, and to whom."""

import json
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from ntk_monitor import Estimate, NTKMonitor, StallAlert, TargetMode
from ntk_monitor.descent.prediction import LEARNED
from ntk_monitor.monitor import Alert, StallWarning
from ntk_monitor.monitor.alerts.reasons import find_reason
from ntk_monitor.monitor.integrations.lightning.trainer import folder_of_run, planned_batches
from ntk_monitor.snapshot import Instruments


def mode(
    learned: float,
    steps: float | None,
    overlap: float = 0.5,
    *,
    index: int = 1,
    gain: float = 1.0,
    transfer: float | None = None,
    **known: Any,
) -> TargetMode:
    return TargetMode(
        index,
        2.0,
        Estimate(0.1, 0.01),
        gain,
        learned,
        overlap,
        steps_to_learn=steps,
        transfer=None if transfer is None else Estimate(transfer, 0.05),
        **known,
    )


def snapshot(
    *modes: TargetMode, dead: float = 0.0, saturated: float = 0.0, headroom: float = math.nan
) -> Any:
    return SimpleNamespace(
        target_modes=modes,
        dead_units=dead,
        saturated_units=saturated,
        transfer=None,
        instruments=Instruments(1.0, None, math.nan, headroom),
    )


STUCK, MOVING = snapshot(mode(0.0, 1e9)), snapshot(mode(0.5, 3.0, transfer=1.0))


@pytest.fixture
def trainer() -> Any:
    return SimpleNamespace(
        estimated_stepping_batches=200,
        global_step=0,
        loggers=[],
        callback_metrics={},
        callbacks=[NTKMonitor()],
        should_stop=False,
        is_global_zero=True,
    )


def drive(alert: StallAlert, trainer: Any, shots: list[Any], start: int = 0) -> list[float]:
    flags = []
    for i, shot in enumerate(shots):
        trainer.callbacks[0].states[0].snapshot = shot
        alert.on_probe(trainer, None, shot, start + 10 * i)
        flags.append(float(trainer.callback_metrics["alert/mode_1"]))
    return flags


def test_warns_once_says_when_recovered_and_may_warn_again(trainer: Trainer) -> None:
    alert = StallAlert(patience=2, cooldown=3)
    with pytest.warns(StallWarning) as caught:
        flags = drive(alert, trainer, [STUCK] * 7)
    assert flags == [0, 0, 0, 0, 1, 1, 1]
    assert len(caught) == 1
    assert alert.stalled == (1,)
    message = str(caught[0].message)
    for part in ("mode 1", "step 40", "learned 0.000", "1e+09 steps where 160 remain", "95% sure"):
        assert part in message
    assert drive(alert, trainer, [MOVING] * 2, start=70) == [1, 0]
    assert alert.states == {1: "recovered"}
    assert "recovered" in alert.messages[-1]
    trainer.estimated_stepping_batches = 1000  # type: ignore[misc]
    with pytest.warns(StallWarning):
        found = drive(alert, trainer, [STUCK] * 24, start=90)
    # The jump is a trend for as long as it is in the window of 20 probes.
    assert found.index(1) == 20
    assert [a.kind for a in alert.alerts] == ["stalled", "recovered", "stalled"]


def test_the_beginning_of_a_training_gives_no_verdict(trainer: Any) -> None:
    trainer.estimated_stepping_batches = 1000
    alert = StallAlert(patience=2, warmup=0.07)
    with pytest.warns(StallWarning):
        found = drive(alert, trainer, [STUCK] * 9)
    assert found.index(1) == 8  # steps 70 and 80 agree


def test_what_is_not_learned_at_the_end_is_no_stall(trainer: Trainer) -> None:
    assert not any(drive(StallAlert(patience=2), trainer, [STUCK] * 5, start=160))
    with pytest.warns(StallWarning):
        found = drive(StallAlert(patience=2), trainer, [STUCK] * 6, start=150)
    assert found == [0, 0, 0, 0, 1, 1]


AS_IT_IS = ("as it is", math.inf)


@pytest.mark.parametrize(
    ("shown", "others", "reason"),
    [
        ({"steps_if": (AS_IT_IS, ("without clipping", 50.0))}, [], "clipping"),
        ({"steps_if": (AS_IT_IS, ("without weight decay", 50.0))}, [], "decay"),
        ({"rate_if": (("as it is", 1e-9), ("without clipping", 1e-3))}, [], "clipping"),
        ({"rate_if": (("as it is", 0.0), ("without weight decay", 1e-3))}, [], "decay"),
        ({"rate_if": (("as it is", 1e-9), ("without clipping", 1e-5))}, [], "propagator"),
        ({"rate_if": (("as it is", 8e-4), ("without clipping", 1e-3))}, [], "propagator"),
        ({"readout": 0.0}, [], "readout"),
        ({"overlap": 1e-8}, [], "core"),
        ({"overlap": 0.5, "gain": 0.01}, [{"overlap": 0.8, "gain": 1.0}], "propagator"),
        ({"overlap": 0.05, "gain": 0.05}, [{"overlap": 0.8, "gain": 1.0}], "propagator"),
        (
            {
                "overlap": 0.05,
                "gain": 0.05,
                "steps_if": (AS_IT_IS, ("at ten times the learning rate", 400.0)),
            },
            [{"overlap": 0.8, "gain": 1.0}],
            "learning rate",
        ),
        ({"steps": 50.0}, [], "gradient noise"),
        ({"overlap": math.nan, "gain": 0.01}, [{"gain": 1.0}], "propagator"),
        ({"gain": math.nan}, [], "propagator"),
    ],
)
def test_reasons(shown: dict[str, Any], others: list[dict[str, float]], reason: str) -> None:
    first = mode(0.0, **{"steps": 1e9, **shown})
    rest = [mode(0.5, 1.0, index=2 + i, **other) for i, other in enumerate(others)]
    found = find_reason(first, snapshot(first, *rest), 160)
    assert found.reason == reason
    assert found.number
    assert found.advice


@pytest.mark.parametrize(("dead", "saturated"), [(0.95, 0.0), (0.0, 0.95), (0.45, 0.5)])
def test_units_out_of_their_range_are_a_reason(dead: float, saturated: float) -> None:
    one = mode(0.0, 1e9, readout=0.0)
    found = find_reason(one, snapshot(one, dead=dead, saturated=saturated), 160)
    assert found.reason == "saturated"
    assert "95%" in found.number
    changed = mode(0.0, 1e9, steps_if=(AS_IT_IS, ("without clipping", 50.0)))
    shot = snapshot(changed, dead=dead, saturated=saturated)
    assert find_reason(changed, shot, 160).reason == "clipping"  # what is certain comes first


SMALL = {"rate": 1e-6, "overlap": 1e-8}


@pytest.mark.parametrize(
    ("shown", "headroom", "reason"),
    [
        (SMALL, 1e5, "learning rate"),  # 0.1 a step
        (SMALL, 1e3, "core"),  # out of reach at the largest stable rate as well
        (SMALL, math.nan, "core"),
        ({**SMALL, "rate": 0.0}, math.inf, "learning rate"),
        ({**SMALL, "rate": 1e-2}, 5.0, "core"),
        ({**SMALL, "readout": 0.0}, 1e5, "readout"),
    ],
)
def test_a_learning_rate_that_could_be_larger_is_a_reason(
    shown: dict[str, float], headroom: float, reason: str
) -> None:
    one = mode(0.0, 1e9, **shown)
    assert find_reason(one, snapshot(one, headroom=headroom), 160).reason == reason


@pytest.mark.parametrize(
    ("headroom", "steps", "reason"),
    [
        (2.0, 50.0, "clipping"),
        (2.0, 500.0, "clipping"),
        (0.5, 50.0, "clipping"),
        (0.5, 500.0, "core"),
    ],
)
def test_clipping_of_steps_that_would_be_too_large_is_one_where_it_costs_all(
    headroom: float, steps: float, reason: str
) -> None:
    one = mode(0.0, 1e9, 1e-8, steps_if=(AS_IT_IS, ("without clipping", steps)))
    found = find_reason(one, snapshot(one, headroom=headroom), 160)
    assert found.reason == reason
    smaller = "at a learning rate 2 times smaller" in found.number
    assert smaller == (reason == "clipping" and headroom < 1)


def test_a_larger_learning_rate_that_is_slower_is_no_reason() -> None:
    ten = "at ten times the learning rate"
    faster, slower = (
        mode(0.0, 1500.0, 1.0, steps_if=(("as it is", 1500.0), (ten, steps)))
        for steps in (200.0, 25000.0)
    )
    assert find_reason(faster, snapshot(faster, headroom=1.0), 160).reason == "learning rate"
    assert find_reason(slower, snapshot(slower, headroom=1.0), 160).reason != "learning rate"


@pytest.mark.parametrize("headroom", [20.0, 1e3, 1e9])
def test_the_factor_that_is_named_reaches_the_threshold_and_is_stable(headroom: float) -> None:
    one = mode(0.2, 1e9, rate=1e-4)
    found = find_reason(one, snapshot(one, headroom=headroom), 1000)
    if headroom * 1e-4 * 1000 < LEARNED - 0.2:
        assert found.reason != "learning rate"
        return
    assert found.reason == "learning rate"
    factor, most = (float(x) for x in re.findall(r"([0-9.e+]+) times", found.number))
    assert 0.2 + factor * 1e-4 * 1000 == pytest.approx(LEARNED, rel=0.05)
    assert factor <= most == pytest.approx(headroom, rel=0.05)


def test_where_nothing_moves_what_holds_the_fastest_mode_holds_all() -> None:
    slow = mode(0.0, 1e9, 1e-8, rate=1e-9)
    fast = mode(0.0, 1e9, rate=1e-6, index=2)
    clipped = mode(0.0, 1e9, rate=1e-6, steps_if=(("without clipping", 50.0),), index=2)
    assert find_reason(slow, snapshot(slow, fast, headroom=1e5), 160).reason == "learning rate"
    assert find_reason(slow, snapshot(slow, clipped), 160).reason == "clipping"
    for moving in (mode(0.95, 1e9, rate=1e-6, index=2), mode(0.0, 50.0, rate=1e-6, index=2)):
        assert find_reason(slow, snapshot(slow, moving, headroom=1e5), 160).reason == "core"


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"overlap": 1e-8}, "Reason: core [(]core overlap 1e-08[)]. What helps: .*curriculum"),
        (
            {"rate_if": (("as it is", 1e-9), ("with Adam", 3e-9))},
            "Reason: propagator [(]3 times the rate with Adam[)].*spatial_effective_rank",
        ),
        (
            {"steps_if": (AS_IT_IS, ("at ten times the learning rate", 400.0))},
            "Reason: learning rate [(]at ten times the learning rate 400 steps[)].* with one thing "
            "changed: at ten times the learning rate 400[.]",
        ),
        (
            {"steps_if": (AS_IT_IS, ("without clipping", 50.0))},
            "Reason: clipping [(]without clipping 50 steps[)].*clip at a larger norm",
        ),
    ],
)
def test_messages_say_what_helps(trainer: Any, shown: dict[str, Any], words: str) -> None:
    with pytest.warns(StallWarning, match=words):
        drive(StallAlert(patience=1), trainer, [snapshot(mode(0.0, 1e9, **shown))] * 5)


def test_stop_ends_the_training(trainer: Trainer) -> None:
    alert = StallAlert(patience=1, actions=("stop",))
    drive(alert, trainer, [STUCK] * 4)
    assert trainer.should_stop
    assert len(alert.messages) == 1


def test_horizon_takes_the_place_of_the_steps_that_remain(trainer: Trainer) -> None:
    shots = [snapshot(mode(0.0, 500.0))] * 5
    assert not any(drive(StallAlert(patience=1, horizon=1000), trainer, shots))
    with pytest.warns(StallWarning):
        assert drive(StallAlert(patience=1), trainer, shots)[-1] == 1


def test_what_is_never_learned_is_said_so(trainer: Trainer) -> None:
    with pytest.warns(StallWarning, match="not learned in any number of steps where 170 remain"):
        drive(StallAlert(patience=1), trainer, [snapshot(mode(0.0, math.inf))] * 5)


@pytest.mark.parametrize(
    ("steps", "transfer", "words"),
    [(10.0, None, "for others. It is noise"), (1e9, 0.0, r"transfer 0.00 ± 0.0\d")],
)
def test_a_mode_that_cannot_be_predicted_is_information_only(
    trainer: Any,
    recwarn: pytest.WarningsRecorder,
    steps: float,
    transfer: float | None,
    words: str,
) -> None:
    told: list[Alert] = []
    alert = StallAlert(on_alert=told.append, actions=("warn", "stop"))
    loud: list[bool] = []
    send = alert._delivery.send
    alert._delivery.send = lambda a, loudly: (loud.append(loudly), send(a, loudly=loudly))
    drive(alert, trainer, [snapshot(mode(0.3, steps, transfer=transfer))] * 15)
    assert [(a.kind, a.severity, a.reason) for a in told] == [("unpredictable", "info", None)]
    assert re.search(words, told[0].message)
    assert alert.states == {1: "unpredictable"}
    assert loud == [False]
    assert not trainer.should_stop
    assert not recwarn.list


def test_changes_of_state_are_recorded_with_and_without_an_alert(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[tuple[int, dict[str, Any]]] = []
    monkeypatch.setattr(
        "ntk_monitor.monitor.reporting.reporter.write_record",
        lambda writer, tag, record, step: records.append((step, record)),
    )
    trainer.loggers = [SimpleNamespace(
        log_metrics=lambda *_, **__: None, experiment=SimpleNamespace(_get_file_writer=print)
    )]  # fmt: skip
    alert = StallAlert(patience=1, warmup=0.0)
    shots = [snapshot(mode(0.3, 30.0, transfer=1.0), mode(0.0, 1e9, index=2))] * 6
    with pytest.warns(StallWarning):
        drive(alert, trainer, shots)
    assert [step for step, _ in records] == [0, 30]
    warming = {"1": [(0, "warming up")], "2": [(0, "warming up")]}
    assert records[0][1] == {
        "state": "", "states": dict.fromkeys("12", "warming up"), "history": warming, "alerts": [],
        "planned": 200.0, "level": 0.05, "endless": False, "unsure": [],
    }  # fmt: skip
    assert records[1][1]["states"] == {"1": "learning", "2": "stalled"}
    assert [a["mode"] for a in records[1][1]["alerts"]] == [2]
    drive(alert, trainer, [snapshot(mode(0.95, 30.0), mode(0.0, 1e9, index=2))], start=60)
    step, last = records[-1]
    assert step == 60
    assert last["history"]["1"] == [(0, "warming up"), (30, "learning"), (60, "learned")]
    assert len(last["alerts"]) == 1  # every record holds all so far
    again = StallAlert()
    again.load_state_dict(alert.state_dict())
    assert again._history == alert._history


def test_a_probe_that_says_nothing_repeats_nothing(trainer: Any) -> None:
    alert = StallAlert(actions=())
    drive(alert, trainer, [snapshot(mode(0.3, 10.0))] * 6)
    told = len(alert.alerts)
    assert alert.alerts[-1].kind == "unpredictable"
    drive(alert, trainer, [snapshot(mode(float("nan"), None))] * 4, start=60)
    assert len(alert.alerts) == told


def test_what_waits_is_sent_when_training_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    alert, closed = StallAlert(), []
    monkeypatch.setattr(alert._delivery, "close", lambda: closed.append(True))
    alert.on_exception(None, None, KeyboardInterrupt())  # type: ignore[arg-type]
    alert.teardown(None, None, "fit")  # type: ignore[arg-type]
    assert closed == [True, True]


def test_every_training_tries_all_channels(trainer: Any) -> None:
    told: list[Alert] = []
    alert = StallAlert(patience=1, actions=(), on_alert=told.append)
    alert._delivery._call_failures.enabled = False
    trainer.max_steps, trainer.max_epochs = 200, None
    alert.setup(trainer, None, "fit")  # type: ignore[arg-type]
    drive(alert, trainer, [STUCK] * 5)
    assert len(told) == 1


def test_alerts_of_remote_runs_and_of_loggers_without_a_folder(trainer: Any) -> None:
    logger = CSVLogger("memory://bucket/logs")
    trainer.log_dir, trainer.loggers = logger.log_dir, [logger]
    alert = StallAlert(patience=1, actions=())
    alert.on_train_start(trainer, None)  # type: ignore[arg-type]
    for _ in range(2):
        alert._delivery.send(Alert(1, 1, "stalled", "warning", "core", "text"), loudly=False)
    files = fsspec.filesystem("memory")
    text = files.cat_file("/bucket/logs/lightning_logs/version_0/alerts.jsonl").decode()
    assert len(text.splitlines()) == 2
    assert not Path("memory:").exists()
    tracker = SimpleNamespace(name="project", version="ab12")
    assert folder_of_run(tracker, "runs") == "runs/project/ab12"
    assert folder_of_run(SimpleNamespace(name="p", version=3), "runs/") == "runs/p/version_3"
    assert folder_of_run(SimpleNamespace(name=None, version=None), "runs") == "runs"


def test_steps_of_several_optimizers_are_counted_in_batches() -> None:
    def trainer(**values: int) -> Any:
        return SimpleNamespace(**{"max_steps": 40, "estimated_stepping_batches": 40} | values)

    assert planned_batches(trainer(global_step=0), 0) == 40
    assert planned_batches(trainer(global_step=10), 10) == 40
    assert planned_batches(trainer(global_step=20), 10) == 20
    assert planned_batches(trainer(global_step=20, max_steps=-1), 10) == 40


def test_modes_without_steps_to_learn_are_left_alone(trainer: Any) -> None:
    shot = snapshot(mode(0.0, None))
    trainer.callbacks[0].states[0].snapshot = shot
    alert = StallAlert()
    alert.on_probe(trainer, None, shot, 0)  # type: ignore[arg-type]
    assert alert.states == {1: "not judged"}


def test_watches_survive_a_checkpoint(trainer: Trainer) -> None:
    first, second = StallAlert(patience=2), StallAlert(patience=2)
    drive(first, trainer, [STUCK] * 4)
    state = torch.load(_saved(first.state_dict()), weights_only=True)
    second.load_state_dict(state)
    with pytest.warns(StallWarning):
        assert drive(second, trainer, [STUCK], start=40) == [1]
    third = StallAlert(patience=2)
    third.load_state_dict(second.state_dict())
    assert third.alerts == second.alerts
    assert third.states == {1: "stalled"}


def _saved(state: Any) -> Any:
    import io  # noqa: PLC0415

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_state_of_the_rule_before_begins_anew_and_says_so() -> None:
    old = {"version": 2, "watches": {"1": {"learned": [0.0], "excess": [20.0]}}, "last_step": 10}
    alert = StallAlert()
    with pytest.warns(UserWarning, match="version 2"):
        alert.load_state_dict(old)
    assert alert.states == {}


def test_channels_that_fail_harm_no_other(trainer: Any, tmp_path: Path) -> None:
    def broken(alert: Alert) -> None:
        raise OSError("no line")

    (tmp_path / "file").write_text("a file where the folder should be")
    trainer.loggers = [CSVLogger(tmp_path / "file")]
    trainer.log_dir = trainer.loggers[0].log_dir
    alert = StallAlert(patience=1, actions=("warn", "stop"), on_alert=broken)
    alert.on_train_start(trainer, None)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=".") as caught:
        drive(alert, trainer, [STUCK] * 4)
    words = [str(w.message) for w in caught]
    assert any("on_alert failed" in w and "no line" in w for w in words)
    assert any("writing alerts.jsonl failed" in w for w in words)
    assert any("is stalled" in w for w in words)
    assert trainer.should_stop


def test_alerts_are_lines_of_json_beside_the_logs(trainer: Any, tmp_path: Path) -> None:
    trainer.loggers = [CSVLogger(tmp_path)]
    trainer.log_dir = trainer.loggers[0].log_dir
    alert = StallAlert(patience=1, actions=())
    alert.on_train_start(trainer, None)  # type: ignore[arg-type]
    drive(alert, trainer, [STUCK] * 4 + [MOVING])
    lines = [
        json.loads(line)
        for line in (Path(trainer.log_dir) / "alerts.jsonl").read_text().splitlines()
    ]
    for line in lines:
        assert line.pop("time") > 0
    assert [Alert(**line) for line in lines] == alert.alerts
    assert [line["kind"] for line in lines] == ["stalled", "recovered"]
    trainer.loggers = []  # a Trainer without a logger has its log_dir in the working directory
    alert.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert alert._delivery.folder is None


def test_other_processes_decide_but_do_not_speak(trainer: Any) -> None:
    told: list[Alert] = []
    trainer.is_global_zero = False
    alert = StallAlert(patience=1, actions=("warn", "stop"), on_alert=told.append)
    drive(alert, trainer, [STUCK] * 4)
    assert trainer.should_stop
    assert not told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 0}, "patience must be at least 1"),
        ({"learned_threshold": 0.0}, "learned_threshold must be in"),
        ({"window": 3}, "window must be at least 4"),
        ({"warmup": 1.0}, "warmup must be a share"),
        ({"level": 1.0}, "level must be a probability"),
        ({"cooldown": -1}, "cooldown must be 0"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"actions": ("email",)}, "actions must be a sequence"),
        ({"actions": "warn"}, "actions must be a sequence"),
        ({"on_alert": "print"}, "on_alert must be a function"),
        ({"notify": "json://host"}, "notify must be a sequence"),
        ({"notify_interval": -1.0}, "notify_interval must be 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StallAlert(**settings)


def test_while_a_schedule_waits_there_is_no_verdict(trainer: Any) -> None:
    waits = snapshot(mode(0.0, 1e9))
    waits.instruments = replace(waits.instruments, rate_ahead=100.0)
    alert, other = StallAlert(patience=1, warmup=0.0), StallAlert(patience=1, warmup=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drive(alert, trainer, [waits] * 12)
        drive(other, trainer, [STUCK] * 12)
    assert alert.states == {1: "warming up"}
    assert other.states == {1: "stalled"}
