"""The settings of a probe, and those of a monitor: each with its default, meaning and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch

from ntk_monitor.checks import imported, require
from ntk_monitor.estimators.kernel.tangent_sketch import MIN_SAMPLES
from ntk_monitor.model.batch.reading import ForwardFn, MaskFn, TargetFn
from ntk_monitor.model.derivatives.products import METHODS
from ntk_monitor.model.parameters.selection import ParameterFilter
from ntk_monitor.model.state.finding import StatePath, require_paths
from ntk_monitor.model.step import LossFn

Tier = Literal["core", "modes", "kernel"]


class StatelessKeywords(TypedDict, total=False):
    """The settings of a probe, but for its state, as keywords; see `ProbeSettings`."""

    parameters: ParameterFilter
    forward_fn: ForwardFn | None
    target_fn: TargetFn | None
    loss_fn: LossFn | None
    mask_fn: MaskFn | None
    modes: int
    learning_rate: float | None
    tolerance: float
    max_products: int
    tier: Tier
    method: str
    dtype: torch.dtype | str | None
    chunk_size: int | None
    time_limit: float | None
    max_memory: int | None
    seed: int


class ProbeKeywords(StatelessKeywords, total=False):
    """The settings of a probe as keywords."""

    state: StatePath


@dataclass(kw_only=True, eq=False)
class ProbeSettings:
    """What is measured, how, and for how much; a value out of its range raises a ValueError.

    Attributes:
        state: Path of the module whose output is the state ``h``, or several paths, whose features
            are put side by side. ``"auto"`` takes, on the way from trained parameters to every
            output that the loss compares, the last recurrent layer or cell; without one, the last
            module before the readout (the last layer with weights, if it is linear or
            convolutional), or, if that is pooled and most weights act on other rows, the last one
            on theirs. Of images, (B, n, H, W), the positions are rows.
        parameters: Names, glob patterns, or a predicate of (name, parameter); by default every
            parameter that requires a gradient.
        forward_fn: ``(module, batch) -> outputs``, to probe a forward pass in place of the step.
            Where there is no step function, a tensor or packed sequence is passed to the module, of
            a tuple as many of its first elements as ``forward`` requires, of a mapping or dataclass
            the entries that ``forward`` takes; of a structured output the ``logits`` count, else
            the ``last_hidden_state``, else the first floating tensor.
        target_fn: ``batch -> target``, of the outputs' shape or class indices (negative ones do
            not count), to probe a forward pass in place of the step. Where there is no step
            function, the second element of a tuple, or the entry ``labels``, ``label``,
            ``targets``, ``target`` or ``y``.
        loss_fn: ``(module, batch) -> loss``: the step function, what training minimises. By default
            a LightningModule's ``training_step``, or the loss that the module itself returns, as
            those of the transformers library do of a batch with labels. What its loss compares are
            the outputs and the target; masks, weights and classes that are ignored are thereby in.
        mask_fn: ``batch -> mask``: which rows of the state there are, (B, T), the others being
            padding, or the lengths, (B,); by default the batch's ``attention_mask``, if it has one
            with the state's rows. Packed sequences need none.
        modes: How many target modes to follow.
        learning_rate: For ``steps_to_learn``. A monitor reads it off the optimizer; elsewhere there
            are no steps to learn without it.
        tolerance: Wanted relative standard error of the sampled numbers; sampling stops there.
        max_products: Most products to spend, unless ``method="exact"``. Finite differences hold
            three of them back for steps that have to be shortened.
        tier: How far to go. ``"core"`` takes no derivative: the core, the learned fractions and the
            core overlaps. ``"modes"`` adds what is exact about the target modes, at one product
            each: gains and steps to learn. ``"kernel"`` adds what is sampled; figures need it.
        method: How ``J g`` is computed: ``"finite-difference"``, in the memory of a forward pass
            and with a step that is checked; ``"forward-ad"`` or ``"double-backward"``, to rounding,
            in several times the memory; ``"in-place"``, finite differences that call the model
            itself, as sharded ones and those that keep parameters past torch's registry need, in
            the parameters' own arithmetic. ``"exact"`` forms the dense Jacobian, for small models,
            at ``min(p, k n)`` products. ``"auto"`` takes ``"exact"`` where that fits in
            ``max_products``, else the first of the others that works, ``"in-place"`` aside.
        dtype: Arithmetic of the probe; None keeps the model's.
        chunk_size: Tangents carried at once by forward mode; chosen if left out.
        time_limit: Seconds that a probe may take. After four fifths of them there is no further
            sample, and the numbers have larger errors; after all of them no forward pass begins,
            and a TimeoutError is raised. None for no limit. A call of a logger that takes longer is
            the last one of that logger.
        max_memory: Bytes that the activations which are kept to find the weight sites may take, and
            then again the samples; by default half of the free memory. Activations that need more
            take a few more forward passes, which keep none, and the numbers are the same; samples
            are kept in fewer rows, and the standard errors hold what that costs.
        seed: Names the random tangents; the same seed draws the same ones at every probe.
    """

    state: StatePath = "auto"
    parameters: ParameterFilter = None
    forward_fn: ForwardFn | None = None
    target_fn: TargetFn | None = None
    loss_fn: LossFn | None = None
    mask_fn: MaskFn | None = None
    modes: int = 3
    learning_rate: float | None = None
    tolerance: float = 0.05
    max_products: int = 96
    tier: Tier = "kernel"
    method: str = "auto"
    dtype: torch.dtype | str | None = torch.float32
    chunk_size: int | None = None
    time_limit: float | None = 120.0
    max_memory: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values; import paths of functions become these."""
        require_paths(self.state)
        self._require_functions()
        self._require_numbers()
        tiers = get_args(Tier)
        require(self.tier in tiers, "tier", f"one of {', '.join(tiers)}", self.tier)
        choices = ("auto", "exact", *METHODS)
        require(self.method in choices, "method", f"one of {', '.join(choices)}", self.method)
        self.parameters = imported(self.parameters)

    @property
    def least_products(self) -> int:
        """For each mode one, the fewest samples, the adjoint self-test, and a step check's most."""
        return self.modes + MIN_SAMPLES + 1 + 3

    @property
    def arithmetic(self) -> torch.dtype | None:
        """The floating type of the probe; None for the model's."""
        named = isinstance(self.dtype, str)
        found = getattr(torch, self.dtype, None) if named else self.dtype  # type: ignore[arg-type]
        is_floating = isinstance(found, torch.dtype) and found.is_floating_point
        good = self.dtype is None or is_floating
        require(good, "dtype", "a floating torch.dtype or None", self.dtype)
        return found  # type: ignore[return-value]

    def _require_functions(self) -> None:
        for name in ("forward_fn", "target_fn", "loss_fn", "mask_fn"):
            function = getattr(self, name)
            good = function is None or callable(function)
            require(good, name, "a function (in YAML its import path), or None", function)
        forward = self.forward_fn is not None or self.target_fn is not None
        one = self.loss_fn is None or not forward
        require(one, "loss_fn", "left out where forward_fn or target_fn are given", self.loss_fn)

    def _require_numbers(self) -> None:
        require(self.modes >= 0, "modes", "a number of target modes, 0 or more", self.modes)
        good = self.tolerance >= 0
        require(good, "tolerance", "a relative standard error, 0 or more", self.tolerance)
        least = self.least_products if self.tier == "kernel" else 0
        enough = self.max_products >= least
        expected = f"at least {least} (with modes={self.modes})"
        require(enough, "max_products", expected, self.max_products)
        for name, expected in POSITIVE.items():
            value = getattr(self, name)
            require(value is None or value > 0, name, expected, value)
        require(self.seed >= 0, "seed", "0 or more", self.seed)
        _ = self.arithmetic


POSITIVE = {
    "chunk_size": "at least 1, or None",
    "learning_rate": "positive, or None",
    "time_limit": "seconds, or None",
    "max_memory": "bytes, or None",
}
"""Settings that are positive or None, and what the message says of them."""
