"""Small data, the same at every call."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset


def source(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loader(*tensors: Tensor, batch_size: int = 32, shuffle: bool = True) -> DataLoader:
    return batched(TensorDataset(*tensors), batch_size=batch_size, shuffle=shuffle)


def batched(dataset: Dataset, *, batch_size: int = 32, shuffle: bool = True) -> DataLoader:
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=True)


def table(rows: int = 512, features: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Standardised columns, and the class of each row."""
    random = source()
    labels = torch.randint(classes, (rows,), generator=random)
    centres = torch.randn(classes, features, generator=random)
    return centres[labels] + torch.randn(rows, features, generator=random), labels


def curves(rows: int = 512, features: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs, and one noisy smooth value for each."""
    random = source()
    x = torch.rand(rows, features, generator=random) * 4 - 2
    y = torch.sin(2 * x).sum(1, keepdim=True)
    return x, y + 0.2 * torch.randn(rows, 1, generator=random)


def images(
    count: int = 512, channels: int = 1, size: int = 8, classes: int = 4
) -> tuple[Tensor, Tensor]:
    """Gratings in [0, 1], one orientation a class, in noise; and the classes."""
    random = source()
    labels = torch.randint(classes, (count,), generator=random)
    angle = math.pi * labels / classes
    phase = 2 * math.pi * torch.rand(count, channels, 1, 1, generator=random)
    axis = torch.linspace(-math.pi, math.pi, size)
    along = torch.cos(angle)[:, None, None] * axis[:, None] + torch.sin(angle)[:, None, None] * axis
    waves = 0.5 + 0.4 * torch.sin(2 * along[:, None] + phase)
    noise = 0.1 * torch.randn(count, channels, size, size, generator=random)
    return (waves + noise).clamp(0, 1), labels


def scenes(count: int = 256, size: int = 16) -> tuple[Tensor, Tensor]:
    """Pictures of three channels with a bright square and a dark one, and the mask of both."""
    random = source()
    pictures = torch.rand(count, 3, size, size, generator=random)
    masks = torch.zeros(count, size, size, dtype=torch.long)
    corners = torch.randint(0, size - 6, (count, 2, 2), generator=random)
    for picture, mask, places in zip(pictures, masks, corners.tolist(), strict=True):
        for kind, (row, column) in enumerate(places, start=1):
            mask[row : row + 5, column : column + 5] = kind
            picture[:, row : row + 5, column : column + 5] += 3.0 if kind == 1 else -3.0
    return pictures, masks


def waves(count: int = 256, length: int = 20, channels: int = 2) -> Tensor:
    """Sums of sinusoids, (count, length, channels)."""
    random = source()
    frequency = 0.2 + torch.rand(count, 1, channels, generator=random)
    phase = 6.28 * torch.rand(count, 1, channels, generator=random)
    time = torch.arange(length)[None, :, None]
    noise = 0.05 * torch.randn(count, length, channels, generator=random)
    return torch.sin(frequency * time + phase) + noise


def sentences(count: int = 256, length: int = 16, vocabulary: int = 24) -> Tensor:
    """Token ids that mostly count upwards, from 1 on."""
    random = source()
    start = torch.randint(vocabulary, (count, 1), generator=random)
    stride = torch.randint(1, 4, (count, 1), generator=random)
    return 1 + (start + stride * torch.arange(length)) % (vocabulary - 1)


def lengths(count: int, longest: int, shortest: int = 3) -> Tensor:
    return torch.randint(shortest, longest + 1, (count,), generator=source(11))
