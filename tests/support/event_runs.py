"""Event files of small made-up runs, for tests of what reads them."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from ntk_monitor import Snapshot, probe
from ntk_monitor.probe import Tier
from ntk_monitor.views.record import (
    CHANGES_TAG,
    SNAPSHOT_TAG,
    plain,
    snapshot_record,
    write_record,
)

STEPS = tuple(range(0, 600, 100))
SINCE = 300
KERNEL = re.compile(r"ntk/(?!overhead|probe_seconds)|.*/alignment")
"""Tags that cheap probes do not log."""
MESSAGE = (
    "Target mode 2 is stalled at step 300: learned 0.000, needs 3e+10 steps where 200 remain. "
    "Reason: the activity that the weights multiply hardly has this mode's time course. "
    "What helps: start from an initialisation whose activity is alive there; which one, "
    "`ntk-monitor try --config FILE` finds out."
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 6, batch_first=True)
        self.readout = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.rnn(x)[0])


@functools.cache
def small_snapshot(tier: Tier = "kernel") -> Snapshot:
    torch.manual_seed(3)
    batch = (torch.randn(4, 5, 2), torch.randn(4, 5, 2))
    return probe(Network(), batch, learning_rate=0.1, max_products=16, modes=2, tier=tier)


def numbers(step: int, *, stalled: bool) -> dict[str, float]:
    """What a run of two target modes logs: the first is learned, the second perhaps not."""
    fraction = min(step / 300, 0.97)
    loss = 0.5 if stalled else 1 / (1 + step / 100)
    values = {
        "loss/now": loss,
        "loss/in_10_steps": 0.9 * loss,
        "loss/in_30_steps": 0.8 * loss,
        "loss/forecast_holds_for": 30.0,
        "gradient/norm": 0.3,
        "update/relative_size": 0.001,
        "update/headroom": 20.0,
    }
    for tag in ("loss/transfer", "gradient/signal_to_noise"):
        values |= {tag: 0.4, f"{tag}_stderr": 0.1}
    values |= {"core/effective_rank": 2.0, "ntk/overhead": 0.01, "ntk/probe_seconds": 0.5}
    for i, name in enumerate(("core_cosine", "temporal_core_cosine"), start=1):
        values |= {f"ntk/{name}": 0.8 / i, f"ntk/{name}_stderr": 0.02}
    for name in ("effective_rank", "temporal_effective_rank", "spatial_effective_rank", "trace"):
        values |= {f"ntk/{name}": 3.0 + step / 100, f"ntk/{name}_stderr": 0.1}
    for i, learned in ((1, fraction), (2, 0.0 if stalled else fraction)):
        lost = stalled and i == 2
        values |= {
            f"target/mode_{i}/learned": learned,
            f"target/mode_{i}/steps_to_learn": 3e10 if lost else 5.0,
            f"target/mode_{i}/alignment": 1e-11 if lost else 0.07,
            f"target/mode_{i}/alignment_stderr": 1e-12 if lost else 0.004,
            f"alert/mode_{i}": float(lost and step >= SINCE),
        }
    return values


def record_of(values: Mapping[str, float], tier: Tier = "kernel") -> dict[str, Any]:
    """A record with the steps to learn that are logged."""
    record = snapshot_record(small_snapshot(tier))
    for mode in record["target_modes"]:
        steps = values[f"target/mode_{mode['index']}/steps_to_learn"]
        mode |= {"steps_to_learn": plain(steps), "steps_band": None}
    return record


def write_run(
    folder: Path,
    *,
    stalled: bool = True,
    prefix: str = "",
    records: bool = True,
    steps: Sequence[int] = STEPS,
    changed: Mapping[int, Mapping[str, float]] | None = None,
    tier: Tier = "kernel",
) -> Path:
    """A run as NTKMonitor and StallAlert log it; ``changed`` puts other numbers at some steps."""
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            values = numbers(step, stalled=stalled) | dict((changed or {}).get(step, {}))
            for tag, value in values.items():
                if tier != "kernel" and KERNEL.match(tag):
                    continue
                shared = tag.startswith(("alert/", "ntk/overhead"))
                writer.add_scalar(tag if shared else prefix + tag, value, step)
            writer.add_scalar("train/loss", 1 / (step + 1), step)
            if records:
                record = record_of(values, tier)
                write_record(writer, prefix + SNAPSHOT_TAG, record, step)
        if stalled:
            writer.add_text("alert", MESSAGE, SINCE)
    return folder


def write_plain_run(folder: Path) -> Path:
    """A run without numbers of ours."""
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("train/loss", 1.0, 0)
    return folder


def write_garbage(folder: Path) -> Path:
    """A good run, in which other tools have written under our tags, too."""
    write_run(folder, records=False)
    record = snapshot_record(small_snapshot())
    broken = json.loads(json.dumps(record))
    broken["temporal_modes"]["items"][0]["values"][0][0] = "<img src=x onerror=alert(1)>"
    contents: list[Any] = [
        b"not JSON",
        b"[1, 2]",
        json.dumps({"format": 1}).encode(),
        json.dumps(record | {"format": 99}).encode(),
        json.dumps(broken).encode(),
        json.dumps(record | {"fill": "x" * 600_000}).encode(),
        b"\xff\xfe\x00",
        1.5,
        json.dumps(record).encode(),
    ]
    with SummaryWriter(str(folder)) as writer:
        for i, content in enumerate(contents):
            write_tensor(writer, SNAPSHOT_TAG, content, 10 * i)
        write_tensor(writer, "alert/changes", b'{"states": [1], "alerts": 3}', 0)
        write_tensor(writer, "someone/elses", b"{}", 0)
    return folder


def alert(step: int, kind: str = "stalled", mode: int = 2) -> dict[str, Any]:
    """An alert as a record of ``alert/changes`` has it."""
    severity = "warning" if kind == "stalled" else "info"
    return {"step": step, "mode": mode, "kind": kind, "severity": severity, "reason": "core",
            "message": f"{kind} at {step}. What helps: another start."}  # fmt: skip


def write_changes(
    writer: SummaryWriter,
    step: int,
    past: Sequence[tuple[int, str]],
    alerts: Sequence[Mapping[str, Any]] = (),
    state: str = "",
) -> None:
    """A record of ``alert/changes`` with all that mode 2 has been through."""
    record = {"state": state, "states": {"2": past[-1][1]}, "history": {"2": list(past)},
              "alerts": [dict(one) for one in alerts]}  # fmt: skip
    write_record(writer, CHANGES_TAG, record, step)


def write_tensor(writer: SummaryWriter, tag: str, content: Any, step: int) -> None:
    """A tensor under our plugin's name; bytes become text."""
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="ntk"), data_class=DATA_CLASS_TENSOR
    )
    if isinstance(content, bytes):
        tensor = TensorProto(dtype=DT_STRING, string_val=[content])
    else:
        tensor = TensorProto(dtype=DT_FLOAT, float_val=[content])
    summary = Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
    writer._get_file_writer().add_summary(summary, step)


def write_three_runs(top: Path) -> None:
    """One run that stalls, one that learns, and one without numbers of ours."""
    write_run(top / "bad")
    write_run(top / "good", stalled=False)
    write_plain_run(top / "plain")
