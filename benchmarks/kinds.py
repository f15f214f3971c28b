"""Kinds of short trainings whose end is known: learned, stalled for a known reason, or limited.

A kind is healthy (every followed target mode gets learned, some of them late), stalled (modes stay
unlearned, and the cause is known because it was built in), or limited (what remains is noise that
no model could predict, or out of reach of any training of this length). With `--check` each is
trained without a monitor, and its end is held against what is declared here.

Each kind is for choosing settings on ("choice") or for reporting numbers ("report"), see `REPORT`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)

from ntk_monitor.models import GRURegression, xavier_
from ntk_monitor.tasks import memory_pro_trials

TABLE = Path(__file__).parent / "results" / "kinds.json"
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Make = Callable[[Any], Optimizer]
Rate = Callable[[int], float] | LRScheduler
NONE: frozenset[int] = frozenset()
bits_loss: Loss = nn.functional.binary_cross_entropy_with_logits
uneven: Loss = partial(nn.functional.cross_entropy, weight=torch.tensor([0.5, 1.0, 2.0]))
smoothed: Loss = partial(nn.functional.cross_entropy, label_smoothing=0.02)


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of every token; a target of -100 does not count."""
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


@dataclass
class Training:
    """One training.

    Attributes:
        model: The model.
        optimizer: Its optimizer.
        batch: Draws a batch to train on.
        evaluation: The batch to probe on.
        steps: How many steps.
        loss: Of outputs and targets.
        rate: What the learning rate is multiplied with at a step, or a scheduler.
        state: The state to probe.
        modes: How many target modes are followed.
        clip_norm: The norm to which gradients are clipped.
        accumulate: How many batches make a step.
        unpredictable: The modes, from 0, of which a part is noise that no model could learn.
        stuck: For a stalled kind, the modes that stay unlearned.
        cause: Why they do; empty if all is well.
    """

    model: nn.Module
    optimizer: Optimizer
    batch: Callable[[], Batch]
    evaluation: Batch
    steps: int
    loss: Loss = nn.functional.mse_loss
    rate: Rate = lambda _: 1.0
    state: str = "auto"
    modes: int = 3
    clip_norm: float | None = None
    accumulate: int = 1
    unpredictable: frozenset[int] = NONE
    stuck: frozenset[int] = NONE
    cause: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of training.

    Attributes:
        make: A training from a seed.
        group: What becomes of it.
        loss: The kind of loss.
        cause: Of a stall, or of what limits it.
        runs: How many to record.
        since: The step from which a stall exists, for the delay.
        stuck: The modes that stall, all that are followed if left out.
        earlier: Whether it was in the corpus on which the first rule was chosen.
    """

    make: Callable[[int], Training]
    group: Literal["healthy", "stalled", "limited"]
    loss: Literal["MSE", "CE", "CE, masked", "CE, weighted", "CE, smoothed", "BCE"]
    cause: str = ""
    runs: int = 4
    since: int = 0
    stuck: frozenset[int] | None = None
    earlier: bool = False


def train(
    training: Training,
    before: Callable[[int], None] = lambda step: None,
    graded: Callable[[int, float], None] = lambda step, loss: None,
    stepped: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train to the end.

    Args:
        training: What to train.
        before: Called before each step, with the learning rates of that step, and at the end.
        graded: Called with the loss when the gradients are there and not yet clipped.
        stepped: Called with the loss after the optimizer's step.
    """
    model, optimizer, rate = training.model, training.optimizer, training.rate
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(training.steps + 1):
        if not isinstance(rate, LRScheduler):
            for group, full in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = full * rate(step)
        before(step)
        if step == training.steps:
            return
        optimizer.zero_grad()
        total = 0.0
        for _ in range(training.accumulate):
            x, y = training.batch()
            loss = training.loss(model(x), y) / training.accumulate
            loss.backward()
            total += float(loss.detach())
        graded(step, total)
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        if isinstance(rate, LRScheduler):
            rate.step()
        stepped(step, total)


# ---- what was learned ---------------------------------------------------------------------------


def learned(training: Training) -> list[float]:
    """The learned fraction of each followed target mode, on the evaluation batch.

    Targets are less their mean over trials and time, for each output. A class is a mode: its
    indicator, against the softmax of the outputs, the most frequent class first. Other modes are
    the singular triples of the target, against outputs, or their sigmoid where it is yes or no.

    Args:
        training: Model and evaluation batch.

    Returns:
        The fractions, leading mode first: 0 for a constant output, 1 for the target.
    """
    x, target = training.evaluation
    with torch.no_grad():
        output = training.model(x).double()
    if target.is_floating_point():
        values = output.sigmoid() if training.loss is bits_loss else output
        Y, F = target.double().reshape(-1, target.shape[-1]), values.reshape(-1, target.shape[-1])
        U, sigma, V = torch.linalg.svd(Y - Y.mean(0), full_matrices=False)
        found = torch.einsum("ni,no,io->i", U, F, V) / sigma
        return found[sigma > 1e-9 * sigma[0]][: training.modes].tolist()
    counts = target.flatten() >= 0
    labels = target.flatten()[counts]
    P = output.reshape(-1, output.shape[-1])[counts].softmax(-1)
    E = nn.functional.one_hot(labels, P.shape[1]).double()
    order = E.sum(0).sort(descending=True, stable=True).indices
    order = order[E.sum(0)[order] > 0][: training.modes]
    E = E[:, order] - E[:, order].mean(0)
    return ((P[:, order] * E).sum(0) / E.square().sum(0)).tolist()


