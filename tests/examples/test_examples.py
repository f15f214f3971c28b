"""The examples, for a few steps."""

import runpy
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::RuntimeWarning:ntk_monitor"),
]


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.mark.parametrize("task", ["PerceptualDecisionMaking-v0", "DelayMatchSample-v0"])
def test_neurogym(task: str, tmp_path: Path) -> None:
    pytest.importorskip("neurogym")
    found = example("neurogym_tasks")["train"](task, 4, str(tmp_path)).snapshot
    assert found.state == ("rnn",)
    assert found.state_shape == (16, 50, 64)
    assert found.coverage.fraction == 1.0
    assert len(found.target_modes) >= 2
    assert all(0 <= mode.learned <= 2 for mode in found.target_modes)
    assert found.trace.is_finite


def test_forecasting(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_forecasting")
    found = example("forecasting")["train"](4, str(tmp_path)).snapshot
    assert found.state == ("rnn",)
    assert found.state_shape == (32, 31, 32)  # 24 steps of the encoder, then 7 of 8 one by one
    assert found.coverage.fraction > 0.99
    assert found.target_patterns.shape[1:] == (32, 8)
    assert found.target_modes
    assert found.trace.is_finite
