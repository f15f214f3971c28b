"""Contrastive, metric and self-distilling trainings, and a teacher with a student."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from outsiders.data import batched, images, loader, source, table
from outsiders.training import Training, usual


def encoder(width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, width),
    )


class TwoViews(Dataset):
    """Two crops of each image, drawn when it is read."""

    def __init__(self) -> None:
        self.images, self.labels = images(size=10)

    def __len__(self) -> int:
        return len(self.images)

    def view(self, image: Tensor) -> Tensor:
        row, column = torch.randint(0, 3, (2,)).tolist()
        return image[:, row : row + 8, column : column + 8] + 0.05 * torch.randn(1, 8, 8)

    def __getitem__(self, i: int) -> tuple[list[Tensor], Tensor]:
        image = self.images[i]
        return [self.view(image), self.view(image)], self.labels[i]


class SimCLR(pl.LightningModule):
    """InfoNCE as in Lightning's tutorial 13."""

    def __init__(self, hidden_dim: int = 32, temperature: float = 0.07) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.convnet = encoder(hidden_dim)
        self.convnet.append(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(hidden_dim, 16)))

    def info_nce_loss(self, batch: Any, mode: str = "train") -> Tensor:
        imgs, _ = batch
        imgs = torch.cat(imgs, dim=0)
        feats = self.convnet(imgs)
        cos_sim = functional.cosine_similarity(feats[:, None, :], feats[None, :, :], dim=-1)
        self_mask = torch.eye(cos_sim.shape[0], dtype=torch.bool, device=cos_sim.device)
        cos_sim.masked_fill_(self_mask, -9e15)
        pos_mask = self_mask.roll(shifts=cos_sim.shape[0] // 2, dims=0)
        cos_sim = cos_sim / self.hparams.temperature
        nll = (-cos_sim[pos_mask] + torch.logsumexp(cos_sim, dim=-1)).mean()
        self.log(mode + "_loss", nll)
        return nll

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.info_nce_loss(batch, mode="train")

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)]


class BYOL(pl.LightningModule):
    """A network predicts what its own moving average says."""

    def __init__(self, tau: float = 0.99) -> None:
        super().__init__()
        self.tau = tau
        self.online_network = encoder()
        self.predictor = nn.Sequential(
            nn.Linear(32, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 32)
        )
        self.target_network = copy.deepcopy(self.online_network)
        self.target_network.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.online_network(x)

    def calculate_loss(self, v_online: Tensor, v_target: Tensor) -> Tensor:
        prediction = self.predictor(self.online_network(v_online))
        with torch.no_grad():
            target = self.target_network(v_target)
        return 2 - 2 * functional.cosine_similarity(prediction, target.detach(), dim=-1).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (img1, img2), _ = batch
        loss = self.calculate_loss(img1, img2) + self.calculate_loss(img2, img1)
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        pairs = zip(self.online_network.parameters(), self.target_network.parameters(), strict=True)
        with torch.no_grad():
            for online, target in pairs:
                target.mul_(self.tau).add_(online, alpha=1 - self.tau)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [*self.online_network.parameters(), *self.predictor.parameters()]
        return torch.optim.Adam(trained, lr=1e-3)


class Triplets(Dataset):
    def __init__(self) -> None:
        self.images, self.labels = images()
        self.of = [torch.where(self.labels == label)[0] for label in range(4)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        label = int(self.labels[i])
        other = (label + 1 + int(torch.randint(3, ()))) % 4
        drawn = [self.of[c][torch.randint(len(self.of[c]), ())] for c in (label, other)]
        positive, negative = (self.images[j] for j in drawn)
        return {"anchor": self.images[i], "positive": positive, "negative": negative}


class Siamese(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_net = encoder(16)
        self.criterion = nn.TripletMarginLoss(margin=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.embedding_net(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        anchor, positive, negative = (self(batch[k]) for k in ("anchor", "positive", "negative"))
        loss = self.criterion(anchor, positive, negative)
        self.log("triplet_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class CosineClassifier(pl.LightningModule):
    """Cosines to class vectors, with a temperature that is learned."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16)
        )
        self.prototypes = nn.Parameter(torch.randn(classes, 16))
        self.log_temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        features = functional.normalize(self.encoder(x), dim=-1)
        cosines = features @ functional.normalize(self.prototypes, dim=-1).T
        return cosines * self.log_temperature.exp()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, labels = batch
        loss = functional.cross_entropy(self(x), labels)
        self.log_dict({"loss": loss, "temperature": self.log_temperature.exp()})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class CLIP(pl.LightningModule):
    """Two towers, symmetric cross-entropy over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = encoder(32)
        self.image_projection = nn.Linear(32, 16, bias=False)
        self.text_encoder = nn.Sequential(nn.EmbeddingBag(16, 32), nn.Linear(32, 32), nn.ReLU())
        self.text_projection = nn.Linear(32, 16, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, text = batch
        image_features = functional.normalize(
            self.image_projection(self.image_encoder(image)), dim=-1
        )
        text_features = functional.normalize(self.text_projection(self.text_encoder(text)), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        labels = torch.arange(len(logits), device=self.device)
        loss = (
            functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.t(), labels)
        ) / 2
        self.log("contrastive_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def captioned() -> DataLoader:
    pictures, labels = images()
    words = torch.randint(0, 4, (len(pictures), 3), generator=source())
    return loader(pictures, labels[:, None] * 4 + words)


class Distillation(pl.LightningModule):
    def __init__(self, teacher: nn.Module, T: float = 2.0, alpha: float = 0.5) -> None:
        super().__init__()
        self.teacher = teacher.eval()
        for param in self.teacher.parameters():
            param.requires_grad = False
        self.student = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
        self.T, self.alpha = T, alpha
        self.ce = nn.CrossEntropyLoss()
        self.kl = nn.KLDivLoss(reduction="batchmean")

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        with torch.no_grad():
            teacher_logits = self.teacher(inputs)
        student_logits = self.student(inputs)
        soft_targets = functional.softmax(teacher_logits / self.T, dim=-1)
        distill = (
            self.kl(functional.log_softmax(student_logits / self.T, dim=-1), soft_targets)
            * self.T**2
        )
        loss = self.alpha * distill + (1 - self.alpha) * self.ce(student_logits, labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.05)


def teacher() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4))


TRAININGS = (
    Training(
        "simclr",
        usual(lambda: (SimCLR(), batched(TwoViews()))),
        states=("convnet.[0-5]", "convnet.6.0"),
        targets="none: contrastive",
        modes=False,
    ),
    Training(
        "byol",
        usual(lambda: (BYOL(), batched(TwoViews()))),
        states=("online_network*", "predictor.[0-2]"),
        targets="none: the moving average's own features",
        modes=False,
    ),
    Training(
        "triplet loss",
        usual(lambda: (Siamese(), batched(Triplets()))),
        states=("embedding_net.[0-4]",),
        targets="none: distances of triplets",
        modes=False,
    ),
    Training(
        "cosine classifier",
        usual(lambda: (CosineClassifier(), loader(*table()))),
        states=("encoder*",),
        targets="class labels, 4",
        modes=True,
    ),
    Training(
        "clip",
        usual(lambda: (CLIP(), captioned())),
        states=("image_encoder*", "text_encoder.[12]"),
        targets="none: contrastive, over the batch",
        modes=False,
    ),
    Training(
        "distillation",
        usual(lambda: (Distillation(teacher(), alpha=0.3), loader(*table()))),
        states=("student.[01]",),
        targets="class labels, 4, and the teacher's probabilities",
        modes=True,
    ),
)