# ---- models -------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent network with a readout at every step; tokens become one-hot inputs."""

    def __init__(self, cell: str, inputs: int, units: int, outputs: int) -> None:
        """One layer."""
        super().__init__()
        self.inputs = inputs
        self.rnn = getattr(nn, cell)(inputs, units, batch_first=True)
        self.readout = nn.Linear(units, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs at every step."""
        if not x.is_floating_point():
            x = nn.functional.one_hot(x, self.inputs).float()
        return self.readout(self.rnn(x)[0])


class LastOnly(nn.Module):
    """The outputs of another model at its last step."""

    def __init__(self, body: nn.Module) -> None:
        """Wrap it."""
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """``(B, outputs)``."""
        return self.body(x)[:, -1]


class Blind(Recurrent):
    """A readout of the first state, in which the rest of the sequence is not yet."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, outputs)``."""
        return self.readout(self.rnn(x)[0][:, 0].detach())


class SumOverTime(nn.Module):
    """A GRU that reports a running, leaky sum of its inputs."""

    def __init__(self) -> None:
        """48 units."""
        super().__init__()
        self.rnn = nn.GRU(3, 48, batch_first=True)
        self.readout = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs at every step."""
        return self.readout(self.rnn(x)[0])


class Attention(nn.Module):
    """A transformer that classifies every token."""

    def __init__(
        self, tokens: int = 8, length: int = 12, layers: int = 1, causal: bool = False
    ) -> None:
        """32 features, two heads."""
        super().__init__()
        self.embed = nn.Embedding(tokens, 32)
        self.place = nn.Parameter(0.1 * torch.randn(length, 32))
        self.body: nn.Module = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        if layers > 1:
            self.body = nn.TransformerEncoder(self.body, layers, enable_nested_tensor=False)  # type: ignore[arg-type]
        self.readout = nn.Linear(32, tokens)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every token."""
        h = self.embed(x) + self.place[: x.shape[1]]
        if not self.causal:
            return self.readout(self.body(h))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.readout(self.body(h, mask, is_causal=True))


class Lookup(nn.Module):
    """One head of attention between places, whose scores start so large that it is saturated."""

    def __init__(self, scale: float, tokens: int = 8, length: int = 12) -> None:
        """Each place looks at itself."""
        super().__init__()
        self.embed = nn.Embedding(tokens, 32)
        self.query = nn.Parameter(scale * torch.eye(length))
        self.key = nn.Parameter(scale * torch.eye(length))
        self.readout = nn.Linear(32, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every token."""
        weights = (self.query @ self.key.T).softmax(-1)
        return self.readout(weights @ self.embed(x))


def perceptron(
    *sizes: int, activation: type[nn.Module] = nn.ReLU, bias: float = 0.0
) -> nn.Sequential:
    """Layers of given sizes; `bias` is added to that of the last hidden one."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b)] + ([activation()] if i < len(sizes) - 2 else [])
    with torch.no_grad():
        if len(layers) > 2:
            layers[-3].bias += bias  # type: ignore[operator]
    return nn.Sequential(*layers)


def small_cnn() -> nn.Sequential:
    """For digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def flat(*sizes: int, **settings: Any) -> nn.Sequential:  # noqa: ANN401
    """A perceptron on images."""
    return nn.Sequential(nn.Flatten(), *perceptron(*sizes, **settings))


# ---- learning rates and optimizers --------------------------------------------------------------


def cut(at: int, factor: float) -> Callable[[int], float]:
    """A learning rate that falls by a factor at a step."""
    return lambda step: factor if step >= at else 1.0


def warmup_and_cosine(steps: int) -> Callable[[int], float]:
    """A learning rate that rises for a fifth of the training and then falls to zero."""

    def rate(step: int) -> float:
        if step < steps / 5:
            return (step + 1) / (steps / 5)
        return 0.5 * (1 + math.cos(math.pi * (step - steps / 5) / (0.8 * steps)))

    return rate


def extra(name: str, lr: float, **settings: Any) -> Make:  # noqa: ANN401
    """An optimizer that torch does not have."""

    def make(parameters: Any) -> Optimizer:  # noqa: ANN401
        import pytorch_optimizer  # noqa: PLC0415

        return getattr(pytorch_optimizer, name)(parameters, lr=lr, **settings)

    return make


def scheduled(training: Training, schedule: Callable[[Optimizer], LRScheduler]) -> Training:
    """The same training with a scheduler."""
    return replace(training, rate=schedule(training.optimizer))


# ---- data ---------------------------------------------------------------------------------------


def memory_pro(seed: int, network: str, make: Make, steps: int) -> Training:
    """A GRU on Memory-Pro: Network 1 is Xavier, Network 2 has planted fixed points."""
    torch.manual_seed(seed)
    model = GRURegression(hidden_size=64, initialization=network).network  # type: ignore[arg-type]
    return Training(
        model,
        make(model.parameters()),
        lambda: noisy(trials(2 * math.pi * torch.rand(32))),
        trials(2 * math.pi * torch.arange(10) / 10),
        steps,
    )


def trials(angles: Tensor) -> Batch:
    """A little shorter than the paper's."""
    return memory_pro_trials(angles, 10, 20, 20)


def noisy(batch: Batch) -> Batch:
    """Inputs with noise."""
    x, y = batch
    return x + 0.5 * torch.randn_like(x), y


def hidden_direction(seed: int) -> Training:
    """Memory-Pro whose direction is never shown: like Network 1, but there is nothing to hold."""
    training = memory_pro(seed, "fixed_points", lambda p: SGD(p, lr=0.05), 600)

    def hide(batch: Batch) -> Batch:
        x = batch[0].clone()
        x[..., :2] = 0
        return x, batch[1]

    return replace(
        training,
        batch=lambda: noisy(hide(trials(2 * math.pi * torch.rand(32)))),
        evaluation=hide(training.evaluation),
        unpredictable=frozenset({1, 2}),
    )


def eight_directions(seed: int) -> Training:
    """Memory-Pro with a choice of eight at the end: Network 1 cannot hold which."""
    torch.manual_seed(seed)
    model = Recurrent("GRU", 3, 64, 8)
    xavier_(model.rnn)
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 32) -> Batch:
        which = torch.randint(8, (count,), generator=generator)
        x, _ = memory_pro_trials(2 * math.pi * which / 8, 10, 40, 5)
        y = torch.full(x.shape[:2], -100)
        y[:, -5:] = which[:, None]
        return x, y

    return Training(model, SGD(model.parameters(), lr=0.05), batch, batch(64), 600, token_loss)


def linear_targets(seed: int, sizes: tuple[float, ...]) -> tuple[Callable[[], Batch], Batch]:
    """Linear regression with given singular values of the map: fresh batches, and a fixed one."""
    generator = torch.Generator().manual_seed(seed)
    U, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    V, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    M = (U[:, : len(sizes)] * torch.tensor(sizes)) @ V[:, : len(sizes)].T

    def draw(count: int = 64) -> Batch:
        x = torch.randn(count, 8, generator=generator)
        return x, x @ M

    return draw, draw(128)


def deep_linear(
    seed: int, depth: int, scale: float, lr: float, steps: int, momentum: float = 0.0
) -> Training:
    """Learning that takes off late: a deep linear network from small weights (silent alignment)."""
    torch.manual_seed(seed)
    model = linear_layers(depth, scale, 8)
    draw, evaluation = linear_targets(seed, (4.0, 2.5, 1.5))
    return Training(
        model, SGD(model.parameters(), lr=lr, momentum=momentum), draw, evaluation, steps, state="0"
    )


def linear_layers(depth: int, scale: float, outputs: int) -> nn.Sequential:
    """Layers without bias, from small weights."""
    sizes = [8] * depth + [outputs]
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=scale / math.sqrt(8))
    return nn.Sequential(*layers)


def deep_linear_classes(seed: int) -> Training:
    """Four classes and a deep linear network from small weights, with all data in every batch."""
    torch.manual_seed(seed)
    model = linear_layers(3, 0.1, 4)
    x, y = blobs(torch.Generator().manual_seed(seed), (1 / 4,) * 4, 5.0)(200)
    return Training(
        model, SGD(model.parameters(), lr=0.1), lambda: (x, y), (x, y), 800,
        nn.functional.cross_entropy, state="0",
    )  # fmt: skip


