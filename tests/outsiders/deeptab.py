"""Estimators of deeptab, with the interface of scikit-learn."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from deeptab.models import MLPLSS, FTTransformerRegressor, MLPClassifier, TabMClassifier
from lightning.pytorch import Callback

from outsiders.data import curves, table
from outsiders.training import Fit, Fitted, Training

REQUIREMENTS = ("torch==2.13.0", "deeptab==2.1.0")
CONSTRAINED = False  # constraints.txt has versions that it cannot take
LIBRARY = "deeptab"


def frame(*, classes: bool) -> tuple[pd.DataFrame, np.ndarray]:
    x, y = table(rows=320) if classes else curves(rows=320)
    columns = [f"x{i}" for i in range(x.shape[1])]
    return pd.DataFrame(x.numpy(), columns=columns), y.numpy().reshape(-1)


def fitted(kind: Any, *, classes: bool, **settings: Any) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        estimator = kind()
        with tempfile.TemporaryDirectory() as folder:
            estimator.fit(
                *frame(classes=classes),
                max_epochs=5,
                batch_size=32,
                random_state=0,
                checkpoint_path=folder,
                accelerator="cpu",
                enable_progress_bar=False,
                logger=False,
                callbacks=callbacks,
                **settings,
            )
        return Fitted(estimator._trainer, estimator._task_model)

    return fit


TRAININGS = (
    Training(
        "deeptab mlp",
        fitted(MLPClassifier, classes=True),
        states=("estimator.layers.[0-8]",),
        targets="class labels, 4",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "deeptab ft-transformer",
        fitted(FTTransformerRegressor, classes=False),
        states=("estimator.encoder*", "estimator.norm_f"),
        targets="y, 1 value",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "deeptab mlp, distribution",
        fitted(MLPLSS, classes=False, family="normal"),
        states=("estimator.layers.[0-8]",),
        targets="y, 1 value, by a normal distribution",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "deeptab ensemble",
        fitted(TabMClassifier, classes=True),
        states=("estimator.layers*",),
        targets="class labels, 4, of an ensemble's outputs",
        modes=True,
        library=LIBRARY,
    ),
)
