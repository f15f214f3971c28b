"""Which of torch's kernels a probe may use."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
import torch.utils.checkpoint as checkpointing
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding_bag

from ntk_monitor.compat import CHECKPOINTING
from ntk_monitor.model.isolation.embedding_bag import plain_embedding_bag
from ntk_monitor.model.isolation.exchange import exchanged
from ntk_monitor.model.isolation.interception import Args, Function, FunctionMode, Kwargs

Kernels = Literal["any", "reversible", "plain"]
"""``"any"``: the fastest, for plain passes. ``"reversible"``: those that go backward in evaluation
mode too, so no oneDNN and no cuDNN where there are recurrent layers. ``"plain"``: those that have
derivatives in every direction and of second order, so no fused attention and no fused bags of
embeddings either."""
FULL_PRECISION = "ieee"


@contextmanager
def kernels_for(layers: Iterable[type[nn.Module]], kernels: Kernels) -> Iterator[None]:
    """Choose kernels in scope.

    Args:
        layers: The classes of the modules that will be called.
        kernels: Which may be used. Convolutions keep theirs always.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        # Products of float32 in float32, where the user allows TF32 or bfloat16 inside them.
        backends = (b for b in _REDUCIBLE if hasattr(b, "fp32_precision"))
        stack.enter_context(exchanged((b, "fp32_precision", FULL_PRECISION) for b in backends))
        if kernels == "plain":
            stack.enter_context(_plain_attention())
            if any(issubclass(layer, nn.EmbeddingBag) for layer in layers):
                stack.enter_context(_PlainBags())
        if kernels != "any" and any(issubclass(layer, nn.RNNBase) for layer in layers):
            stack.enter_context(_plain_recurrence())
        yield


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off attention that cannot be differentiated in every direction."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with sdpa_kernel(SDPBackend.MATH):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _plain_recurrence() -> Iterator[None]:
    """Switch off the libraries whose recurrent layers cannot be."""
    mkldnn, cudnn = bool(torch.backends.mkldnn.enabled), bool(torch.backends.cudnn.enabled)
    try:
        enable_mkldnn(enabled=False)
        torch.backends.cudnn.enabled = False
        yield
    finally:
        enable_mkldnn(enabled=mkldnn)
        torch.backends.cudnn.enabled = cudnn


def enable_mkldnn(*, enabled: bool) -> None:
    """Switch oneDNN; ``mkldnn.flags`` would set the switches beside it as well.

    Args:
        enabled: Whether it is to be on.
    """
    torch.backends.mkldnn.set_flags(enabled, _fp32_precision=None)  # type: ignore[no-untyped-call]


class _PlainBags(FunctionMode):
    """Computes bags of embeddings in operations that have all derivatives."""

    def call(self, func: Function, name: str, args: Args, kwargs: Kwargs) -> Any:  # noqa: ANN401
        plain = plain_embedding_bag(*args, **kwargs) if func is embedding_bag else None
        return func(*args, **kwargs) if plain is None else plain


_REDUCIBLE: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    *(
        getattr(library, part, None)
        for library in (torch.backends.cudnn, torch.backends.mkldnn)
        for part in ("matmul", "conv", "rnn")
    ),
)


Again = Callable[[Callable[..., Any], Any, Any], Any]
"""Calls a checkpointed function once more, going backward, on its arguments."""


@contextmanager
def open_checkpoints(*, keep: bool, again: Again | None = None) -> Iterator[None]:
    """Call checkpointed functions plainly where checkpointing stands in the way.

    Reentrant checkpoints know ``backward`` alone. Others compute again without what a probe had
    changed in the pass, which is right only where it had changed nothing but parameters.

    Args:
        keep: Whether those others stay.
        again: How they compute again; None: as they would by themselves.

    Yields:
        Nothing.
    """
    others: dict[str, Any] = {"CheckpointFunction": _Plain}
    if not keep:
        others |= dict.fromkeys(CHECKPOINTING, _plain)
    elif again is not None:
        others |= {n: _computing(getattr(checkpointing, n), again) for n in CHECKPOINTING[-1:]}
    with exchanged((checkpointing, name, instead) for name, instead in others.items()):
        yield


def _computing(generator: Callable[..., Any], again: Again) -> Callable[..., Any]:
    """What torch does before and after a checkpointed function, which it then calls otherwise."""

    def begin(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        def repeated(*own: Any, **named: Any) -> Any:  # noqa: ANN401
            return again(function, own, named)

        return generator(repeated, *args, **kwargs)

    return begin


class _Plain:
    """In place of torch's reentrant checkpoint."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:  # noqa: ANN401
        del preserve_rng_state
        return function(*args)


def _plain(*_: Any, **__: Any) -> Generator[None, None, None]:  # noqa: ANN401
    """In place of what torch does before and after a checkpointed function."""
    yield
