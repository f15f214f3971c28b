"""What a monitor could have changed, and ways to change each on purpose."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor, nn

from ntk_monitor.model.isolation.quiet import FLAGS


class Witness(lightning.Callback):
    """Notes, at every batch, the state of what is not seen in the weights."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note(pl_module)

    def note(self, module: nn.Module) -> None:
        self.notes.append({
            "training": [m.training for m in module.modules()],
            "hooks": [hooks_of(m) for m in module.modules()],
            "requires_grad": [p.requires_grad for p in module.parameters()],
            "attributes": [sorted(vars(m)) for m in module.modules()],
            "flags": {name: read() for name, (read, _) in FLAGS.items()},
            "modes": modes(),
            "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        })


def hooks_of(module: nn.Module) -> list[int]:
    """How many hooks of every kind a module has."""
    return [len(v) for name, v in sorted(vars(module).items()) if "hooks" in name]


def modes() -> tuple[bool, ...]:
    """The modes of the thread."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_anomaly_enabled(),
    )


def evidence(trainer: Any, module: Any, witness: Witness) -> dict[str, Any]:
    """All that training with and without a monitor must agree in."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    metrics = {k: v for k, v in trainer.callback_metrics.items() if not _ours(k)}
    found = {
        "weights": [p.detach().clone() for p in module.parameters()],
        "buffers": [b.clone() for b in module.buffers()],
        "optimizer": copy.deepcopy([o.state_dict() for o in trainer.optimizers]),
        "scheduler": copy.deepcopy([s.state_dict() for s in schedulers]),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "data": list(module.seen),
        "losses": list(module.losses),
        "metrics": metrics,
        "steps": (trainer.global_step, trainer.current_epoch, trainer.should_stop),
    }
    for name in witness.notes[0]:
        found[name] = [note[name] for note in witness.notes]
    return found


def _ours(tag: str) -> bool:
    ours = ("ntk", "core", "target", "alert", "loss", "gradient", "update")
    return any(f"{part}/" in tag for part in ours)


def differences(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """In what two trainings differ, in any bit."""
    return {name for name in a.keys() | b.keys() if not same(a.get(name), b.get(name))}


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(a, b) or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


def _first(module: Any) -> nn.Parameter:
    return next(module.parameters())


def _add(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.add_(0.5)


def _set_grad(module: Any) -> None:
    _first(module).grad = torch.ones_like(_first(module))


def _flip(name: str) -> Callable[[Any], None]:
    def flip(module: Any) -> None:
        read, write = FLAGS[name]
        write(not read())

    return flip


def _momentum(module: Any) -> None:
    for optimizer in module.trainer.optimizers:
        for state in optimizer.state.values():
            _add(state["exp_avg"])


def _rate(module: Any) -> None:
    for config in module.trainer.lr_scheduler_configs:
        config.scheduler.step()


DAMAGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "weight": ("weights", lambda m: _add(_first(m))),
    "gradient": ("gradients", _set_grad),
    "draw of torch": ("torch", lambda _: torch.rand(1)),
    "draw of numpy": ("numpy", lambda _: np.random.rand()),
    "draw of python": ("python", lambda _: random.random()),
    "evaluation mode": ("training", lambda m: m.eval()),
    "hook": ("hooks", lambda m: m.readout.register_forward_hook(lambda *_: None)),
    "frozen": ("requires_grad", lambda m: m.readout.bias.requires_grad_(False)),
    "attribute": ("attributes", lambda m: setattr(m.readout, "leftover", 1)),
    "deterministic": ("flags", _flip("cuDNN deterministic")),
    "fast path": ("flags", _flip("fast path of attention layers")),
    "grad mode": ("modes", lambda _: torch.set_grad_enabled(False)),
    "momentum": ("optimizer", _momentum),
    "learning rate": ("scheduler", _rate),
    "order of data": ("data", lambda _: torch.manual_seed(7)),
    "logged metric": ("metrics", lambda m: m.trainer.callback_metrics.update(stray=torch.ones(()))),
    "buffer": ("buffers", lambda m: [_add(b) for b in m.buffers() if b.is_floating_point()]),
}
"""Ways to do harm: where each shows, and what it does to a module after a probe."""
