"""Encoders of event sequences, pytorch-lifestream."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from ptls.data_load.datasets import MemoryMapDataset
from ptls.frames import PtlsDataModule
from ptls.frames.coles import ColesDataset, CoLESModule
from ptls.frames.coles.split_strategy import SampleSlices
from ptls.frames.supervised import SeqToTargetDataset, SequenceToTarget
from ptls.nn import Head, RnnSeqEncoder, TrxEncoder
from pytorch_lightning import Callback, Trainer
from torchmetrics import Accuracy

from outsiders.training import Fit, Fitted, Training, quiet

REQUIREMENTS = ("torch==2.13.0", "pytorch-lifestream==0.7.0")
CONSTRAINED = False  # constraints.txt has versions that it cannot take
LIBRARY = "pytorch-lifestream"


def clients() -> MemoryMapDataset:
    """Payments of clients of two kinds."""
    random = np.random.default_rng(3)
    records = []
    for client in range(160):
        kind, count = client % 2, int(random.integers(20, 40))
        codes = random.integers(1, 6, count) + 4 * kind
        amounts = random.standard_normal(count) + kind
        records.append({
            "client": client,
            "target": kind,
            "event_time": torch.arange(count),
            "mcc_code": torch.from_numpy(codes),
            "amount": torch.from_numpy(amounts).float(),
        })
    return MemoryMapDataset(records)


def encoder() -> RnnSeqEncoder:
    return RnnSeqEncoder(
        trx_encoder=TrxEncoder(
            embeddings={"mcc_code": {"in": 12, "out": 8}},
            numeric_values={"amount": "identity"},
        ),
        hidden_size=24,
        type="gru",
    )


def optimizers() -> dict[str, Any]:
    return {
        "optimizer_partial": partial(torch.optim.Adam, lr=1e-3),
        "lr_scheduler_partial": partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.9),
    }


def coles() -> tuple[Any, Any]:
    data = ColesDataset(clients(), SampleSlices(split_count=4, cnt_min=5, cnt_max=15))
    return CoLESModule(seq_encoder=encoder(), **optimizers()), data


def supervised() -> tuple[Any, Any]:
    data = SeqToTargetDataset(clients(), target_col_name="target", target_dtype="long")
    module = SequenceToTarget(
        seq_encoder=encoder(),
        head=Head(input_size=24, objective="classification", num_classes=2),
        loss=torch.nn.NLLLoss(),
        metric_list={"accuracy": Accuracy(task="multiclass", num_classes=2)},
        **optimizers(),
    )
    return module, data


def fitted(make: Any) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        module, data = make()
        datamodule = PtlsDataModule(train_data=data, train_num_workers=0, train_batch_size=16)
        trainer = Trainer(callbacks=callbacks, **quiet(max_steps=40, limit_val_batches=0))
        trainer.fit(module, datamodule)
        return Fitted(trainer, module)

    return fit


TRAININGS = (
    Training(
        "coles",
        fitted(coles),
        states=("_seq_encoder", "_seq_encoder.seq_encoder*"),
        targets="none: contrastive",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "sequence to target",
        fitted(supervised),
        states=("seq_encoder", "seq_encoder.seq_encoder*"),
        targets="class labels, 2",
        modes=True,
        library=LIBRARY,
    ),
)
