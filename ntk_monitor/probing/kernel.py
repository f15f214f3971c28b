"""The kernel of a linearised model: exactly, or by samples that are checked."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntk_monitor.estimators import CoreGram, ExactKernel, Measured, sample_kernel
from ntk_monitor.estimators.formulas import relative_gap
from ntk_monitor.estimators.kernel.sampling import JacobianSampler
from ntk_monitor.model import Linearization
from ntk_monitor.model.derivatives.derivative import Derivative
from ntk_monitor.model.derivatives.products import IN_PLACE, ProductMethod
from ntk_monitor.model.derivatives.site_sampling import AGREES, SiteSampler
from ntk_monitor.model.derivatives.trial_gradients import GAP, TrialGradients
from ntk_monitor.model.isolation.deadline import Deadline
from ntk_monitor.model.isolation.memory import room
from ntk_monitor.model.site_shares import of_draws, of_entries
from ntk_monitor.probing.budget import ProductBudget
from ntk_monitor.probing.dense import dense_jacobian
from ntk_monitor.probing.settings import ProbeSettings

logger = logging.getLogger(__name__)

PREFERENCE: tuple[ProductMethod, ...] = ("finite-difference", "forward-ad", "double-backward")
"""Methods in the order in which ``"auto"`` tries them. Finite differences cost a forward pass for a
sample, in the memory of one and with any kernel, and are far more precise than sampling needs."""
BACKWARD: ProductMethod = "double-backward"
"""The method that sees what training's backward pass sees, and nothing else."""
PAIRS = 8
"""Directions in which a product is compared with the derivative of training."""
PULLS = 4
"""Products that are kept to tell where the trace is, where trials are not told apart."""
EXACT_ROWS = 2048
"""Most rows of a state whose temporal view ``"auto"`` decomposes in full."""


class MeasuredKernel(NamedTuple):
    """A kernel as it was measured.

    Attributes:
        kernel: Its statistics and eigenpairs.
        adjoint_error: How far both directions of differentiation differ, over the size.
        by_site: What each weight site adds to the trace, on average over some draws.
    """

    kernel: Measured | ExactKernel
    adjoint_error: float
    by_site: dict[str, Tensor]


