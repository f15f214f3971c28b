"""Trainings that take turns in one thread, so that all meet the same weather."""

from __future__ import annotations

import time
from typing import Any

from greenlet import greenlet
from lightning.pytorch import Callback, LightningModule, Trainer

Training = tuple[Trainer, LightningModule, Any]


class TakeTurns(Callback):
    """Hands over every few steps; the last of a Trainer's callbacks."""

    def __init__(self, every: int) -> None:
        """Keep the length of a turn in steps."""
        self.every = every
        self._away = 0.0

    def clock(self) -> float:
        """Seconds from an arbitrary moment, the turns of others not counted."""
        return time.perf_counter() - self._away

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Hand over, if it is time."""
        del args
        if trainer.global_step % self.every == 0:
            parent = greenlet.getcurrent().parent
            assert parent is not None
            left = time.perf_counter()
            parent.switch()
            self._away += time.perf_counter() - left


def train_in_turns(trainings: list[Training]) -> list[float]:
    """Train all, in turns that their `TakeTurns` end.

    Args:
        trainings: Trainers with what they fit.

    Returns:
        The seconds that each took, set-up included.
    """

    def play(trainer: Trainer, module: LightningModule, loader: Any) -> None:  # noqa: ANN401
        trainer.fit(module, loader)

    players, seconds = [greenlet(play) for _ in trainings], [0.0] * len(trainings)
    while not all(player.dead for player in players):
        for i, player in enumerate(players):
            if not player.dead:
                started = time.perf_counter()
                player.switch(*(() if player else trainings[i]))
                seconds[i] += time.perf_counter() - started
    return seconds
