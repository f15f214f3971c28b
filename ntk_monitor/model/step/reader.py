"""How one call of a step compares outputs with a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ntk_monitor.compat import without_torch_function
from ntk_monitor.model.isolation.interception import Args, Kwargs
from ntk_monitor.model.step.links import Links
from ntk_monitor.model.step.losses import BY_HAND, LINKED, LOSSES, RATES, SYMMETRIC
from ntk_monitor.model.step.origins import Origins
from ntk_monitor.model.step.watch import (
    DIFFERENCES,
    DISTANCES,
    PRODUCTS,
    Place,
    Reading,
    argument_at,
)


class Reader:
    """Reads calls, by what is known of their arguments."""

    def __init__(self, links: Links, origins: Origins) -> None:
        """Use what is known.

        Args:
            links: Of which logits tensors hold probabilities.
            origins: Where tensors come from.
        """
        self._links, self._origins = links, origins

    def read(self, name: str, args: Any, kwargs: Any) -> Reading | None:  # noqa: ANN401
        """How a call compares.

        Args:
            name: The function's name.
            args: The arguments by position.
            kwargs: The arguments by name.

        Returns:
            None where it does not.
        """
        other = _place(args, 1, "other")
        reading: Reading | None
        if name in LOSSES:
            log_input = given(args, kwargs, 2, "log_input", True)
            loss = RATES if name == "poisson_nll_loss" and not log_input else LOSSES[name]
            reading = Reading(loss, _place(args, 0, "input"), _place(args, 1, "target"))
            if name in SYMMETRIC:
                reading = self._turned(reading, args, kwargs)
            elif name in LINKED:
                reading = self._at_logits(name, reading, args, kwargs) or reading
        elif name in DISTANCES:
            reading = Reading(BY_HAND["difference"], _place(args, 0, "x1"), _place(args, 1, "x2"))
            reading = self._turned(reading, args, kwargs)
        elif name in DIFFERENCES:
            turned = self._turned(Reading(BY_HAND["difference"], (0,), other), args, kwargs)
            y, t = both_of(turned, args, kwargs)
            is_column = isinstance(y, Tensor) and self._origins.is_column(y)
            whole = kwargs.get("alpha", 1) == 1 and _is_whole(y, t, is_column=is_column)
            reading = turned if whole else None
        elif name in PRODUCTS:
            turned = self._turned(Reading(BY_HAND["product"], (0,), other), args, kwargs)
            reading = self._weighs(turned, args, kwargs)
        else:
            reading = self._picked(name, args, kwargs)
        y, t = both_of(reading, args, kwargs)
        floating = isinstance(y, Tensor) and y.is_floating_point() and y.ndim > 0
        floating = floating and y.requires_grad
        return reading if floating and isinstance(t, Tensor) and not t.requires_grad else None

    def _turned(self, reading: Reading, args: Any, kwargs: Any) -> Reading:  # noqa: ANN401
        """The reading in which the outputs are what can be trained."""
        y = argument_at(args, kwargs, reading.output)
        if isinstance(y, Tensor) and not y.requires_grad:
            return reading._replace(output=reading.target, target=reading.output)
        return reading

    def _weighs(self, reading: Reading, args: Any, kwargs: Any) -> Reading | None:  # noqa: ANN401
        """How (log-)probabilities are multiplied with data that could be such."""
        y, t = both_of(reading, args, kwargs)
        if not isinstance(y, Tensor) or not isinstance(t, Tensor) or y.shape != t.shape:
            return None
        with without_torch_function():
            if not bool(((t >= 0) & (t <= 1)).all()):
                return None
        linked = self._links.of(y)
        if linked is not None and linked.is_log:
            kind = "both" if linked.kind == "sigmoid" else "product"
            return self._at_logits(kind, reading, args, kwargs)
        if linked is not None and linked.kind == "sigmoid":
            turned = linked.turned
            return None if turned else self._at_logits("overlap", reading, args, kwargs)
        if self._origins.is_logarithm(y):
            return reading if _are_of_classes(y) else None
        is_probability = self._origins.is_probability(y)
        return reading._replace(loss=BY_HAND["overlap"]) if is_probability else None

    def _at_logits(self, kind: str, reading: Reading, args: Any, kwargs: Any) -> Reading | None:  # noqa: ANN401
        """The reading in which the outputs are the logits; None where these are not known."""
        p, t = both_of(reading, args, kwargs)
        linked, loss = self._links.of(p), LINKED[kind]
        wanted = "sigmoid" if loss.kind == "bits" else "softmax"
        if linked is None or linked.kind != wanted or not isinstance(t, Tensor):
            return None
        if wanted == "softmax":
            second = linked.classes_second
            if second is None:
                return None
            loss = replace(loss, classes_second=second)
        with without_torch_function():
            fits = linked.placed(loss.target(t, kwargs, p)) is not None
        return reading._replace(loss=loss, source=linked.number) if fits else None

    def _picked(self, name: str, args: Any, kwargs: Any) -> Reading | None:  # noqa: ANN401
        """How probabilities, or their logarithms, are picked by class indices."""
        source = args[0] if args else None
        linked = self._links.of(source)
        if not isinstance(source, Tensor) or not (linked or self._origins.is_logarithm(source)):
            return None
        reading = self._place_of_indices(name, source, args, kwargs)
        if reading is None or linked is None:
            return reading
        if linked.kind != "softmax" or not linked.has_classes_on(-1):
            return None
        kind = "pick" if reading.loss is BY_HAND["pick"] else "gather"
        return self._at_logits(kind, reading, args, kwargs)

    def _place_of_indices(
        self, name: str, source: Tensor, args: Args, kwargs: Kwargs
    ) -> Reading | None:
        last = source.ndim - 1
        if name in {"gather", "take_along_dim"}:
            at, of_dim = (2, 1) if name == "gather" else (1, 2)
            place = _place(args, at, "index" if name == "gather" else "indices")
            dim, which = given(args, kwargs, of_dim, "dim"), argument_at(args, kwargs, place)
            fits = isinstance(dim, int) and dim % source.ndim == last and which.ndim == source.ndim
            fits = fits and which.shape[-1] == 1
            return Reading(BY_HAND["gather"], (0,), place) if fits else None
        index: Any = args[1] if len(args) > 1 else None
        pair = isinstance(index, tuple) and len(index) == source.ndim == 2
        if not pair or not all(isinstance(i, Tensor) and i.ndim == 1 for i in index):
            return None
        fits = self._origins.is_constant(index[0]) and len(index[0]) == len(source)
        return Reading(BY_HAND["pick"], (0,), (1, 1)) if fits else None


def both_of(reading: Reading | None, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """What a call compares.

    Args:
        reading: How it does; None where it does not.
        args: The arguments by position.
        kwargs: The arguments by name.

    Returns:
        The outputs and the target; nothing where it does not compare.
    """
    if reading is None:
        return None, None
    output = argument_at(args, kwargs, reading.output)
    return output, argument_at(args, kwargs, reading.target)


def given(args: Any, kwargs: Any, index: int, name: str, default: Any = None) -> Any:  # noqa: ANN401
    """An argument that may have been given by position or by name.

    Args:
        args: The arguments by position.
        kwargs: The arguments by name.
        index: Its position.
        name: Its name.
        default: What it is where it was not given.

    Returns:
        The argument.
    """
    return args[index] if len(args) > index else kwargs.get(name, default)


def _are_of_classes(logarithms: Tensor) -> bool:
    """Whether logarithms are those of probabilities over the last axis."""
    with without_torch_function():
        total = logarithms.detach().exp().sum(-1)
        return torch.allclose(total, torch.ones_like(total), atol=1e-3)


def _place(args: Sequence[Any], index: int, name: str) -> Place:
    return (index,) if len(args) > index else (name,)


def _is_whole(y: Any, t: Any, *, is_column: bool) -> bool:  # noqa: ANN401
    """Whether a difference compares rows of outputs with rows of a target.

    All trials may share it, but not all rows: what is the same for these is no target.

    Args:
        y: The outputs.
        t: The target.
        is_column: Whether all axes of the outputs are rows.

    Returns:
        True if it does.
    """
    if not isinstance(y, Tensor) or not isinstance(t, Tensor) or t.numel() < 2 or y.ndim == 0:
        return False
    if t.dtype == torch.bool or t.is_complex() or t.ndim > y.ndim:
        return False
    if not all(a in {b, 1} for a, b in zip(t.shape[::-1], y.shape[::-1], strict=False)):
        return False
    if t.ndim == y.ndim and t.shape[0] == y.shape[0]:
        return True
    rows = t.shape if is_column else t.shape[:-1]
    return y.ndim > 1 and any(size > 1 for size in rows)
