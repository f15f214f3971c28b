"""Models of neuralforecast on the series that it ships, in the Trainer that it makes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import DistributionLoss, MQLoss
from neuralforecast.models import GRU, LSTM, MLP, NHITS, PatchTST
from neuralforecast.utils import AirPassengersPanel

from outsiders.training import Fit, Fitted, Keeper, Training

REQUIREMENTS = ("torch==2.13.0", "neuralforecast==3.3.0")
LIBRARY = "neuralforecast"


def fitted(kind: Any, **settings: Any) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        keeper = Keeper()
        model = kind(
            h=12,
            input_size=24,
            max_steps=40,
            batch_size=32,
            windows_batch_size=32,
            scaler_type="standard",
            random_seed=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[*callbacks, keeper],
            **settings,
        )
        forecast = NeuralForecast(models=[model], freq="ME")
        forecast.fit(df=AirPassengersPanel[["unique_id", "ds", "y"]])
        return keeper.fitted

    return fit


TRAININGS = (
    Training(
        "n-hits",
        fitted(NHITS, mlp_units=[[32, 32]] * 3),
        states=("blocks.*.layers*",),
        targets="the next 12 values",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "lstm, distribution",
        fitted(
            LSTM,
            loss=DistributionLoss(distribution="Normal", level=[80]),
            encoder_hidden_size=16,
            decoder_hidden_size=16,
        ),
        states=("hist_encoder", "mlp_decoder.layers.[0-2]", "mlp_decoder.activation"),
        targets="the next 12 values, by a normal distribution",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "gru",
        fitted(GRU, encoder_hidden_size=16, decoder_hidden_size=16),
        states=("hist_encoder", "mlp_decoder.layers.[0-2]", "mlp_decoder.activation"),
        targets="the next 12 values",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "mlp, quantiles",
        fitted(MLP, loss=MQLoss(level=[80]), num_layers=2, hidden_size=32),
        states=("mlp*",),
        targets="the next 12 values, 3 quantiles each",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "patch transformer",
        fitted(PatchTST, hidden_size=16, n_heads=2, linear_hidden_size=32, encoder_layers=1),
        states=("model.backbone*", "model.head.flatten"),
        targets="the next 12 values",
        modes=True,
        library=LIBRARY,
    ),
)
