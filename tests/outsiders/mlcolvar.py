"""Collective variables of mlcolvar: its LightningModules on its data modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback, Trainer
from mlcolvar.cvs import AutoEncoderCV, DeepTDA, DeepTICA, RegressionCV
from mlcolvar.data import DictDataset, DictModule
from mlcolvar.utils.timelagged import create_timelagged_dataset

from outsiders.data import source, table
from outsiders.training import Fit, Fitted, Training, quiet

REQUIREMENTS = ("torch==2.13.0", "mlcolvar==1.3.1")
CONSTRAINED = False  # constraints.txt has versions that it cannot take
LIBRARY = "mlcolvar"


def fitted(make: Callable[[], Any], data: Callable[[], Any]) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        model = make()
        datamodule = DictModule(data(), lengths=[0.8, 0.2], batch_size=50)
        trainer = Trainer(callbacks=callbacks, **quiet())
        trainer.fit(model, datamodule)
        return Fitted(trainer, model)

    return fit


def squares() -> DictDataset:
    x = torch.randn((400, 2), generator=source())
    return DictDataset({"data": x, "target": x.square().sum(1)})


def descriptors() -> DictDataset:
    return DictDataset({"data": table()[0]})


def basins() -> DictDataset:
    x, y = table(rows=500, classes=2)
    return DictDataset({"data": x, "labels": y.float()})


def walk() -> DictDataset:
    """A particle in two wells."""
    random = source()
    x, path = torch.zeros(2), []
    for _ in range(600):
        force = torch.stack([4 * x[0] * (1 - x[0] ** 2), -x[1]])
        x = x + 0.05 * force + 0.3 * torch.randn(2, generator=random)
        path.append(x)
    return create_timelagged_dataset(torch.stack(path), lag_time=2)


TRAININGS = (
    Training(
        "regression variable",
        fitted(lambda: RegressionCV([2, 16, 16, 1]), squares),
        states=("nn.nn.[0-3]",),
        targets="1 value",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "autoencoder variable",
        fitted(lambda: AutoEncoderCV([12, 24, 16, 2]), descriptors),
        states=("encoder*", "decoder.nn.[0-3]"),
        targets="x itself, normalised, 12 values",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "time-lagged variable",
        fitted(lambda: DeepTICA([2, 16, 16, 2], n_cvs=1), walk),
        states=("nn.nn.[0-3]",),
        targets="none: eigenvalues of correlations",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "target distribution variable",
        fitted(
            lambda: DeepTDA(
                n_states=2,
                n_cvs=1,
                target_centers=[-7.0, 7.0],
                target_sigmas=[0.2, 0.2],
                layers=[12, 24, 12, 1],
            ),
            basins,
        ),
        states=("nn.nn.[0-3]",),
        targets="none: mean and deviation of each class",
        modes=False,
        library=LIBRARY,
    ),
)
