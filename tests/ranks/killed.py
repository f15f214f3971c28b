"""The last process ends in the middle of a probe, without a word; see test_data_parallel."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ntk_monitor.probe import Probe
from ntk_monitor.processes import Processes


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes = Processes(dist.group.WORLD)
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4))
    calls = 0

    def call(module: nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 20 and processes.index == processes.size - 1:
            os._exit(7)
        return module(batch)

    probe = Probe(method="finite-difference", forward_fn=call)
    try:
        probe(module, torch.randn(6, 3), processes=processes)
    except RuntimeError as error:
        sys.stdout.write(f"the probe ended with {error!r}\n")
        sys.stdout.flush()
    os._exit(0)  # the group is broken: nobody can leave it in order


if __name__ == "__main__":
    main()
