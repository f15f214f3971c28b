"""Forecasting models of darts, which make their Trainer from ``pl_trainer_kwargs``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
from darts import TimeSeries
from darts.models import NBEATSModel, RNNModel, TCNModel, TFTModel, TransformerModel
from darts.utils.likelihood_models import GaussianLikelihood, QuantileRegression
from darts.utils.timeseries_generation import (
    gaussian_timeseries,
    linear_timeseries,
    sine_timeseries,
)
from lightning.pytorch import Callback

from outsiders.training import Fit, Fitted, Training

REQUIREMENTS = ("torch==2.13.0", "darts==0.48.1")
LIBRARY = "darts"


def passengers() -> TimeSeries:
    """A trend, a year's season, and noise."""
    np.random.seed(3)
    length = 160
    season = sine_timeseries(value_frequency=1 / 12, length=length, freq="MS")
    trend = linear_timeseries(end_value=2, length=length, freq="MS")
    return (season + trend + gaussian_timeseries(std=0.1, length=length, freq="MS")).astype(
        np.float32
    )


def fitted(make: Callable[..., Any], **settings: Any) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        model = make(
            batch_size=16,
            n_epochs=8,
            random_state=0,
            pl_trainer_kwargs={
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": callbacks,
            },
            **settings,
        )
        model.fit(passengers())
        return Fitted(model.trainer, model.model)

    return fit


TFT = (
    "*coder_vsn",
    "lstm_*",
    "post_*_gan*",
    "static_enrichment_grn*",
    "multihead_attn*",
    "feed_forward_block*",
    "pre_output_gan*",
)

TRAININGS = (
    Training(
        "darts rnn, gaussian likelihood",
        fitted(
            RNNModel,
            model="LSTM",
            hidden_dim=20,
            input_chunk_length=24,
            training_length=36,
            likelihood=GaussianLikelihood(),
        ),
        states=("rnn",),
        targets="the next value at each step, by mean and deviation",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "darts tcn",
        fitted(TCNModel, input_chunk_length=24, output_chunk_length=12, num_filters=8, dropout=0.1),
        states=("res_blocks.[01]*", "res_blocks.2.conv1", "res_blocks.2.dropout1"),
        targets="the next 12 values of a shifted window",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "darts n-beats",
        fitted(
            NBEATSModel,
            input_chunk_length=24,
            output_chunk_length=12,
            generic_architecture=True,
            num_stacks=3,
            num_blocks=1,
            num_layers=2,
            layer_widths=32,
        ),
        states=("stacks.*.fc_stack.*", "stacks.*.activation", "stacks.*_linear_layer"),
        targets="the next 12 values",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "darts transformer",
        fitted(
            TransformerModel,
            input_chunk_length=24,
            output_chunk_length=12,
            d_model=16,
            nhead=4,
            num_encoder_layers=1,
            num_decoder_layers=1,
            dim_feedforward=32,
        ),
        states=("transformer*",),
        targets="the next 12 values",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "darts tft, quantiles",
        fitted(
            TFTModel,
            input_chunk_length=24,
            output_chunk_length=12,
            hidden_size=16,
            lstm_layers=1,
            num_attention_heads=4,
            add_relative_index=True,
            likelihood=QuantileRegression(quantiles=[0.1, 0.5, 0.9]),
        ),
        states=TFT,
        targets="the next 12 values, 3 quantiles each",
        modes=True,
        library=LIBRARY,
    ),
)
