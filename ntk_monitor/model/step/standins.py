"""What stands in for a Trainer, its optimizers and its loggers while a step is probed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from ntk_monitor.model.isolation.interception import (
    Args,
    Function,
    FunctionMode,
    Kwargs,
    OperationMode,
)
from ntk_monitor.model.isolation.memory import address_of

ACTIONS = ("save_checkpoint", "print", "fit", "validate", "test", "predict")
"""Methods of a Trainer that a step may call, and that do nothing in a probe."""
PLACES = ("log_dir", "save_dir", "root_dir", "name", "version")
"""What a step may read off a logger."""
COLLECTIVES = (
    *("all_gather", "all_reduce", "reduce", "broadcast", "barrier", "reduce_boolean_decision"),
)


REMEDY = (
    "name the loss with loss_fn=lambda module, batch: ..., or probe the forward pass with "
    "forward_fn=lambda module, batch: module(...) and target_fn=lambda batch: ..."
)
"""What to do where a step cannot be probed."""


class StepError(RuntimeError):
    """A training step cannot be probed, for a reason that says what to do instead."""


class StandIn:
    """Reads through to an object, and keeps to itself whatever is done to it."""

    def __init__(self, real: Any, **instead: Any) -> None:  # noqa: ANN401
        """Take an object's place.

        Args:
            real: The object.
            **instead: Attributes that are other ones here.
        """
        vars(self).update(instead, _StandIn__real=real)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # noqa: ANN401
        """The object's own class, for ``isinstance``."""
        return type(vars(self)["_StandIn__real"])

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(vars(self)["_StandIn__real"], name)

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        vars(self)[name] = value

    def __delattr__(self, name: str) -> None:
        vars(self).pop(name, None)

    def __repr__(self) -> str:
        return repr(vars(self)["_StandIn__real"])


def nothing(*_: Any, **__: Any) -> None:  # noqa: ANN401
    """In place of a method that does something."""


class Silence:
    """Takes whatever is said to a logger, and does nothing with it."""

    def __call__(self, *_: Any, **__: Any) -> Silence:  # noqa: ANN401
        """Itself, whatever is asked."""
        return self

    def __getattr__(self, name: str) -> Silence:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    __getitem__ = __enter__ = __call__
    __setitem__ = __exit__ = nothing

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True


class _Logger(StandIn):
    """A logger that says where it writes, and writes nothing."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return super().__getattr__(name) if name in PLACES else Silence()


def _step(closure: Callable[[], Any] | None = None, *_: Any, **__: Any) -> Any:  # noqa: ANN401
    """A step of an optimizer, without its effect: the closure alone tells of a loss."""
    return None if closure is None else closure()


class _Optimizer(StandIn):
    """An optimizer that steps nowhere."""

    def __init__(self, real: Any) -> None:  # noqa: ANN401
        super().__init__(
            real,
            step=_step,
            zero_grad=nothing,
            load_state_dict=nothing,
            add_param_group=nothing,
            toggle_model=lambda *_, **__: nullcontext(),
            param_groups=[dict(group) for group in real.param_groups],
        )

    @property
    def optimizer(self) -> _Optimizer:
        return self


class _Scheduler(StandIn):
    """A scheduler that stays where it is."""

    def __init__(self, real: Any) -> None:  # noqa: ANN401
        super().__init__(real, step=nothing, load_state_dict=nothing)


class Training:
    """A Lightning module's Trainer, optimizers, schedulers and loggers, without effect.

    Attributes:
        meant: The losses that the step handed to ``manual_backward`` in the present call.
    """

    def __init__(self, module: nn.Module) -> None:
        """Look at what the module has.

        Args:
            module: The module, with a Trainer or without.
        """
        self.meant: list[Tensor] = []
        self._modules = [m for m in module.modules() if "_trainer" in vars(m)]
        real = next((t for m in self._modules if (t := vars(m)["_trainer"]) is not None), None)
        optimizers = list(getattr(real, "optimizers", ()) or ()) or _configured(module)
        configs = [] if real is None else list(getattr(real, "lr_scheduler_configs", ()) or ())
        self._optimizers = [_Optimizer(optimizer) for optimizer in optimizers]
        self._schedulers = [_Scheduler(config.scheduler) for config in configs]
        several = getattr(real, "world_size", 1) > 1
        without = StandIn(_NoTrainer(), loggers=[], **dict.fromkeys(ACTIONS, nothing))
        self.trainer = without if real is None else self._trainer(real, several)
        self._instead: dict[str, Any] = {
            **dict.fromkeys(("log", "log_dict", "print", "clip_gradients"), nothing),
            **dict.fromkeys(("toggle_optimizer", "untoggle_optimizer"), nothing),
            "lr_scheduler_step": nothing,
            "toggled_optimizer": lambda *_, **__: nullcontext(),
            "optimizers": lambda *_, **__: _one_or_all(self._optimizers),
            "lr_schedulers": lambda: _one_or_all(self._schedulers) if self._schedulers else None,
            "manual_backward": lambda loss, *_, **__: self.meant.append(loss),
        }
        if several:
            self._instead["all_gather"] = _communicates

    def _trainer(self, real: Any, several: bool) -> StandIn:  # noqa: ANN401
        loggers = [_Logger(logger) for logger in getattr(real, "loggers", ())]
        strategy = StandIn(
            real.strategy,
            backward=lambda loss, *_, **__: self.meant.append(loss),
            optimizers=self._optimizers,
            _lightning_optimizers=self._optimizers,
            **(dict.fromkeys(COLLECTIVES, _communicates) if several else {}),
        )
        metrics = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
        return StandIn(
            real,
            strategy=strategy,
            optimizers=self._optimizers,
            loggers=loggers,
            logger=loggers[0] if loggers else None,
            _results=_results_like(getattr(real, "_results", None)),
            **{name: dict(getattr(real, name)) for name in metrics},
            **dict.fromkeys(ACTIONS, nothing),
        )

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Let all of this stand in during one call.

        Yields:
            Nothing.
        """
        self.meant.clear()
        before = []
        try:
            for module in self._modules:
                own = vars(module)
                names = [name for name in self._instead if callable(getattr(module, name, None))]
                before.append((own, {n: own[n] for n in (*names, "_trainer") if n in own}, names))
                own.update({name: self._instead[name] for name in names}, _trainer=self.trainer)
            yield
        finally:
            for own, was, names in before:
                for name in names:
                    own.pop(name, None)
                own.update(was)


