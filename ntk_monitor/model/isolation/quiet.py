"""One context in which a model can be probed without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ntk_monitor.compat import (
    BACKWARD_HOOKS,
    NormWithStatistics,
    default_device,
    set_default_device,
)
from ntk_monitor.model.isolation.exchange import exchanged
from ntk_monitor.model.isolation.kernels import Kernels, enable_mkldnn, kernels_for
from ntk_monitor.model.isolation.object_state import ObjectState
from ntk_monitor.model.parameters.sharding import reshard, waiting_gradients
from ntk_monitor.model.parameters.unwrapping import unwrapped

Guard = Callable[[nn.Module], AbstractContextManager[None]]


@contextmanager
def quiet(module: nn.Module, *, kernels: Kernels = "plain") -> Iterator[None]:
    """Probe a module without leaving a trace, whatever happens inside.

    Inside, every submodule is in evaluation mode (dropout off, batch statistics frozen), without
    hooks of its backward pass; gradients are enabled; inference mode, autocast and anomaly
    detection are off; compiled code runs as it was written. On exit, exception or not, all that
    ``GUARDS`` names is as it was. A context inside another for the same module only chooses
    kernels.

    What a ``forward`` does outside the module and torch (a file, a counter in a global variable)
    cannot be undone.

    Args:
        module: The module to be probed.
        kernels: Which kernels may be used.

    Yields:
        Nothing.
    """
    inside = _inside.get()
    with ExitStack() as stack:
        if id(module) not in inside:
            devices = frozenset({"cpu", *(p.device.type for p in module.parameters())})
            kinds = Kinds(frozenset(map(type, module.modules())), devices)
            inside = {**inside, id(module): kinds}
            stack.callback(_inside.reset, _inside.set(inside))
            for guard in GUARDS:
                stack.enter_context(guard(module))
        found = inside[id(module)]
        stack.enter_context(modes(found.devices))
        stack.enter_context(kernels_for(found.layers, kernels))
        yield


class Kinds(NamedTuple):
    """The kinds of layers and of devices of a module.

    Attributes:
        layers: The classes of its submodules.
        devices: The kinds of device that its parameters are on, and the processor.
    """

    layers: frozenset[type[nn.Module]]
    devices: frozenset[str]


_inside: ContextVar[Mapping[int, Kinds]] = ContextVar("_inside", default={})  # noqa: B039
"""The modules that are being probed, by id, and their kinds."""
_was_training: ContextVar[frozenset[int]] = ContextVar("_was_training", default=frozenset())
"""The submodules of these that training has in training mode, by id."""


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[tuple[str, ...]]:
    """Normalise by the statistics of the batch where training does so; inside `quiet`.

    Args:
        module: The module.

    Yields:
        The names of the buffers that its passes then write to.
    """
    found = [
        (name, submodule)
        for name, submodule in module.named_modules()
        if isinstance(submodule, NormWithStatistics)
        and not isinstance(submodule, nn.SyncBatchNorm)  # which waits for other processes
        and id(submodule) in _was_training.get()
    ]
    with exchanged((submodule, "training", True) for _, submodule in found):
        yield tuple(f"{name}.{own}".lstrip(".") for name, m in found for own in m._buffers)


@contextmanager
def random_states(module: nn.Module) -> Iterator[None]:
    """The random states of torch (CPU and every GPU), numpy and python.

    Args:
        module: Not looked at.

    Yields:
        Nothing.
    """
    del module
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def draw_anew(seed: int) -> None:
    """Begin the draws of torch, numpy and python anew; inside `quiet`, which puts them back.

    Args:
        seed: Names the draws.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def parts(module: nn.Module) -> Iterator[None]:
    """Sharded parameters: whatever was gathered of them is let go of.

    Args:
        module: Whose parameters.

    Yields:
        Nothing.
    """
    reshard(module)
    try:
        yield
    finally:
        reshard(module)


@contextmanager
def gradients(module: nn.Module) -> Iterator[None]:
    """``.grad`` of all parameters, which none has inside, and ``requires_grad``.

    Args:
        module: Whose parameters.

    Yields:
        Nothing.
    """
    saved = [
        (p, p.requires_grad, p.grad)
        for p in module.parameters()
        if p.grad is None or (p.grad.shape, p.grad.dtype) == (p.shape, p.dtype)
    ]  # another could be taken away, and not be put back
    for p, _, _ in saved:
        p.grad = None
    try:
        yield
    finally:
        for p, requires_grad, grad in saved:
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)
            p.grad = grad


