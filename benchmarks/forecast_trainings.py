"""Small trainings of many kinds, for `forecast.py`: 24 tasks, twelve a loss, on six architectures.

Each task is trained with an optimizer like SGD and with one like Adam, some with a third; full
batches, mini-batches from a finite set and mini-batches that are new every time take turns. Every
other task belongs to the half on which choices are made, the rest to the half that is reported;
which is which was fixed before there was a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Batch = tuple[Tensor, Tensor]
Half = Literal["choice", "report"]
LossKind = Literal["MSE", "CE"]
Data = Literal["full", "finite", "fresh"]
Draw = Callable[[int, torch.Generator], Batch]
Rate = Callable[[float], float]
"""What the learning rate is multiplied with, by the share of the training that is done."""
SET, BATCH = 512, 64
"""Size of a finite set, and of a mini-batch."""
FULL = 128
"""Size of a full batch."""
LENGTH = 16
"""Of most sequences."""


@dataclass
class Training:
    """One training.

    Attributes:
        name: Task, optimizer and data.
        half: Whether choices may be made on it, or results are reported on it.
        model: The model, in training mode.
        optimizer: Its optimizer.
        scheduler: Stepped after every step; None for a constant rate.
        clip_norm: Norm to which gradients are clipped, or None.
        batch: Draws the next batch to train on.
        loss: Of a model and a batch.
        evaluation: A training batch; with full batches the batch itself.
        second: Another training batch; None with full batches.
        steps: How many steps.
        state: The state to probe.
        loss_kind: Which loss.
        data: Where batches come from.
        kept: What is made once for the training.
    """

    name: str
    half: Half
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    clip_norm: float | None
    batch: Callable[[], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluation: Batch
    second: Batch | None
    steps: int
    state: str
    loss_kind: LossKind
    data: Data
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """What the optimizer is like."""
        return "SGD" if isinstance(self.optimizer, SGD) else "Adam"

    def has(self, kind: type[nn.Module]) -> bool:
        """Whether the model has an active module of a kind."""
        found = (module for module in self.model.modules() if isinstance(module, kind))
        return any(getattr(module, "p", 1.0) > 0 for module in found)

    def step(self) -> float:
        """Train on one batch; the loss before it."""
        return descend(self, self.model, self.optimizer, self.batch(), self.scheduler)


def descend(
    training: Training,
    model: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    scheduler: LRScheduler | None = None,
) -> float:
    """One step of a training, of its own model or of a copy; the loss before it."""
    loss = training.loss(model, batch)
    optimizer.zero_grad()
    loss.backward()
    if training.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return float(loss.detach())


def squared(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error."""
    return mse_loss(model(batch[0]), batch[1])


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, classes on the last axis of the outputs."""
    return cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


# Models


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> nn.Module:
    """Fully connected layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (n, m) in enumerate(pairwise(sizes)):
        if i:
            layers += [activation(), *([nn.Dropout(dropout)] if dropout else [])]
        layers.append(nn.Linear(n, m))
    return nn.Sequential(*layers)


class Recurrent(nn.Module):
    """A recurrent layer with a readout at every step, or at the last."""

    def __init__(
        self, cell: type[nn.RNNBase], inputs: int, units: int, outputs: int, *, last: bool = False
    ) -> None:
        """Batch first."""
        super().__init__()
        self.rnn = cell(inputs, units, batch_first=True)  # type: ignore[call-arg]
        self.readout = nn.Linear(units, outputs)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """Outputs."""
        states = self.rnn(x)[0]
        return self.readout(states[:, -1] if self.last else states)


