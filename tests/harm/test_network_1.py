"""The paper's Network 1, 200 steps with and without the callbacks: equal bit for bit."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from ntk_monitor import NTKMonitor, StallAlert
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import MemoryProDataModule


def train(*callbacks: Any) -> dict[str, Any]:
    seed_everything(0, verbose=False)
    module, data = GRURegression(), MemoryProDataModule(noise_std=0.5)
    trainer = Trainer(
        max_steps=200,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data)
    return {
        "weights": module.state_dict(),
        "gradients": [p.grad for p in module.parameters()],
        "optimizer": trainer.optimizers[0].state_dict()["state"],
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.random.rand(4)),
        "python": torch.tensor([random.random() for _ in range(4)]),
    }


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
    "ignore::ntk_monitor.monitor.StallWarning",
)
def test_network_1_trains_the_same_under_the_monitor() -> None:
    monitor = NTKMonitor(50, max_overhead=None, max_products=24, probe_batch="val")
    watched = train(monitor, StallAlert(patience=2))
    assert monitor.snapshot is not None
    torch.testing.assert_close(watched, train(), rtol=0, atol=0)