@contextmanager
def attributes(module: nn.Module) -> Iterator[None]:
    """All attributes of all submodules, with what they hold; see `ObjectState`.

    Args:
        module: The module.

    Yields:
        Nothing.
    """
    held = ObjectState(module.modules())
    try:
        yield
    finally:
        held.put_back()


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """``training`` flags; and hooks of the backward pass, which `attributes` puts back.

    Args:
        module: The module.

    Yields:
        Nothing.
    """
    training = [(m, m.training) for m in module.modules()]
    token = _was_training.set(_was_training.get() | {id(m) for m, on in training if on})
    before_here = [dict(hooks) for hooks in BACKWARD_HOOKS]
    try:
        for hooks in BACKWARD_HOOKS:
            hooks.clear()
        for submodule, _ in training:
            submodule.training = False
            submodule._backward_hooks.clear()
            submodule._backward_pre_hooks.clear()
        yield
    finally:
        _was_training.reset(token)
        for submodule, before in training:
            submodule.training = before  # of TorchScript, too, which keeps it elsewhere
        for hooks, content in zip(BACKWARD_HOOKS, before_here, strict=True):
            hooks.update(content)


@contextmanager
def modes(devices: Iterable[str]) -> Iterator[None]:
    """Grad mode, inference mode, autocast and anomaly detection.

    Args:
        devices: On which kinds of them autocast is off.

    Yields:
        Nothing.
    """
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for device_type in devices:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        if anomaly[0]:
            torch.autograd.set_detect_anomaly(False)
            stack.callback(torch.autograd.set_detect_anomaly, *anomaly)
        yield


@contextmanager
def flags(module: nn.Module) -> Iterator[None]:
    """The flags of `FLAGS`: defaults of torch, determinism, backends.

    Args:
        module: Not looked at.

    Yields:
        Nothing.
    """
    del module
    before = {name: read() for name, (read, _) in FLAGS.items()}
    try:
        yield
    finally:
        for name, (read, write) in FLAGS.items():
            if read() != before[name]:
                write(before[name])


def _determinism() -> tuple[bool, bool]:
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warn_only


def _set_determinism(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:  # noqa: ANN401
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


_cuda, _cudnn = torch.backends.cuda, torch.backends.cudnn
_mkldnn, _mha = torch.backends.mkldnn, torch.backends.mha
FLAGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (default_device, set_default_device),
    "deterministic algorithms": (_determinism, _set_determinism),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "cuDNN enabled": _attribute(_cudnn, "enabled"),
    "cuDNN benchmark": _attribute(_cudnn, "benchmark"),
    "cuDNN deterministic": _attribute(_cudnn, "deterministic"),
    "oneDNN enabled": (lambda: bool(_mkldnn.enabled), lambda value: enable_mkldnn(enabled=value)),
    "flash attention": (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp),
    "memory-efficient attention": (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp),
    "plain attention": (_cuda.math_sdp_enabled, _cuda.enable_math_sdp),
    "cuDNN attention": (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp),
    "fast path of attention layers": (_mha.get_fastpath_enabled, _mha.set_fastpath_enabled),
    "float errors of numpy": (np.geterr, lambda value: np.seterr(**value)),
}
"""Flags of the process, each with how it is read and written."""


@contextmanager
def dense_gradients(module: nn.Module) -> Iterator[None]:
    """Embeddings with gradients that are dense, the same numbers as sparse ones.

    Args:
        module: The module to be probed.

    Yields:
        Nothing.
    """
    kinds = (nn.Embedding, nn.EmbeddingBag)
    found = (m for m in module.modules() if isinstance(m, kinds) and m.sparse)
    with exchanged((m, "sparse", False) for m in found):
        yield


GUARDS: tuple[Guard, ...] = (
    parts,
    waiting_gradients,
    *(random_states, flags, gradients, attributes, unwrapped, evaluation, dense_gradients),
    parts,  # before `attributes` puts back which parameters there are
)
"""What is put back after a probe, in the order of entry."""