def cnn(outputs: int, *, norm: bool = False, dropout: float = 0.0) -> nn.Module:
    """Two convolutions on images of 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), *([nn.BatchNorm2d(12)] if norm else []), nn.ReLU(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1), *([nn.BatchNorm2d(12)] if norm else []),
        nn.ReLU(), nn.Flatten(), *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(192, outputs),
    )  # fmt: skip


class Transformer(nn.Module):
    """One layer, with a readout at every token, or at the last."""

    def __init__(
        self, embed: nn.Module, length: int, outputs: int, *, last: bool = False, p: float = 0.0
    ) -> None:
        """24 features, two heads."""
        super().__init__()
        self.embed = embed
        self.place = nn.Parameter(0.1 * torch.randn(length, 24))
        self.body = nn.TransformerEncoderLayer(24, 2, 48, dropout=p, batch_first=True)
        self.readout = nn.Linear(24, outputs)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """Outputs."""
        states = self.body(self.embed(x) + self.place)
        return self.readout(states[:, -1] if self.last else states)


# Tasks with values


def smooth(count: int, g: torch.Generator) -> Batch:
    """Four outputs of a random network with tanh, of quite different sizes."""
    fixed = torch.Generator().manual_seed(1)
    W, V = torch.randn(8, 16, generator=fixed) / 3, torch.randn(16, 4, generator=fixed) / 4
    x = torch.randn(count, 8, generator=g)
    return x, torch.tanh(x @ W) @ V * torch.tensor([3.0, 1.5, 0.8, 0.4])


def lower_half(count: int, g: torch.Generator) -> Batch:
    """The lower half of a handwritten digit from the upper."""
    images, _ = digits(count, g)
    return images[:, :, :4].flatten(1), images[:, 0, 4:].flatten(1)


def leaky_sum(count: int, g: torch.Generator) -> Batch:
    """Leaky sums of three inputs, one slower than the other."""
    x = torch.randn(count, LENGTH, 3, generator=g)
    sums, decay = [torch.zeros(count, 3)], torch.tensor([0.9, 0.7, 0.4])
    for t in range(LENGTH):
        sums.append(decay * sums[-1] + x[:, t])
    return x, torch.stack(sums[1:], 1)


def delayed(delay: int) -> Draw:
    """Two inputs, some steps later."""

    def draw(count: int, g: torch.Generator) -> Batch:
        x = torch.randn(count, LENGTH, 2, generator=g)
        return x, nn.functional.pad(x, (0, 0, delay, 0))[:, :LENGTH]

    return draw


def sine(count: int, g: torch.Generator) -> Batch:
    """A sine and a cosine of the frequency that is given."""
    frequency = 0.2 + 0.6 * torch.rand(count, 1, 1, generator=g)
    phase = frequency * torch.arange(24.0)[:, None]
    return frequency.expand(-1, 24, -1), torch.cat([phase.sin(), phase.cos()], -1)


def adding(count: int, g: torch.Generator) -> Batch:
    """The sum of the two numbers that are marked."""
    numbers = torch.rand(count, LENGTH, generator=g)
    places = torch.rand(count, LENGTH, generator=g).topk(2, 1).indices
    marks = torch.zeros(count, LENGTH).scatter(1, places, 1.0)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(1, keepdim=True)


def bump(count: int, g: torch.Generator) -> Batch:
    """Where a bump lies in a noisy image."""
    place = 6 * torch.rand(count, 2, generator=g)
    grid = torch.arange(8.0)
    rows, columns = ((grid - place[:, i, None]).square().div(-2).exp() for i in (0, 1))
    noise = 0.1 * torch.randn(count, 1, 8, 8, generator=g)
    return (rows[:, :, None] * columns[:, None])[:, None] + noise, place / 3 - 1


def shape(count: int, g: torch.Generator) -> Batch:
    """Ink, centre of mass and spread of a handwritten digit."""
    images, _ = digits(count, g)
    grid, ink = torch.arange(8.0) - 3.5, images.sum((1, 2, 3))
    rows, columns = images.sum((1, 3)), images.sum((1, 2))
    values = [ink / 20, rows @ grid / ink, columns @ grid / ink, columns @ grid.square() / ink / 4]
    return images, torch.stack(values, 1)


def lookup(count: int, g: torch.Generator) -> Batch:
    """At every step, the value that stands at the place of the largest key."""
    x = torch.randn(count, 10, 3, generator=g)
    best = x[..., 0].argmax(1)
    return x, x[torch.arange(count), best, 1:].unsqueeze(1).expand(-1, 10, -1)


def running_mean(count: int, g: torch.Generator) -> Batch:
    """Means over all steps, of the inputs and of their squares."""
    x = torch.randn(count, 10, 2, generator=g)
    means = torch.cat([x.mean(1), x.square().mean(1) - 1], -1)
    return x, 2 * means.unsqueeze(1).expand(-1, 10, -1)


# Tasks with classes

_DIGITS: list[Tensor] = []


def digits(count: int, g: torch.Generator) -> Batch:
    """Handwritten digits, with noise of their own."""
    if not _DIGITS:
        from sklearn.datasets import load_digits  # noqa: PLC0415

        x, y = load_digits(return_X_y=True)
        _DIGITS.extend((torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16,))
        _DIGITS.append(torch.tensor(y))
    chosen = torch.randint(len(_DIGITS[1]), (count,), generator=g)
    images = _DIGITS[0][chosen]
    return images + 0.1 * torch.randn(images.shape, generator=g), _DIGITS[1][chosen]


def digit_rows(count: int, g: torch.Generator) -> Batch:
    """Handwritten digits, row after row."""
    x, y = digits(count, g)
    return x[:, 0], y


def rings(count: int, g: torch.Generator) -> Batch:
    """Three rings in the plane."""
    y = torch.randint(3, (count,), generator=g)
    radius = 0.6 + 0.7 * y + 0.1 * torch.randn(count, generator=g)
    angle = 2 * math.pi * torch.rand(count, generator=g)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


def sign_of_sum(count: int, g: torch.Generator) -> Batch:
    """In which third a sum of inputs lies."""
    x = torch.randn(count, LENGTH, 1, generator=g)
    total = x.sum((1, 2)) / math.sqrt(LENGTH)
    return x, (total > -0.43).long() + (total > 0.43)


def tokens_back(delay: int) -> Draw:
    """Which of five tokens came some steps ago; the first before there was one."""

    def draw(count: int, g: torch.Generator) -> Batch:
        x = torch.randint(5, (count, LENGTH), generator=g)
        return one_hot(x, 5).float(), nn.functional.pad(x, (delay, 0))[:, :LENGTH]

    return draw


def match(count: int, g: torch.Generator) -> Batch:
    """Whether the last of four cues is the first, with noise in between."""
    first, last = (torch.randint(4, (count,), generator=g) for _ in range(2))
    last = last.where(torch.rand(count, generator=g) < 0.5, first)
    x = 0.3 * torch.randn(count, 8, 4, generator=g)
    x[:, 0] += one_hot(first, 4)
    x[:, -1] += one_hot(last, 4)
    return x, (first == last).long()


def most_frequent(count: int, g: torch.Generator) -> Batch:
    """Which of four tokens comes most often; the first of those that do."""
    x = torch.randint(4, (count, LENGTH), generator=g)
    return one_hot(x, 4).float(), one_hot(x, 4).sum(1).argmax(1)


def bars(count: int, g: torch.Generator) -> Batch:
    """In which of four directions the bars of a noisy image lie."""
    y = torch.randint(4, (count,), generator=g)
    angle, phase = math.pi * y / 4, 2 * math.pi * torch.rand(count, generator=g)
    grid = torch.arange(8.0)
    along = angle.cos()[:, None, None] * grid + angle.sin()[:, None, None] * grid[:, None]
    images = (1.5 * along + phase[:, None, None]).cos()[:, None]
    return images + 0.5 * torch.randn(images.shape, generator=g), y


def backwards(count: int, g: torch.Generator) -> Batch:
    """Tokens from the last to the first."""
    x = torch.randint(6, (count, 10), generator=g)
    return x, x.flip(1)


def recall(count: int, g: torch.Generator) -> Batch:
    """The token that followed the cue, which comes again at the end."""
    keys = torch.rand(count, 4, generator=g).argsort(1)
    values = 4 + torch.randint(4, (count, 4), generator=g)
    chosen = torch.randint(4, (count, 1), generator=g)
    pairs = torch.stack([keys, values], 2).flatten(1)
    return torch.cat([pairs, keys.gather(1, chosen)], 1), values.gather(1, chosen)[:, 0] - 4


# Optimizers and rates

Make = Callable[[Any], Optimizer]


def sgd(lr: float) -> Make:
    """Plain."""
    return lambda p: SGD(p, lr=lr)


def momentum(lr: float) -> Make:
    """With momentum 0.9."""
    return lambda p: SGD(p, lr=lr, momentum=0.9)


def adam(lr: float) -> Make:
    """With its own settings."""
    return lambda p: Adam(p, lr=lr)


def adamw(lr: float, decay: float = 0.1) -> Make:
    """With weight decay."""
    return lambda p: AdamW(p, lr=lr, weight_decay=decay)


def warmup_cosine(done: float) -> float:
    """Up for a tenth of the training, then down to zero."""
    return (done + 1e-3) / 0.1 if done < 0.1 else 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def cosine(done: float) -> float:
    """Down to zero."""
    return 0.5 * (1 + math.cos(math.pi * done))


def cut(done: float) -> float:
    """A hundredth, after a tenth of the training: too early."""
    return 0.01 if done >= 0.1 else 1.0


@dataclass(frozen=True)
class Run:
    """One way to train on a task."""

    optimizer: str
    make: Make
    data: Data
    steps: int
    rate: Rate | None = None
    clip: float | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class Task:
    """Data, a model for it, and ways to train it."""

    name: str
    loss: LossKind
    draw: Draw
    model: Callable[[float], nn.Module]
    """Of the dropout."""
    runs: tuple[Run, ...]


TASKS = (
    Task("MLP, smooth function", "MSE", smooth, lambda p: mlp(8, 48, 48, 4, dropout=p), (
        Run("SGD", sgd(0.2), "full", 1000),
        Run("Adam", adam(2e-3), "finite", 800),
        Run("SGD, rate cut early", sgd(0.1), "fresh", 1000, cut),
    )),
    Task("MLP, lower half of digits", "MSE", lower_half, lambda p: mlp(32, 64, 32, dropout=p), (
        Run("momentum", momentum(0.3), "finite", 1200),
        Run("AdamW", adamw(3e-3), "full", 600),
        Run("AdamW, dropout", adamw(3e-3), "fresh", 1000, dropout=0.2),
    )),
    Task("MLP, digits", "CE", digits, lambda p: mlp(64, 48, 10, activation=nn.Tanh, dropout=p), (
        Run("momentum", momentum(0.03), "fresh", 500),
        Run("Adam", adam(1e-3), "full", 400),
        Run("SGD, dropout", sgd(0.1), "finite", 1000, dropout=0.3),
    )),
    Task("MLP, rings", "CE", rings, lambda _: mlp(2, 32, 32, 3), (
        Run("SGD", sgd(0.2), "full", 1500),
        Run("AdamW, warm-up and cosine", adamw(3e-3), "fresh", 800, warmup_cosine),
    )),
    Task("RNN, leaky sum", "MSE", leaky_sum, lambda _: Recurrent(nn.RNN, 3, 48, 3), (
        Run("SGD", sgd(0.1), "finite", 800),
        Run("Adam", adam(2e-3), "fresh", 600),
    )),
    Task("RNN, delay of 3", "MSE", delayed(3), lambda _: Recurrent(nn.RNN, 2, 48, 2), (
        Run("momentum, clipped", momentum(0.05), "fresh", 900, clip=0.5),
        Run("AdamW", adamw(2e-3, 0.01), "full", 700),
    )),
    Task("RNN, thirds of a sum", "CE", sign_of_sum,
         lambda _: Recurrent(nn.RNN, 1, 32, 3, last=True), (
        Run("momentum", momentum(0.03), "full", 600),
        Run("Adam", adam(1e-3), "finite", 600),
    )),
    Task("RNN, token 2 back", "CE", tokens_back(2), lambda _: Recurrent(nn.RNN, 5, 48, 5), (
        Run("SGD", sgd(0.3), "finite", 1000),
        Run("AdamW, cosine", adamw(3e-3), "full", 500, cosine),
    )),
    Task("GRU, sine", "MSE", sine, lambda _: Recurrent(nn.GRU, 1, 32, 2), (
        Run("momentum", momentum(0.1), "full", 600),
        Run("Adam", adam(5e-3), "fresh", 600),
    )),
    Task("GRU, leaky sum", "MSE", leaky_sum, lambda _: Recurrent(nn.GRU, 3, 32, 3), (
        Run("SGD", sgd(0.3), "fresh", 600),
        Run("AdamW", adamw(3e-3), "finite", 600),
        Run("SGD, slow", sgd(0.003), "full", 500),
    )),
    Task("GRU, match", "CE", match, lambda _: Recurrent(nn.GRU, 4, 32, 2, last=True), (
        Run("SGD", sgd(0.3), "finite", 1000),
        Run("Adam", adam(3e-3), "full", 500),
    )),
    Task("GRU, digits by row", "CE", digit_rows,
         lambda _: Recurrent(nn.GRU, 8, 32, 10, last=True), (
        Run("momentum, cosine", momentum(0.1), "fresh", 700, cosine),
        Run("AdamW", adamw(3e-3), "finite", 600),
    )),
    Task("LSTM, adding", "MSE", adding, lambda _: Recurrent(nn.LSTM, 2, 32, 1, last=True), (
        Run("momentum", momentum(0.1), "fresh", 1000),
        Run("Adam, clipped", adam(5e-3), "full", 600, clip=0.1),
    )),
    Task("LSTM, delay of 6", "MSE", delayed(6), lambda _: Recurrent(nn.LSTM, 2, 32, 2), (
        Run("SGD", sgd(0.3), "full", 500),
        Run("AdamW", adamw(5e-3, 0.01), "fresh", 800),
    )),
    Task("LSTM, most frequent token", "CE", most_frequent,
         lambda _: Recurrent(nn.LSTM, 4, 32, 4, last=True), (
        Run("SGD", sgd(0.5), "fresh", 800),
        Run("Adam, warm-up and cosine", adam(1e-2), "finite", 600, warmup_cosine),
    )),
    Task("LSTM, digits by row", "CE", digit_rows,
         lambda _: Recurrent(nn.LSTM, 8, 32, 10, last=True), (
        Run("momentum", momentum(0.1), "full", 500),
        Run("AdamW", adamw(5e-3), "fresh", 500),
    )),
    Task("CNN, place of a bump", "MSE", bump, lambda _: cnn(2), (
        Run("SGD", sgd(0.05), "finite", 800),
        Run("Adam", adam(1e-3), "full", 400),
        Run("momentum, clipped", momentum(0.02), "fresh", 600, clip=0.005),
    )),
    Task("CNN with BatchNorm, shape of digits", "MSE", shape, lambda _: cnn(4, norm=True), (
        Run("momentum", momentum(0.01), "full", 300),
        Run("AdamW, warm-up and cosine", adamw(3e-3), "finite", 500, warmup_cosine),
    )),
    Task("CNN with BatchNorm, digits", "CE", digits, lambda _: cnn(10, norm=True), (
        Run("SGD", sgd(0.05), "full", 300),
        Run("Adam", adam(1e-3), "finite", 400),
    )),
    Task("CNN, bars", "CE", bars, lambda p: cnn(4, dropout=p), (
        Run("momentum", momentum(0.01), "finite", 600),
        Run("AdamW, dropout", adamw(1e-3), "fresh", 500, dropout=0.3),
    )),
    Task("transformer, lookup", "MSE", lookup, lambda _: Transformer(nn.Linear(3, 24), 10, 2), (
        Run("SGD", sgd(0.1), "full", 700),
        Run("AdamW", adamw(3e-3), "fresh", 900),
        Run("Adam, slow", adam(3e-5), "finite", 700),
    )),
    Task("transformer, means", "MSE", running_mean,
         lambda p: Transformer(nn.Linear(2, 24), 10, 4, p=p), (
        Run("momentum", momentum(0.03), "finite", 700),
        Run("Adam", adam(3e-3), "full", 400),
    )),
    Task("transformer, backwards", "CE", backwards,
         lambda p: Transformer(nn.Embedding(6, 24), 10, 6, p=p), (
        Run("momentum", momentum(0.1), "fresh", 600),
        Run("Adam, warm-up and cosine", adam(5e-3), "full", 400, warmup_cosine),
        Run("AdamW, dropout", adamw(3e-3), "finite", 500, dropout=0.1),
    )),
    Task("transformer, recall", "CE", recall,
         lambda _: Transformer(nn.Embedding(8, 24), 9, 4, last=True), (
        Run("SGD", sgd(0.3), "finite", 800),
        Run("AdamW, clipped", adamw(3e-3), "fresh", 1000, clip=1.0),
    )),
)  # fmt: skip


def names() -> Iterator[tuple[str, Half, Task, Run]]:
    """Every training's name and half, its task, and how it is trained."""
    for i, task in enumerate(TASKS):
        for run in task.runs:
            half: Half = "report" if i % 2 else "choice"
            yield f"{task.name}: {run.optimizer}, {run.data}", half, task, run


