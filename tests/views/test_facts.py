"""What trains is recorded once, and stands at the head of every report."""

import json
import math
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.event_runs import small_snapshot, write_run, write_tensor
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from ntk_monitor import Monitor, __version__
from ntk_monitor.views.dashboard.courses import in_data
from ntk_monitor.views.facts import ABOUT, FACTS_TAG, facts_of, lines, output_names
from ntk_monitor.views.record import snapshot_record, write_record
from ntk_monitor.views.report import write_report


class Named(nn.Linear):
    output_names = ("cosine", "sine")


def test_what_trains_is_told_from_the_objects_that_train() -> None:
    model = nn.Sequential(nn.Linear(2, 3), Named(3, 2))
    model[0].requires_grad_(False)
    found = facts_of(model, [torch.optim.AdamW(model.parameters(), lr=0.002)], math.inf)
    assert (found["model"], found["parameters"], found["trained"]) == ("Sequential", 17, 8)
    assert found["optimizers"] == ["AdamW, lr 0.002, betas 0.9 and 0.999, weight_decay 0.01"]
    assert found["planned"] is None
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["ntk-monitor"] == __version__
    assert found["outputs"] == ["cosine", "sine"]
    texts = dict(lines(found | {"planned": 500}))
    assert texts["model"] == "Sequential, 17 parameters, 8 trained"
    assert texts["planned steps"] == "500"


def test_parameters_that_are_not_there_yet_are_not_counted() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    assert facts_of(model, [], 10)["parameters"] == 0


@pytest.mark.parametrize(
    ("labels", "names"),
    [({1: "cat", 0: "dog"}, ["dog", "cat"]), ({0: "LABEL_0", 1: "LABEL_1"}, []), ("odd", [])],
)
def test_a_transformers_model_names_its_classes(labels: object, names: list[str]) -> None:
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(id2label=labels)
    assert output_names(nn.Sequential(model)) == names


def test_a_model_that_cannot_be_asked_has_no_names() -> None:
    class Odd(nn.Linear):
        @property
        def output_names(self) -> list[str]:
            raise RuntimeError("not now")

    assert output_names(nn.Sequential(Odd(2, 2))) == []


def test_a_monitor_records_it_and_every_report_has_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), Named(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    batch = (torch.randn(4, 3), torch.randn(4, 2))
    writer = SummaryWriter(str(tmp_path / "run"))
    monitor = Monitor(every_n_steps=2, max_products=16)
    with writer, monitor.attach(model, optimizer, total_steps=4, logger=writer):
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
            optimizer.step()
            monitor.step(batch)
    made = write_report([tmp_path], None, kind="json")
    found = json.loads(made.text)
    (run,) = found["runs"]
    assert found["title"] == "NTK report: run"
    assert run["facts"]["model"] == "Sequential"
    assert run["facts"]["optimizers"] == ["SGD, lr 0.1, momentum 0.5"]
    assert run["facts"]["planned"] == 4
    names = {name for name, _ in run["modes"][0]["outputs"]}
    assert names == {"cosine", "sine"}
    (name, part), *_ = run["modes"][0]["outputs"]
    assert f"{name} {part:.2g}" in write_report([tmp_path], None, kind="markdown").text
    for kind in ("markdown", "html"):
        text = write_report([tmp_path], None, kind=kind).text
        assert "SGD, lr 0.1, momentum 0.5" in text
        assert f"torch {found['versions']['torch']}" in text


def test_older_logs_say_that_it_was_not_recorded(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    run = write_report([tmp_path], None, kind="json").runs["run"]
    assert dict(run["about"]) == dict.fromkeys(ABOUT, "not recorded")


def test_an_odd_record_is_skipped_or_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    with SummaryWriter(str(tmp_path / "run")) as writer:
        write_record(writer, FACTS_TAG, {"model": "Net", "parameters": "many", "planned": -1}, 0)
        write_tensor(writer, FACTS_TAG, b"[1]", 1)
    made = write_report([tmp_path], None)
    about = dict(made.runs["run"]["about"])
    assert (about["model"], about["planned steps"]) == ("Net", "not recorded")
    assert f"{FACTS_TAG} was skipped" in made.text


def test_a_mode_in_the_data_is_its_time_course_and_its_outputs() -> None:
    snapshot = small_snapshot()
    found = in_data(snapshot_record(snapshot), 2, ("left", "right"))
    course = snapshot.target_patterns[1]
    wanted = course / course.abs().max()
    torch.testing.assert_close(torch.tensor(found["course"]), wanted, atol=2e-3, rtol=0)
    (name, part), *_ = found["outputs"]
    assert name in {"left", "right"}
    assert sum(p**2 for _, p in found["outputs"]) == pytest.approx(1, abs=1e-3)
    assert abs(part) == max(abs(p) for _, p in found["outputs"])
    assert found["sites"][0][1] >= found["sites"][-1][1]
    assert in_data({}, 1, ()) == {"course": [], "over": "time", "outputs": [], "sites": []}
    assert in_data(snapshot_record(snapshot), 9, ())["course"] == []


def test_a_mode_without_time_is_over_trials() -> None:
    record = snapshot_record(small_snapshot())
    record["target_patterns"] = {
        "trials": [0, 1, 2], "steps": [0],
        "items": [{"scale": 0.001, "values": [[10], [-20], [None]]}] * 2,
    }  # fmt: skip
    found = in_data(record, 1, ())
    assert (found["over"], found["course"]) == ("trials", [[0.5, -1, None]])
    assert found["outputs"][0][0].startswith("output ")
