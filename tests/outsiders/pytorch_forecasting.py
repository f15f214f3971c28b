"""Models of pytorch-forecasting on its own data set and loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from lightning.pytorch import Callback, Trainer
from pytorch_forecasting import DeepAR, NBeats, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data import GroupNormalizer
from pytorch_forecasting.metrics import MAE, SMAPE, NormalDistributionLoss, QuantileLoss

from outsiders.training import Fit, Fitted, Training, quiet

REQUIREMENTS = ("torch==2.13.0", "pytorch-forecasting==1.8.0")
LIBRARY = "pytorch-forecasting"


def stallion() -> pd.DataFrame:
    """Sales of eight agencies, with price and season."""
    random = np.random.default_rng(3)
    rows = []
    for agency in range(8):
        price = 1 + 0.1 * random.standard_normal(60).cumsum()
        for t in range(60):
            season = np.sin(2 * np.pi * (t % 12) / 12 + agency)
            volume = 5 + agency + 2 * season - price[t] + 0.3 * random.standard_normal()
            rows.append((str(agency), t, str(t % 12), float(price[t]), float(volume)))
    return pd.DataFrame(rows, columns=["agency", "time_idx", "month", "price", "volume"])


def dataset(**settings: Any) -> TimeSeriesDataSet:
    return TimeSeriesDataSet(
        stallion(),
        time_idx="time_idx",
        target="volume",
        group_ids=["agency"],
        max_encoder_length=24,
        max_prediction_length=6,
        **settings,
    )


def rich() -> TimeSeriesDataSet:
    return dataset(
        static_categoricals=["agency"],
        time_varying_known_categoricals=["month"],
        time_varying_known_reals=["time_idx", "price"],
        time_varying_unknown_reals=["volume"],
        target_normalizer=GroupNormalizer(groups=["agency"], transformation="softplus"),
        add_relative_time_idx=True,
        add_target_scales=True,
        add_encoder_length=True,
    )


def alone() -> TimeSeriesDataSet:
    return dataset(time_varying_unknown_reals=["volume"])


def autoregressive() -> TimeSeriesDataSet:
    return dataset(
        static_categoricals=["agency"],
        time_varying_known_reals=["price"],
        time_varying_unknown_reals=["volume"],
    )


def fitted(
    data: Callable[[], TimeSeriesDataSet], make: Callable[..., Any], loss: type, **settings: Any
) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        training = data()
        loader = training.to_dataloader(train=True, batch_size=32, num_workers=0)
        model = make(training, loss=loss(), learning_rate=1e-2, log_interval=-1, **settings)
        trainer = Trainer(callbacks=callbacks, **quiet(max_steps=40, gradient_clip_val=0.1))
        trainer.fit(model, train_dataloaders=loader)
        return Fitted(trainer, model)

    return fit


TFT = (
    "*coder_variable_selection",
    "lstm_*",
    "post_*",
    "static_enrichment*",
    "multihead_attn*",
    "pos_wise_ff*",
    "pre_output_gate_norm*",
)

TRAININGS = (
    Training(
        "temporal fusion transformer",
        fitted(
            rich,
            TemporalFusionTransformer.from_dataset,
            hidden_size=8,
            attention_head_size=2,
            dropout=0.1,
            hidden_continuous_size=8,
            loss=QuantileLoss,
        ),
        states=TFT,
        targets="the next 6 volumes, 7 quantiles each",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "tft, mean absolute error",
        fitted(
            rich,
            TemporalFusionTransformer.from_dataset,
            hidden_size=8,
            attention_head_size=1,
            hidden_continuous_size=4,
            output_size=1,
            loss=MAE,
        ),
        states=TFT,
        targets="the next 6 volumes",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "n-beats",
        fitted(
            alone,
            NBeats.from_dataset,
            widths=[16, 32],
            backcast_loss_ratio=0.1,
            loss=SMAPE,
        ),
        states=("net_blocks.*.fc*", "net_blocks.*.theta_*_fc"),
        targets="the next 6 volumes, and the past ones",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "deepar",
        fitted(
            autoregressive,
            DeepAR.from_dataset,
            hidden_size=16,
            rnn_layers=2,
            loss=NormalDistributionLoss,
        ),
        states=("rnn",),
        targets="the next 6 volumes, by a normal distribution",
        modes=True,
        library=LIBRARY,
    ),
)
