"""Weight sites: where a weight multiplies activity, and what that activity is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ntk_monitor.model.edit import Tap
from ntk_monitor.model.state import CELLS, RECURRENT, Call, Recurrent
from ntk_monitor.model.unroll import batch_first, cell_inputs, unroll


@dataclass(frozen=True)
class WeightSite:
    """One use of a weight.

    Attributes:
        name: Name of the weight (or, where only the bias is trained, of the bias).
        parameters: Names of the trained parameters that act here: weight, bias or both.
        activity: ``V``, what they multiply, shape ``(B, T, m)``; a trained bias contributes a
            last column of ones, a frozen weight no columns.
        units: ``q``, how many outputs ``Q = V W*`` the weight has.
        tap: Where those outputs are in a forward pass.
    """

    name: str
    parameters: tuple[str, ...]
    activity: Tensor
    units: int
    tap: Tap


@dataclass(frozen=True)
class Coverage:
    """How much of what moves the state the core accounts for.

    Attributes:
        fraction: Share of the parameters behind the state whose weight site is in the core.
        left_out: Names of the parameters that are not, each with the reason.
    """

    fraction: float
    left_out: Mapping[str, str] = field(default_factory=dict)


def find_sites(
    module: nn.Module,
    calls: Sequence[Call],
    names: Sequence[str],
    rows: tuple[int, int],
    *,
    time_first: bool,
) -> tuple[tuple[WeightSite, ...], Coverage]:
    """Weight sites of the studied parameters, and what they cover.

    Covered are ``nn.Linear``, ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM`` with all their layers,
    directions and projections, and their cells, on the rows of the state. A module called once per
    time step with activity of shape (B, m) is one site over time.

    Args:
        module: The module under study.
        calls: All calls of its submodules in one forward pass.
        names: The studied parameters that reach the state.
        rows: ``(B, T)`` of the state.
        time_first: Whether a ``nn.Linear`` sees its sequences as (T, B, m).

    Returns:
        The sites in the order of the calls, and the coverage.
    """
    canonical = {id(p): name for name, p in module.named_parameters()}
    owners = {
        canonical[id(p)]: type(submodule).__name__
        for submodule in module.modules()
        for p in submodule.parameters(recurse=False)
    }
    left_out = {name: f"no weight site is known for {owners[name]} in this form" for name in names}
    sites: list[WeightSite] = []
    for use in _uses(calls, rows, time_first=time_first):
        full = [canonical[id(p)] for p in _local_parameters(use.module, use.names)]
        studied = tuple(name for name in full if name in names)
        if not studied:
            continue
        placed = _place(use.activity, rows)
        if placed is None:
            reason = f"its rows {tuple(use.activity.shape[:-1])} are not the state's {rows}"
            left_out.update((n, reason) for n in studied if n in left_out)
            continue
        V = _columns(placed, full, studied)
        units = len(getattr(use.module, use.names[0]))
        sites.append(WeightSite(studied[0], studied, V, units, use.tap))
        for name in studied:
            left_out.pop(name, None)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    behind = sum(sizes[name] for name in names)
    missing = sum(sizes[name] for name in left_out)
    return tuple(sites), Coverage((behind - missing) / behind, left_out)


def _local_parameters(module: nn.Module, local: tuple[str, str]) -> list[nn.Parameter]:
    """The weight and, where there is one, the bias of a use."""
    found = (module._parameters.get(name) for name in local)
    return [p for p in found if p is not None]


def _columns(activity: Tensor, full: Sequence[str], studied: Sequence[str]) -> Tensor:
    """The columns of V that studied parameters multiply: activity for a weight, ones for a bias."""
    columns = [activity] if full[0] in studied else []
    if full[-1] in studied and len(full) > 1:
        columns.append(torch.ones_like(activity[..., :1]))
    return torch.cat(columns, dim=-1)


def _place(activity: Tensor, rows: tuple[int, int]) -> Tensor | None:
    """Activity on the state's rows, shape ``(B, T, m)``; None if it lives on other rows."""
    if activity.ndim == 2 and 1 in rows:
        activity = activity.unsqueeze(1 if rows[1] == 1 else 0)
    return activity if tuple(activity.shape[:-1]) == rows else None


@dataclass(frozen=True)
class _Use:
    """Where a module's weight multiplies activity: names of weight and bias, and the activity."""

    module: nn.Module
    names: tuple[str, str]
    activity: Tensor
    tap: Tap


def _uses(calls: Sequence[Call], rows: tuple[int, int], *, time_first: bool) -> Iterator[_Use]:
    """All uses of weights; those of a module that is called once per time step are joined."""
    by_path: dict[str, list[Call]] = {}
    for call in calls:
        by_path.setdefault(call.path, []).append(call)
    for path, group in by_path.items():
        each = [list(_activities(call, time_first=time_first)) for call in group]
        stepped = len(group) == rows[1] > 1
        for uses in zip(*each, strict=True):
            names, module = uses[0][0], group[0].module
            activities = [activity for _, activity in uses]
            if stepped and all(a.shape[:-1] == rows[:1] for a in activities):
                tap = Tap(path, names[0], None)
                yield _Use(module, names, torch.stack(activities, dim=1), tap)
                continue
            for i, activity in enumerate(activities):
                yield _Use(module, names, activity, Tap(path, names[0], i, time_first))


def _activities(call: Call, *, time_first: bool) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Names of weight and bias, and the activity they multiply, for each weight of a call."""
    module = call.module
    if isinstance(module, nn.Linear):
        x = _argument(call, "input")
        yield ("weight", "bias"), x.transpose(0, 1) if time_first and x.ndim == 3 else x
    elif isinstance(module, CELLS):
        x, h, _ = cell_inputs(call, module)
        yield ("weight_ih", "bias_ih"), x
        yield ("weight_hh", "bias_hh"), h
    elif isinstance(module, RECURRENT) and isinstance(_argument(call, "input"), Tensor):
        for weight, activity in _recurrent_activity(call, module).items():
            yield (weight, weight.replace("weight", "bias")), activity


def _recurrent_activity(call: Call, module: Recurrent) -> dict[str, Tensor]:
    """What each weight of a recurrent layer multiplies, (B, T, m), by the weight's name."""
    if _is_simple(module):
        inputs = batch_first(_argument(call, "input"), module)
        return {"weight_ih_l0": inputs, "weight_hh_l0": _previous_state(call, module)}
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        unroll(call, {}, seen=seen)
    return seen


def _is_simple(module: Recurrent) -> bool:
    """One layer, one direction, no projection: the outputs then tell all."""
    return module.num_layers == 1 and not module.bidirectional and not module.proj_size


def _argument(call: Call, name: str) -> Tensor:
    """The first argument of a call, by position or by name."""
    argument: Tensor = call.args[0] if call.args else call.kwargs[name]
    return argument


def _previous_state(call: Call, module: Recurrent) -> Tensor:
    """``h_(t-1)`` at each step: the initial state, then all outputs but the last."""
    states = batch_first(call.output[0], module)
    hx = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
    if isinstance(hx, tuple):
        hx = hx[0]
    first = torch.zeros_like(states[:, :1]) if hx is None else hx.reshape(-1, 1, states.shape[2])
    return torch.cat([first, states[:, :-1]], dim=1)
