"""Remedies and trials under a Lightning Trainer."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from ntk_monitor import NTKMonitor
from ntk_monitor.remedies import (
    Adam,
    ApplyRemedy,
    CentredReadout,
    Clipping,
    Curriculum,
    FourierFeatures,
    LargerBatches,
    LearningRate,
    LiveUnits,
    NotApplicableError,
    OrthogonalRecurrence,
    Remedy,
    Together,
    Trials,
    UnitVariance,
    try_remedies,
)
from remedies import small

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*number of training batches:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*have no `validation_step`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable:UserWarning"),
]
QUIET: dict[str, Any] = {
    "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 0, "max_epochs": -1,
}  # fmt: skip


def fit(*callbacks: Callback, steps: int = 6, module: Any = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    module = small.Regression(1e-2) if module is None else module
    ckpt = settings.pop("ckpt_path", None)
    given = {"enable_checkpointing": False, **QUIET, **settings}
    trainer = Trainer(callbacks=list(callbacks), max_steps=steps, **given)
    torch.manual_seed(1)
    trainer.fit(module, small.Data(), ckpt_path=ckpt)
    return trainer, module


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


class ByHand(small.Regression):
    """What `Adam` makes of `small.Regression`."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def test_a_remedy_is_what_one_would_have_written_by_hand() -> None:
    _, own = fit(ApplyRemedy(Adam(1e-3)))
    torch.manual_seed(0)
    _, wanted = fit(module=ByHand())
    for a, b in zip(weights(own), weights(wanted), strict=True):
        assert torch.equal(a, b)


def test_clipping_and_accumulation_reach_the_trainer() -> None:
    trainer, own = fit(
        ApplyRemedy(Together([Clipping(None), LargerBatches(2)])), gradient_clip_val=1e-3
    )
    _, wanted = fit(accumulate_grad_batches=2)
    assert trainer.gradient_clip_val is None
    for a, b in zip(weights(own), weights(wanted), strict=True):
        assert torch.equal(a, b)


def test_initial_weights_change_and_no_draw_of_the_training() -> None:
    class Look(Callback):
        seen: list[torch.Tensor]

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, _: int) -> None:
            if trainer.global_step == 0:
                self.seen = [batch[0], pl_module.net[0].weight.detach().clone()]

    plain, changed = Look(), Look()
    fit(plain)
    fit(ApplyRemedy(UnitVariance()), changed)
    assert torch.equal(plain.seen[0], changed.seen[0])
    assert not torch.equal(plain.seen[1], changed.seen[1])


@pytest.mark.parametrize(
    "remedy", [Adam(1e-3), LearningRate(3.0), Together([Adam(), UnitVariance()])]
)
def test_a_training_with_a_remedy_is_resumed(remedy: Remedy, tmp_path: Path) -> None:
    _, whole = fit(ApplyRemedy(remedy), steps=6)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    fit(ApplyRemedy(remedy), keep, steps=3, enable_checkpointing=True)
    (file,) = tmp_path.glob("*.ckpt")
    trainer, resumed = fit(ApplyRemedy(remedy), steps=6, ckpt_path=file)
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    wanted, _ = fit(ApplyRemedy(remedy), steps=6)
    assert rate == pytest.approx(wanted.optimizers[0].param_groups[0]["lr"])
    state = trainer.optimizers[0].state_dict()["state"]
    if "step" in next(iter(state.values()), {}):
        assert {int(entry["step"]) for entry in state.values()} == {6}
    del whole, resumed


