"""Batches of every kind: dictionaries, records, classes of one's own, several at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from outsiders.data import batched, curves, loader, source, table
from outsiders.training import Training, usual


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class MultiTask(pl.LightningModule):
    """Two heads on one trunk, and a weighted sum of losses."""

    def __init__(self, weights: tuple[float, float] = (1.0, 0.5)) -> None:
        super().__init__()
        self.weights = weights
        self.trunk = nn.Sequential(
            nn.Linear(12, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU()
        )
        self.heads = nn.ModuleDict({"species": nn.Linear(24, 4), "mass": nn.Linear(24, 1)})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        shared = self.trunk(features)
        return {name: head(shared) for name, head in self.heads.items()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        out = self(batch["features"])
        losses = {
            "species": functional.cross_entropy(out["species"], batch["species"]),
            "mass": functional.mse_loss(out["mass"].squeeze(-1), batch["mass"]),
        }
        self.log_dict({f"loss/{name}": loss for name, loss in losses.items()})
        total = sum(w * loss for w, loss in zip(self.weights, losses.values(), strict=True))
        return {"loss": total}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Animals(Dataset):
    def __init__(self) -> None:
        self.features, self.species = table()

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.features[i]
        return {
            "id": f"animal-{i}",
            "features": row,
            "species": self.species[i],
            "mass": row[:3].sin().sum(),
        }


@dataclass
class Sample:
    x: Tensor
    y: Tensor
    name: str


def collate(samples: list[Sample]) -> Sample:
    x, y = (torch.stack([getattr(s, key) for s in samples]) for key in "xy")
    return Sample(x, y, ",".join(s.name for s in samples))


class OnDataclass(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(3, 32), nn.ELU(), nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 1)
        )

    def forward(self, sample: Sample) -> Tensor:
        return self.model(sample.x)

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss = (self(batch) - batch.y).abs().mean()
        self.log("mae", loss, batch_size=len(batch.x))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def samples() -> DataLoader:
    rows = zip(*curves(), strict=True)
    records = [Sample(x, y, f"row {i}") for i, (x, y) in enumerate(rows)]
    return DataLoader(records, batch_size=32, shuffle=True, collate_fn=collate)


class Ratings(NamedTuple):
    users: Tensor
    items: Tensor
    rating: Tensor


class MatrixFactorization(pl.LightningModule):
    """Embeddings and their products: no layer in between."""

    def __init__(self, n_users: int = 40, n_items: int = 30, dim: int = 8) -> None:
        super().__init__()
        self.user_factors = nn.Embedding(n_users, dim)
        self.item_factors = nn.Embedding(n_items, dim)
        self.mlp = mlp(2 * dim, 16, 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        u, v = self.user_factors(users), self.item_factors(items)
        return (u * v).sum(1) + self.mlp(torch.cat([u, v], dim=1)).squeeze(1)

    def training_step(self, batch: Ratings, batch_idx: int) -> Tensor:
        predicted = self(batch.users, batch.items)
        loss = functional.mse_loss(predicted, batch.rating)
        self.log("train_mse", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-5)


def ratings() -> DataLoader:
    random = source()
    users = torch.randint(40, (1024,), generator=random)
    items = torch.randint(30, (1024,), generator=random)
    tastes, kinds = (torch.randn(count, 3, generator=random) for count in (40, 30))
    values = (tastes[users] * kinds[items]).sum(1)
    rows = [Ratings(*row) for row in zip(users, items, values, strict=True)]
    return DataLoader(rows, batch_size=64, shuffle=True)


class MeanTeacher(pl.LightningModule):
    """A labelled and an unlabelled loader at once."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.2))
        self.classifier = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x, y = batch["labeled"]
        (u,) = batch["unlabeled"]
        supervised = functional.cross_entropy(self(x), y)
        p1, p2 = self(u).softmax(-1), self(u + 0.1 * torch.randn_like(u)).softmax(-1)
        consistency = functional.mse_loss(p2, p1.detach())
        self.log_dict({"supervised": supervised, "consistency": consistency}, batch_size=len(x))
        return supervised + 2.0 * consistency

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def both() -> CombinedLoader:
    x, y = table()
    loaders = {"labeled": loader(x[:128], y[:128], batch_size=16), "unlabeled": loader(x[128:])}
    return CombinedLoader(loaders, mode="max_size_cycle")


class ModelWrapper(pl.LightningModule):
    """Forward takes the batch and gives the loss and the outputs."""

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        outputs = self.model(inputs)
        return self.criterion(outputs, targets), outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, _ = self(batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=1e-3)


class CurvesDataModule(pl.LightningDataModule):
    def setup(self, stage: str | None = None) -> None:
        whole = TensorDataset(*curves())
        self.train, self.val = random_split(whole, [448, 64])

    def train_dataloader(self) -> DataLoader:
        return batched(self.train)

    def val_dataloader(self) -> DataLoader:
        return batched(self.val, shuffle=False)


TRAININGS = (
    Training(
        "two heads, dict batch",
        usual(lambda: (MultiTask(), batched(Animals()))),
        states=("trunk*",),
        targets="class labels, 4, and 1 value",
        modes=True,
    ),
    Training(
        "dataclass batch",
        usual(lambda: (OnDataclass(), samples())),
        states=("model.[0-3]",),
        targets="y, 1 value",
        modes=True,
    ),
    Training(
        "named tuple batch",
        usual(lambda: (MatrixFactorization(), ratings())),
        states=("mlp.[01]",),
        targets="ratings, 1 value",
        modes=True,
    ),
    Training(
        "labelled and unlabelled",
        usual(lambda: (MeanTeacher(), both())),
        states=("backbone*",),
        targets="class labels, 4, and the model's own probabilities",
        modes=True,
    ),
    Training(
        "forward takes the batch",
        usual(lambda: (ModelWrapper(mlp(3, 32, 1), nn.MSELoss()), CurvesDataModule())),
        states=("model.[01]",),
        targets="y, 1 value",
        modes=True,
    ),
)