def mlp(
    seed: int,
    make: Make,
    steps: int,
    rate: Callable[[int], float] = lambda _: 1.0,
    bias: float = 0.0,
    clip_norm: float | None = None,
) -> Training:
    """A ReLU network on a smooth function of eight inputs."""
    torch.manual_seed(seed)
    model = perceptron(8, 64, 64, 8, bias=bias)
    draw, evaluation = linear_targets(seed, (3.0, 2.0, 1.0))
    return Training(
        model, make(model.parameters()), draw, evaluation, steps, rate=rate, clip_norm=clip_norm
    )


def noisy_targets(seed: int, make: Make, steps: int) -> Training:
    """A target of which a part is noise, new in every batch: within reach, and never learned."""
    torch.manual_seed(seed)
    model = perceptron(8, 64, 8, activation=nn.Tanh)
    draw, evaluation = linear_targets(seed, (3.0,))

    def noise(batch: Batch) -> Batch:
        return batch[0], batch[1] + 0.5 * torch.randn_like(batch[1])

    return Training(
        model, make(model.parameters()), lambda: noise(draw()), noise(evaluation), steps,
        unpredictable=frozenset({1, 2}),
    )  # fmt: skip


def digits(
    seed: int,
    model: Callable[[], nn.Module],
    make: Make,
    steps: int,
    loss: Loss = nn.functional.cross_entropy,
    flipped: float = 0.0,
    **settings: Any,  # noqa: ANN401
) -> Training:
    """Handwritten digits; a part of the labels drawn afresh in every batch."""
    from sklearn.datasets import load_digits  # noqa: PLC0415

    torch.manual_seed(seed)
    network = model()
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(y)
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 64) -> Batch:
        chosen = torch.randint(len(labels), (count,), generator=generator)
        if not flipped:
            return images[chosen], labels[chosen]
        random = torch.randint(10, (count,), generator=generator)
        wrong = torch.rand(count, generator=generator) < flipped
        return images[chosen], torch.where(wrong, random, labels[chosen])

    unpredictable = frozenset(range(3)) if flipped else NONE
    parameters = [p for p in network.parameters() if p.requires_grad]
    return Training(
        network, make(parameters), batch, batch(128 if not flipped else 512), steps, loss,
        unpredictable=unpredictable, **settings,
    )  # fmt: skip


def frozen_features(count: int) -> nn.Sequential:
    """Digits seen through a few fixed random features."""
    model = flat(64, count, 10, activation=nn.Tanh)
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    return model


def shuffled_labels(seed: int) -> Training:
    """Random labels for 96 images, learned by heart."""
    torch.manual_seed(seed)
    x, y = torch.randn(96, 64), torch.randint(10, (96,))
    model = perceptron(64, 128, 10)
    return Training(
        model,
        Adam(model.parameters(), lr=1e-3),
        lambda: (x, y),
        (x, y),
        400,
        nn.functional.cross_entropy,
    )


def blobs(
    generator: torch.Generator, shares: tuple[float, ...], distance: float, merged: int = 0
) -> Callable[[int], Batch]:
    """Clouds in eight dimensions, one a class; the first `merged` classes share theirs."""
    centers = distance * nn.functional.normalize(torch.randn(len(shares), 8, generator=generator))
    centers[:merged] = centers[:1].clone()

    def draw(count: int) -> Batch:
        y = torch.multinomial(torch.tensor(shares), count, True, generator=generator)
        return centers[y] + torch.randn(count, 8, generator=generator), y

    return draw


def clouds(
    seed: int,
    shares: tuple[float, ...],
    make: Make,
    steps: int,
    distance: float = 4.0,
    merged: int = 0,
    loss: Loss = nn.functional.cross_entropy,
) -> Training:
    """Classes of unequal size."""
    torch.manual_seed(seed)
    model = perceptron(8, 64, len(shares))
    draw = blobs(torch.Generator().manual_seed(seed), shares, distance, merged)
    return Training(
        model, make(model.parameters()), lambda: draw(64), draw(512), steps, loss,
        unpredictable=frozenset(range(merged)),
    )  # fmt: skip


def leaky_sum(count: int, generator: torch.Generator, inputs: int = 3) -> Batch:
    """Inputs, and their running sum that leaks."""
    weights = 0.8 ** torch.arange(20.0)
    x = torch.randn(count, 20, inputs, generator=generator)
    kernel = torch.stack([torch.roll(weights, i) * (torch.arange(20) >= i) for i in range(20)])
    return x, torch.einsum("st,bsj->btj", kernel, x)


def gru(seed: int, make: Make, steps: int, **settings: Any) -> Training:  # noqa: ANN401
    """A GRU on a leaky sum: a healthy recurrent training."""
    torch.manual_seed(seed)
    model = SumOverTime()
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 32) -> Batch:
        return leaky_sum(count, generator)

    return Training(model, make(model.parameters()), batch, batch(16), steps, **settings)


def half_noise(seed: int) -> Training:
    """An RNN with two outputs that sum, and a third whose target is noise."""
    torch.manual_seed(seed)
    model = Recurrent("RNN", 2, 48, 3)
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 32) -> Batch:
        x, y = leaky_sum(count, generator, 2)
        noise = 0.8 * torch.randn(*y.shape[:2], 1, generator=generator)
        return x, torch.cat([y, noise], -1)

    return Training(
        model, SGD(model.parameters(), lr=0.05, momentum=0.9), batch, batch(), 800,
        unpredictable=frozenset({2}),
    )  # fmt: skip


def noise_only(seed: int) -> Training:
    """A GRU whose targets are noise, new in every batch."""
    training = gru(seed, lambda p: Adam(p, lr=1e-3), 500)
    generator = torch.Generator().manual_seed(seed + 1)
    scale = torch.tensor([2.0, 1.0, 0.5])

    def noise(batch: Batch) -> Batch:
        return batch[0], scale * torch.randn(batch[1].shape, generator=generator)

    draw, evaluation = training.batch, training.evaluation
    return replace(
        training, batch=lambda: noise(draw()), evaluation=noise(evaluation),
        unpredictable=frozenset(range(3)),
    )  # fmt: skip


def half_hidden(seed: int) -> Training:
    """A linear target half of whose inputs are not shown."""
    torch.manual_seed(seed)
    model = perceptron(4, 64, 8, activation=nn.GELU)
    draw, evaluation = linear_targets(seed, (3.0, 2.0, 1.0))

    def hide(batch: Batch) -> Batch:
        return batch[0][:, :4], batch[1]

    return Training(
        model, extra("AdaFactor", 3e-3)(model.parameters()), lambda: hide(draw()),
        hide(evaluation), 800, unpredictable=frozenset(range(3)),
    )  # fmt: skip


def next_value(seed: int) -> Training:
    """An LSTM that predicts three drifting series, one step ahead."""
    torch.manual_seed(seed)
    model = Recurrent("LSTM", 3, 32, 3)
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 32) -> Batch:
        series = [torch.randn(count, 3, generator=generator)]
        for _ in range(20):
            series.append(0.7 * series[-1] + 0.714 * torch.randn(count, 3, generator=generator))
        x = torch.stack(series, 1) * torch.tensor([2.0, 1.5, 1.0])
        return x[:, :-1], x[:, 1:]

    return Training(
        model, RMSprop(model.parameters(), lr=1e-3), batch, batch(), 800,
        unpredictable=frozenset(range(3)),
    )  # fmt: skip


