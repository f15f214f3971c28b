"""The operators that one forward pass of a model defines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ntk_monitor.estimators.kernel.adaptive import ROUND
from ntk_monitor.estimators.kernel.core import CoreGram
from ntk_monitor.estimators.kernel.sampling import JacobianSampler
from ntk_monitor.model.batch.structure import main_output
from ntk_monitor.model.derivatives.derivative import Derivative, differentiate
from ntk_monitor.model.derivatives.forward_map import ForwardMap
from ntk_monitor.model.derivatives.intervention import Intervention
from ntk_monitor.model.derivatives.jacobian import ParameterJacobian
from ntk_monitor.model.derivatives.products import Function
from ntk_monitor.model.derivatives.propagator import Propagator
from ntk_monitor.model.derivatives.sampled_jacobian import SampledJacobian
from ntk_monitor.model.derivatives.site_sampling import SiteSampler
from ntk_monitor.model.derivatives.trial_gradients import TrialGradients
from ntk_monitor.model.isolation.kernels import Kernels
from ntk_monitor.model.isolation.quiet import quiet
from ntk_monitor.model.parameters.selection import ParameterSpace
from ntk_monitor.model.passes import Found
from ntk_monitor.model.sites.records import REGISTERED
from ntk_monitor.model.sites.weight_sites import Coverage, WeightSite
from ntk_monitor.model.state.finding import State
from ntk_monitor.model.state.sources import StateSource
from ntk_monitor.model.step import Comparison
from ntk_monitor.model.step.comparison import compared
from ntk_monitor.model.step.heads import Compares
from ntk_monitor.operators import (
    BlockRow,
    Dense,
    DirectSum,
    Identity,
    LinearOperator,
    TensorProduct,
)
from ntk_monitor.processes import Processes

X = TypeVar("X", float, Tensor)
STATE = "the state"
"""Stands for the state among the names of parameters."""


@dataclass(frozen=True)
class Linearization:
    r"""A model linearised at its present parameters, on one batch.

    Where several processes do so together, each has its own rows of the state, and all operators
    are those of its own rows; `sampler` and `pull_back_outputs` sum over processes.

    Attributes:
        state: The state ``h``, shape ``(B, T, n)``.
        outputs: What the loss compares, a tensor, or several where it compares several; without a
            loss, what the model returned.
        comparisons: The outputs, each with its loss and its target.
        loss: The loss; None where there is none.
        sites: The weight sites whose rows are those of the state.
        coverage: What the sites account for.
        jacobian: ``J = dh/dtheta`` over the studied parameters that reach the state.
        parameters: Names of those parameters.
        processes: The processes.
    """

    state: Tensor
    outputs: Any
    comparisons: tuple[Comparison, ...]
    loss: float | None
    sites: tuple[WeightSite, ...]
    coverage: Coverage
    jacobian: ParameterJacobian
    parameters: tuple[str, ...]
    processes: Processes
    _forward: ForwardMap
    _state: State
    _found: Found
    _trained: tuple[str, ...]
    _compares: Compares
    _batch: Any
    _accuracy: float

    @property
    def step(self) -> str:
        """Name of what was called, a training step, a user's loss, or a forward pass."""
        return self._forward.step.name

    @property
    def without_targets(self) -> str:
        """Why nothing is compared with a target, and what to do about it; empty where it is not."""
        step, compares = self._forward.step, self._compares
        if self.loss is None:
            return step.without_target(self._batch)
        if self.comparisons:
            return ""
        what = (
            "compares outputs with constants alone (an adversarial loss, say)"
            if compares.constant
            else "compares outputs with no data that could be seen (a contrastive or adversarial "
            "loss, a likelihood of a library's own)"
        )
        return (
            f"the loss of {step.name} {what}, so that there are no target modes; all else is "
            "measured. To follow a target all the same: forward_fn and target_fn"
        )

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self._forward.module

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the modules whose outputs are the state."""
        return self._state.paths

    @property
    def valid(self) -> Tensor | None:
        """Which rows of the state there are, (B, T), the others being padding; None for all."""
        return self._state.valid

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the parameters."""
        return self._forward.is_sharded

    @property
    def rows(self) -> int:
        """How many rows the state has, ``k = B T``."""
        return self.state.shape[0] * self.state.shape[1]

    def directions(self, count: int, seed: int) -> Iterator[Tensor]:
        """Random directions of the state, others in each process.

        Args:
            count: How many.
            seed: Names them.

        Yields:
            This process's rows of each, shape ``(B, T, n)``.
        """
        h, processes = self.state, self.processes
        for i in range(count):
            generator = torch.Generator(device=h.device)
            generator.manual_seed(seed + i * processes.size + processes.index)
            yield torch.randn(h.shape, generator=generator, device=h.device).to(h.dtype)

    def sampler(self, seed: int) -> JacobianSampler[Any]:
        """The Jacobian with random tangents, as the estimators use it.

        Args:
            seed: Names the tangents.

        Returns:
            The Jacobian.
        """
        if self._is_at_sites:
            return self._at_sites(seed)
        return SampledJacobian(self.jacobian, self.processes, seed)

    @property
    def _is_at_sites(self) -> bool:
        """Whether products are taken where wide weights act."""
        return bool(self._found.wide) and self.jacobian.method == "finite-difference"

    def _at_sites(self, seed: int = 0) -> SiteSampler:
        return SiteSampler(
            self._forward,
            self._state,
            self._found.wide,
            self.parameters,
            self.jacobian,
            seed,
            self._accuracy,
            self._found.untrained,
        )

    def by_trial(self, core: CoreGram, seed: int) -> TrialGradients | None:
        """The Jacobian by groups of trials.

        Args:
            core: The core on the same rows.
            seed: Names the cotangents and tangents.

        Returns:
            The Jacobian; None where there are few trials, no weight site tells them apart, or there
            is no memory for a round of draws.
        """
        if not self._found.by_trial or self.processes.size > 1:
            return None
        trials = TrialGradients(
            self._forward,
            self._state,
            self._found.by_trial,
            self.parameters,
            self.jacobian,
            core,
            seed,
            self._accuracy,
            self._found.untrained,
            self._found.room,
        )
        return trials if trials.most >= ROUND else None

    def without_wide_sites(self) -> Linearization:
        """The same, with a tangent of its own for every parameter."""
        return replace(self, _found=self._found._replace(wide=()))

    @property
    def ntk(self) -> LinearOperator:
        """The global NTK ``J J*`` on ``(B, T, n)``; two products each."""
        return self.jacobian @ self.jacobian.T

    @cached_property
    def site_activity(self) -> Tensor:
        """``V``: the activity of all sites side by side, shape ``(B, T, m)``."""
        if not self.sites:
            return self.state.new_zeros(*self.state.shape[:2], 0)
        return torch.cat([site.activity for site in self.sites], dim=-1)

    @property
    def core(self) -> LinearOperator:
        r"""The core :math:`V V^* \otimes I_n` on ``(B, T, n)``; costs no product."""
        return self._core_of(self.site_activity, self.state.shape[2], "V")

    @cached_property
    def block_core(self) -> LinearOperator:
        r"""Theorem 1's core in its exact form, :math:`\bigoplus_l V_l V_l^* \otimes I_{q_l}`.

        It acts on the outputs of all weight sites, one after the other in a flat vector; costs no
        product.
        """
        sites = enumerate(self._some_sites, start=1)
        return DirectSum(*(self._core_of(s.activity, s.units, f"V_{i}") for i, s in sites))

    @cached_property
    def site_propagators(self) -> tuple[Derivative, ...]:
        r"""For each weight site :math:`P_l = \partial h / \partial Q_l`.

        From what is added to the outputs ``(B, T, q_l)`` of the site to the state; one product
        each.
        """
        return tuple(self._site_propagator(f"P_{i + 1}", s) for i, s in enumerate(self.sites))

    @property
    def core_propagator(self) -> LinearOperator:
        r"""Theorem 1's :math:`P_{core}`, the row of all `site_propagators`.

        ``P_core @ block_core @ P_core.T`` is the NTK where every parameter behind the state has
        a weight site and no weight is used twice.
        """
        self._some_sites  # noqa: B018
        return BlockRow(*self.site_propagators)

    @cached_property
    def propagator(self) -> Propagator:
        r"""The propagator :math:`P = (D_h F)^{-1}` on ``(B, T, n)``, with its ``inverse``.

        ``F = h - f(h, theta)`` compares the state with what one step computes from it. What a
        recurrent layer keeps beside the state (an LSTM's cell, lower layers) is computed inside
        ``f``. For a state without recurrence it is the identity: of a state that a module computes
        step by step, the steps must be calls of a submodule.
        """
        recurrence = self._found.recurrence
        identity = Identity(tuple(self.state.shape), self.state.dtype, self.state.device)
        if recurrence is None:
            return Propagator(identity, identity)
        zero = torch.zeros_like(self.state)
        sweep = self._derivative("P", lambda u: self._run(recurrence, Intervention(state=u)), zero)
        inverse = self._derivative(
            "D_hF", lambda h: h - self._run(recurrence, _carrying_on(h)), self.state
        )
        return Propagator(sweep, inverse)

    @cached_property
    def parameter_operator(self) -> LinearOperator:
        r"""The parameter operator :math:`K = (D_\theta F)(D_\theta F)^*` on ``(B, T, n)``.

        How the parameters act on one step of the model, the state before it given; two products.
        """
        source = self._found.recurrence
        if source is None:
            return self.ntk
        theta = {name: self._forward.tensors[name] for name in self.parameters}
        space = ParameterSpace({name: parameter.shape for name, parameter in theta.items()})

        def one_step(flat: Tensor) -> Tensor:
            return self._run(source, _carrying_on(self.state), space.split(flat))

        direct = self._derivative("D_θF", one_step, space.join(list(theta.values())))
        return direct @ direct.T

    @property
    def _some_sites(self) -> tuple[WeightSite, ...]:
        if not self.sites:
            raise ValueError(
                "no weight site is known behind this state, so there is no core: "
                f"{dict(self.coverage.left_out)}"
            )
        return self.sites

    def _site_propagator(self, name: str, site: WeightSite) -> Derivative:
        if REGISTERED in site.tap.calls:
            raise ValueError(
                f"the site {site.name!r} is known by weight_sites(), which tells what the weight "
                "multiplies and not where its output is, so it has no propagator of its own"
            )

        def perturbed(u: Tensor) -> Tensor:
            return self._run(self._state, Intervention(sites={site.tap: u}))

        zero = self.state.new_zeros(*self.state.shape[:2], site.units)
        return self._derivative(name, perturbed, zero)

    def _core_of(self, activity: Tensor, units: int, name: str) -> LinearOperator:
        V = Dense(activity, name=name)
        return TensorProduct(V @ V.T, Identity((units,), activity.dtype, activity.device))

    def _run(
        self, state: State, intervention: Intervention, theta: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        return self._forward.run({} if theta is None else theta, state, intervention)

    def _derivative(self, name: str, function: Function, at: Tensor) -> Derivative:
        return differentiate(name, function, at, self.state, self._quiet, self._found.chunk_size)

    def on(self, batch: Any) -> Linearization:  # noqa: ANN401
        """The same model on another batch, as far as its state and what is compared; one pass.

        Args:
            batch: The batch.

        Returns:
            A linearisation whose operators are not to be used.
            Where the step compares something else on it, or computes the state in another number
            of calls, a RuntimeError is raised.
        """
        forward = self._forward.on(batch)
        state = replace(self._state, valid=None)
        readings = self._compares.readings
        with self._quiet("any"), torch.no_grad():
            h, returned, watch = forward.run_whole({}, state, readings)
            if readings:
                found = [compared(c.head, watch.seen) for c in self.comparisons]
            else:
                plain = forward.step.plain_output(returned, batch)
                found = [] if plain is None else [plain]
            comparisons = tuple(
                replace(c, layout=None if old.layout is None else old.layout.of_another())
                for c, old in zip(found, self.comparisons, strict=False)
            )
        return replace(
            self, state=h, comparisons=comparisons, _forward=forward, _state=state, _batch=batch
        )

    @property
    def output(self) -> Tensor | None:
        """The first output that is compared with a target, ``(B, T, o)`` or ``(B, 1, o)``."""
        return self.placed_output(self.comparisons[0]) if self.comparisons else None

    def placed_output(self, comparison: Comparison, output: Tensor | None = None) -> Tensor | None:
        """An output as rows, zero where the loss does not depend on it.

        Args:
            comparison: Of this linearisation.
            output: The same output in another pass; None for the comparison's own.

        Returns:
            Shape ``(B, T, o)``, or None where there is none.
        """
        output = comparison.output if output is None else output
        if output is None:
            return None
        placed = self.in_rows(output, comparison)
        counts = self.counted(comparison)
        return placed if counts is None else placed * counts

    def counted(self, comparison: Comparison) -> Tensor | None:
        """Of which entries of an output the loss depends.

        Args:
            comparison: Of this linearisation.

        Returns:
            Shape ``(B, T, o)``, or None for all.
        """
        if comparison.counts is None:
            return None
        counts = comparison.counts.to(self.state.dtype)
        return self.in_rows(counts, comparison) != 0

    def in_rows(self, tensor: Tensor, comparison: Comparison) -> Tensor:
        """Bring a tensor of the outputs' layout to ``(B, T, o)``.

        Args:
            tensor: Shape ``(B, o)``, or ``(B, T, o)`` (``(T, B, o)`` in a time-first model), either
                flattened to ``(B T, o)``, or ``(B, o, H, W)`` where the state is an image.
            comparison: Which it belongs to.

        Returns:
            Shape ``(B, T, o)``, with ``T = 1`` for two axes.
        """
        known = comparison.layout
        if known is not None and known.fits(tensor):
            return known.place(tensor)
        B, T, _ = self.state.shape
        layout = self._state.sources[-1].layout
        if comparison.batch_first:
            return StateSource("the output").read(tensor)
        if tensor.ndim == 2 and T > 1 and len(tensor) == B * T and layout != "unbatched":
            tensor = tensor.reshape(*((T, B) if layout == "time" else (B, T)), -1)
        return StateSource("the output", layout).read(tensor)

    def pull_back_outputs(
        self, errors: Sequence[tuple[int, Tensor]]
    ) -> Iterator[tuple[Tensor, dict[str, float]]]:
        r"""Pull error signals on the outputs back to the state.

        With outputs ``y(h, theta)`` and an error ``e``, the result is exact:
        :math:`q = (\partial y / \partial h)^* e`.

        Args:
            errors: For each error, which of the ``comparisons`` it is on, and the error on the rows
                of its output, shape ``(B, T, o)``.

        Yields:
            For each error, this process's rows of ``q``, shape ``(B, T, n)``, and ``||J* q||^2`` as
            a sum over weight sites, and over the other parameters.
            The cost is one product per error, and two passes for all.
        """
        forward, given, every = self._forward, None, []
        for which, e in errors:
            if given is None or not forward.keeps_graph:
                given = self._outputs_given_state()
            leaf, outputs = given
            every.append(self._directly(leaf, outputs[which], e))
        del given
        yield from zip(every, map(self.by_site, self.squares(every)), strict=True)

    def squares(
        self, directions: Iterable[Tensor], *, here: bool = False
    ) -> Iterator[dict[str, float]]:
        r""":math:`\|J^* q\|^2` as a sum over wide sites, and over all other parameters.

        Args:
            directions: This process's rows of ``q``, each of shape ``(B, T, n)``.
            here: Whether ``q`` is zero in all other processes, for each of them in turn: then these
                are the terms of this one, but of sharded parameters.

        Yields:
            The terms by name; see `by_site`. One product each.
        """
        if self._is_at_sites:
            sampler = self._at_sites()
            for at_sites in sampler.pulls(directions):
                yield sampler.squares(at_sites)
        elif self.parameters:
            for pulled in self.jacobian.pulls_apart(directions, here=here):
                found = dict(zip(self.parameters, pulled, strict=True))
                yield self._forward.squares(found)
        else:
            yield from ({} for _ in directions)

    def by_site(self, squares: Mapping[str, X]) -> dict[str, X]:
        """Squares of parameters, those of one site together.

        Args:
            squares: By the parameter's name; numbers, or several in an array.

        Returns:
            The same by weight site, and by other parameters.
        """
        found: dict[str, X] = {}
        for name, square in squares.items():
            leader = self._found.leaders.get(name, name)
            found[leader] = found[leader] + square if leader in found else square
        return found

    def _outputs_given_state(self) -> tuple[Tensor, list[Tensor | None]]:
        """The outputs, None for those that nothing moves, and what they are computed from."""
        leaf = self.state.clone().requires_grad_()
        with self._quiet("reversible"):
            readings = self._compares.readings
            given = Intervention(given=leaf.clone())  # what follows may write into it in place
            _, returned, watch = self._forward.run_whole({}, self._state, readings, given)
            if readings:
                found = [compared(c.head, watch.seen).output for c in self.comparisons]
            else:
                found = [main_output(returned)]
            outputs = [
                None if y is None or not y.requires_grad else self.placed_output(c, y)
                for c, y in zip(self.comparisons, found, strict=False)
            ]
        return leaf, outputs

    def _directly(self, leaf: Tensor, output: Tensor | None, e: Tensor) -> Tensor:
        """This process's ``q``."""
        if output is None:
            return torch.zeros_like(leaf)
        with self._quiet("reversible"):
            found = self._forward.gradients(output, {STATE: leaf}, e)[STATE]
        return torch.zeros_like(leaf) if found is None else found

    def _quiet(self, kernels: Kernels) -> AbstractContextManager[None]:
        return quiet(self.module, kernels=kernels)


def squared_norm(x: Tensor) -> Tensor:
    """``||x||^2`` in float64."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm.square()


def _carrying_on(state: Tensor) -> Intervention:
    """A pass that goes on with a given state at every step."""
    return Intervention(given=state, through_time=True)
