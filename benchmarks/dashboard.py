"""How long the NTK tab takes to open on many long runs.

Writes event files of made-up runs, starts TensorBoard, waits until it has read them all, opens the
tab in a headless Chromium that has not seen it before, and prints the seconds from navigation to a
drawn page: once with the runs that the tab shows by itself (the latest ten), and again for ticking
all of them. What TensorBoard itself needs to read the files is printed apart.

    python benchmarks/dashboard.py --runs 50 --probes 1000
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from playwright.sync_api import Frame, Page, sync_playwright
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from ntk_monitor import probe
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import memory_pro_trials
from ntk_monitor.views.record import SNAPSHOT_TAG, snapshot_record

KERNEL = (
    "ntk/core_cosine",
    "ntk/temporal_core_cosine",
    "ntk/effective_rank",
    "ntk/temporal_effective_rank",
    "ntk/spatial_effective_rank",
    "ntk/trace",
)
MODES = 3
START = 1_700_000_000.0


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--records", type=int, default=20, help="snapshot records of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--load-fast", choices=("auto", "true", "false"), default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_runs(Path(folder), arguments.runs, arguments.probes, arguments.records)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(
            f"{arguments.runs} runs x {arguments.probes} probes x {2 * len(KERNEL) + 4 * MODES} "
            f"numbers, {arguments.records} records each: {size / 1e6:.0f} MB written in "
            f"{time.perf_counter() - started:.1f} s"
        )
        measure(folder, arguments)


def write_runs(folder: Path, runs: int, probes: int, records: int) -> None:
    """Event files with a random walk under every tag, one event a probe."""
    record = json.dumps(a_record()).encode()
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="ntk"), data_class=DATA_CLASS_TENSOR
    )
    tensor = TensorProto(dtype=DT_STRING, string_val=[record])
    extra = Summary.Value(tag=SNAPSHOT_TAG, metadata=metadata, tensor=tensor)
    every = max(probes // max(records, 1), 1)
    tags = [tag + end for tag in KERNEL for end in ("", "_stderr")]
    for i in range(1, MODES + 1):
        names = ("learned", "steps_to_learn", "alignment", "alignment_stderr")
        tags += [f"target/mode_{i}/{name}" for name in names]
    for run in range(runs):
        values = walks(np.random.default_rng(run), len(tags), probes)
        path = folder / f"run_{run:02d}"
        path.mkdir()
        with (path / f"events.out.tfevents.{run}").open("wb") as file:
            writer = RecordWriter(file)
            begin = START + 1e5 * run
            writer.write(Event(wall_time=begin, file_version="brain.Event:2").SerializeToString())
            for step in range(probes):
                summary = Summary(
                    value=[
                        Summary.Value(tag=tag, simple_value=value)
                        for tag, value in zip(tags, values[:, step].tolist(), strict=True)
                    ]
                )
                if records and step % every == 0:
                    summary.value.append(extra)
                event = Event(wall_time=begin + 10.0 * step, step=100 * step, summary=summary)
                writer.write(event.SerializeToString())
            writer.flush()


def walks(generator: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Random walks above zero."""
    return np.exp(0.02 * generator.standard_normal((count, length)).cumsum(1) - 1.0)


def a_record() -> dict[str, object]:
    """A real record of a Memory-Pro network."""
    batch = memory_pro_trials(torch.arange(20) / 20 * 2 * torch.pi)
    snapshot = probe(GRURegression(), batch, learning_rate=0.05, max_products=24)
    return snapshot_record(snapshot)


def measure(folder: str, arguments: argparse.Namespace) -> None:
    """Start TensorBoard, open the tab some times."""
    command = [
        sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1",
        "--port", "0", "--load_fast", arguments.load_fast,
    ]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        started = time.perf_counter()
        url = address(server)
        wait_until_read(url, arguments.runs, 100 * (arguments.probes - 1))
        print(f"TensorBoard has read them after {time.perf_counter() - started:.1f} s")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            for _ in range(arguments.repeats):
                page = browser.new_page(viewport={"width": 1600, "height": 1000})
                open_tab(page, url)
                page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait()


def open_tab(page: Page, url: str) -> None:
    """Open the tab's own page, then all of TensorBoard at the tab, then tick all runs."""
    started = time.perf_counter()
    page.goto(f"{url}data/plugin_entry.html?name=ntk")
    drawn(page.main_frame)
    alone = time.perf_counter() - started
    started = time.perf_counter()
    page.goto(f"{url}#ntk")
    frame = None
    while frame is None:
        page.wait_for_timeout(5)
        frame = next((f for f in page.frames if "plugin_entry" in f.url), None)
    inside = time.perf_counter()
    drawn(frame)
    ready = time.perf_counter()
    shown = frame.locator(".ntk").get_attribute("data-runs")
    frame.locator("button", has_text="show all").click()
    total = frame.locator(".run").count()
    frame.wait_for_selector(f".ntk[data-runs='{total}']:not([data-busy])")
    drawn(frame)
    print(
        f"tab alone {alone:.2f} s; within TensorBoard {ready - started:.2f} s, of which "
        f"{ready - inside:.2f} s after the tab's frame appeared ({shown} runs shown); "
        f"then all {total} runs {time.perf_counter() - ready:.2f} s"
    )


def drawn(frame: Frame) -> None:
    """Wait until the page is ready, every chart in view has a plot, and two frames have passed."""
    frame.wait_for_selector("[data-ready]")
    frame.wait_for_function(
        "[...document.querySelectorAll('.chart')].filter((c) => c.getBoundingClientRect().top < "
        "innerHeight && c.offsetParent).every((c) => c.querySelector('canvas'))",
        polling="raf",
    )
    frame.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")


def address(server: subprocess.Popen[str]) -> str:
    """The address that TensorBoard prints."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            return found[0]
    raise RuntimeError("TensorBoard did not start")


def wait_until_read(url: str, runs: int, last: int) -> None:
    """Wait until the last run has its last step."""
    while True:
        try:
            found = ask(url, "runs")["runs"]
            usable = [run["name"] for run in found if not run["reason"]]
            if len(usable) == runs:
                query = "&".join(f"run={name}" for name in usable)
                series = ask(url, f"series?{query}")["runs"]
                if all(run["step"] == last for run in series.values()):
                    return
        except OSError:
            pass
        time.sleep(0.5)


def ask(url: str, name: str) -> dict[str, dict]:
    """Data of the tab."""
    with urllib.request.urlopen(f"{url}data/plugin/ntk/{name}") as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
