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

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Hand over, if it is time."""
        del args
        if trainer.global_step % self.every == 0:
            parent = greenlet.getcurrent().parent
            assert parent is not None
            parent.switch()


def train_in_turns(trainings: list[Training], every: int) -> list[float]:
    """Train all, a few steps of each in turn.

    Args:
        trainings: Trainers with what they fit.
        every: Steps of a turn.

    Returns:
        The seconds that each took, set-up included.
    """

    def play(trainer: Trainer, module: LightningModule, loader: Any) -> None:  # noqa: ANN401
        trainer.callbacks.append(TakeTurns(every))  # type: ignore[attr-defined]
        trainer.fit(module, loader)

    players, seconds = [greenlet(play) for _ in trainings], [0.0] * len(trainings)
    while not all(player.dead for player in players):
        for i, player in enumerate(players):
            if not player.dead:
                started = time.perf_counter()
                player.switch(*(() if player else trainings[i]))
                seconds[i] += time.perf_counter() - started
    return seconds
