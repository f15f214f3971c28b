"""What a monitor takes from the training step, and what it says of it."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer as TransformersTrainer
from transformers import TrainingArguments

from monitor.helpers import Recorder, Small, data, fit
from monitor.ways import BATCH, STEPS, Texts, gpt
from ntk_monitor import Monitor, NTKMonitor
from ntk_monitor.monitor import NTKTrainerCallback

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
    "ignore:.*logging interval:UserWarning",
    "ignore:You're resuming from a checkpoint:UserWarning",
)
F = nn.functional
FAST: dict[str, Any] = {"max_products": 24, "max_overhead": None, "figures": False}


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    """What the Trainer's own log was told, in one text."""
    caplog.set_level(logging.INFO)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def test_the_table_says_what_was_found_and_how_to_name_another(told: Any) -> None:
    monitor = NTKMonitor(5, **FAST)
    fit([monitor], Small())
    text = " ".join(told().split())
    assert monitor.snapshot is not None
    for part in (
        "step │ Small.training_step, loss",
        "(another: loss_fn, forward_fn)",
        "state │ rnn: 4 trials x 5 steps x 8 units (another: state)",
        "output │ readout: 4 x 5 x 2, by mse_loss",
        "target │ values (4, 5, 2) (another: target_fn)",
        "of the parameters behind the state",
    ):
        assert part in text
    assert text.count("what is measured") == 1


class Frozen(Small):
    """A body that is trained later, or never, and a head that is trained at once."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


class Later(BaseFinetuning):
    """Unfreezes the body at the second epoch."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.rnn)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.rnn, optimizer)


def test_a_frozen_body_is_not_yet_and_is_measured_when_it_is_trained(told: Any) -> None:
    recorder = Recorder()
    monitor = NTKMonitor(5, **FAST)
    tiers: list[tuple[str, int]] = []

    class Ears(Callback):
        def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
            tiers.append((snapshot.tier, len(snapshot.target_modes)))
            rates = [m.rate for m in snapshot.target_modes]
            assert all(math.isfinite(rate) and rate != 0 for rate in rates)

    fit([Later(), monitor, recorder, Ears()], Frozen(), max_epochs=2)
    assert monitor.failures.count == 0
    assert [tier for tier, _ in tiers] == ["modes"] * 3 + ["kernel"] * 2
    assert {modes for _, modes in tiers} == {2}
    assert told().count("nothing that is trained moves the state 'rnn' yet") == 1
    assert told().count("what is measured") == 2
    assert monitor.snapshot is not None
    assert monitor.snapshot.trace.value > 0
    assert torch.isfinite(monitor.metrics["ntk/effective_rank"].compute())


