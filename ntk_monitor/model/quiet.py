"""One context in which a model can be probed without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernels = Literal["any", "reversible", "plain"]
"""``"any"``: the fastest, for plain passes. ``"reversible"``: those that go backward in evaluation
mode too, so no oneDNN and no cuDNN where there are recurrent layers. ``"plain"``: those that have
derivatives in every direction and of second order, so no fused attention either."""


@contextmanager
def quiet(module: nn.Module, *, kernels: Kernels = "plain") -> Iterator[None]:
    """Probe a module without leaving a trace, whatever happens inside.

    On entry every submodule is put in evaluation mode (dropout off, batch statistics frozen),
    gradients are enabled, inference mode and autocast are off. On exit, exception or not, the
    following are as they were: the random states of torch (CPU and CUDA), numpy and python; all
    attributes of all submodules, ``training`` flags and hooks among them; the grad, inference and
    autocast modes; backend flags. ``.grad`` is never touched, since nothing here calls
    ``backward``.

    Args:
        module: The module to be probed.
        kernels: Which kernels may be used. Convolutions keep theirs always.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_states())
        stack.enter_context(_attributes(module))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for device_type in {"cpu", *(p.device.type for p in module.parameters())}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        if kernels == "plain":
            stack.enter_context(_plain_attention())
        if kernels != "any":
            stack.enter_context(_plain_recurrence(module))
        for submodule in module.modules():
            submodule.training = False
        yield


@contextmanager
def _random_states() -> Iterator[None]:
    """Restore every global random state."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def _attributes(module: nn.Module) -> Iterator[None]:
    """Restore the attributes of all submodules and the contents of their registries.

    A ``forward`` that stores what it saw (``self.last_state = h``) would otherwise be left
    holding a tensor of ours.
    """
    saved: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []
    for submodule in module.modules():
        attributes = vars(submodule)
        registries = {k: v.copy() for k, v in attributes.items() if isinstance(v, dict)}
        saved.append((attributes, dict(attributes), registries))
    try:
        yield
    finally:
        for attributes, before, registries in saved:
            for name in attributes.keys() - before.keys():
                del attributes[name]
            attributes.update(before)
            for name, content in registries.items():
                registry = attributes[name]
                if list(registry.items()) != list(content.items()):
                    registry.clear()
                    registry.update(content)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off, in scope, attention that cannot be differentiated in every direction."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with sdpa_kernel(SDPBackend.MATH):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _plain_recurrence(module: nn.Module) -> Iterator[None]:
    """Switch off, in scope, the libraries whose recurrent layers cannot be, if there are any."""
    mkldnn, cudnn = bool(torch.backends.mkldnn.enabled), bool(torch.backends.cudnn.enabled)
    recurrent = any(isinstance(m, nn.RNNBase) for m in module.modules())
    try:
        if recurrent:
            _enable(mkldnn=False, cudnn=False)
        yield
    finally:
        if recurrent:
            _enable(mkldnn=mkldnn, cudnn=cudnn)


def _enable(*, mkldnn: bool, cudnn: bool) -> None:
    """Set two switches of torch; ``mkldnn.flags`` would set the others beside it as well."""
    torch.backends.mkldnn.set_flags(mkldnn, _fp32_precision=None)  # type: ignore[no-untyped-call]
    torch.backends.cudnn.enabled = cudnn
