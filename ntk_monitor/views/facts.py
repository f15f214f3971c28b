"""What trains: a small record, once in a run's logs, for the head of a report and the NTK tab."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

FACTS_TAG = "ntk/run"
"""The tag of the record, beside ``ntk/snapshot``."""
PACKAGES = ("ntk-monitor", "torch", "lightning")
SETTINGS = ("lr", "momentum", "betas", "weight_decay", "nesterov")
"""Settings of an optimizer that are named, where they are not zero."""
MOST_NAMES = 1000
ABOUT = ("model", "optimizer", "planned steps", "started", "device", "versions")
"""What the head of a report says of each run."""

Facts = dict[str, Any]


def facts_of(module: nn.Module, optimizers: Sequence[Optimizer], planned: float) -> Facts:
    """What trains, as plain types.

    Args:
        module: The model.
        optimizers: What trains it.
        planned: Steps of the whole training; infinite where that is not known.

    Returns:
        The model's class and size, the optimizers with their settings, planned steps, when it was
        recorded, versions, the device, and the outputs' names, where the model or the data module
        of its Trainer has ``output_names`` or a transformers model its ``id2label``.
    """
    parameters = [p for p in module.parameters() if not is_lazy(p)]
    device = str(parameters[0].device.type) if parameters else ""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "model": type(module).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "optimizers": [_optimizer(one) for one in optimizers],
        "planned": planned if math.isfinite(planned) else None,
        "device": device,
        "versions": versions(),
        "outputs": output_names(module),
    }


def versions() -> dict[str, str]:
    """Versions of python and of the packages that matter here, those that are installed.

    Returns:
        Versions by name.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def output_names(module: nn.Module) -> list[str]:
    """The names of a model's outputs.

    Args:
        module: The model.

    Returns:
        Names in the order of the outputs; none where nobody gives them.
    """
    for owner in _owners(module):
        names = _asked(owner, "output_names")
        labels = _asked(_asked(owner, "config"), "id2label")
        if names is None and isinstance(labels, Mapping):
            names = [labels[key] for key in sorted(labels)]
            if names == [f"LABEL_{i}" for i in range(len(names))]:  # of nobody's choice
                names = None
        if isinstance(names, (list, tuple)) and 0 < len(names) <= MOST_NAMES:
            return [str(name) for name in names]
    return []


def _owners(module: nn.Module) -> Iterator[Any]:
    """Who may know the outputs' names: parts of the model, and the data of its Trainer."""
    yield from module.modules()
    yield _asked(_asked(module, "_trainer"), "datamodule")


def _asked(owner: Any, name: str) -> Any:  # noqa: ANN401
    """An attribute of an object of the user's, or None, whatever its class does when asked."""
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def _optimizer(optimizer: Optimizer) -> str:
    """An optimizer with its settings, as of its first group of parameters."""
    groups = optimizer.param_groups
    group = groups[0] if groups else {}
    said = [f"{name} {_text(group[name])}" for name in SETTINGS if group.get(name)]
    more = [f"{len(groups)} groups"] if len(groups) > 1 else []
    return ", ".join([type(optimizer).__name__, *said, *more])


def _text(value: Any) -> str:  # noqa: ANN401
    """A setting as text; a rate may be a tensor."""
    if isinstance(value, (tuple, list)):
        return " and ".join(map(_text, value))
    return str(value) if isinstance(value, bool) else f"{float(value):.4g}"


def lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The record as names and texts, for the head of a report.

    Args:
        facts: The record, as far as a run has one.

    Returns:
        Pairs; what is not known says so.
    """
    unknown = "not recorded"
    size = facts.get("parameters")
    trained = facts.get("trained")
    model = facts.get("model", unknown)
    if size is not None:
        model += f", {size:,} parameters" + (f", {trained:,} trained" if trained != size else "")
    steps = facts.get("planned")
    known = facts.get("versions", {})
    texts = (
        model,
        "; ".join(facts.get("optimizers", ())) or unknown,
        unknown if steps is None else f"{steps:,.0f}",
        str(facts.get("started", unknown)).replace("T", " "),
        facts.get("device") or unknown,
        ", ".join(f"{name} {known[name]}" for name in known) or unknown,
    )
    return list(zip(ABOUT, texts, strict=True))
