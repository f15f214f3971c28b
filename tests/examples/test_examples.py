"""The examples, for a few steps."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from ntk_monitor import NTKMonitor
from ntk_monitor.remedies import Adam

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
    assert all(-1 <= mode.learned <= 2 for mode in found.target_modes)
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


@pytest.mark.parametrize(
    ("name", "state", "shape"),
    [
        ("quickstart", ("rnn",), (32, 30, 32)),
        ("language_model", ("gpt.transformer",), (16, 64, 64)),
        ("image_classifier", ("features.3",), (64, 9, 32)),
    ],
)
def test_a_training(
    name: str,
    state: tuple[str, ...],
    shape: tuple[int, int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script as a user runs it, but for four steps."""
    pytest.importorskip({"image_classifier": "sklearn"}.get(name, "transformers"))
    trainers, fit = [], Trainer.fit

    def briefly(trainer: Trainer, *args: Any) -> None:
        trainers.append(trainer)
        trainer.fit_loop.epoch_loop.max_steps = 4
        fit(trainer, *args)

    monkeypatch.setattr(Trainer, "fit", briefly)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    (trainer,) = trainers
    assert trainer.global_step == 4
    (monitor,) = [c for c in trainer.callbacks if isinstance(c, NTKMonitor)]
    assert monitor.snapshot is not None
    assert monitor.snapshot.state == state
    assert monitor.snapshot.state_shape == shape
    assert monitor.snapshot.target_modes
    assert not monitor.snapshot.coverage.missed


def test_the_diagnosis_tells_the_networks_apart_and_what_helps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntk_monitor.remedies.search.known_remedies", lambda _: (Adam(1e-2),))
    monkeypatch.setattr("ntk_monitor.remedies.race.LONGER", 0.02)
    monkeypatch.setattr("sys.argv", ["diagnose_at_init.py", "--share", "0.02"])
    runpy.run_path(str(FOLDER / "diagnose_at_init.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "Trials of 30 steps, judged on validation data" in printed
    lines = printed.splitlines()
    assert any("Adam, lr 0.01 " in line and "%" in line for line in lines)
    (xavier,) = [line for line in lines if "xavier" in line]
    (planted,) = [line for line in lines if "fixed_points" in line]
    assert xavier.count("will stall") == 2
    assert "will stall" not in planted


def test_the_plain_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FOLDER / "plain_pytorch_loop.py"), run_name="__main__")
    learned = [
        float(line.split("learned ")[1].split(",")[0])
        for line in capsys.readouterr().out.splitlines()
    ]
    assert len(learned) == 6
    assert learned[-1] > 0.5 > learned[0]
