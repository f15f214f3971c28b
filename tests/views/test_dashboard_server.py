"""The tab's data within a TensorBoard of its own process, with each of its two readers."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.event_runs import write_garbage, write_run
from support.tensorboard_process import tensorboard_over

from ntk_monitor.views.dashboard.data import DashboardData, to_json
from ntk_monitor.views.events import open_runs


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("logs")
    write_run(top / "bad")
    write_garbage(top / "garbage")
    return top


@pytest.fixture(scope="module", params=["true", "false"])
def url(request: pytest.FixtureRequest, logs: Path) -> Iterator[str]:
    if request.param == "true":
        pytest.importorskip("tensorboard_data_server")
    with tensorboard_over(logs, "--load_fast", request.param) as address:
        for _ in range(100):
            if sum(run["reason"] is None for run in ask(address, "runs")["runs"]) == 2:
                break
            time.sleep(0.1)
        yield address


def ask(url: str, name: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}data/plugin/ntk/{name}", timeout=60) as answer:
        return json.load(answer)


def test_both_readers_answer_as_the_files_say(url: str, logs: Path) -> None:
    data = DashboardData(open_runs([logs]))
    wanted = json.loads(to_json(data.series(["bad"])))["runs"]["bad"]
    found = ask(url, "series?run=bad")["runs"]["bad"]
    for part in ("modes", "verdict", "alerts", "step"):
        assert found[part] == wanted[part]
    for tag, curve in wanted["series"].items():
        assert found["series"][tag]["values"] == curve["values"]
    assert ask(url, "snapshots?run=bad") == json.loads(to_json(data.snapshots("bad")))


def test_garbage_is_skipped_and_bad_parameters_are_refused(url: str) -> None:
    assert ask(url, "snapshots?run=garbage")["steps"] == [80]
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        ask(url, "series")
    assert "run is missing" in json.load(refused.value)["error"]


def test_the_tab_is_listed(url: str) -> None:
    with urllib.request.urlopen(f"{url}data/plugins_listing", timeout=60) as answer:
        listing = json.load(answer)["ntk"]
    assert (listing["enabled"], listing["tab_name"]) == (True, "NTK")
