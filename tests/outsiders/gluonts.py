"""Estimators of gluonts.torch, which make their own LightningModule and Trainer."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from gluonts.dataset.common import ListDataset
from gluonts.torch.model.deepar import DeepAREstimator
from gluonts.torch.model.patch_tst import PatchTSTEstimator
from gluonts.torch.model.simple_feedforward import SimpleFeedForwardEstimator
from lightning.pytorch import Callback

from outsiders.training import Fit, Fitted, Training

REQUIREMENTS = ("torch==2.13.0", "gluonts[torch]==0.17.0")
CONSTRAINED = False  # constraints.txt has versions that it cannot take
LIBRARY = "gluonts[torch]"


def series() -> ListDataset:
    random = np.random.default_rng(3)
    t = np.arange(300)
    entries = [
        {
            "start": pd.Period("2020-01-01", freq="h"),
            "target": 10 + 3 * np.sin(2 * np.pi * t / 24 + k) + random.standard_normal(300),
        }
        for k in range(6)
    ]
    return ListDataset(entries, freq="h")


def fitted(kind: Any, **settings: Any) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        with tempfile.TemporaryDirectory() as folder:
            estimator = kind(
                prediction_length=12,
                batch_size=32,
                num_batches_per_epoch=20,
                trainer_kwargs={
                    "accelerator": "cpu",
                    "max_epochs": 2,
                    "callbacks": callbacks,
                    "default_root_dir": folder,
                    "logger": False,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                },
                **settings,
            )
            output = estimator.train_model(series())
        return Fitted(output.trainer, output.trained_net)

    return fit


TRAININGS = (
    Training(
        "gluonts feedforward",
        fitted(SimpleFeedForwardEstimator, context_length=24, hidden_dimensions=[32, 32]),
        states=("model.nn*",),
        targets="the next 12 values, by a Student's t",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "gluonts deepar",
        fitted(DeepAREstimator, freq="h", context_length=24, hidden_size=16, num_layers=2),
        states=("model.rnn", "model.lagged_rnn*"),
        targets="past and next values, by a Student's t",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "gluonts patch transformer",
        fitted(
            PatchTSTEstimator,
            context_length=24,
            patch_len=8,
            d_model=16,
            nhead=2,
            dim_feedforward=32,
            num_encoder_layers=1,
        ),
        states=("model.encoder*", "model.flatten"),
        targets="the next 12 values, by a Student's t",
        modes=True,
        library=LIBRARY,
    ),
)