class Scheduled(small.Regression):
    """A schedule that goes by the rate it began with."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@pytest.mark.parametrize("remedy", [Adam(1e-3), LearningRate(3.0)])
def test_a_schedule_is_changed_once_however_often_it_is_resumed(
    remedy: Remedy, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    fit(ApplyRemedy(remedy), keep, steps=3, enable_checkpointing=True, module=Scheduled(1e-2))
    (file,) = tmp_path.glob("*.ckpt")
    trainer, _ = fit(ApplyRemedy(remedy), steps=6, ckpt_path=file, module=Scheduled(1e-2))
    wanted = 1e-3 if isinstance(remedy, Adam) else 3e-2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(wanted / 7)


class Dead(small.Regression):
    """All hidden units are dead, and stay so."""

    def __init__(self) -> None:
        super().__init__(0.1)
        with torch.no_grad():
            self.net[0].bias -= 100.0


def test_the_weights_of_a_checkpoint_are_what_is_changed(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    fit(keep, steps=3, enable_checkpointing=True, module=Dead())
    (file,) = tmp_path.glob("*.ckpt")
    for module in (small.Regression, Dead):  # whatever it is before it is restored
        _, own = fit(ApplyRemedy(LiveUnits()), steps=4, ckpt_path=file, module=module())
        with torch.no_grad():
            active = (own.net[0](small.draw(256)[0]) > 0).float().mean(0)
        assert bool(((active > 0.1) & (active < 0.9)).all())
    with pytest.raises(NotApplicableError, match="no unit lies on one side"):
        fit(ApplyRemedy(LiveUnits()))
    with pytest.raises(NotApplicableError, match="needs a training from its beginning"):
        fit(ApplyRemedy(UnitVariance()), steps=4, ckpt_path=file, module=Dead())
    found = here(LiveUnits(), module=Dead, ckpt_path=file)
    assert found.best is not None, str(found)


def test_a_changed_structure_is_resumed(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    _, before = fit(ApplyRemedy(FourierFeatures()), keep, steps=3, enable_checkpointing=True)
    (file,) = tmp_path.glob("*.ckpt")
    seen: list[list[torch.Tensor]] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(weights(pl_module))

    fit(ApplyRemedy(FourierFeatures()), Look(), steps=4, ckpt_path=file)
    for a, b in zip(seen[0], weights(before), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_without_the_remedy_goes_on_with_it(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    _, before = fit(keep, steps=3, enable_checkpointing=True)
    (file,) = tmp_path.glob("*.ckpt")
    seen: list[list[torch.Tensor]] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(weights(pl_module))

    trainer, _ = fit(ApplyRemedy(Adam(1e-3)), Look(), steps=5, ckpt_path=file)
    for a, b in zip(seen[0], weights(before), strict=True):
        assert torch.equal(a, b)
    assert type(trainer.optimizers[0]) is torch.optim.AdamW


def test_what_a_module_does_itself_is_not_changed() -> None:
    class Own(small.Regression):
        def configure_gradient_clipping(self, *arguments: Any, **settings: Any) -> None:
            pass

    with pytest.raises(NotApplicableError, match="Own clips gradients itself"):
        fit(ApplyRemedy(Clipping(1.0)), module=Own())
    with pytest.raises(NotApplicableError, match="Manual makes its steps itself"):
        fit(ApplyRemedy(LargerBatches(2)), module=Manual())
    with pytest.raises(NotApplicableError, match="no recurrent layer"):
        fit(ApplyRemedy(OrthogonalRecurrence()))


def here(
    *tried: Remedy, module: Any = small.Regression, data: Any = None, **settings: Any
) -> Trials:
    again = lambda: module()  # noqa: E731, PLW0108
    data = None if settings.pop("no_data", False) else data or small.Data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"trainer": {"max_epochs": -1, "max_steps": 400, **QUIET}, **settings}
        return try_remedies(again, data, remedies=tried, progress=False, **settings)


def test_trials_of_a_lightning_training() -> None:
    found = here(LearningRate(0.1), Adam(1e-2))
    assert found.best is not None
    assert found.best.name == "Adam, lr 0.01"
    assert found.baseline.steps == 32
    assert found.baseline.held_out == "validation data"
    assert len(found.baseline.losses[0]) == 2
    assert found.best.data == found.baseline.data
    assert len(found.best.modes) == 3
    assert not found.remarks


def test_trials_go_through_other_processes_and_touch_no_files(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callbacks = [NTKMonitor(), ModelCheckpoint(tmp_path)]
    trainer = {"max_steps": 400, "accelerator": "cpu", "logger": logger, "callbacks": callbacks}
    found = try_remedies(
        small.regression, small.Data(), trainer=trainer, remedies=[Adam(1e-2)], progress=False
    )
    assert found.best is not None
    assert found.remarks == ("callbacks that trials do without: ModelCheckpoint, NTKMonitor",)
    assert not list(tmp_path.rglob("*"))


def test_without_validation_some_samples_are_left_out() -> None:
    found = here(Adam(1e-2), data=small.Data(samples=320, validation=False))
    assert found.baseline.held_out == "training data that were left out"
    assert found.best is not None
    loader = small.Data().train_dataloader()
    found = here(Adam(1e-2), data=loader)
    assert found.baseline.held_out == "training data that were left out"
    assert found.best is not None
    given = [small.draw() for _ in range(3)]
    found = here(Adam(1e-2), held_out=given)
    assert found.baseline.held_out == "what was given"
    assert len(found.baseline.losses[0]) == 3


def test_epochs_tell_how_long_a_training_is() -> None:
    settings = {**QUIET, "max_epochs": 50}
    found = here(Adam(1e-2), trainer=settings)
    assert found.baseline.planned == 50 * 20
    assert found.baseline.steps == 80
    found = here(Adam(1e-2), trainer={**settings, "max_epochs": -1})
    assert "max_steps must be the number of optimizer steps" in found.baseline.ended
    found = here(Adam(1e-2), trainer={**settings, "max_epochs": -1}, max_steps=500)
    assert found.baseline.steps == 40


def test_callbacks_that_are_part_of_the_training_stay() -> None:
    scheduler = GradientAccumulationScheduler({0: 4})
    found = here(Adam(1e-2), trainer={**QUIET, "max_epochs": 50, "callbacks": [scheduler]})
    assert found.baseline.planned == 50 * 5
    assert not found.remarks


def test_a_curriculum_reaches_the_data_module() -> None:
    data = small.Data()
    _, _ = fit(ApplyRemedy(Curriculum(1.0)), steps=4)
    torch.manual_seed(0)
    trainer = Trainer(
        callbacks=[ApplyRemedy(Curriculum(1.0))], max_steps=4, enable_checkpointing=False, **QUIET
    )
    trainer.fit(small.Regression(), data)
    assert data.difficulties == [0.0, 0.25, 0.5, 0.75]


def test_trials_begin_from_a_checkpoint(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=100)
    fit(keep, steps=100, enable_checkpointing=True, module=small.Regression(1e-5))
    (file,) = tmp_path.glob("*.ckpt")
    found = here(Adam(1e-2), UnitVariance(), ckpt_path=file)
    assert found.best is not None
    assert found.baseline.steps == 30  # the least, as 8 % of 300 steps are fewer
    assert found.trials[-1].ended == "not tried: it needs a training from its beginning"


class Manual(small.Regression):
    """Steps by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(small.mse(self.net, batch))
        optimizer.step()