def test_where_nothing_is_trained_there_is_no_failure() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).requires_grad_(False)
    monitor = Monitor(1, **FAST)
    batch = torch.randn(8, 3), torch.randn(8, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with monitor.attach(model, batch=batch):
            for _ in range(5):
                monitor.step()
            assert monitor.failures.count == 0
            assert monitor.snapshot is None
            model.requires_grad_(True)
            monitor.step()
    words = "not yet: Sequential has no parameter with requires_grad"
    assert sum(words in str(w.message) for w in caught) == 1
    assert monitor.snapshot is not None


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_batch_that_the_step_skips_makes_way_for_the_next(told: Any) -> None:
    class Skips(Small):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch[0].sum() == self.skipped:
                return None
            return super().training_step(batch, batch_idx)

    module, recorder = Skips(), Recorder()
    torch.manual_seed(1)
    module.skipped = next(iter(data()))[0].sum()
    monitor = NTKMonitor(5, **FAST)
    fit([monitor, recorder], module)
    assert monitor.failures.count == 0
    assert recorder.steps[0] <= 1
    assert "returned None for the kept batch, which training skips" in told()
    assert monitor.kept.content[0].sum() != module.skipped


def test_noise_that_a_step_draws_is_the_same_at_every_probe() -> None:
    class Denoises(Small):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            noise = torch.randn(4, 5, 2)
            return F.mse_loss(self(batch[0] + noise), noise)

    sizes: list[list[float]] = []

    class Ears(Callback):
        def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
            sizes.append([mode.singular_value for mode in snapshot.target_modes])

    fit([NTKMonitor(5, **FAST), Ears()], Denoises())
    assert len(sizes) == 3
    assert sizes[0]
    assert sizes[0] == sizes[1] == sizes[2]


def test_no_validation_batch_yet_is_said(told: Any) -> None:
    monitor = NTKMonitor(2, probe_batch="val", **FAST)
    fit([monitor], Small(), limit_val_batches=1, num_sanity_val_steps=0)
    assert told().count("not yet: no validation batch has come so far") == 1


def test_a_monitor_that_is_switched_off_says_so_and_why() -> None:
    class Bad(Small):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if not self.training:
                raise ArithmeticError("not in evaluation")
            return super().training_step(batch, batch_idx)

    monitor = NTKMonitor(1, **FAST)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([monitor], Bad())
    said = [str(w.message) for w in caught if str(w.message).startswith("NTKMonitor")]
    assert len(said) == 2
    assert "it is now switched off" in said[1]
    assert all("not in evaluation" in message for message in said)


def test_two_batches_are_kept_and_checkpointed(tmp_path: Path) -> None:
    monitor = NTKMonitor(5, **FAST)
    trainer, _ = fit([monitor], Small(), enable_checkpointing=False)
    first, second = monitor.kept.content, monitor.kept.second
    torch.manual_seed(1)
    batches = list(data())
    torch.testing.assert_close([*first], batches[0])
    # Probes are before step 1 and after steps 5 and 10: a new one came with step 6.
    torch.testing.assert_close([*second], batches[5 % len(batches)])
    again = NTKMonitor(5, **FAST)
    again.load_state_dict(copy.deepcopy(monitor.state_dict()))
    torch.testing.assert_close(again.kept.second, second)
    assert again.kept.state_dict()["has_second"] is False  # the next one is wanted
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    state = torch.load(tmp_path / "c.ckpt", weights_only=True)
    (own,) = [s for key, s in state["callbacks"].items() if key.startswith("NTKMonitor")]
    torch.testing.assert_close(own["second"], second)


def test_one_batch_again_and_again_is_the_second_one_too() -> None:
    monitor = NTKMonitor(1, **FAST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit([monitor], Small(), overfit_batches=1, max_epochs=4)
    assert monitor.kept.content is not None
    assert monitor.kept.second is monitor.kept.content
    assert monitor.snapshot is not None
    transfer = monitor.snapshot.transfer
    assert transfer is not None
    assert (transfer.value, transfer.stderr) == (1.0, 0.0)


def test_a_batch_that_comes_first_in_every_epoch_is_no_second_one() -> None:
    monitor = NTKMonitor(2, **FAST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit([monitor], Small(), overfit_batches=2, max_epochs=6)
    assert monitor.kept.second is not None
    assert monitor.kept.second is not monitor.kept.content
    assert monitor.snapshot is not None
    transfer = monitor.snapshot.transfer
    assert transfer is not None
    assert transfer.stderr > 0


def test_a_second_batch_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ntk_monitor.monitor.probe_batch.MOST_BYTES", 10)
    monitor = NTKMonitor(5, **FAST)
    fit([monitor], Small())
    assert monitor.kept.second is None


def loop(**settings: Any) -> Monitor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    x, y = torch.randn(2, 16, 3)[0], torch.randn(16, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(2, **FAST, **settings.pop("monitor", {}))
    with monitor.attach(model, optimizer, batch={"x": x, "y": y}, total_steps=4, **settings):
        for _ in range(4):
            optimizer.zero_grad()
            F.huber_loss(model(x), y.flip(0)).backward()
            optimizer.step()
            monitor.step()
    return monitor


def own_loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.huber_loss(module(batch["x"]), batch["y"].flip(0))


def test_a_loop_s_loss_is_named_at_attach_or_before() -> None:
    at_attach = loop(loss_fn=own_loss)
    before = loop(monitor={"loss_fn": own_loss})
    assert at_attach.snapshot is not None
    assert before.snapshot is not None
    assert [o.loss for o in at_attach.snapshot.outputs] == ["huber_loss"]
    assert at_attach.snapshot.target_modes == before.snapshot.target_modes
    assert at_attach.probe.loss_fn is None
    with pytest.raises(ValueError, match="loss_fn must be left out where forward_fn or target_fn"):
        loop(monitor={"target_fn": lambda batch: batch["y"]}, loss_fn=own_loss)


def test_a_loop_without_a_target_says_so_with_the_batch_in_the_words() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    batch = {"x": torch.randn(8, 3), "wanted": torch.randn(8, 2)}
    with (
        pytest.warns(
            UserWarning,
            match="no target was found in the batch, a dict with the entries "
            "'x', 'wanted', so that there are no target modes: pass loss_fn",
        ),
        Monitor(5, **FAST).attach(Net(), batch=batch),
    ):
        pass


class Smoothed(TransformersTrainer):
    """A Trainer with a loss of its own, which logs."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        self.log({"own": 1.0})
        return F.cross_entropy(logits[:, 0], labels[:, 2], label_smoothing=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_trainer_s_own_loss_is_the_step(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path), max_steps=STEPS, per_device_train_batch_size=BATCH, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip

    def train(callbacks: list[Any]) -> Any:
        torch.manual_seed(0)
        trainer = Smoothed(gpt(), arguments, train_dataset=Texts(), callbacks=callbacks)
        trainer.train()
        return trainer

    monitor = NTKTrainerCallback(2, **FAST)
    watched, alone = train([monitor]), train([])
    assert monitor.failures.count == 0
    assert monitor.snapshot is not None
    assert monitor.snapshot.step == "Trainer.compute_loss"
    assert [(o.loss, o.shape) for o in monitor.snapshot.outputs] == [("cross_entropy", (4, 11))]
    assert monitor.snapshot.target_modes
    own = [[e for e in t.state.log_history if "own" in e] for t in (watched, alone)]
    assert len(own[0]) == len(own[1]) == STEPS
    pairs = zip(watched.model.parameters(), alone.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert monitor.kept.second is not None


def test_the_loss_wins_over_the_guess() -> None:
    """A batch's second entry is a class, and the step rebuilds the first."""

    class Rebuilds(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0]), batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    x = torch.randn(32, 6)
    loader = DataLoader(list(zip(x, torch.arange(32) % 6, strict=True)), batch_size=32)
    monitor = NTKMonitor(2, **FAST)
    trainer = Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[monitor],
    )  # fmt: skip
    trainer.fit(Rebuilds(), loader)
    sigma = torch.linalg.svdvals(x - x.mean(0))[:3].tolist()
    assert monitor.snapshot is not None
    found = [m.singular_value for m in monitor.snapshot.target_modes]
    assert found == pytest.approx(sigma, rel=1e-5)
