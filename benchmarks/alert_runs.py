"""Short trainings of which it is known afterwards which target modes were learned.

Each is probed some eighty times, on a fixed batch, and what the probes say of the target modes is
kept: the alert's rule, and others, can then be replayed on them (`alerts.py`). The rule's settings
were chosen on trainings with other seeds (from 0 on) than those that are kept (from 100 on).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ntk_monitor.models import GRURegression
from ntk_monitor.monitor.optimizers import learning_rate, preconditioner
from ntk_monitor.probe import Probe
from ntk_monitor.tasks import memory_pro_trials

RUNS = Path(__file__).parent / "results" / "alert_runs.json.gz"
PROBES = 80
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


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
        rate: What the learning rate is multiplied with at a step.
        state: The state to probe.
        noise: Whether target modes are noise that no model could learn.
    """

    model: nn.Module
    optimizer: Optimizer
    batch: Callable[[], Batch]
    evaluation: Batch
    steps: int
    loss: Loss = nn.functional.mse_loss
    rate: Callable[[int], float] = lambda _: 1.0
    state: str = "auto"
    noise: bool = False
    modes: int = 3


def memory_pro(seed: int, network: str, make: Callable[[Any], Optimizer], steps: int) -> Training:
    """A GRU on Memory-Pro: Network 1 is Xavier, Network 2 has planted fixed points."""
    torch.manual_seed(seed)
    model = GRURegression(hidden_size=64, initialization=network).network  # type: ignore[arg-type]
    return Training(
        model,
        make(model.parameters()),
        lambda: noisy(memory_pro_trials(2 * math.pi * torch.rand(32))),
        memory_pro_trials(2 * math.pi * torch.arange(10) / 10),
        steps,
    )


def noisy(batch: Batch) -> Batch:
    """Inputs with noise."""
    x, y = batch
    return x + 0.5 * torch.randn_like(x), y


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
    layers = [nn.Linear(8, 8, bias=False) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=scale / math.sqrt(8))
    model = nn.Sequential(*layers)
    draw, evaluation = linear_targets(seed, (4.0, 2.5, 1.5))
    return Training(
        model, SGD(model.parameters(), lr=lr, momentum=momentum), draw, evaluation, steps, state="0"
    )


def mlp(
    seed: int,
    make: Callable[[Any], Optimizer],
    steps: int,
    rate: Callable[[int], float] = lambda _: 1.0,
    bias: float = 0.0,
) -> Training:
    """A ReLU network on a smooth function of eight inputs."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)
    )
    with torch.no_grad():
        model[2].bias += bias  # type: ignore[operator]
    draw, evaluation = linear_targets(seed, (3.0, 2.0, 1.0))
    return Training(model, make(model.parameters()), draw, evaluation, steps, rate=rate)


def digits(seed: int, model: nn.Module, make: Callable[[Any], Optimizer], steps: int) -> Training:
    """Handwritten digits; cross entropy."""
    from sklearn.datasets import load_digits  # noqa: PLC0415

    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(y)
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 64) -> Batch:
        chosen = torch.randint(len(labels), (count,), generator=generator)
        return images[chosen], labels[chosen]

    return Training(
        model, make(model.parameters()), batch, batch(128), steps, nn.functional.cross_entropy
    )


def cnn(seed: int) -> Training:
    """A small convolutional network on digits, AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    return digits(seed, model, lambda p: AdamW(p, lr=2e-3), 640)