def transformer(
    seed: int,
    make: Make,
    steps: int,
    loss: Loss = token_loss,
    **settings: Any,  # noqa: ANN401
) -> Training:
    """A small transformer that reverses a sequence."""
    torch.manual_seed(seed)
    model = Attention()
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 32) -> Batch:
        x = torch.randint(8, (count, 12), generator=generator)
        return x, x.flip(1)

    return Training(model, make(model.parameters()), batch, batch(), steps, loss, **settings)


def saturated_attention(seed: int) -> Training:
    """Reversal by attention that looks at the wrong place, and is too sure of it to move."""
    training = transformer(seed, lambda p: SGD(p, lr=0.1), 600)
    model = Lookup(5.0)
    return replace(training, model=model, optimizer=SGD(model.parameters(), lr=0.1))


def early_view(seed: int) -> Training:
    """A causal transformer that is asked for the sequence from behind: it cannot look ahead."""
    torch.manual_seed(seed)
    model = Attention(causal=True)
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 32) -> Batch:
        x = torch.randint(8, (count, 12), generator=generator)
        y = x.flip(1)
        y[:, 6:] = -100
        return x, y

    return Training(model, Adam(model.parameters(), lr=2e-3), batch, batch(64), 500, token_loss)


def induction(seed: int) -> Training:
    """A causal transformer that continues a repeated sequence: learning that takes off late."""
    torch.manual_seed(seed)
    model = Attention(8, 16, layers=2, causal=True)
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 64) -> Batch:
        half = torch.randint(8, (count, 8), generator=generator)
        x = torch.cat([half, half], 1)
        y = x.roll(-1, 1)
        y[:, :8] = -100
        y[:, -1] = -100
        return x, y

    return Training(model, Adam(model.parameters(), lr=5e-4), batch, batch(), 900, token_loss)


class Square(nn.Module):
    """An activation that is a product, as sums modulo something need."""

    def forward(self, x: Tensor) -> Tensor:
        """Its square."""
        return x.square()


def modular_addition(seed: int, held_out: bool) -> Training:
    """Sums modulo 31; judged on pairs that are trained on, or on pairs that never are."""
    torch.manual_seed(seed)
    a, b = torch.cartesian_prod(torch.arange(31), torch.arange(31)).T
    x = torch.cat([nn.functional.one_hot(a, 31), nn.functional.one_hot(b, 31)], 1).float()
    y = (a + b) % 31
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    seen, unseen = order[:865], order[865:]
    model = perceptron(62, 128, 31, activation=Square if held_out else nn.ReLU)
    judged = unseen if held_out else seen
    return Training(
        model, AdamW(model.parameters(), lr=2e-2 if held_out else 5e-3, weight_decay=1.0),
        lambda: (x[seen], y[seen]), (x[judged], y[judged]), 2000 if held_out else 500,
        nn.functional.cross_entropy,
    )  # fmt: skip


def markov(seed: int) -> Training:
    """A causal transformer on a chain of tokens whose next one is only likely."""
    torch.manual_seed(seed)
    model = Attention(8, 16, causal=True)
    generator = torch.Generator().manual_seed(seed)
    follows = torch.randperm(8, generator=generator)

    def batch(count: int = 32) -> Batch:
        x = [torch.randint(8, (count,), generator=generator)]
        for _ in range(16):
            random = torch.randint(8, (count,), generator=generator)
            sure = torch.rand(count, generator=generator) < 0.6
            x.append(torch.where(sure, follows[x[-1]], random))
        tokens = torch.stack(x, 1)
        return tokens[:, :-1], tokens[:, 1:]

    return Training(
        model, Adam(model.parameters(), lr=2e-3), batch, batch(64), 600, token_loss,
        unpredictable=frozenset(range(3)),
    )  # fmt: skip


def random_labels(seed: int) -> Training:
    """A transformer whose labels have nothing to do with its tokens."""
    training = transformer(seed, lambda p: AdamW(p, lr=1e-3), 600)
    generator = torch.Generator().manual_seed(seed + 1)
    draw = training.batch

    def batch(count: int = 32) -> Batch:
        x, _ = draw(count)  # type: ignore[call-arg]
        return x, torch.randint(8, x.shape, generator=generator)

    return replace(training, batch=batch, evaluation=batch(), unpredictable=frozenset(range(3)))


def recall(
    seed: int,
    model: Callable[[], nn.Module],
    delay: int,
    make: Make,
    steps: int,
    symbols: int = 1,
    corrupted: float = 0.0,
    **settings: Any,  # noqa: ANN401
) -> Training:
    """Report some symbols of eight after a delay of blanks; only the report counts."""
    torch.manual_seed(seed)
    network = model()
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 32) -> Batch:
        shown = torch.randint(8, (count, symbols), generator=generator)
        told = shown
        if corrupted:
            random = torch.randint(8, shown.shape, generator=generator)
            told = torch.where(
                torch.rand(shown.shape, generator=generator) < corrupted, random, shown
            )
        blank = torch.full((count, delay), 8)
        x = torch.cat([told, blank, torch.full((count, symbols), 9)], 1)
        y = torch.full_like(x, -100)
        y[:, -symbols:] = shown
        return x, y

    parameters = [p for p in network.parameters() if p.requires_grad]
    return Training(
        network, make(parameters), batch, batch(128), steps, token_loss,
        unpredictable=frozenset(range(3)) if corrupted else NONE, **settings,
    )  # fmt: skip


