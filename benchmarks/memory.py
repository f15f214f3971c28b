"""Peak memory of a probe and of its products, against plain inference on the same batch.

Products are those after the model was looked at once, which is done as training goes forward.
Each case has a process of its own. Its memory is the largest resident set while the case runs, from
the set before the model was made: parameters, activations, outputs, and what a probe adds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from results import save
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ntk_monitor import linearize, probe
from ntk_monitor.estimators import Activities, CoreGram

GOAL = 1.1
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
"""Has the C library give back all that is freed: what it keeps for later is no one's need."""
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Batch = dict[str, Tensor] | Tensor
Workload = tuple[nn.Module, Batch]


def gpt2(layers: int, trials: int, steps: int) -> Workload:
    """A language model like GPT-2 and a batch of tokens."""
    config = GPT2Config(n_layer=layers, use_cache=False)
    tokens = torch.randint(config.vocab_size, (trials, steps))
    return GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}


def mlp(width: int, trials: int) -> Workload:
    """A wide network of five layers."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(trials, width)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "GPT-2, 6 layers, 8 x 128": lambda: gpt2(6, 8, 128),
    "GPT-2, 12 layers, 8 x 128": lambda: gpt2(12, 8, 128),
    "GPT-2, 6 layers, 8 x 256": lambda: gpt2(6, 8, 256),
    "MLP, 5 x 3000, 128": lambda: mlp(3000, 128),
}


def loss_of(module: nn.Module, batch: Batch) -> Tensor:
    """The loss, which the language model knows."""
    return module(batch).square().mean() if isinstance(batch, Tensor) else module(**batch).loss


def inference(module: nn.Module, batch: Batch) -> None:
    """A plain forward pass."""
    with torch.no_grad():
        module.eval()
        if isinstance(batch, Tensor):
            module(batch)
        else:
            module(input_ids=batch["input_ids"])


def training(module: nn.Module, batch: Batch) -> None:
    """A forward and a backward pass, without an optimizer."""
    loss_of(module, batch).backward()


def products(method: str) -> Callable[[nn.Module, Batch], None]:
    """A few products, after the survey of the model and its core."""

    def run(module: nn.Module, batch: Batch) -> None:
        parts = Activities()
        lin = linearize(module, batch, method=method, consume=parts.add, copies=False)
        CoreGram.of(parts)
        lin = replace(lin, outputs=None, comparisons=())
        tidy()
        CLEAR_REFS.write_text("5")
        lin.sampler(0).sample(range(2))

    return run


def probing(method: str, tier: str) -> Callable[[nn.Module, Batch], None]:
    """A whole probe."""

    def run(module: nn.Module, batch: Batch) -> None:
        settings = {"max_products": 12, "tolerance": 0.0, "time_limit": None}
        probe(module, batch, method=method, tier=tier, modes=0, **settings)

    return run


CASES: dict[str, Callable[[nn.Module, Batch], None]] = {
    "inference": inference,
    "products by default": products("finite-difference"),
    "products in place": products("in-place"),
    "probe in place, core": probing("in-place", "core"),
    "probe in place, kernel": probing("in-place", "kernel"),
    "probe by default": probing("auto", "kernel"),
    "training step": training,
}


def status(field: str) -> int:
    """A number of bytes from the system's account of this process."""
    lines = STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def tidy() -> None:
    """Give memory that is free back to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def measure(workload: str, case: str) -> dict[str, int]:
    """Bytes of the parameters, and at the peak, both beyond those before the model."""
    torch.manual_seed(0)
    CASES[case](*mlp(8, 4))  # libraries load at their first use
    tidy()
    before = status("VmRSS")
    module, batch = WORKLOADS[workload]()
    tidy()
    CLEAR_REFS.write_text("5")
    CASES[case](module, batch)
    parameters = sum(p.numel() * p.element_size() for p in module.parameters())
    return {"parameters": parameters, "peak": status("VmHWM") - before}


def in_a_process(workload: str, case: str) -> dict[str, int]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--workload", workload, "--case", case]
    environment = {**os.environ, **ALLOCATOR}
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, int] = json.loads(answer.stdout.splitlines()[-1])
    return found


def table(workloads: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Measure and print all cases of some workloads."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    print(f"{'workload':28}{'case':26}{'peak MB':>9}{'of inference':>14}")
    for workload in workloads:
        rows = found[workload] = {}
        for case in CASES:
            rows[case] = in_a_process(workload, case)
            share = rows[case]["peak"] / rows["inference"]["peak"]
            peak = rows[case]["peak"] / 2**20
            print(f"{workload:28}{case:26}{peak:9.0f}{share:14.2f}", flush=True)
    return found


def main() -> None:
    """Print the table, or answer for one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=list(WORKLOADS))
    parser.add_argument("--case", choices=list(CASES))
    chosen = parser.parse_args()
    if chosen.case:
        print(json.dumps(measure(chosen.workload, chosen.case)))
        return
    found = table([chosen.workload] if chosen.workload else list(WORKLOADS))
    if not chosen.workload:
        save("memory", {"goal": GOAL, "workloads": found})


if __name__ == "__main__":
    main()
