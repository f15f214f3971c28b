"""Learning rates to come and clipping, as a Trainer has them."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from monitor.helpers import Small, fit
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from ntk_monitor.descent import Clipping, read_ahead
from ntk_monitor.monitor.integrations.lightning.trainer import TrainerHost

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Scheduled(Small):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        kind = {"step": StepLR(optimizer, 2, 0.5), "cosine": CosineAnnealingLR(optimizer, 20)}
        scheduler = kind[self.config.get("kind", "step")]
        settings = {k: v for k, v in self.config.items() if k != "kind"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **settings}}


class Reads(Callback):
    """Reads ahead after each batch, and notes the rates at which steps are made."""

    def __init__(self) -> None:
        self.ahead: list[list[float]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        (optimizer,) = trainer.optimizers
        self.rates.append(optimizer.param_groups[0]["lr"])
        host = TrainerHost(trainer, pl_module)
        key = id(optimizer.param_groups[0])
        self.ahead.append(read_ahead(host.schedulers, 30)[key])


@pytest.mark.parametrize(
    "config",
    [
        {"interval": "step"},
        {"interval": "step", "kind": "cosine"},
        {"interval": "epoch"},
        {"interval": "epoch", "frequency": 2},
    ],
)
def test_rates_are_those_that_come(config: dict[str, Any]) -> None:
    reads = Reads()
    fit([reads], Scheduled(config), max_epochs=5, limit_train_batches=6)
    assert len(reads.rates) == 30
    assert len(set(reads.rates)) > 1
    for i, found in enumerate(reads.ahead):
        assert found[: 30 - i] == pytest.approx(reads.rates[i:])


class Clips(Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.found = TrainerHost(trainer, pl_module).clipping


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Clipping()),
        ({"gradient_clip_val": 0.5}, Clipping(norm=0.5)),
        (
            {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
            Clipping(value=0.5),
        ),
    ],
)
def test_clipping_is_read_off_the_trainer(settings: dict[str, Any], wanted: Clipping) -> None:
    clips = Clips()
    fit([clips], max_steps=1, **settings)
    assert clips.found == wanted


def test_clipping_of_a_modules_own_is_called() -> None:
    class Own(Small):
        def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad.mul_(0.25)

    clips = Clips()
    _, module = fit([clips], Own(), max_steps=1)
    assert clips.found.own is not None
    p = next(module.parameters())
    optimizer = SGD([p], lr=0.1)
    p.grad = torch.ones_like(p)
    clips.found.own(optimizer)
    torch.testing.assert_close(p.grad, torch.full_like(p, 0.25))


def test_several_optimizers_by_hand_are_clipped_by_nobody() -> None:
    clips = Clips()
    fit([clips], Small(optimizers=2), max_steps=2)
    assert clips.found == Clipping()
