"""Memory-Pro: hold a direction through a delay, then report it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from ntk_monitor.checks import require

NAMES = ("cosine", "sine", "fixation")
CHANNELS = len(NAMES)
"""The same for inputs and targets."""


def memory_pro_trials(
    angles: Tensor, stimulus_steps: int = 30, memory_steps: int = 30, response_steps: int = 30
) -> tuple[Tensor, Tensor]:
    """Noise-free trials of the task.

    The input shows ``(cos a, sin a)`` during the stimulus and a fixation signal of 1 until the
    response; the target is the fixation signal, and ``(cos a, sin a)`` during the response only.

    Args:
        angles: Directions in radians, shape ``(B,)``.
        stimulus_steps: Length of the stimulus.
        memory_steps: Length of the delay.
        response_steps: Length of the response.

    Returns:
        Inputs and targets, each of shape ``(B, T, 3)``: cosine, sine, fixation.

    References:
        Hazelden et al., arXiv:2605.08746 (2026), section 5.1 and appendix A.2.1.

    Example:
        >>> inputs, targets = memory_pro_trials(torch.zeros(1), 1, 1, 1)
        >>> inputs[0].tolist()
        [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
        >>> targets[0].tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    total = stimulus_steps + memory_steps + response_steps
    direction = torch.stack([angles.cos(), angles.sin()], dim=-1).unsqueeze(1)
    inputs = angles.new_zeros(len(angles), total, CHANNELS)
    inputs[:, :stimulus_steps, :2] = direction
    inputs[:, : total - response_steps, 2] = 1.0
    targets = torch.zeros_like(inputs)
    targets[:, total - response_steps :, :2] = direction
    targets[..., 2] = inputs[..., 2]
    return inputs, targets


class MemoryProDataModule(LightningDataModule):
    """The Memory-Pro task: noisy training trials, and a noise-free evaluation batch.

    Training directions are uniform on the circle and get fresh Gaussian input noise whenever they
    are shown; the evaluation batch has equally spaced directions and no noise.

    Attributes:
        output_names: What the outputs are, for those who show them.
    """

    output_names = NAMES

    def __init__(
        self,
        trials: int = 5000,
        batch_size: int = 64,
        evaluation_trials: int = 20,
        stimulus_steps: int = 30,
        memory_steps: int = 30,
        response_steps: int = 30,
        noise_std: float = math.sqrt(3.2),
        seed: int = 0,
    ) -> None:
        """Describe the task, and generate nothing; a value out of its range raises a ValueError.

        Args:
            trials: Training trials in an epoch.
            batch_size: Training trials in a batch.
            evaluation_trials: Trials in the evaluation batch.
            stimulus_steps: Length of the stimulus.
            memory_steps: Length of the delay.
            response_steps: Length of the response.
            noise_std: Standard deviation of the noise on each training input; the paper's
                variance is 3.2.
            seed: Of directions, order and noise.
        """
        super().__init__()
        counts = {
            "trials": trials,
            "batch_size": batch_size,
            "evaluation_trials": evaluation_trials,
            "stimulus_steps": stimulus_steps,
            "memory_steps": memory_steps,
            "response_steps": response_steps,
        }
        for name, count in counts.items():
            require(count >= 1, name, "at least 1", count)
        require(noise_std >= 0, "noise_std", "a standard deviation, 0 or more", noise_std)
        self.trials = trials
        self.batch_size = batch_size
        self.evaluation_trials = evaluation_trials
        self.steps = (stimulus_steps, memory_steps, response_steps)
        self.noise_std = noise_std
        self.seed = seed
        self._shown: _NoisyTrials | None = None

    def set_difficulty(self, difficulty: float) -> None:
        """Shorten the delay of the training trials, from the next batch on.

        Args:
            difficulty: Share of the delay that remains, from 0, one step, to 1, all of it.

        Raises:
            ValueError: If it is no share.
        """
        if not 0 <= difficulty <= 1:
            raise ValueError(f"difficulty must lie in [0, 1], got {difficulty}")
        stimulus, memory, response = self.steps
        if self._shown is not None:
            self._shown.show(stimulus, max(round(difficulty * memory), 1), response)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches ``(inputs, targets)`` of shape ``(batch_size, T, 3)``, shuffled each epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        angles = 2 * math.pi * torch.rand(self.trials, generator=generator)
        dataset = self._shown = _NoisyTrials(angles, self.steps, self.noise_std, generator)
        sampler = _ShuffledBatches(self.trials, self.batch_size, generator)
        return DataLoader(dataset, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The one noise-free evaluation batch."""
        angles = 2 * math.pi * torch.arange(self.evaluation_trials) / self.evaluation_trials
        dataset = TensorDataset(*memory_pro_trials(angles, *self.steps))
        return DataLoader(dataset, batch_size=self.evaluation_trials)


class _NoisyTrials(Dataset[tuple[Tensor, Tensor]]):
    """Trials taken by whole batches, with fresh noise on the inputs."""

    def __init__(
        self,
        angles: Tensor,
        steps: tuple[int, int, int],
        noise_std: float,
        generator: torch.Generator,
    ) -> None:
        self.angles = angles
        self.noise_std = noise_std
        self.generator = generator
        self.show(*steps)

    def show(self, *steps: int) -> None:
        """From now on, trials with these lengths of stimulus, delay and response."""
        if getattr(self, "steps", None) != steps:
            self.steps = steps
            self.inputs, self.targets = memory_pro_trials(self.angles, *steps)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        clean = self.inputs[indices]
        noise = torch.randn(clean.shape, generator=self.generator)
        return clean + self.noise_std * noise, self.targets[indices]


class _ShuffledBatches(Sampler[list[int]]):
    """Index lists of whole batches, in a new order each epoch."""

    def __init__(self, trials: int, batch_size: int, generator: torch.Generator) -> None:
        self.trials = trials
        self.batch_size = batch_size
        self.generator = generator

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.trials, generator=self.generator)
        for batch in torch.split(order, self.batch_size):
            yield batch.tolist()

    def __len__(self) -> int:
        return math.ceil(self.trials / self.batch_size)