def with_gain(cell: str, gain: float, input_gain: float = 1.0) -> nn.Module:
    """A recurrent network with orthogonal recurrent weights of a gain."""
    model = Recurrent(cell, 10, 48, 8)
    with torch.no_grad():
        for block in model.rnn.weight_hh_l0.chunk(model.rnn.weight_hh_l0.shape[0] // 48):
            block.copy_(gain * nn.init.orthogonal_(torch.empty(48, 48)))
        model.rnn.weight_ih_l0 *= input_gain
    return model


def zero_readout() -> nn.Module:
    """A GRU whose readout is zero, and stays so."""
    model = Recurrent("GRU", 10, 48, 8)
    nn.init.zeros_(model.readout.weight)
    model.readout.weight.requires_grad_(False)
    return model


def signs(
    seed: int,
    model: Callable[[], nn.Module],
    rule: Callable[[Tensor], Tensor],
    make: Make,
    steps: int,
    inputs: int = 24,
    count: int = 64,
    data: int | None = None,
    **settings: Any,  # noqa: ANN401
) -> Training:
    """Yes or no as a rule of random signs says, fresh or from a finite data set."""
    torch.manual_seed(seed)
    network = model()
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randn(data or 1, inputs, generator=generator).sign()

    def batch(size: int = count) -> Batch:
        x = torch.randn(size, inputs, generator=generator).sign()
        if data is not None:
            x = kept[torch.randint(data, (size,), generator=generator)]
        return x, rule(x)

    return Training(
        network, make(network.parameters()), batch, batch(256), steps, bits_loss,
        **{"modes": 1, **settings},
    )  # fmt: skip


def parity(bits: int) -> Callable[[Tensor], Tensor]:
    """Whether the product of the first signs is positive."""
    return lambda x: (x[:, :bits].prod(-1, keepdim=True) > 0).float()


def flipped_majority(x: Tensor) -> Tensor:
    """The majority of three signs, the wrong way round in a fifth of the cases."""
    return ((x[:, :3].sum(-1, keepdim=True) > 0) ^ (torch.rand(len(x), 1) < 0.2)).float()


def hidden_xor(x: Tensor) -> Tensor:
    """The exclusive or of a sign that is seen and one that is not."""
    return (x[:, :1] * torch.randn(len(x), 1) > 0).float()


def several(x: Tensor) -> Tensor:
    """Four yes or no, each a majority of other signs."""
    return torch.stack([x[:, i : i + 3].sum(-1) > 0 for i in range(0, 12, 3)], -1).float()


def half_random(x: Tensor) -> Tensor:
    """Two yes or no that can be known, and two rare ones that cannot."""
    return torch.cat([several(x)[:, :2], (torch.rand(len(x), 2) < 0.15).float()], -1)


def spiral(seed: int) -> Training:
    """Two spirals, all points in every batch."""
    torch.manual_seed(seed)
    model = perceptron(2, 64, 64, 1, activation=nn.Tanh)
    turn = 3.0 * torch.rand(256) ** 0.5 + 0.6
    side = torch.randint(2, (256,))
    angle = 1.5 * turn + math.pi * side
    x = torch.stack([turn * angle.cos(), turn * angle.sin()], 1) + 0.05 * torch.randn(256, 2)
    y = side[:, None].float()
    return Training(
        model, RMSprop(model.parameters(), lr=2e-3), lambda: (x, y), (x, y), 1000, bits_loss,
        modes=1,
    )  # fmt: skip


def sequence_bits(
    seed: int,
    model: nn.Module,
    rule: Callable[[Tensor], Tensor],
    make: Make,
    steps: int,
    length: int,
    **settings: Any,  # noqa: ANN401
) -> Training:
    """Yes or no about a sequence of pairs of signs."""
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 64) -> Batch:
        x = torch.randn(count, length, 2, generator=generator).sign()
        return x, rule(x)

    return Training(
        model, make(model.parameters()), batch, batch(256), steps, bits_loss, modes=1, **settings
    )


def long_parity(seed: int) -> Training:
    """The parity of 24 signs, by a transformer that is given them one by one."""
    torch.manual_seed(seed)
    body = Attention(2, 24)
    body.readout = nn.Linear(32, 1)
    training = signs(
        seed, lambda: LastOnly(body), parity(24), lambda p: AdamW(p, lr=1e-3), 500, count=32
    )
    draw = training.batch

    def batch(*size: int) -> Batch:
        x, y = draw(*size)
        return (x > 0).long(), y

    return replace(training, batch=batch, evaluation=batch(256))


def delayed_comparison(seed: int) -> Training:
    """Whether the first sign and the last are the same: at chance for much longer than this."""
    torch.manual_seed(seed)
    model = LastOnly(Recurrent("GRU", 2, 48, 1))
    return sequence_bits(
        seed, model, lambda x: (x[:, 0, :1] * x[:, -1, :1] > 0).float(), lambda p: Adam(p, lr=1e-3),
        500, 30,
    )  # fmt: skip


def unseen_sign(seed: int) -> Training:
    """The exclusive or of the last sign and one that is not in the sequence."""
    torch.manual_seed(seed)
    model = LastOnly(Recurrent("LSTM", 2, 32, 1))
    return sequence_bits(
        seed, model, lambda x: hidden_xor(x[:, -1]), lambda p: SGD(p, lr=0.1, momentum=0.9), 600,
        12, unpredictable=frozenset({0}),
    )  # fmt: skip


def first_state_only(seed: int) -> Training:
    """The sign of the last input, read from the state after the first."""
    torch.manual_seed(seed)
    return sequence_bits(
        seed, Blind("RNN", 2, 32, 1), lambda x: (x[:, -1, :1] > 0).float(),
        lambda p: Adam(p, lr=3e-3), 500, 10,
    )  # fmt: skip


def two_rates(parameters: Any) -> Optimizer:  # noqa: ANN401
    """Momentum, with a smaller rate for the readout."""
    *body, weight, bias = parameters
    return SGD([{"params": body}, {"params": [weight, bias], "lr": 0.05}], lr=0.2, momentum=0.9)


# ---- the kinds ----------------------------------------------------------------------------------

