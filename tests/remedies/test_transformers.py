"""Remedies and trials under a Trainer of the transformers library."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from ntk_monitor.remedies import (
    Adam,
    Clipping,
    Curriculum,
    LargerBatches,
    LearningRate,
    LiveUnits,
    Remedy,
    Trials,
    UnitVariance,
    try_remedies,
)
from ntk_monitor.remedies.course import Course
from ntk_monitor.remedies.transformers import TransformersTraining

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
MAP = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, count: int, seed: int) -> None:
        self.x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
        self.difficulties: list[float] = []

    def set_difficulty(self, difficulty: float) -> None:
        self.difficulties.append(difficulty)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "labels": self.x[i] @ MAP}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Any, labels: Any = None) -> dict[str, Any]:
        y = self.net(x)
        return {"loss": nn.functional.mse_loss(y, labels), "logits": y}


class Seen(TrainerCallback):
    """A callback of the user's."""


def trainer(folder: Path, *, evaluation: bool = True, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    given = {
        "learning_rate": 1e-6, "max_steps": 400, "optim": "sgd", "warmup_steps": 0,
        "per_device_train_batch_size": 32, "report_to": "none", "use_cpu": True, "seed": 0,
        "disable_tqdm": True, "save_steps": 5, "logging_steps": 2,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder / "out"), **{**given, **settings})
    return Trainer(
        model=Net(), args=arguments, train_dataset=Rows(640, 0), callbacks=[Seen()],
        eval_dataset=Rows(64, 1) if evaluation else None,
    )  # fmt: skip


def trials(folder: Path, *tried: Remedy, **settings: Any) -> Trials:
    own = {name: settings.pop(name) for name in ("ckpt_path", "held_out") if name in settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return try_remedies(
            lambda: trainer(folder, **settings), remedies=tried, progress=False, **own
        )


@pytest.mark.parametrize("evaluation", [True, False])
def test_trials_of_a_trainer(tmp_path: Path, evaluation: bool) -> None:
    found = trials(tmp_path, LearningRate(0.1), Adam(1e-2), evaluation=evaluation)
    assert found.best is not None, str(found)
    assert found.best.name == "Adam, lr 0.01"
    assert found.baseline.steps == 32
    assert found.baseline.planned == 400
    wanted = "validation data" if evaluation else "training data that were left out"
    assert found.baseline.held_out == wanted
    assert found.best.data == found.baseline.data
    assert len(found.best.modes) == 3
    assert found.remarks == ("callbacks that trials do without: Seen",)
    assert not list((tmp_path / "out").rglob("*"))  # the folder is the Trainer's own


def train(made: Trainer, remedy: Remedy) -> Trainer:
    course = Course(0.05, 4)
    TransformersTraining(made).run(remedy, course, {"tier": "modes", "figures": False}, None)
    assert course.done == 20
    return made


def test_schedules_clipping_and_accumulation_are_changed(tmp_path: Path) -> None:
    plain = train(trainer(tmp_path, learning_rate=1e-3), Remedy())
    scaled = train(trainer(tmp_path, learning_rate=1e-3), LearningRate(10.0))
    wanted = 10 * plain.optimizer.param_groups[0]["lr"]
    assert scaled.optimizer.param_groups[0]["lr"] == pytest.approx(wanted)
    adam = train(trainer(tmp_path, learning_rate=1e-3), Adam(1e-2))
    assert type(adam.optimizer.optimizer) is torch.optim.AdamW
    assert adam.optimizer.param_groups[0]["lr"] == pytest.approx(wanted)
    clipped = train(trainer(tmp_path, learning_rate=1.0, max_grad_norm=1e-6), Remedy())
    free = train(trainer(tmp_path, learning_rate=1.0, max_grad_norm=1e-6), Clipping(None))
    start = trainer(tmp_path).model.net[0].weight.detach()
    moved = [float((t.model.net[0].weight.detach() - start).norm()) for t in (clipped, free)]
    assert moved[0] < 1e-4
    assert moved[1] > 0.1


def test_accumulation_is_that_of_the_trainer(tmp_path: Path) -> None:
    by_hand = train(trainer(tmp_path, learning_rate=0.1, gradient_accumulation_steps=2), Remedy())
    remedied = train(trainer(tmp_path, learning_rate=0.1), LargerBatches(2))
    for a, b in zip(by_hand.model.parameters(), remedied.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_initial_weights_and_data_are_changed(tmp_path: Path) -> None:
    plain = train(trainer(tmp_path, learning_rate=1e-9), Remedy())
    changed = train(trainer(tmp_path, learning_rate=1e-9), UnitVariance())
    assert not torch.allclose(plain.model.net[0].weight, changed.model.net[0].weight)
    graded = train(trainer(tmp_path), Curriculum(0.5))
    assert graded.train_dataset.difficulties[:2] == [0.0, 0.005]


def test_trials_begin_from_a_checkpoint(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=5, save_steps=5)
    made.train()
    folder = tmp_path / "out" / "checkpoint-5"
    found = trials(tmp_path, Adam(1e-2), UnitVariance(), ckpt_path=folder)
    assert found.best is not None, str(found)
    assert found.baseline.left == 395
    assert found.trials[-1].ended == "not tried: it needs a training from its beginning"


def test_the_weights_of_a_checkpoint_are_what_is_changed(tmp_path: Path) -> None:
    steady: dict[str, Any] = {"learning_rate": 0.1, "lr_scheduler_type": "constant"}
    made = trainer(tmp_path, max_steps=5, save_steps=5, **steady)
    with torch.no_grad():
        made.model.net[0].bias -= 100.0
    made.train()
    folder = tmp_path / "out" / "checkpoint-5"
    found = trials(tmp_path, LiveUnits(), ckpt_path=folder, **steady)
    assert found.best is not None, str(found)