def digits_sgd(seed: int) -> Training:
    """A fully connected network on digits, SGD with momentum."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    return digits(seed, model, lambda p: SGD(p, lr=0.1, momentum=0.9), 640)


def shuffled_labels(seed: int) -> Training:
    """Random labels for 96 images, learned by heart."""
    torch.manual_seed(seed)
    x, y = torch.randn(96, 64), torch.randint(10, (96,))
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return Training(
        model,
        Adam(model.parameters(), lr=1e-3),
        lambda: (x, y),
        (x, y),
        400,
        nn.functional.cross_entropy,
    )


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


def gru(seed: int, make: Callable[[Any], Optimizer], steps: int) -> Training:
    """A GRU on a leaky sum: a healthy recurrent training."""
    torch.manual_seed(seed)
    model = SumOverTime()
    generator = torch.Generator().manual_seed(seed)
    weights = 0.8 ** torch.arange(20.0)

    def batch(count: int = 32) -> Batch:
        x = torch.randn(count, 20, 3, generator=generator)
        kernel = torch.stack([torch.roll(weights, i) * (torch.arange(20) >= i) for i in range(20)])
        return x, torch.einsum("st,bsj->btj", kernel, x)

    return Training(model, make(model.parameters()), batch, batch(16), steps)


class Attention(nn.Module):
    """A one-layer transformer that classifies every token."""

    def __init__(self) -> None:
        """32 features, two heads."""
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.place = nn.Parameter(0.1 * torch.randn(12, 32))
        self.body = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.readout = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every token."""
        return self.readout(self.body(self.embed(x) + self.place))


def transformer(seed: int) -> Training:
    """A small transformer that reverses a sequence, Adam."""
    torch.manual_seed(seed)
    model = Attention()
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int = 32) -> Batch:
        x = torch.randint(8, (count, 12), generator=generator)
        return x, x.flip(1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.transpose(1, 2), target)

    return Training(model, Adam(model.parameters(), lr=2e-3), batch, batch(), 800, loss)


def noisy_targets(seed: int) -> Training:
    """A target of which a part is noise, new in every batch: within reach, and never learned."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))
    draw, (x, y) = linear_targets(seed, (3.0,))

    def noise(batch: Batch) -> Batch:
        return batch[0], batch[1] + 0.5 * torch.randn_like(batch[1])

    return Training(
        model,
        SGD(model.parameters(), lr=0.5),
        lambda: noise(draw()),
        noise((x, y)),
        1600,
        noise=True,
    )


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


def shampoo(parameters: Any) -> Optimizer:  # noqa: ANN401
    """The paper's preconditioned optimizer."""
    from pytorch_optimizer import Shampoo  # noqa: PLC0415

    return Shampoo(parameters, lr=0.1)


@dataclass(frozen=True)
class Scenario:
    """A kind of training, and how many of it."""

    make: Callable[[int], Training]
    runs: int
    since: int = field(default=0)
    """The step from which a stall exists, for the delay."""


SCENARIOS: dict[str, Scenario] = {
    "Network 1, SGD": Scenario(
        lambda s: memory_pro(s, "xavier", lambda p: SGD(p, lr=0.05), 800), 8
    ),
    "Network 2, SGD": Scenario(
        lambda s: memory_pro(s, "fixed_points", lambda p: SGD(p, lr=0.05), 1600), 8
    ),
    "Network 1, Adam": Scenario(
        lambda s: memory_pro(s, "xavier", lambda p: Adam(p, lr=1e-3), 1600), 6
    ),
    "Network 1, Shampoo": Scenario(lambda s: memory_pro(s, "xavier", shampoo, 400), 6),
    "delayed take-off, depth 3": Scenario(lambda s: deep_linear(s, 3, 0.2, 0.1, 480), 10),
    "silent alignment, depth 2": Scenario(lambda s: deep_linear(s, 2, 0.02, 0.05, 640), 10),
    "MLP, SGD": Scenario(lambda s: mlp(s, lambda p: SGD(p, lr=0.3), 1600), 8),
    "MLP, SGD, warm-up and cosine": Scenario(
        lambda s: mlp(s, lambda p: SGD(p, lr=0.3), 1600, warmup_and_cosine(1600)), 8
    ),
    "MLP, Adam": Scenario(lambda s: mlp(s, lambda p: Adam(p, lr=1e-3), 800), 8),
    "digits, SGD with momentum": Scenario(digits_sgd, 6),
    "digits, CNN, AdamW": Scenario(cnn, 8),
    "GRU, Adam": Scenario(lambda s: gru(s, lambda p: Adam(p, lr=3e-3), 800), 8),
    "GRU, SGD": Scenario(lambda s: gru(s, lambda p: SGD(p, lr=0.5, momentum=0.9), 800), 6),
    "transformer, Adam": Scenario(transformer, 8),
    "shuffled labels, Adam": Scenario(shuffled_labels, 8),
    "noise in the target": Scenario(noisy_targets, 8),
    "learning rate too small, MLP": Scenario(lambda s: mlp(s, lambda p: SGD(p, lr=1e-4), 800), 8),
    "learning rate too small, Adam": Scenario(lambda s: mlp(s, lambda p: Adam(p, lr=1e-7), 800), 6),
    "learning rate cut too early": Scenario(
        lambda s: mlp(s, lambda p: SGD(p, lr=0.05), 1600, cut(60, 1e-3)), 8, 60
    ),
    "dead ReLUs": Scenario(lambda s: mlp(s, lambda p: SGD(p, lr=0.05), 400, bias=-100.0), 6),
}