HEALTHY: dict[str, Kind] = {
    "Network 2, SGD": Kind(
        lambda s: memory_pro(s, "fixed_points", lambda p: SGD(p, lr=0.1), 1200),
        "healthy", "MSE", runs=6, earlier=True,
    ),
    "Network 1, Adam": Kind(
        lambda s: memory_pro(s, "xavier", lambda p: Adam(p, lr=2e-3), 1000),
        "healthy", "MSE", earlier=True,
    ),
    "Network 1, Shampoo": Kind(
        lambda s: memory_pro(s, "xavier", extra("Shampoo", 0.1), 500),
        "healthy", "MSE", earlier=True,
    ),
    "delayed take-off, depth 3": Kind(
        lambda s: deep_linear(s, 3, 0.2, 0.1, 480), "healthy", "MSE", runs=8, earlier=True
    ),
    "silent alignment, depth 2": Kind(
        lambda s: deep_linear(s, 2, 0.02, 0.05, 640), "healthy", "MSE", runs=8, earlier=True
    ),
    "MLP, SGD": Kind(
        lambda s: mlp(s, lambda p: SGD(p, lr=0.3), 1600), "healthy", "MSE", runs=6, earlier=True
    ),
    "MLP, SGD, warm-up and cosine": Kind(
        lambda s: mlp(s, lambda p: SGD(p, lr=0.3), 1600, warmup_and_cosine(1600)),
        "healthy", "MSE", runs=6, earlier=True,
    ),
    "MLP, Adam": Kind(
        lambda s: mlp(s, lambda p: Adam(p, lr=1e-3), 800), "healthy", "MSE", runs=6, earlier=True
    ),
    "GRU, Adam": Kind(
        lambda s: gru(s, lambda p: Adam(p, lr=3e-3), 800), "healthy", "MSE", runs=6, earlier=True
    ),
    "GRU, SGD": Kind(
        lambda s: gru(s, lambda p: SGD(p, lr=0.5, momentum=0.9), 800),
        "healthy", "MSE", runs=6, earlier=True,
    ),
    "digits, SGD with momentum": Kind(
        lambda s: digits(
            s, lambda: flat(64, 64, 10, activation=nn.Tanh),
            lambda p: SGD(p, lr=0.1, momentum=0.9), 640,
        ),
        "healthy", "CE", runs=6, earlier=True,
    ),
    "digits, CNN, AdamW": Kind(
        lambda s: digits(s, small_cnn, lambda p: AdamW(p, lr=2e-3), 640),
        "healthy", "CE", runs=6, earlier=True,
    ),
    "transformer, Adam": Kind(
        lambda s: transformer(s, lambda p: Adam(p, lr=2e-3), 800),
        "healthy", "CE", runs=6, earlier=True,
    ),
    "shuffled labels, Adam": Kind(shuffled_labels, "healthy", "CE", runs=6, earlier=True),
    "MLP, SGD, slow but in time": Kind(
        lambda s: mlp(s, lambda p: SGD(p, lr=0.012), 2000), "healthy", "MSE"
    ),
    "digits, Adam, a rate that grows": Kind(
        lambda s: scheduled(
            digits(s, lambda: flat(64, 64, 10), lambda p: Adam(p, lr=1e-2), 1200),
            lambda o: LambdaLR(o, lambda step: (step / 1200) ** 2),
        ),
        "healthy", "CE",
    ),
    "deep linear classifier": Kind(deep_linear_classes, "healthy", "CE"),
    "modular addition, seen pairs": Kind(
        lambda s: modular_addition(s, False), "healthy", "CE"
    ),
    "modular addition, held-out pairs": Kind(
        lambda s: modular_addition(s, True), "healthy", "CE"
    ),
    "induction": Kind(induction, "healthy", "CE, masked"),
    "short recall, LSTM, clipped at 1": Kind(
        lambda s: recall(
            s, lambda: Recurrent("LSTM", 10, 48, 8), 8, lambda p: Adam(p, lr=3e-3), 800,
            clip_norm=1.0,
        ),
        "healthy", "CE, masked",
    ),
    "copy, GRU, cosine": Kind(
        lambda s: scheduled(
            recall(
                s, lambda: Recurrent("GRU", 10, 64, 8), 3, lambda p: Adam(p, lr=1e-2), 900,
                symbols=2,
            ),
            lambda o: CosineAnnealingLR(o, 900),
        ),
        "healthy", "CE, masked",
    ),
    "parity of three": Kind(
        lambda s: signs(
            s, lambda: perceptron(12, 128, 1), parity(3), lambda p: Adam(p, lr=1e-3), 1200,
            inputs=12, count=128,
        ),
        "healthy", "BCE",
    ),
    "spirals, RMSprop": Kind(spiral, "healthy", "BCE"),
    "digits, smoothed, one cycle": Kind(
        lambda s: scheduled(
            digits(s, small_cnn, lambda p: AdamW(p, lr=5e-3), 900, smoothed),
            lambda o: OneCycleLR(o, 5e-3, 900),
        ),
        "healthy", "CE, smoothed",
    ),
    "digits, Lion": Kind(
        lambda s: digits(s, lambda: flat(64, 64, 10), extra("Lion", 1e-3), 500), "healthy", "CE"
    ),
    "imbalance, weighted": Kind(
        lambda s: clouds(
            s, (0.9, 0.05, 0.05), lambda p: Adam(p, lr=5e-3), 800, 6.0,
            loss=partial(nn.functional.cross_entropy, weight=torch.tensor([0.1, 1.0, 1.0])),
        ),
        "healthy", "CE, weighted",
    ),
    "several bits, accumulated": Kind(
        lambda s: signs(
            s, lambda: perceptron(12, 64, 4), several, lambda p: SGD(p, lr=0.2, momentum=0.9), 700,
            inputs=12, count=32, modes=3, accumulate=2,
        ),
        "healthy", "BCE",
    ),
    "digits, two rates": Kind(
        lambda s: digits(s, lambda: flat(64, 64, 10), two_rates, 700), "healthy", "CE"
    ),
}  # fmt: skip

STALLED: dict[str, Kind] = {
    "Network 1, SGD": Kind(
        lambda s: memory_pro(s, "xavier", lambda p: SGD(p, lr=0.05), 500),
        "stalled", "MSE", "core", runs=6, stuck=frozenset({1, 2}), earlier=True,
    ),
    "learning rate too small, MLP": Kind(
        lambda s: mlp(s, lambda p: SGD(p, lr=1e-4), 800),
        "stalled", "MSE", "learning rate", runs=6, earlier=True,
    ),
    "learning rate too small, Adam": Kind(
        lambda s: mlp(s, lambda p: Adam(p, lr=1e-7), 800),
        "stalled", "MSE", "learning rate", earlier=True,
    ),
    "learning rate cut too early": Kind(
        lambda s: mlp(s, lambda p: SGD(p, lr=0.05), 1600, cut(40, 1e-3)),
        "stalled", "MSE", "learning rate", runs=6, since=40, earlier=True,
    ),
    "dead ReLUs": Kind(
        lambda s: mlp(s, lambda p: SGD(p, lr=0.05), 400, bias=-100.0),
        "stalled", "MSE", "saturated", earlier=True,
    ),
    "clipped to nothing, MLP": Kind(
        lambda s: mlp(s, lambda p: SGD(p, lr=2.0), 800, clip_norm=1e-3),
        "stalled", "MSE", "clipping",
    ),
    "decay, GRU, Adam": Kind(
        lambda s: gru(s, lambda p: Adam(p, lr=3e-3, weight_decay=0.4), 600),
        "stalled", "MSE", "decay",
    ),
    "rate that fades, GRU": Kind(
        lambda s: scheduled(
            gru(s, lambda p: SGD(p, lr=0.1, momentum=0.9), 800), lambda o: ExponentialLR(o, 0.8)
        ),
        "stalled", "MSE", "learning rate", since=20,
    ),
    "schedule ended at zero, digits": Kind(
        lambda s: scheduled(
            digits(s, lambda: flat(64, 64, 10), lambda p: SGD(p, lr=0.1), 800),
            lambda o: LambdaLR(o, lambda step: max(0.0, 1 - step / 60)),
        ),
        "stalled", "CE", "learning rate", since=60,
    ),
    "milestone too early, digits": Kind(
        lambda s: scheduled(
            digits(s, small_cnn, lambda p: SGD(p, lr=0.05, momentum=0.9), 600),
            lambda o: MultiStepLR(o, [32], 1e-3),
        ),
        "stalled", "CE", "learning rate", since=32,
    ),
    "learning rate too small, transformer": Kind(
        lambda s: transformer(s, lambda p: AdamW(p, lr=2e-6), 600),
        "stalled", "CE", "learning rate",
    ),
    "Shampoo too small, digits": Kind(
        lambda s: digits(s, lambda: flat(64, 32, 10), extra("Shampoo", 1e-5), 400),
        "stalled", "CE", "learning rate",
    ),
    "clipped to nothing, CNN": Kind(
        lambda s: digits(s, small_cnn, lambda p: SGD(p, lr=0.1), 600, clip_norm=1e-3),
        "stalled", "CE", "clipping",
    ),
    "clipped to nothing, recall": Kind(
        lambda s: recall(
            s, lambda: Recurrent("GRU", 10, 48, 8), 5, lambda p: SGD(p, lr=0.05, momentum=0.9), 600,
            clip_norm=1e-3,
        ),
        "stalled", "CE, masked", "clipping",
    ),
    "decay, digits, SGD": Kind(
        lambda s: digits(
            s, lambda: flat(64, 64, 10), lambda p: SGD(p, lr=0.1, weight_decay=0.12), 600
        ),
        "stalled", "CE", "decay",
    ),
    "decay, transformer, AdamW": Kind(
        lambda s: transformer(s, lambda p: AdamW(p, lr=2e-3, weight_decay=30.0), 600),
        "stalled", "CE", "decay",
    ),
    "dead ReLUs, digits": Kind(
        lambda s: digits(s, lambda: flat(64, 64, 64, 10, bias=-100.0), Adam, 400),
        "stalled", "CE", "saturated",
    ),
    "saturated tanh, digits": Kind(
        lambda s: digits(
            s, lambda: flat(64, 64, 64, 10, activation=nn.Tanh, bias=20.0),
            lambda p: SGD(p, lr=0.1, momentum=0.9), 500,
        ),
        "stalled", "CE", "saturated",
    ),
    "saturated sigmoid, bits": Kind(
        lambda s: signs(
            s, lambda: perceptron(12, 64, 64, 1, activation=nn.Sigmoid, bias=-18.0), parity(1),
            lambda p: RMSprop(p, lr=1e-3), 500, inputs=12,
        ),
        "stalled", "BCE", "saturated",
    ),
    "saturated attention": Kind(saturated_attention, "stalled", "CE", "saturated"),
    "frozen zero readout": Kind(
        lambda s: recall(s, zero_readout, 5, lambda p: Adam(p, lr=3e-3), 500),
        "stalled", "CE, masked", "blind readout",
    ),
    "readout of the first state": Kind(first_state_only, "stalled", "BCE", "blind readout"),
    "causal mask hides the answer": Kind(early_view, "stalled", "CE, masked", "blind readout"),
    "eight directions, Network 1": Kind(eight_directions, "stalled", "CE, masked", "core"),
    "long copy, LSTM": Kind(
        lambda s: recall(
            s, lambda: Recurrent("LSTM", 10, 48, 8), 50, lambda p: RMSprop(p, lr=1e-3), 400,
            symbols=5,
        ),
        "stalled", "CE, masked", "propagator",
    ),
    "recall with a low gain, RNN": Kind(
        lambda s: recall(s, lambda: with_gain("RNN", 0.1), 15, lambda p: SGD(p, lr=0.1), 600),
        "stalled", "CE, masked", "propagator",
    ),
    "RNN that explodes, clipped": Kind(
        lambda s: recall(
            s, lambda: with_gain("RNN", 4.0), 30, lambda p: SGD(p, lr=0.02), 500, clip_norm=1.0
        ),
        "stalled", "CE, masked", "propagator",
    ),
    "class imbalance": Kind(
        lambda s: clouds(s, (0.96, 0.02, 0.02), lambda p: SGD(p, lr=0.02), 600, 2.0),
        "stalled", "CE", "class imbalance",
    ),
    "frozen body, digits": Kind(
        lambda s: digits(s, lambda: frozen_features(4), lambda p: Adam(p, lr=1e-2), 500),
        "stalled", "CE", "frozen body",
    ),
}  # fmt: skip

