"""Some coming steps by one linearisation, from the optimizers' own states to a course."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ntk_monitor.descent.forecast import Course, Path, grow, scaling
from ntk_monitor.descent.group_updates import Part
from ntk_monitor.descent.lossmap import LossMap
from ntk_monitor.descent.optimizers import Descent


class Leg:
    """Coming steps from one place of the parameters on.

    Attributes:
        source: The loss there, on the batch that steps are made on.
        descent: How the training steps.
        stepped: The gradients of the parameters that are stepped, by name.
        parts: How each of them is.
        scaled: ``S`` on flat gradients, with what is clipped entry by entry.
        clip: What clipping by the norm leaves of the gradient.
        clip_coefficient: What any clipping leaves of the gradient's norm.
        clips_entries: Whether entries are clipped one by one.
        course: The small space, after `grown`.
        tangents: What its directions are in the parameters.
    """

    course: Course
    tangents: list[Tensor]

    def __init__(self, source: LossMap, descent: Descent) -> None:
        """Find out how each parameter is stepped, and what of its gradient is clipped away.

        Args:
            source: The loss.
            descent: How the training steps.
        """
        self.source, self.descent = source, descent
        gradient = source.space.split(source.gradient)
        self.stepped = {name: gradient[name] for name in descent.stepped if name in gradient}
        self.parts: dict[str, Part] = descent.parts(self.stepped)
        norm = _norm(self.stepped)
        clipped = descent.clipped(self.stepped)
        self.clip_coefficient = _norm(clipped) / norm if norm else 1.0
        ratio = {
            n: torch.where(g == 0, 1.0, clipped[n].to(g) / torch.where(g == 0, 1.0, g))
            for n, g in self.stepped.items()
        }
        seen = [r[self.stepped[n] != 0] for n, r in ratio.items()]
        least = min((float(r.min()) for r in seen if r.numel()), default=1.0)
        most = max((float(r.max()) for r in seen if r.numel()), default=1.0)
        uniform = most - least <= 1e-3 * most
        self._clip_norm = descent.clipping.norm or math.inf
        mask = None
        self.clips_entries = not uniform
        if uniform and most < 1 - 1e-6:
            self._clip_norm = most * norm
        elif not uniform:
            self._clip_norm = math.inf
            mask = source.joined(ratio)
        self.scaled = scaling(self.parts, source, mask)
        self.clip = min(self._clip_norm / norm, 1.0) if norm else 1.0

    def grown(self, pulled: Tensor | None = None, change: Tensor | None = None) -> Self:
        """Find the small space.

        Args:
            pulled: The gradient that comes through the outputs, if it is known.
            change: What a step along it does to the outputs.

        Returns:
            This leg.
        """
        source = self.source
        if pulled is None or change is None:
            pulled = source.pull(source.error)
            (change,) = source.push([self.scaled(pulled)])
        found = grow(source, self.scaled, source.error, (pulled, change))
        rest = source.beside(pulled)
        drifts = self._drifts(rest)
        pushed = source.push([tangent for tangent, _ in drifts.values()])
        gradients = list(found.pulled)
        if rest is not None:
            gradients.append(rest)
        gram = torch.stack([g.double() for g in gradients]) if gradients else None
        self.course = Course(
            source,
            found.basis,
            torch.cat([found.response, pushed]),
            tuple(drifts),
            np.zeros((0, 0)) if gram is None else (gram @ gram.T).cpu().numpy(),
            self.descent.velocity,
            self.descent,
            self._shrink(),
            self._clip_norm,
        )
        self.tangents = [self.scaled(g) for g in found.pulled]
        self.tangents += [tangent for tangent, _ in drifts.values()]
        self._held = [*found.pulled, *(own for _, own in drifts.values())]
        return self

    def _drifts(self, rest: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Movements that do not depend on the outputs: downhill, and as momentum holds them.

        Args:
            rest: What of the gradient does not come through the outputs.

        Returns:
            By name, in the parameters, and what of it a gradient adds to; None for nothing.
        """
        source, parts = self.source, self.parts
        own = source.space.split(source.theta)

        def joined(make: Callable[[Part, Tensor], Tensor | None]) -> Tensor | None:
            made = {n: make(part, own[n]) for n, part in parts.items()}
            return None if all(x is None for x in made.values()) else source.joined(made)

        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        if rest is not None:
            found["rest"] = self.scaled(rest), rest
        scaled = scaling(parts, source, None)
        held = joined(lambda part, _: part.held)
        coupled = joined(lambda p, x: p.decay * x if p.decay and not p.decoupled else None)
        for name, each in (("held", held), ("coupled decay", coupled)):
            if each is not None:
                found[name] = scaled(each), each
        decoupled = joined(lambda p, x: p.decay * x if p.decoupled and p.decay else None)
        if decoupled is not None:
            found["decoupled decay"] = decoupled, None
        steady = joined(lambda part, _: None if part.steady is None else -part.steady)
        if steady is not None:
            found["steady"] = steady, None
        return found

    def _shrink(self) -> float:
        """What decay takes off the movement itself at each step, on average over parameters."""
        own = self.source.space.split(self.source.theta)
        whole = taken = 0.0
        for name, part in self.parts.items():
            size = float(own[name].double().square().sum())
            amount = part.decay
            if amount and not part.decoupled:
                amount *= float(part.scale(torch.ones_like(self.stepped[name])).mean())
            whole, taken = whole + size, taken + size * amount
        return taken / whole if whole else 0.0

    def after(self, path: Path) -> tuple[LossMap, Descent]:
        """Where the parameters and the optimizers are at the end of a path of single steps.

        Args:
            path: The path, along this leg's course.

        Returns:
            The loss there, and how the training steps from there on.
        """
        source, steps = self.source, len(path.steps) - 1

        def combined(weights: np.ndarray, parts: list[Tensor | None]) -> Tensor:
            total = torch.zeros_like(source.theta)
            for weight, part in zip(weights, parts, strict=True):
                if part is not None and weight:
                    total.add_(part, alpha=float(weight))
            return total

        theta = source.theta - combined(path.places[-1], list(self.tangents))
        held = combined(path.momentum, self._held)
        moved = source.moved(theta)
        split = source.space.split
        return moved, self.descent.later(
            steps, split(theta), split(held), self.stepped, split(moved.gradient)
        )


def _norm(gradients: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
