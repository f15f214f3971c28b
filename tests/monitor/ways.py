"""One GPT-2, trained in four ways."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from ntk_monitor import Monitor, NTKMonitor, StallAlert
from ntk_monitor.monitor import NTKTrainerCallback

STEPS, BATCH, LENGTH, TOKENS = 6, 4, 5, 11
FAST: dict[str, Any] = {"max_products": 24, "tolerance": 0.0, "max_overhead": None, "modes": 2}
FAST |= {"figures": False}
DRAWING = {"figures": True}


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Tokens without a meaning, or counting, which can be learned."""

    def __init__(self, *, counting: bool = False) -> None:
        generator = torch.Generator().manual_seed(3)
        self.rows = torch.randint(TOKENS, (STEPS * BATCH, LENGTH), generator=generator)
        if counting:
            self.rows = (self.rows[:, :1] + torch.arange(LENGTH)) % TOKENS

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def gpt(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=LENGTH, n_embd=8, n_layer=2, n_head=2,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@dataclass
class Run:
    """What to train, and what came of it."""

    folder: Path
    watched: bool = True
    shuffle: bool = False
    dropout: float = 0.0
    steps: int = STEPS
    settings: dict[str, Any] = field(default_factory=dict)
    alert: StallAlert | None = None
    logger: Any = None
    fails: bool = False
    counting: bool = False
    damage: Callable[[nn.Module], Any] | None = None
    model: nn.Module = field(init=False)
    monitor: Any = None
    optimizer: Any = None
    seen: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    steps_taken: int = 0
    random: tuple[Any, ...] = ()

    def hear(self, snapshot: Any, step: int) -> None:
        scalars = snapshot.scalars()
        del scalars["ntk/probe_seconds"]
        self.seen.append((step, scalars))
        if self.damage is not None:
            self.damage(self.model)

    def all_settings(self) -> dict[str, Any]:
        return {"every_n_steps": 2, **FAST, **self.settings}

    def loader(self) -> DataLoader:
        return DataLoader(self.texts(), BATCH, shuffle=self.shuffle)

    def texts(self) -> Texts:
        return Texts(counting=self.counting)

    def own_monitor(self) -> Monitor:
        return Monitor(alert=self.alert, on_probe=self.hear, **self.all_settings())


class Module(LightningModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.gpt, self.run = run.model, run

    def forward(self, **batch: Tensor) -> Any:
        return self.gpt(**batch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self(**batch).loss

    def configure_optimizers(self) -> Any:
        self.run.optimizer = Adam(self.parameters(), lr=0.01)
        return self.run.optimizer


def lightning(run: Run) -> None:
    class Ears(Callback):
        def on_probe(self, trainer: Any, pl_module: Any, snapshot: Any, step: int) -> None:
            run.hear(snapshot, step)

    callbacks: list[Any] = []
    if run.watched:
        run.monitor = NTKMonitor(**run.all_settings())
        callbacks = [run.monitor, Ears(), *([] if run.alert is None else [run.alert])]
    trainer = LightningTrainer(
        max_steps=run.steps, accelerator="cpu", logger=run.logger or False, callbacks=callbacks,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(run), run.loader())
    run.steps_taken = trainer.global_step


class Ordered(Trainer):
    shuffle = False

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return (RandomSampler if self.shuffle else SequentialSampler)(self.train_dataset)


def transformers(run: Run) -> None:
    arguments = TrainingArguments(
        str(run.folder), max_steps=run.steps, per_device_train_batch_size=BATCH, use_cpu=True,
        report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, max_grad_norm=0.0,
    )  # fmt: skip
    if run.watched:
        run.monitor = NTKTrainerCallback(
            alert=run.alert, on_probe=run.hear, logger=run.logger, **run.all_settings()
        )
    run.optimizer = Adam(run.model.parameters(), lr=0.01)
    constant = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda _: 1.0)
    trainer = Ordered(
        run.model, arguments, train_dataset=run.texts(), optimizers=(run.optimizer, constant),
        callbacks=[run.monitor] if run.watched else [],
    )  # fmt: skip
    trainer.shuffle = run.shuffle
    trainer.model_accepts_loss_kwargs = False  # the model's own mean, as in the other ways
    torch.manual_seed(1)
    trainer.train()
    run.steps_taken = trainer.state.global_step


def loop(run: Run, model: nn.Module, optimizer: Any, backward: Any, **where: Any) -> None:
    """The loop of a user who logs nothing else."""
    loader = run.loader()
    first = next(iter(DataLoader(run.texts(), BATCH)))

    def steps() -> Any:
        for batch in loader:
            if run.steps_taken == run.steps or (run.monitor and run.monitor.should_stop):
                return
            loss = model(**batch).loss
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
            run.steps_taken += 1
            yield batch

    if not run.watched:
        for _ in steps():
            pass
        return
    run.monitor = run.own_monitor()
    with run.monitor.attach(
        model, optimizer, batch=first, total_steps=run.steps, logger=run.logger, **where
    ):
        for batch in steps():
            run.monitor.step(batch)


def plain(run: Run) -> None:
    run.optimizer = Adam(run.model.parameters(), lr=0.01)
    run.model.train()
    loop(run, run.model, run.optimizer, lambda loss: loss.backward())


def fabric(run: Run) -> None:
    own = Fabric(accelerator="cpu", devices=1, loggers=run.logger)
    run.optimizer = Adam(run.model.parameters(), lr=0.01)
    model, optimizer = own.setup(run.model, run.optimizer)
    model.train()
    run.logger = None
    loop(run, model, optimizer, own.backward, fabric=own)


WAYS: dict[str, Callable[[Run], None]] = {
    "lightning": lightning,
    "transformers": transformers,
    "fabric": fabric,
    "plain": plain,
}


def train(way: str, folder: Path, **settings: Any) -> Run:
    """Train in one of the ways."""
    run = Run(folder, **settings)
    run.model = gpt(run.dropout)
    if run.fails:
        inner = run.model.forward

        @functools.wraps(inner)  # the Trainer reads off it which columns the model takes
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not run.model.training:
                raise ArithmeticError("no evaluation today")
            return inner(*args, **kwargs)

        run.model.forward = forward
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*LeafSpec")
        warnings.filterwarnings("ignore", ".*logging interval")
        WAYS[way](run)
    run.random = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    return run
