"""Segmentation: a class or a probability for each pixel."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional

from outsiders.data import loader, scenes
from outsiders.training import Training, usual


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.down1, self.down2 = conv_block(in_channels, 8), conv_block(8, 16)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.fuse = conv_block(16, 8)
        self.head = nn.Conv2d(8, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        x = self.up(self.down2(self.pool(skip)))
        return self.head(self.fuse(torch.cat([skip, x], dim=1)))


class SemanticSegmentation(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(3, 3)
        self.iou = torchmetrics.JaccardIndex("multiclass", num_classes=3, ignore_index=255)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_nb: int) -> dict[str, Tensor]:
        img, mask = batch
        img, mask = img.float(), mask.long()
        out = self(img)
        loss_val = functional.cross_entropy(out, mask, ignore_index=255)
        self.iou.update(out.argmax(1), mask)
        self.log("train_loss", loss_val)
        return {"loss": loss_val}

    def on_train_epoch_end(self) -> None:
        self.log("train_iou", self.iou.compute())
        self.iou.reset()

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        opt = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=10)]


def streets() -> torch.utils.data.DataLoader:
    pictures, masks = scenes()
    masks[:, :2] = 255
    return loader(pictures, masks, batch_size=16)


class DiceSegmentation(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = UNet(3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)

    def dice_loss(self, logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
        probs = torch.sigmoid(logits)
        intersection = (probs * target).sum(dim=(1, 2, 3))
        union = probs.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3))
        return 1 - ((2.0 * intersection + smooth) / (union + smooth)).mean()

    def shared_step(self, batch: Any, stage: str) -> Tensor:
        image, mask = batch
        mask = (mask > 0).float().unsqueeze(1)
        loss = self.dice_loss(self.forward(image), mask)
        self.log(f"{stage}_loss", loss, prog_bar=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.shared_step(batch, "train")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


UNET = ("down[12]*", "pool", "up", "fuse*")

TRAININGS = (
    Training(
        "u-net",
        usual(lambda: (SemanticSegmentation(), streets()), max_steps=40),
        states=tuple(f"net.{path}" for path in UNET),
        targets="class of each pixel, 3, 255 does not count",
        modes=True,
    ),
    Training(
        "dice loss",
        usual(lambda: (DiceSegmentation(), loader(*scenes(), batch_size=16)), max_steps=40),
        states=tuple(f"model.{path}" for path in UNET),
        targets="a mask of 0 and 1, 1 logit a pixel",
        modes=True,
    ),
)
