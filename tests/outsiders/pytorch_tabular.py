"""Models of pytorch_tabular, behind its TabularModel."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from lightning.pytorch import Callback
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, FTTransformerConfig, GANDALFConfig

from outsiders.training import Fit, Fitted, Training

REQUIREMENTS = ("torch==2.13.0", "pytorch-tabular==1.2.0", "requests")
CONSTRAINED = False  # constraints.txt has versions that it cannot take
LIBRARY = "pytorch-tabular"
NUMBERS = ["age", "income", "debt"]
NAMES = ["city", "plan"]


def customers() -> pd.DataFrame:
    random = np.random.default_rng(3)
    frame = pd.DataFrame(random.standard_normal((400, 3)), columns=NUMBERS)
    frame["city"] = random.choice(["north", "south", "west"], 400)
    frame["plan"] = random.choice(["a", "b"], 400)
    score = frame["age"] - frame["debt"] + (frame["city"] == "west") * frame["income"]
    frame["spent"] = score
    frame["left"] = (score > 0.3).astype(int)
    return frame


def fitted(config: type, *, classes: bool, **settings: Any) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        # It writes into the working directory.
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            model = TabularModel(
                data_config=DataConfig(
                    target=["left" if classes else "spent"],
                    continuous_cols=NUMBERS,
                    categorical_cols=NAMES,
                    num_workers=0,
                ),
                model_config=config(task="classification" if classes else "regression", **settings),
                optimizer_config=OptimizerConfig(),
                trainer_config=TrainerConfig(
                    batch_size=32,
                    max_epochs=4,
                    accelerator="cpu",
                    early_stopping=None,
                    checkpoints=None,
                    load_best=False,
                    progress_bar="none",
                    trainer_kwargs={"enable_model_summary": False},
                ),
                verbose=False,
            )
            model.fit(train=customers(), callbacks=callbacks)
        return Fitted(model.trainer, model.model)

    return fit


TRAININGS = (
    Training(
        "tabular category embedding",
        fitted(CategoryEmbeddingModelConfig, classes=True, layers="32-16"),
        states=("_backbone", "_backbone.[!n]*"),
        targets="class labels, 2",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "tabular ft-transformer",
        fitted(
            FTTransformerConfig,
            classes=False,
            input_embed_dim=16,
            num_heads=2,
            num_attn_blocks=1,
        ),
        states=("_backbone", "_backbone.[!n]*"),
        targets="1 value",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "tabular gandalf",
        fitted(GANDALFConfig, classes=True, gflu_stages=2),
        states=("_backbone", "_backbone.[!n]*"),
        targets="class labels, 2",
        modes=True,
        library=LIBRARY,
    ),
)
