"""Reinforcement learning: trainings that make their data while they train."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.data import DataLoader, IterableDataset

from outsiders.training import Training, usual


class Cart:
    """Push a cart left or right; it is to stay near the origin."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(5)
        self.reset()

    def reset(self) -> np.ndarray:
        self.steps = 0
        self.state = self.random.uniform(-0.5, 0.5, 4).astype(np.float32)
        return self.state.copy()

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        self.steps += 1
        x, v, _, _ = self.state
        v = 0.9 * v + 0.2 * (2 * action - 1)
        self.state = np.array([x + 0.2 * v, v, np.sin(x), np.cos(x)], dtype=np.float32)
        done = abs(self.state[0]) > 2 or self.steps >= 40
        return self.state.copy(), float(1 - abs(self.state[0])), bool(done)


class Experience(NamedTuple):
    state: np.ndarray
    action: int
    reward: float
    done: bool
    new_state: np.ndarray


class ReplayBuffer:
    def __init__(self, capacity: int) -> None:
        self.buffer: deque[Experience] = deque(maxlen=capacity)

    def sample(self, batch_size: int) -> tuple[np.ndarray, ...]:
        indices = np.random.choice(len(self.buffer), batch_size, replace=False)
        columns = zip(*(self.buffer[i] for i in indices), strict=True)
        states, actions, rewards, dones, next_states = columns
        return (
            np.array(states),
            np.array(actions),
            np.array(rewards, dtype=np.float32),
            np.array(dones, dtype=bool),
            np.array(next_states),
        )


class RLDataset(IterableDataset):
    def __init__(self, buffer: ReplayBuffer, sample_size: int) -> None:
        self.buffer, self.sample_size = buffer, sample_size

    def __iter__(self) -> Iterator[tuple]:
        samples = self.buffer.sample(self.sample_size)
        yield from zip(*samples, strict=True)


class DQN(nn.Module):
    def __init__(self, obs_size: int, n_actions: int, hidden_size: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(obs_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, n_actions)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.float())


class DQNLightning(pl.LightningModule):
    """Lightning's tutorial: each step acts in the environment, then learns from the buffer."""

    def __init__(self, gamma: float = 0.95, sync_rate: int = 10, batch_size: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.env = Cart()
        self.net, self.target_net = DQN(4, 2), DQN(4, 2)
        self.buffer = ReplayBuffer(1000)
        self.state = self.env.reset()
        self.total_reward = 0.0
        self.episode_reward = 0.0
        for _ in range(200):
            self.play_step(epsilon=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    @torch.no_grad()
    def play_step(self, epsilon: float) -> tuple[float, bool]:
        if np.random.random() < epsilon:
            action = int(np.random.randint(2))
        else:
            action = int(self.net(torch.tensor(self.state[None])).argmax(1))
        new_state, reward, done = self.env.step(action)
        self.buffer.buffer.append(Experience(self.state, action, reward, done, new_state))
        self.state = self.env.reset() if done else new_state
        return reward, done

    def dqn_mse_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        states, actions, rewards, dones, next_states = batch
        state_action_values = self.net(states).gather(1, actions.long().unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            next_state_values = self.target_net(next_states).max(1)[0]
            next_state_values[dones] = 0.0
            next_state_values = next_state_values.detach()
        expected = next_state_values * self.hparams.gamma + rewards
        return nn.MSELoss()(state_action_values, expected)

    def training_step(self, batch: tuple[Tensor, ...], nb_batch: int) -> Tensor:
        epsilon = max(0.05, 1.0 - self.global_step / 50)
        reward, done = self.play_step(epsilon)
        self.episode_reward += reward
        loss = self.dqn_mse_loss(batch)
        if done:
            self.total_reward = self.episode_reward
            self.episode_reward = 0.0
        if self.global_step % self.hparams.sync_rate == 0:
            self.target_net.load_state_dict(self.net.state_dict())
        self.log_dict({"reward": reward, "train_loss": loss})
        self.log("total_reward", self.total_reward, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(RLDataset(self.buffer, 64), batch_size=self.hparams.batch_size)


class Rollouts(IterableDataset):
    """Episodes that the present policy plays, with returns to go."""

    def __init__(self, policy: nn.Module, env: Cart, gamma: float) -> None:
        self.policy, self.env, self.gamma = policy, env, gamma

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            states, actions, rewards = [], [], []
            state, done = self.env.reset(), False
            while not done:
                with torch.no_grad():
                    logits = self.policy(torch.from_numpy(state)[None])
                action = Categorical(logits=logits).sample()[0]
                states.append(torch.from_numpy(state))
                actions.append(action)
                state, reward, done = self.env.step(int(action))
                rewards.append(reward)
            total, returns = 0.0, []
            for reward in reversed(rewards):
                total = reward + self.gamma * total
                returns.insert(0, torch.tensor(total))
            yield from zip(states, actions, returns, strict=True)


class Reinforce(pl.LightningModule):
    def __init__(self, gamma: float = 0.95) -> None:
        super().__init__()
        self.gamma = gamma
        self.env = Cart()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        states, actions, returns = batch
        log_probs = torch.log_softmax(self(states), dim=1)
        log_prob_actions = log_probs[range(len(actions)), actions]
        advantage = (returns - returns.mean()) / (returns.std() + 1e-6)
        loss = -(log_prob_actions * advantage).mean()
        self.log("policy_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=3e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rollouts(self.net, self.env, self.gamma), batch_size=32)


class ActorCritic(pl.LightningModule):
    def __init__(self, gamma: float = 0.95, beta: float = 0.01) -> None:
        super().__init__()
        self.gamma, self.beta = gamma, beta
        self.env = Cart()
        self.shared = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.actor, self.critic = nn.Linear(32, 2), nn.Linear(32, 1)

    def policy(self, x: Tensor) -> Tensor:
        return self.actor(self.shared(x))

    def forward(self, x: Tensor) -> tuple[Categorical, Tensor]:
        features = self.shared(x)
        return Categorical(logits=self.actor(features)), self.critic(features).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        states, actions, returns = batch
        dist, values = self(states)
        advantages = returns - values.detach()
        actor_loss = -(dist.log_prob(actions) * advantages).mean()
        critic_loss = nn.functional.mse_loss(values, returns)
        entropy = dist.entropy().mean()
        self.log_dict({"actor": actor_loss, "critic": critic_loss, "entropy": entropy})
        return actor_loss + 0.5 * critic_loss - self.beta * entropy

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rollouts(_Policy(self), self.env, self.gamma), batch_size=32)


class _Policy:
    """The actor alone, as a function."""

    def __init__(self, module: ActorCritic) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module.policy(x)


TRAININGS = (
    Training(
        "dqn",
        usual(lambda: (DQNLightning(), None)),
        states=("net.net.[01]",),
        targets="values of the actions taken, by the target network, 1 of 2 outputs",
        modes=True,
    ),
    Training(
        "reinforce",
        usual(lambda: (Reinforce(), None)),
        states=("net.[01]",),
        targets="none: log-probabilities of actions, by their advantage",
        modes=False,
    ),
    Training(
        "actor-critic",
        usual(lambda: (ActorCritic(), None)),
        states=("shared*",),
        targets="returns, 1 value; the actor has no target",
        modes=True,
    ),
)
