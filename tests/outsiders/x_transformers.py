"""Transformers of x-transformers, whose wrappers give the loss."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from x_transformers import (
    AutoregressiveWrapper,
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
)

from outsiders.data import images, loader, sentences, waves
from outsiders.training import Training, usual

REQUIREMENTS = ("torch==2.13.0", "x-transformers==2.31.10")
LIBRARY = "x-transformers"


class LanguageModel(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = AutoregressiveWrapper(
            TransformerWrapper(
                num_tokens=24,
                max_seq_len=32,
                attn_layers=Decoder(
                    dim=32, depth=2, heads=2, attn_dim_head=16, rotary_pos_emb=True
                ),
            )
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (tokens,) = batch
        loss = self.model(tokens)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class ViT(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.vit = ViTransformerWrapper(
            image_size=8,
            patch_size=2,
            channels=1,
            num_classes=4,
            attn_layers=Encoder(dim=32, depth=2, heads=2, attn_dim_head=16),
        )

    def forward(self, img: Tensor) -> Tensor:
        return self.vit(img)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        img, label = batch
        loss = functional.cross_entropy(self(img), label)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Forecaster(pl.LightningModule):
    """Continuous values in and out, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ContinuousTransformerWrapper(
            dim_in=2,
            dim_out=2,
            max_seq_len=32,
            attn_layers=Decoder(dim=32, depth=1, heads=2, attn_dim_head=16),
        )
        self.loss_fn = nn.L1Loss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (series,) = batch
        past, future = series[:, :-1], series[:, 1:]
        mask = torch.ones(past.shape[:2], dtype=torch.bool, device=self.device)
        loss = self.loss_fn(self.model(past, mask=mask), future)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


TRAININGS = (
    Training(
        "autoregressive wrapper",
        usual(lambda: (LanguageModel(), loader(sentences())), max_steps=40),
        states=("model.net.attn_layers*",),
        targets="the next token, 24 classes, shifted inside the model",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "vision transformer",
        usual(lambda: (ViT(), loader(*images())), max_steps=40),
        states=("vit.attn_layers*",),
        targets="class labels, 4",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "continuous transformer",
        usual(lambda: (Forecaster(), loader(waves())), max_steps=40),
        states=("model.attn_layers*",),
        targets="the next value, 2 values",
        modes=True,
        library=LIBRARY,
    ),
)