def record(name: str, seed: int) -> dict[str, Any]:
    """Train and probe.

    Returns:
        Steps, losses, and for each mode what every probe said.
    """
    torch.set_num_threads(1)
    training = SCENARIOS[name].make(seed)
    model, optimizer = training.model, training.optimizer
    probe = Probe(tier="modes", modes=training.modes, state=training.state)
    rates = [group["lr"] for group in optimizer.param_groups]
    torch.manual_seed(seed)
    found: dict[str, Any] = {
        "scenario": name, "seed": seed, "planned": training.steps, "noise": training.noise,
        "since": SCENARIOS[name].since, "steps": [], "loss": [], "modes": [],
    }  # fmt: skip
    every = training.steps // PROBES
    loss = torch.tensor(math.nan)
    for step in range(training.steps + 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * training.rate(step)
        if step % every == 0:
            snapshot = probe(
                model,
                training.evaluation,
                learning_rate=learning_rate([optimizer]),
                preconditioner=preconditioner([optimizer], model),
            )
            found["steps"].append(step)
            found["loss"].append(float(f"{float(loss.detach()):.5g}"))
            found["modes"].append([
                [
                    float(f"{value:.5g}")
                    for value in (
                        mode.learned,
                        mode.steps_to_learn or math.nan,
                        mode.preconditioned_steps_to_learn or math.nan,
                        mode.gain,
                        mode.core_overlap,
                    )
                ]
                for mode in snapshot.target_modes
            ])
        x, y = training.batch()
        loss = training.loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def _record(job: tuple[str, int]) -> dict[str, Any]:
    found = record(*job)
    ends = [f"{mode[0]:.2f}" for mode in found["modes"][-1]]
    print(f"{job[0]} {job[1]}: loss {found['loss'][-1]:.3g}, learned {', '.join(ends)}", flush=True)
    return found


def jobs(only: str, first: int) -> Iterator[tuple[str, int]]:
    """Every training whose scenario has a text in its name, with seeds from the first on."""
    for name, scenario in SCENARIOS.items():
        if only in name:
            yield from ((name, first + i) for i in range(scenario.runs))


def main() -> None:
    """Record all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the scenarios' names")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--first-seed", type=int, default=100)
    arguments = parser.parse_args()
    with get_context("spawn").Pool(arguments.processes) as pool:
        found = pool.map(_record, list(jobs(arguments.only, arguments.first_seed)), chunksize=1)
    kept = json.loads(gzip.decompress(RUNS.read_bytes())) if RUNS.exists() else []
    new = {(run["scenario"], run["seed"]) for run in found}
    kept = [run for run in kept if (run["scenario"], run["seed"]) not in new]
    RUNS.write_bytes(gzip.compress(json.dumps([*kept, *found]).encode(), mtime=0))


if __name__ == "__main__":
    main()