class KernelMeasurement:
    """Measures kernels; what is found out once for a module is kept.

    Attributes:
        order: Methods in the order in which ``"auto"`` tries them; the one that worked comes first.
    """

    def __init__(self, settings: ProbeSettings) -> None:
        """Begin with nothing known of any module."""
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget what was found out."""
        self.order: tuple[str, ...] = PREFERENCE
        self._compared: set[Any] = set()
        self._at_sites: dict[Any, bool] = {}
        self._apart: dict[Any, bool] = {}

    def with_sites_that_agree(self, lin: Linearization) -> Linearization:
        """Products at the weight sites where they are those with vectors of all parameters.

        That is found out once for a module. It shows whether what was seen in one forward pass is
        where weights act in the passes that products take.

        Args:
            lin: The model.

        Returns:
            The same, without wide sites where these do not agree.
        """
        key = key_of(lin)
        sampler = lin.sampler(self._settings.seed)
        if not isinstance(sampler, SiteSampler) or key in self._at_sites:
            return lin if self._at_sites.get(key, True) else lin.without_wide_sites()
        generator = torch.Generator(device=lin.state.device).manual_seed(self._settings.seed)
        u = torch.randn(lin.state.shape, generator=generator, device=lin.state.device)
        try:
            distance = sampler.distance_to_parameters(u.to(lin.state.dtype))
            sampler.sample(range(1))
        except (RuntimeError, FloatingPointError) as error:
            logger.info("no products at the weight sites: %s", error)
            distance = math.inf
        lin.jacobian.products = 0  # once for a module: no part of what may be spent
        self._at_sites[key] = not distance > max(AGREES, self._settings.tolerance / 2)
        logger.info("products at the weight sites are %.2g from those in parameters", distance)
        return self.with_sites_that_agree(lin)

    def __call__(
        self, lin: Linearization, core: CoreGram, seed: int, most: int, deadline: Deadline
    ) -> MeasuredKernel:
        """The kernel, exactly where that is no dearer than sampling.

        Args:
            lin: The model.
            core: Its core.
            seed: Names the random tangents.
            most: Most products to spend.
            deadline: When the probe has to end.

        Returns:
            The kernel. A FloatingPointError is raised if finite differences do not settle, and
            there is no other way; a RuntimeError if both directions of differentiation disagree.
        """
        J, processes = lin.jacobian, lin.processes
        if self._is_exact(lin, most):
            J.defer("finite-difference")
            exact = ExactKernel(
                dense_jacobian(lin, processes.total(lin.rows) * lin.state.shape[2]), core
            )
            return MeasuredKernel(exact, self._adjoint_error(lin, seed), of_entries(lin, exact))
        budget = ProductBudget(J, most, deadline, processes)
        lin, measured, trials = self._sampled(lin, core, seed, budget)
        # What worked is tried first from now on. Training can make it fail (a step of finite
        # differences across many kinks), and then the next one takes over.
        if J.method in self.order:
            self.order = (J.method, *(other for other in self.order if other != J.method))
        spared = min(PULLS, budget.left_in_all())
        by_site = of_draws(lin, trials if measured.trials is not None else None, spared, seed)
        return MeasuredKernel(measured, measured.adjoint_error, by_site)

    def _sampled(
        self, lin: Linearization, core: CoreGram, seed: int, budget: ProductBudget
    ) -> tuple[Linearization, Measured, TrialGradients | None]:
        """Sample, in another way for as long as one is found not to work.

        Returns:
            The model, without wide sites where products there did not settle; the kernel; and the
            Jacobian by groups of trials, where these were told apart.

        Raises:
            FloatingPointError: If finite differences do not settle, and there is no other way.
        """
        J = lin.jacobian
        trials, sampler = self._by_trial(lin, core, seed), lin.sampler(seed)
        if lin.processes.size > 1:
            lin.processes.everyone.require_same(
                "their random tangents",
                sampler.fingerprint,
                "give all the same seed, and the same kind of device",
            )
        gap: float | None = None
        while True:
            budget.kept_back = PULLS if trials is None else 0
            try:
                gap = self._gap_to_backward(lin, sampler, seed) if gap is None else gap
                measured = sample_kernel(
                    sampler,
                    core,
                    tolerance=self._settings.tolerance,
                    left=budget.left,
                    seed=seed,
                    max_memory=room(self._settings.max_memory, lin.state.device),
                    trials=trials,
                )
                error = max(measured.adjoint_error, gap)
                if not error > self._adjoint_limit(J):  # what is not finite is told of elsewhere
                    return lin, measured, trials
                # Something is detached on the way: training's derivative is the one backward.
                if self._settings.method != "auto" or not J.fall_back(BACKWARD):
                    self._require_adjoint(J, error)
                gap = 0.0
            except FloatingPointError as unsettled:
                if trials is not None:  # whose tangents have no other way
                    logger.info("trials are not told apart: %s", unsettled)
                    trials = None
                elif isinstance(sampler, SiteSampler):
                    logger.info("no products at the weight sites: %s", unsettled)
                    lin, gap = lin.without_wide_sites(), None
                else:
                    raise
            budget.begin_anew()
            sampler = lin.sampler(seed)

    def _is_exact(self, lin: Linearization, max_products: int) -> bool:
        """Whether the kernel is taken as a whole: where that is asked for, or no dearer."""
        J, rows = lin.jacobian, lin.processes.total(lin.rows)
        cost = min(math.prod(J.shape_in), rows * lin.state.shape[2]) + 2
        affordable = cost <= max_products - J.products
        whole = J.method != IN_PLACE and rows <= EXACT_ROWS
        method = self._settings.method
        return method == "exact" or (method == "auto" and affordable and whole)

    def _by_trial(self, lin: Linearization, core: CoreGram, seed: int) -> TrialGradients | None:
        """The Jacobian by groups of trials, where these do not act on one another.

        That is found out once for a module, as is whether all that moves the state is seen.

        Args:
            lin: The model.
            core: Its core.
            seed: Names the draws.

        Returns:
            The Jacobian, or None.
        """
        trials = lin.by_trial(core, seed)
        key = key_of(lin)
        if trials is None or not self._apart.get(key, True):
            return None
        if key not in self._apart:
            before = lin.jacobian.products
            try:
                gap = trials.gap()
            except (RuntimeError, NotImplementedError) as error:  # as where parts are recomputed
                logger.info("trials are not told apart: %s", error)
                gap = math.inf
            lin.jacobian.products = before  # once for a module: no part of what may be spent
            self._apart[key] = not gap > GAP
            logger.info("gradients by trial are %.2g from those of all parameters", gap)
        return trials if self._apart[key] else None

    def _adjoint_error(self, lin: Linearization, seed: int) -> float:
        """Compare both directions of differentiation on one random pair; two products."""
        sampler, processes = lin.sampler(seed), lin.processes
        y = sampler.sample(range(1))[0]
        (z,) = lin.directions(1, seed)
        size = math.sqrt(processes.sum(y.double().square().sum()))
        forward = float(processes.sum((y.double() * z.double()).sum()))
        error = relative_gap(forward - sampler.inner(0, sampler.pull(z)), size)
        self._require_adjoint(lin.jacobian, error)
        return error

    def _gap_to_backward(
        self, lin: Linearization, sampler: JacobianSampler[Any], seed: int
    ) -> float:
        """How far a product is from what training's derivative makes of the same tangent.

        One pair of directions hardly tells of a small part that is detached. Once for a module and
        a method both are compared in many directions, a backward pass each.

        Args:
            lin: The model.
            sampler: Its Jacobian, with tangents.
            seed: Names the directions.

        Returns:
            The distance over the size; 0 where it is known already.
        """
        J = lin.jacobian
        key = (key_of(lin), J.method, type(sampler))
        if key in self._compared or J.method == BACKWARD:
            return 0.0
        self._compared.add(key)
        before = J.products
        own = sampler.sample(range(1))[0].double()
        spent = J.products - 1 if J.products > before else before  # it is taken again as a sample
        processes, gaps = lin.processes, []
        try:
            size = math.sqrt(processes.sum(own.square().sum()))
            # Of rows of each process by themselves, so that no gradients are sent around.
            every = sampler.pulls(lin.directions(PAIRS, seed), here=True)
            for z, pulled in zip(lin.directions(PAIRS, seed), every, strict=True):
                backward = sampler.inner(0, pulled)
                forward = float((own * z.double()).sum())
                gap = processes.sum(
                    torch.tensor([forward, backward], dtype=torch.float64, device="cpu")
                )
                gap[1] = backward if lin.is_sharded else gap[1]
                gaps.append(relative_gap(float(gap[0] - gap[1]), size))
                del pulled  # before the next one is made
        finally:
            J.products = spent  # once for a module: no part of what may be spent
        return math.sqrt(sum(gap**2 for gap in gaps) / len(gaps))

    def _adjoint_limit(self, J: Derivative) -> float:
        """How far both directions may differ: by rounding; finite differences by the tolerance."""
        limit = 10 * math.sqrt(torch.finfo(J.dtype).eps)
        by_differences = J.method in {"finite-difference", "in-place"}
        return max(limit, self._settings.tolerance) if by_differences else limit

    def _require_adjoint(self, J: Derivative, error: float) -> None:
        """Refuse derivatives that disagree by more than that.

        Raises:
            RuntimeError: If they do.
        """
        limit = self._adjoint_limit(J)
        if error > limit:
            raise RuntimeError(
                f"forward and backward derivatives of the state disagree: <J g, z> and <g, J* z> "
                f"differ by {error:.2g} of their size (rounding allows {limit:.1g}). A "
                "torch.no_grad() or .detach() in forward(), or a random forward, does this; the "
                "numbers of a probe would be wrong, so there are none"
            )


def key_of(lin: Linearization) -> tuple[Any, ...]:
    """What is found out once is found out for a module, its state and its parameters."""
    return id(lin.module), lin.modules, lin.parameters