def test_a_training_that_steps_by_hand() -> None:
    found = here(LearningRate(3e3), module=Manual)
    assert found.best is not None
    assert found.best.loss is not None


class Late(small.Data):
    """Makes its data when it is set up, and differently each time."""

    def setup(self, stage: str) -> None:
        self.times = getattr(self, "times", 0) + 1

    def train_dataloader(self) -> Any:
        assert self.times == 1
        return super().train_dataloader()


class Paired(small.Regression):
    """Two loaders at once, by name or in order."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named

    def train_dataloader(self) -> Any:
        loaders = {"a": small.Data().train_dataloader(), "b": small.Data().train_dataloader()}
        return loaders if self.named else list(loaders.values())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        a, b = (batch["a"], batch["b"]) if self.named else batch
        return small.mse(self.net, a) + small.mse(self.net, b)


class Strict(small.Regression):
    """Takes training batches only."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if len(batch[0]) == 16:
            raise TypeError("no such batch")
        return super().training_step(batch, batch_idx)


class Configured(small.Regression):
    """Makes its layers when it is configured."""

    def __init__(self) -> None:
        super().__init__(1e-5)
        del self.net

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = small.network()


def test_a_data_module_is_set_up_once() -> None:
    for validation in (True, False):
        found = here(Adam(1e-2), data=Late(validation=validation))
        assert found.best is not None, str(found)


@pytest.mark.parametrize("named", [True, False])
def test_several_loaders_are_each_split(named: bool) -> None:
    found = here(UnitVariance(), Adam(1e-2), module=lambda: Paired(named), no_data=True)
    assert found.best is not None, str(found)
    assert {trial.ended for trial in found} == {""}  # also what looks at a batch
    assert found.baseline.apart
    assert len(found.baseline.losses[0]) == 4


def test_what_cannot_be_judged_on_says_what_to_do() -> None:
    held = [(torch.randn(16, 4), torch.randn(16, 4))]
    found = here(Adam(1e-2), module=Strict, held_out=held)
    assert "held_out must be batches that a training step takes" in found.baseline.ended
    assert "no such batch" in found.baseline.ended
    found = here(Adam(1e-2), no_data=True)
    assert "Regression has no train_dataloader" in found.baseline.ended


def test_layers_that_are_configured_late_are_changed() -> None:
    found = here(UnitVariance(), Adam(1e-2), module=Configured)
    assert {t.ended for t in found} == {""}


def test_a_training_that_is_over_says_so(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=5)
    fit(keep, steps=5, enable_checkpointing=True)
    (file,) = tmp_path.glob("*.ckpt")
    found = here(Adam(), ckpt_path=file, trainer={**QUIET, "max_steps": 5})
    assert found.baseline.ended.startswith("took no step")
    assert found.verdict.startswith("Nothing can be said: the training as it is took no step")


@pytest.mark.parametrize("validation", [True, False])
def test_the_data_are_the_same_whatever_a_remedy_looks_at(validation: bool) -> None:
    found = here(UnitVariance(), Adam(1e-2), CentredReadout(), data=small.Data(640, validation))
    assert len(found.baseline.data) == 3
    for trial in found:
        assert trial.data == found.baseline.data, trial.name
    assert not found.remarks


def test_loggers_of_the_process_are_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("lightning.pytorch")
    logger.setLevel(logging.INFO)
    here(Adam(1e-2))
    assert logger.level == logging.INFO
    assert "GPU available" not in capfd.readouterr().err
