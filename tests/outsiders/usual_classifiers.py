"""Classification of tables and images."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelF1Score

from outsiders.data import images, loader, table
from outsiders.training import Training, usual


class ChurnClassifier(pl.LightningModule):
    def __init__(self, in_features: int = 12, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(in_features, 32),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(32, 16),
            nn.ReLU(),
            nn.Linear(16, 1),
        )
        self.loss_fn = nn.BCEWithLogitsLoss()
        self.train_acc = BinaryAccuracy()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x).squeeze(1)
        loss = self.loss_fn(logits, y.float())
        self.train_acc(torch.sigmoid(logits), y)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def backbone(channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv_block(channels, 8),
        nn.MaxPool2d(2),
        conv_block(8, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class TagModel(pl.LightningModule):
    """Several tags an image, with probabilities as outputs."""

    def __init__(self, n_tags: int = 4) -> None:
        super().__init__()
        self.features = backbone()
        self.classifier = nn.Sequential(nn.Linear(16, n_tags), nn.Sigmoid())
        self.criterion = nn.BCELoss()
        self.f1 = MultilabelF1Score(n_tags)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        images, tags = batch["image"], batch["tags"]
        probs = self(images)
        loss = self.criterion(probs, tags)
        self.f1(probs, tags.int())
        self.log("train_f1", self.f1, on_epoch=True)
        return {"loss": loss, "preds": probs.detach()}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        }


def tagged() -> torch.utils.data.DataLoader:
    x, y = images()
    tags = functional.one_hot(y, 4) + functional.one_hot((y + 1) % 4, 4)
    rows = [{"image": image, "tags": tag} for image, tag in zip(x, tags.float(), strict=True)]
    return torch.utils.data.DataLoader(rows, batch_size=32, shuffle=True)


class FineTuned(pl.LightningModule):
    """The finetuning scheduler of Lightning's computer vision tutorial."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = backbone()
        self.head = nn.Linear(16, 4)
        self.train_acc = MulticlassAccuracy(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        y_logits = self.forward(x)
        train_loss = functional.cross_entropy(y_logits, y)
        self.log("train_acc", self.train_acc(y_logits, y), prog_bar=True)
        return train_loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trainable = filter(lambda p: p.requires_grad, self.parameters())
        return torch.optim.Adam(trainable, lr=1e-3)


class FrozenBackbone(pl.LightningModule):
    """Transfer learning with the features computed under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = backbone()
        self.feature_extractor.requires_grad_(False)
        self.classifier = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.feature_extractor.eval()
        with torch.no_grad():
            representations = self.feature_extractor(x).flatten(1)
        return self.classifier(representations)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.classifier.parameters(), lr=1e-3)


class WeightedClassifier(pl.LightningModule):
    """Class weights and label smoothing in a criterion that the module holds."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3)
        self.fc1, self.fc2 = nn.Linear(16 * 3 * 3, 32), nn.Linear(32, len(weights))
        self.criterion = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.dropout(torch.flatten(x, 1), 0.25, self.training)
        return self.fc2(functional.relu(self.fc1(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        loss = self.criterion(outputs, targets)
        acc = (outputs.argmax(dim=1) == targets).float().mean()
        self.log_dict({"train/loss": loss, "train/acc": acc}, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)


class Mixup(pl.LightningModule):
    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        self.alpha = alpha
        self.model = nn.Sequential(backbone(), nn.Linear(16, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        lam = torch.distributions.Beta(self.alpha, self.alpha).sample()
        index = torch.randperm(x.size(0))
        mixed = lam * x + (1 - lam) * x[index]
        y = functional.one_hot(y, 4).float()
        soft = lam * y + (1 - lam) * y[index]
        log_probs = functional.log_softmax(self.model(mixed), dim=1)
        loss = -(soft * log_probs).sum(dim=1).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)


CONVOLUTIONS = ("{0}", "{0}.[0-4]", "{0}.[02].*")


def within(path: str) -> tuple[str, ...]:
    return tuple(pattern.format(path) for pattern in CONVOLUTIONS)


TRAININGS = (
    Training(
        "binary, one logit",
        usual(lambda: (ChurnClassifier(), loader(*table(classes=2)))),
        states=("net.[0-4]",),
        targets="class labels, 1 logit",
        modes=True,
    ),
    Training(
        "multi-label",
        usual(lambda: (TagModel(), tagged())),
        states=within("features"),
        targets="4 tags of 0 or 1, for 4 probabilities",
        modes=True,
    ),
    Training(
        "backbone finetuning",
        usual(
            lambda: (FineTuned(), loader(*images(256))),
            lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=3)],
        ),
        states=within("backbone"),
        targets="class labels, 4",
        modes=True,
    ),
    Training(
        "frozen backbone",
        usual(lambda: (FrozenBackbone(), loader(*images()))),
        states=("classifier.[01]",),
        targets="class labels, 4",
        modes=True,
    ),
    Training(
        "class weights and smoothing",
        usual(
            lambda: (WeightedClassifier(torch.tensor([1.0, 2.0, 0.5, 1.0])), loader(*images())),
        ),
        states=("conv[12]", "fc1"),
        targets="class labels, 4",
        modes=True,
    ),
    Training(
        "mixup",
        usual(lambda: (Mixup(), loader(*images()))),
        states=within("model.0"),
        targets="mixtures of 4 classes that the step draws",
        modes=True,
    ),
)