def make(name: str) -> Training:
    """A training by its name, at its beginning."""
    half, task, run = next(rest for found, *rest in names() if found == name)
    seed = crc32(name.encode())
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = task.model(run.dropout)
    optimizer = run.make(model.parameters())
    batch, evaluation, second = batches(task.draw, run.data, generator)
    factor, steps = run.rate, run.steps
    return Training(
        name=name,
        half=half,
        model=model.train(),
        optimizer=optimizer,
        scheduler=None if factor is None else LambdaLR(optimizer, lambda s: factor(s / steps)),
        clip_norm=run.clip,
        batch=batch,
        loss=squared if task.loss == "MSE" else entropy,
        evaluation=evaluation,
        second=second,
        steps=steps,
        state="auto",
        loss_kind=task.loss,
        data=run.data,
    )


def batches(
    draw: Draw, data: Data, generator: torch.Generator
) -> tuple[Callable[[], Batch], Batch, Batch | None]:
    """What draws the next batch, a batch to evaluate on, and a second one."""
    if data == "full":
        whole = draw(FULL, generator)
        return lambda: whole, whole, None
    if data == "fresh":
        return lambda: draw(BATCH, generator), draw(BATCH, generator), draw(BATCH, generator)
    x, y = draw(SET, generator)
    waiting: list[Tensor] = []

    def following() -> Batch:
        if not waiting:
            waiting.extend(torch.randperm(SET, generator=generator).split(BATCH))
        chosen = waiting.pop()
        return x[chosen], y[chosen]

    return following, (x[:BATCH], y[:BATCH]), (x[BATCH : 2 * BATCH], y[BATCH : 2 * BATCH])