LIMITED: dict[str, Kind] = {
    "noise in the target": Kind(
        lambda s: noisy_targets(s, lambda p: SGD(p, lr=0.5), 1600),
        "limited", "MSE", "noise", runs=6, earlier=True,
    ),
    "noise in the target, Shampoo": Kind(
        lambda s: noisy_targets(s, extra("Shampoo", 0.1), 900), "limited", "MSE", "noise"
    ),
    "an output that is noise, RNN": Kind(half_noise, "limited", "MSE", "noise"),
    "next value, LSTM": Kind(next_value, "limited", "MSE", "noise"),
    "hidden direction": Kind(hidden_direction, "limited", "MSE", "noise"),
    "flipped labels, digits": Kind(
        lambda s: digits(s, lambda: flat(64, 64, 10), lambda p: Adam(p, lr=1e-3), 800, flipped=0.4),
        "limited", "CE", "label noise",
    ),
    "flipped labels, CNN, momentum": Kind(
        lambda s: digits(
            s, small_cnn, lambda p: SGD(p, lr=0.03, momentum=0.9), 600, smoothed, flipped=0.6
        ),
        "limited", "CE, smoothed", "label noise",
    ),
    "flipped labels, Adan": Kind(
        lambda s: digits(
            s, lambda: flat(64, 64, 10, activation=nn.Tanh), extra("Adan", 3e-3), 500, flipped=0.3
        ),
        "limited", "CE", "label noise",
    ),
    "classes that look the same": Kind(
        lambda s: clouds(
            s, (0.3, 0.3, 0.22, 0.18), lambda p: SGD(p, lr=0.1, momentum=0.9), 600, 6.0, 2
        ),
        "limited", "CE", "noise",
    ),
    "random labels, transformer": Kind(random_labels, "limited", "CE", "noise"),
    "Markov chain, transformer": Kind(markov, "limited", "CE", "noise"),
    "corrupted recall, GRU": Kind(
        lambda s: recall(
            s, lambda: Recurrent("GRU", 10, 48, 8), 4, lambda p: Adam(p, lr=3e-3), 700,
            corrupted=0.5,
        ),
        "limited", "CE, masked", "noise",
    ),
    "random bits": Kind(
        lambda s: signs(
            s, lambda: perceptron(24, 64, 1), lambda x: (torch.rand(len(x), 1) < 0.5).float(),
            lambda p: Adam(p, lr=1e-3), 600, unpredictable=frozenset({0}),
        ),
        "limited", "BCE", "noise",
    ),
    "exclusive or with a hidden bit": Kind(unseen_sign, "limited", "BCE", "noise"),
    "bits, two of them random": Kind(
        lambda s: signs(
            s, lambda: perceptron(24, 64, 4), half_random, lambda p: RMSprop(p, lr=1e-3), 600,
            modes=4, unpredictable=frozenset({2, 3}),
        ),
        "limited", "BCE", "noise",
    ),
    "parity of 24, MLP": Kind(
        lambda s: signs(
            s, lambda: perceptron(24, 64, 64, 1), parity(24), lambda p: SGD(p, lr=0.1), 600
        ),
        "limited", "BCE", "at chance",
    ),
    "delayed comparison": Kind(delayed_comparison, "limited", "BCE", "at chance"),
    "parity of 24, transformer": Kind(long_parity, "limited", "BCE", "at chance"),
    "flipped bits, Adagrad": Kind(
        lambda s: signs(
            s, lambda: perceptron(24, 64, 1),
            flipped_majority,
            lambda p: Adagrad(p, lr=0.02), 700, unpredictable=frozenset({0}),
        ),
        "limited", "BCE", "label noise",
    ),
    "inputs that are hidden, AdaFactor": Kind(
        half_hidden, "limited", "MSE", "noise"
    ),
    "noise as the target, GRU": Kind(
        noise_only, "limited", "MSE", "noise"
    ),
    "overlapping classes, weighted": Kind(
        lambda s: replace(
            clouds(s, (0.7, 0.2, 0.1), lambda p: AdamW(p, lr=3e-3), 600, 1.0, loss=uneven),
            unpredictable=frozenset(range(3)),
        ),
        "limited", "CE, weighted", "noise",
    ),
}  # fmt: skip

