"""Sequential recommenders of rectools, which copy the Trainer that they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel

from outsiders.training import Fit, Fitted, Training, quiet

REQUIREMENTS = ("torch==2.13.0", "rectools[torch]==0.19.0")
CONSTRAINED = False  # constraints.txt has versions that it cannot take
LIBRARY = "rectools[torch]"


def interactions() -> Dataset:
    """Users walk along a ring of items."""
    random = np.random.default_rng(3)
    rows = []
    for user in range(60):
        item = int(random.integers(30))
        for day in range(12):
            item = (item + int(random.integers(1, 3))) % 30
            date = pd.Timestamp("2024-01-01") + pd.Timedelta(days=day)
            rows.append((user, item, 1.0, date))
    columns = [Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]
    return Dataset.construct(pd.DataFrame(rows, columns=columns))


def fitted(kind: Any, **settings: Any) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)

        def trainer() -> Trainer:
            return Trainer(callbacks=callbacks, **quiet(max_steps=40))

        model = kind(
            n_blocks=1,
            n_heads=2,
            n_factors=16,
            session_max_len=10,
            batch_size=16,
            deterministic=True,
            get_trainer_func=trainer,
            **settings,
        )
        model.fit(interactions())
        return Fitted(model.fit_trainer, model.lightning_model)

    return fit


TRAININGS = (
    Training(
        "sasrec",
        fitted(SASRecModel),
        states=("torch_model.transformer_layers*",),
        targets="the next item, 30 classes",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "sasrec, negatives",
        fitted(SASRecModel, loss="BCE", n_negatives=2),
        states=("torch_model.transformer_layers*",),
        targets="the next item against 2 drawn ones",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "bert4rec",
        fitted(BERT4RecModel, mask_prob=0.3),
        states=("torch_model.transformer_layers*",),
        targets="masked items, 30 classes",
        modes=True,
        library=LIBRARY,
    ),
)
