"""A model of the pytorch-forecasting package in its own Trainer, watched by NTKMonitor.

    pip install pytorch-forecasting
    python examples/forecasting.py
    tensorboard --logdir runs

Nothing about the model, its data set or its batches is told to the monitor: it is one more
callback.
"""

from __future__ import annotations

import argparse

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from ntk_monitor import NTKMonitor


def train(steps: int, folder: str = "runs") -> NTKMonitor:
    """Train a recurrent network to forecast noisy waves.

    Args:
        steps: How many optimizer steps to make.
        folder: Where TensorBoard's logs go.

    Returns:
        The monitor, with the last snapshot.
    """
    import pandas as pd  # noqa: PLC0415 (comes with pytorch-forecasting)
    from pytorch_forecasting import RecurrentNetwork, TimeSeriesDataSet  # noqa: PLC0415

    seed_everything(0)
    time = np.arange(120)
    series = [
        pd.DataFrame({
            "time": time,
            "series": str(i),
            "value": np.sin(0.1 * (i + 1) * time) + 0.1 * np.random.default_rng(i).normal(size=120),
        })
        for i in range(8)
    ]
    data = TimeSeriesDataSet(
        pd.concat(series, ignore_index=True),
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=24,
        max_prediction_length=8,
        time_varying_unknown_reals=["value"],
    )
    model = RecurrentNetwork.from_dataset(data, hidden_size=32, rnn_layers=2, dropout=0.1)
    monitor = NTKMonitor(every_n_steps=50, max_overhead=None, max_products=48)
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="forecasting"),
        callbacks=[monitor],
        gradient_clip_val=0.1,
    )
    trainer.fit(model, data.to_dataloader(train=True, batch_size=32, num_workers=0))
    return monitor


def main() -> None:
    """Train for some steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    train(parser.parse_args().steps)


if __name__ == "__main__":
    main()
