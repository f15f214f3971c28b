"""The Trainer of transformers in as many processes as there are, watched and not."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monitor.ways import BATCH, FAST, Ordered, Texts, gpt
from transformers import TrainingArguments

from ntk_monitor import StallAlert
from ntk_monitor.monitor import NTKTrainerCallback
from ranks.data_parallel import by_samples_alone

WORLD = 2
"""All batches of a step are as large as those of this many processes together."""


def train(folder: Path, *, watched: bool, shuffle: bool = True) -> dict[str, Any]:
    """Four steps of a GPT-2 with dropout."""
    heard: list[Any] = []

    def hear(snapshot: Any, step: int) -> None:
        scalars = snapshot.scalars()
        del scalars["ntk/probe_seconds"]
        heard.append((step, scalars))

    each = BATCH * WORLD // int(os.environ["WORLD_SIZE"])
    arguments = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=each, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=0.01,
    )  # fmt: skip
    callback = NTKTrainerCallback(2, on_probe=hear, alert=StallAlert(1), on_error="raise", **FAST)
    trainer = Ordered(
        gpt(dropout=0.1), arguments, train_dataset=Texts(), callbacks=[callback] if watched else []
    )
    trainer.shuffle = shuffle
    trainer.train()
    return {
        "heard": heard,
        "history": [e["step"] for e in trainer.state.log_history if "ntk/trace" in e],
        "weights": [p.tolist() for p in trainer.model.parameters()],
        "random": torch.rand(2).tolist(),
        "wrapped": type(trainer.model_wrapped).__name__,
        "kept": None
        if callback.kept.content is None
        else callback.kept.content["input_ids"].tolist(),
    }


def main(folder: Path) -> None:
    by_samples_alone()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {
        "watched": train(folder / "watched", watched=True),
        "plain": train(folder / "plain", watched=False),
        "in order": train(folder / "ordered", watched=True, shuffle=False),
    }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
