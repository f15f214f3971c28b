"""Remedies that change the weights that a training starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ntk_monitor.checks import require
from ntk_monitor.remedies.remedy import Look, NotApplicableError, Remedy

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose results can be brought to a variance by scaling their weights."""
ROUNDS = 3
"""How often a layer is scaled until its results have the wanted variance."""
BIAS_STEPS = 30
"""Steps of L-BFGS on the bias of a readout."""
BEYOND = 3.0
"""Standard deviations from zero from which a unit all of whose results lie on one side is idle."""


class _OfRecurrence(Remedy):
    """Changes recurrent weights, gate by gate."""

    fresh = True

    def __init__(self, weights: list[str] | None = None) -> None:
        """Choose the weights.

        Args:
            weights: Names of square recurrent weights, or patterns of these; by default those of
                torch's recurrent layers and cells.
        """
        self.weights = weights

    def change_model(self, model: nn.Module, look: Look) -> None:
        del look
        with torch.no_grad():
            for kind, weight, biases in _recurrent(model, self.weights):
                self._change(kind, weight.detach().chunk(len(weight) // weight.shape[1]), biases)

    def _change(self, kind: str, gates: tuple[Tensor, ...], biases: list[Tensor]) -> None:
        """Change the gates of one weight in place."""


class OrthogonalRecurrence(_OfRecurrence):
    """Orthogonal recurrent weights, which neither shrink a state nor make it explode."""

    reasons = ("core", "propagator")
    name = "orthogonal recurrent weights"

    def _change(self, kind: str, gates: tuple[Tensor, ...], biases: list[Tensor]) -> None:
        del kind, biases
        for gate in gates:
            nn.init.orthogonal_(gate)


class HoldingRecurrence(_OfRecurrence):
    """A recurrence that begins by holding its state: the identity, or gates that keep it."""

    reasons = ("core",)
    name = "recurrence that holds its state"

    def __init__(self, weights: list[str] | None = None, bias: float = 3.0) -> None:
        """Choose the weights.

        Args:
            weights: As in `OrthogonalRecurrence`.
            bias: Of the gate that keeps the state: a share ``sigmoid(bias)`` of it is kept.
        """
        super().__init__(weights)
        self.bias = bias

    def _change(self, kind: str, gates: tuple[Tensor, ...], biases: list[Tensor]) -> None:
        if kind not in {"GRU", "LSTM"}:
            nn.init.eye_(gates[-1])
            return
        if not biases:
            raise NotApplicableError(f"the {kind} has no bias")
        biases[0].chunk(len(gates))[1].fill_(self.bias)  # the second gate of both keeps the state


class Gain(Remedy):
    """Recurrent weights, or where there are none all weights, times a factor."""

    fresh = True
    reasons = ("core", "propagator")

    def __init__(self, factor: float = 2.0) -> None:
        """Choose the factor.

        Args:
            factor: What weights are multiplied with.
        """
        require(0 < factor < math.inf, "factor", "a positive number", factor)
        self.factor = factor
        self.name = f"weights x {factor:g}"

    def change_model(self, model: nn.Module, look: Look) -> None:  # noqa: D102
        del look
        try:
            weights = [weight for _, weight, _ in _recurrent(model, None)]
        except NotApplicableError:
            weights = [p for p in model.parameters() if p.dim() > 1 and p.requires_grad]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(self.factor)


class UnitVariance(Remedy):
    """Layers whose results have variance one on a training batch, one after the other (LSUV).

    References:
        Mishkin and Matas, All you need is a good init, ICLR 2016.
    """

    fresh = True
    reasons = ("saturated", "propagator")
    name = "unit variance layer by layer"

    def change_model(self, model: nn.Module, look: Look) -> None:  # noqa: D102
        layers = _called(model, look)[:-1]
        if not layers:
            raise NotApplicableError("there is no linear or convolution layer before the readout")
        for layer in layers:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for layer in layers:
            for _ in range(ROUNDS):
                deviation = float(_result(layer, look).std())
                if not (math.isfinite(deviation) and deviation > 0):
                    break
                layer.weight.data.div_(deviation)


class LiveUnits(Remedy):
    """Units that are on one side of zero for all of a training batch, brought back to its middle.

    A rectified unit that is never active passes no gradient on; a saturated one next to none. What
    counts is what a linear or convolution layer before the readout gives.
    """

    reasons = ("saturated",)
    name = "live units"

    def change_model(self, model: nn.Module, look: Look) -> None:  # noqa: D102
        changed = 0
        for layer in _called(model, look)[:-1]:
            if layer.bias is None:
                continue
            result = _result(layer, look)
            units = 1 if isinstance(layer, LAYERS[1:]) and result.dim() > 2 else -1
            rows = result.movedim(units, -1).flatten(0, -2)
            mean, deviation = rows.mean(0), rows.std(0)
            one_side = (rows > 0).all(0) | (rows < 0).all(0)
            idle = one_side & (mean.abs() > BEYOND * deviation)
            changed += int(idle.sum())
            scale = torch.where(idle & (deviation > 0), 1 / deviation.clamp(min=1e-6), 1.0)
            with torch.no_grad():
                layer.bias.copy_(torch.where(idle, (layer.bias - mean) * scale, layer.bias))
                layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        if not changed:
            raise NotApplicableError("no unit lies on one side of zero for a whole batch")


class CentredReadout(Remedy):
    """A readout whose bias is the best one on a training batch, so that learning begins at chance.

    The loss itself says which one is: it is minimised over the bias of the last linear layer, by
    L-BFGS, with all else as it is.
    """

    reasons = ("readout",)
    name = "centred readout"

    def change_model(self, model: nn.Module, look: Look) -> None:  # noqa: D102
        layers = _called(model, look)
        bias = layers[-1].bias if layers else None
        if bias is None:
            raise NotApplicableError("the readout has no bias")
        needed = {name: p.requires_grad for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter is bias)
        before = bias.detach().clone()
        solver = torch.optim.LBFGS([bias], max_iter=BIAS_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            loss = look()
            (bias.grad,) = torch.autograd.grad(loss, [bias])
            return loss

        try:
            with torch.enable_grad():
                solver.step(closure)  # type: ignore[no-untyped-call]
        finally:
            bias.grad = None
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(needed[name])
        if not torch.isfinite(bias).all():
            bias.data.copy_(before)
            raise NotApplicableError("no finite bias makes the loss least")


class Unfreeze(Remedy):
    """Parameters that are frozen train as well; weights that are all zero are drawn anew."""

    fresh = True
    reasons = ("readout",)
    name = "nothing frozen"

    def change_model(self, model: nn.Module, look: Look) -> None:  # noqa: D102
        del look
        frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
        if not frozen:
            raise NotApplicableError("no parameter is frozen")
        for parameter in frozen:
            parameter.requires_grad_()
            if parameter.dim() > 1 and not parameter.any():
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


class FourierFeatures(Remedy):
    """Few inputs as many waves of them, before the first linear layer (the paper's Figure 6).

    References:
        Tancik et al., Fourier features let networks learn high frequency functions, NeurIPS 2020.
    """

    fresh = True
    reasons = ("core",)
    name = "Fourier features"

    def __init__(self, waves: int = 64, scale: float = 1.0, most_inputs: int = 4) -> None:
        """Choose the waves.

        Args:
            waves: How many; each gives a sine and a cosine.
            scale: Standard deviation of their frequencies, in turns per unit of an input.
            most_inputs: Inputs up to which this is done.
        """
        require(waves >= 1, "waves", "at least 1", waves)
        require(scale > 0, "scale", "a positive number", scale)
        self.waves, self.scale, self.most_inputs = waves, scale, most_inputs

    def change_model(self, model: nn.Module, look: Look) -> None:  # noqa: D102
        layers = _called(model, look)
        first = layers[0] if layers else None
        if not isinstance(first, nn.Linear) or first.in_features > self.most_inputs:
            raise NotApplicableError(
                f"the first layer is no linear one of at most {self.most_inputs} inputs"
            )
        path = next(name for name, module in model.named_modules() if module is first)
        if not path:
            raise NotApplicableError("the model is a single layer")
        like: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
        waves = _Waves(self.scale * torch.randn(first.in_features, self.waves, **like))
        bias = first.bias is not None
        layer = nn.Linear(2 * self.waves, first.out_features, bias=bias, **like)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Sequential(waves, layer))


class _Waves(nn.Module):
    """Sines and cosines of inputs."""

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * x @ self.frequencies
        return torch.cat([angle.sin(), angle.cos()], -1)


def _recurrent(
    model: nn.Module, names: list[str] | None
) -> Iterator[tuple[str, nn.Parameter, list[Tensor]]]:
    """Recurrent weights, with the kind of their layer and their biases."""
    found = False
    if names is not None:
        for name, parameter in model.named_parameters():
            square = parameter.dim() == 2 and len(parameter) % parameter.shape[1] == 0
            if square and any(fnmatchcase(name, pattern) for pattern in names):
                found = True
                yield "", parameter, []
    for module in model.modules() if names is None else ():
        if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            continue
        kind = module.mode if isinstance(module, nn.RNNBase) else type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("weight_hh"):
                found = True
                bias = getattr(module, name.replace("weight_hh", "bias_hh"), None)
                own = [] if bias is None else [bias.data]
                yield kind.removesuffix("Cell").split("_")[0], parameter, own
    if not found:
        where = "has such names"
        if names is None:
            where = "is one of torch's: name the recurrent weights of one of your own"
        raise NotApplicableError(f"no recurrent layer {where}")


def _called(model: nn.Module, look: Look) -> list[Any]:
    """The linear and convolution layers in the order in which they are first called."""
    found: dict[nn.Module, None] = {}

    def note(module: nn.Module, *_: Any) -> None:  # noqa: ANN401
        found.setdefault(module)

    layers = [m for m in model.modules() if isinstance(m, LAYERS)]
    _with_hooks(layers, note, look)
    return list(found)


def _result(layer: nn.Module, look: Look) -> Tensor:
    """What a layer gives on a training batch, at its first call."""
    found: list[Tensor] = []

    def note(_: nn.Module, __: Any, result: Tensor) -> None:  # noqa: ANN401
        found.append(result.detach().float())

    _with_hooks([layer], note, look)
    return found[0]


def _with_hooks(layers: Sequence[nn.Module], hook: Callable[..., None], look: Look) -> None:
    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.register_forward_hook(hook).remove)
        look()