def _results_like(results: Any) -> Any:  # noqa: ANN401
    """Where a ``log`` that a submodule was handed still writes."""
    return None if results is None else type(results)(training=True)


def _one_or_all(found: Sequence[Any]) -> Any:  # noqa: ANN401
    return found[0] if len(found) == 1 else list(found)


def _configured(module: Any) -> list[Any]:  # noqa: ANN401
    """The optimizers that a module without a Trainer would have, if its step asks for them."""
    if getattr(module, "automatic_optimization", True):
        return []
    try:
        found = module.configure_optimizers()
    except Exception:  # it may ask for a Trainer; the step then says so
        return []
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], (list, tuple)):
        found = found[0]
    several = found if isinstance(found, (list, tuple)) else [found]
    return [o["optimizer"] if isinstance(o, Mapping) else o for o in several if o is not None]


def _communicates(*_: Any, **__: Any) -> None:  # noqa: ANN401
    raise StepError(
        "the training step communicates with other processes, which a probe cannot repeat: probe "
        "the forward pass in its place, with forward_fn=lambda module, batch: module(...) and "
        "target_fn=lambda batch: ..."
    )


class WithoutMessages(OperationMode):  # type: ignore[no-untyped-call]
    """Refuses messages to other processes, in which nobody would hear of one that fails."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Call an operation that is no message."""
        if "c10d" in str(getattr(func, "namespace", "")):
            _communicates()
        return func(*args, **kwargs)


class WithoutWrites(FunctionMode):
    """Leaves some tensors as they are, whatever is to be written into them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Note where they are.

        Args:
            tensors: The tensors.
        """
        super().__init__()
        self._tensors = list(tensors)
        self._places = {at for t in self._tensors if (at := address_of(t))}

    def call(self, func: Function, name: str, args: Args, kwargs: Kwargs) -> Any:  # noqa: ANN401
        """Make a call, unless it writes there; an embedding's ``max_norm`` is left out."""
        first = args[0] if args else None
        writes = name == "__setitem__" or (name.endswith("_") and not name.startswith("_"))
        there = isinstance(first, Tensor) and (
            address_of(first) in self._places or any(first is t for t in self._tensors)
        )
        if writes and there and name not in HARMLESS:
            return None if name == "__setitem__" else first
        if name in {"embedding", "embedding_bag"}:
            args = (*args[:3], None, *args[4:]) if len(args) > 3 else args
            kwargs = {**kwargs, "max_norm": None} if kwargs.get("max_norm") else kwargs
        return func(*args, **kwargs)


HARMLESS = frozenset({"requires_grad_", "detach_", "share_memory_", "retain_grad_"})
"""Methods that write no numbers, by whatever name."""


class _NoTrainer:
    """What a step finds without a Trainer."""

    global_step = current_epoch = 0
    world_size, global_rank, local_rank = 1, 0, 0
    is_global_zero = training = True
    sanity_checking = should_stop = barebones = False
    logger = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        raise StepError(
            f"the training step asks its Trainer for {name!r}, and there is no Trainer: pass "
            "loss_fn=lambda module, batch: ..., or forward_fn and target_fn"
        )