KINDS: dict[str, Kind] = {**HEALTHY, **STALLED, **LIMITED}


REPORT = frozenset({
    "Network 2, SGD",
    "Network 1, Adam",
    "silent alignment, depth 2",
    "MLP, Adam",
    "GRU, SGD",
    "MLP, SGD, slow but in time",
    "digits, Adam, a rate that grows",
    "deep linear classifier",
    "modular addition, held-out pairs",
    "induction",
    "short recall, LSTM, clipped at 1",
    "copy, GRU, cosine",
    "digits, Lion",
    "imbalance, weighted",
    "digits, two rates",
    "dead ReLUs",
    "clipped to nothing, MLP",
    "decay, GRU, Adam",
    "rate that fades, GRU",
    "schedule ended at zero, digits",
    "milestone too early, digits",
    "learning rate too small, transformer",
    "clipped to nothing, recall",
    "saturated tanh, digits",
    "saturated sigmoid, bits",
    "frozen zero readout",
    "eight directions, Network 1",
    "recall with a low gain, RNN",
    "RNN that explodes, clipped",
    "noise in the target, Shampoo",
    "an output that is noise, RNN",
    "flipped labels, Adan",
    "classes that look the same",
    "exclusive or with a hidden bit",
    "bits, two of them random",
    "parity of 24, MLP",
    "delayed comparison",
    "parity of 24, transformer",
    "inputs that are hidden, AdaFactor",
    "noise as the target, GRU",
})
"""The half to report on.

Set before any alert was run on the new kinds, by a rule: within a group and a kind of loss (values,
or classes and bits), kinds of the earlier corpus went to the half to choose on as long as it had
room, and the others by the SHA-256 of their names; an odd one to either half in turn.
"""


def make(name: str, seed: int) -> Training:
    """A training of a kind, with what is to become of it."""
    kind = KINDS[name]
    training = kind.make(seed)
    followed = frozenset(range(training.modes))
    stuck = (kind.stuck or followed) if kind.group == "stalled" else NONE
    return replace(training, stuck=stuck, cause=kind.cause)


def half(name: str) -> str:
    """Whether to choose settings on a kind, or to report on it."""
    return "report" if name in REPORT else "choice"


# ---- the check ----------------------------------------------------------------------------------


def end(name: str, seed: int) -> dict[str, Any]:
    """Train one, and see what was learned."""
    torch.set_num_threads(1)
    training = make(name, seed)
    losses: list[float] = []
    course: list[list[float]] = []
    torch.manual_seed(seed)
    every = max(1, training.steps // 20)

    def look(step: int) -> None:
        if step % every == 0 or step == training.steps:
            course.append([round(float(value), 3) for value in learned(training)])

    began = time.perf_counter()
    train(training, before=look, stepped=lambda _, loss: losses.append(loss))
    tail = max(1, training.steps // 10)
    last, earlier = sum(losses[-tail:]) / tail, sum(losses[-5 * tail : -4 * tail]) / tail
    return {
        "steps": training.steps, "seed": seed, "loss": float(f"{last:.4g}"),
        "loss, at 60 %": float(f"{earlier:.4g}"), "learned": course[-1], "course": course,
        "unpredictable": sorted(training.unpredictable), "stuck": sorted(training.stuck),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def wrong(kind: Kind, run: dict[str, Any]) -> str:
    """What of an end is not as declared."""
    modes = run["learned"]
    if not math.isfinite(run["loss"]):
        return "not finite"
    if kind.group == "healthy" and min(modes) < 0.9:
        return "not all learned"
    if kind.group == "stalled" and max(modes[j] for j in run["stuck"]) >= 0.5:
        return "not stalled"
    limited = run["unpredictable"] or range(len(modes))
    if kind.group == "limited" and max(modes[j] for j in limited) >= 0.9:
        return "not limited"
    if kind.group == "limited" and run["loss"] < 0.93 * run["loss, at 60 %"]:
        return "not flat"
    return ""


def check(names: list[str], seeds: list[int]) -> None:
    """Train, print and keep the table."""
    for name in names:
        kind = KINDS[name]
        runs = [end(name, seed) for seed in seeds]
        row = {
            "kind": name, "half": half(name), "group": kind.group, "cause": kind.cause,
            "loss type": kind.loss, "earlier": kind.earlier, "steps": runs[0]["steps"],
            "unpredictable": runs[0]["unpredictable"], "stuck": runs[0]["stuck"],
            "ends": [
                {key: run[key] for key in ("seed", "loss", "loss, at 60 %", "learned", "seconds")}
                for run in runs
            ],
            "as declared": not any(wrong(kind, run) for run in runs),
        }  # fmt: skip
        for run in runs:
            first = [
                next((i for i, row in enumerate(run["course"]) if row[j] >= 0.5), None)
                for j in range(len(run["learned"]))
            ]
            print(
                f"{name:37} {kind.group:8} {half(name)} {kind.loss:12} {run['seed']} "
                f"loss {run['loss']:<8.4g} learned {run['learned']} half at {first} of 20, "
                f"{run['seconds']} s {wrong(kind, run).upper()}",
                flush=True,
            )
        keep(row)


def keep(row: dict[str, Any]) -> None:
    """Put a row in its place in the table."""
    table = json.loads(TABLE.read_text()) if TABLE.exists() else []
    rows = {old["kind"]: old for old in table} | {row["kind"]: row}
    kept = [json.dumps(rows[name]) for name in KINDS if name in rows]
    TABLE.write_text("[\n" + ",\n".join(kept) + "\n]\n")


def show() -> None:
    """Print the table that is kept, and how the halves are balanced."""
    for row in json.loads(TABLE.read_text()):
        ends = "; ".join(
            f"{run['loss']:.3g}: {', '.join(f'{value:.2f}' for value in run['learned'])}"
            for run in row["ends"]
        )
        print(
            f"| {row['kind']} | {row['half']} | {row['group']} | {row['cause']} | "
            f"{row['loss type']} | {row['steps']} | {ends} |"
        )
    count = Counter((half(n), k.group, k.loss == "MSE") for n, k in KINDS.items())
    for (which, group, values), number in sorted(count.items()):
        print(which, group, "MSE" if values else "CE or BCE", number)


def main() -> None:
    """Check all kinds, or some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="train them, without any monitor")
    parser.add_argument("--only", default="", help="parts of the kinds' names, with | between")
    parser.add_argument("--skip", default="", help="parts of the names of kinds to leave out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    arguments = parser.parse_args()
    if arguments.check:
        parts = arguments.only.split("|")
        skipped = [part for part in arguments.skip.split("|") if part]
        chosen = [name for name in KINDS if any(part in name for part in parts)]
        check([n for n in chosen if not any(part in n for part in skipped)], arguments.seeds)
    show()


if __name__ == "__main__":
    main()
