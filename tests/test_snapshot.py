"""Saving, loading and logging a snapshot."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES
from torch import Tensor

from ntk_monitor import Snapshot, probe
from ntk_monitor.model import Coverage
from ntk_monitor.snapshot import Forecast


def snapshot() -> Snapshot:
    case = CASES["gru"]
    return probe(case.make_model(), case.make_batch(), learning_rate=0.1, modes=2)


def test_a_saved_snapshot_comes_back_whole(tmp_path: Path) -> None:
    first = snapshot()
    missing = Coverage(0.5, {"a": "unseen"}, ("a",), (("b", 3, 4),))
    first = dataclasses.replace(first, coverage=missing)
    path = first.save(tmp_path / "deep" / "probe.npz")
    second = Snapshot.load(path)
    for field in dataclasses.fields(Snapshot):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, Tensor):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        elif isinstance(a, Forecast):
            assert a.valid_for == b.valid_for
            for name in ("steps", "loss", "learned"):
                torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)
        else:
            assert a == b, field.name
            assert type(a) is type(b)


def test_bfloat16_comes_back_in_single_precision(tmp_path: Path) -> None:
    """NumPy has none, and the state of a small model in it may be measured in it."""
    first = snapshot()
    modes = first.temporal_modes.bfloat16()
    first = dataclasses.replace(first, temporal_modes=modes)
    first.require_valid()
    second = Snapshot.load(first.save(tmp_path / "probe.npz"))
    assert torch.equal(second.temporal_modes, modes.float())


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = snapshot().save(tmp_path / "probe.npz")
    with np.load(path, allow_pickle=False) as archive:
        assert json.loads(str(archive["record"]))["format"] == 3
        assert all(archive[name].dtype != object for name in archive)


def test_what_is_not_a_snapshot_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(ValueError, match="is not a snapshot"):
        Snapshot.load(text)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, record=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="is not a snapshot"):
        Snapshot.load(pickled)
    other = tmp_path / "other.npz"
    np.savez(other, record=np.array(json.dumps({"format": 99})))
    with pytest.raises(ValueError, match="snapshot of format 99"):
        Snapshot.load(other)
    partial = tmp_path / "partial.npz"
    np.savez(partial, record=np.array(json.dumps({"format": 3})))
    with pytest.raises(ValueError, match="not a complete snapshot"):
        Snapshot.load(partial)
    with pytest.raises(FileNotFoundError):
        Snapshot.load(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("trace", 1.0, r"Expected `object`, got `float` - at `\$.trace`"),
        ("trace", {"value": "1", "stderr": 0.0}, r"got `str` - at `\$.trace.value`"),
        ("method", 3, r"Expected `str`, got `int` - at `\$.method`"),
        ("products", -1, "negative counts"),
        ("state_shape", [-1, -1, 1], "negative counts"),
        ("state_shape", [1, 2], r"at `\$.state_shape`"),
        ("state_shape", [1, 1, 1], "temporal_modes must have shape"),
        ("core_spectrum", "tensor_99", "no real numbers 'tensor_99'"),
        ("core_spectrum", "bytes", "no real numbers 'bytes'"),
        ("coverage", None, "not a complete snapshot"),
        ("state", [1], r"at `\$.state\[0\]`"),
        ("tolerance_met", 1, r"at `\$.tolerance_met`"),
    ],
)
def test_a_damaged_snapshot_is_refused(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = snapshot().save(tmp_path / "probe.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    record = json.loads(str(arrays["record"]))
    arrays["record"] = np.array(json.dumps({**record, field: value}))
    arrays["bytes"] = np.zeros(3, dtype=np.int8)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        Snapshot.load(path)


def test_what_is_in_a_mode_is_checked() -> None:
    first = snapshot()
    first.require_valid()
    odd = dataclasses.replace(first.target_modes[0], index=-1)
    with pytest.raises(ValueError, match="negative counts"):
        dataclasses.replace(first, target_modes=(odd,)).require_valid()
    odd = dataclasses.replace(odd, gain="much")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at `\$.target_modes\[0\].gain`"):
        dataclasses.replace(first, target_modes=(odd,)).require_valid()


def test_a_file_that_ends_too_soon_is_refused(tmp_path: Path) -> None:
    path = snapshot().save(tmp_path / "probe.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is not a snapshot"):
        Snapshot.load(path)


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot().save(tmp_path / "probe.npz")
    before = path.read_bytes()

    def full(file: Any, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        snapshot().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_scalars_are_the_documented_tags() -> None:
    sampled = ["core_cosine", "temporal_core_cosine", "effective_rank", "temporal_effective_rank"]
    sampled = [f"ntk/{name}" for name in [*sampled, "spatial_effective_rank", "trace"]]
    sampled += [f"target/mode_{i}/{name}" for i in (1, 2) for name in ("alignment", "transfer")]
    sampled += ["loss/transfer", "gradient/signal_to_noise"]
    wanted = {*sampled, *(f"{tag}_stderr" for tag in sampled)}
    names = ("learned", "rate", "steps_to_learn")
    wanted |= {f"target/mode_{i}/{name}" for i in (1, 2) for name in names}
    wanted |= {"core/effective_rank", "ntk/probe_seconds", "gradient/norm"}
    wanted |= {"update/relative_size", "update/headroom", "update/learning_rate"}
    wanted |= {"gradient/clip_coefficient"}
    names = ("now", "in_10_steps", "in_30_steps", "forecast_holds_for")
    wanted |= {f"loss/{name}" for name in names}
    scalars = snapshot().scalars()
    assert set(scalars) == wanted
    assert all(type(value) is float for value in scalars.values())


def test_without_a_learning_rate_there_are_no_steps_to_learn() -> None:
    case = CASES["gru"]
    found = probe(case.make_model(), case.make_batch())
    assert found.target_modes[0].steps_to_learn is None
    assert not any("steps_to_learn" in tag for tag in found.scalars())
