"""One measurement of one model on one batch, usable without Lightning."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ntk_monitor.checks import imported, require, suggesting
from ntk_monitor.descent import Descent, Predicted, Setting, plain_descent, predict
from ntk_monitor.estimators import (
    Activities,
    CoreGram,
    Estimate,
    ExactKernel,
    KernelStatistics,
    Measured,
    sample_kernel,
)
from ntk_monitor.estimators.formulas import at_least_float32, relative_gap
from ntk_monitor.estimators.sampling import Factor
from ntk_monitor.estimators.sketch import MIN_SAMPLES
from ntk_monitor.estimators.subspace import fix_signs
from ntk_monitor.model import METHODS, Linearization, linearize, quiet
from ntk_monitor.model.at_sites import AGREES, SiteFactor
from ntk_monitor.model.batch import ForwardFn, MaskFn, TargetFn, require_tensors
from ntk_monitor.model.by_site import of_draws, of_entries, shares
from ntk_monitor.model.by_trial import GAP, ByTrial
from ntk_monitor.model.compiled import plain_module
from ntk_monitor.model.deadline import Deadline
from ntk_monitor.model.derivative import Derivative
from ntk_monitor.model.memory import room
from ntk_monitor.model.parameters import ParameterFilter
from ntk_monitor.model.products import IN_PLACE, ProductMethod
from ntk_monitor.model.quiet import draw_anew
from ntk_monitor.model.spread import is_sharded
from ntk_monitor.model.state import StatePath, require_paths
from ntk_monitor.model.step import Comparison, LossFn
from ntk_monitor.ranks import ALONE, RankError, Ranks
from ntk_monitor.snapshot import ComparedOutput, Snapshot
from ntk_monitor.targets import (
    PulledMode,
    Target,
    pull_back,
    stacked_patterns,
    target_like,
    target_modes,
)

logger = logging.getLogger(__name__)

TEMPORAL_MODES = 20
"""How many temporal modes a snapshot keeps."""
Tier = Literal["core", "modes", "kernel"]
PREFERENCE: tuple[ProductMethod, ...] = ("finite-difference", "forward-ad", "double-backward")
"""Methods in the order in which ``"auto"`` tries them. Finite differences cost a forward pass for a
sample, in the memory of one and with any kernel, and are far more precise than sampling needs."""
BACKWARD: ProductMethod = "double-backward"
"""The method that sees what training's backward pass sees, and nothing else."""
PAIRS = 8
"""Directions in which a product is compared with the derivative of training."""
PULLS = 4
"""Products that are kept to tell where the trace is, where trials are not told apart."""
SAMPLING_SHARE = 0.8
"""Share of the time limit after which a probe makes do with the samples that it has."""
EXACT_ROWS = 2048
"""Most rows of a state whose temporal view ``"auto"`` decomposes in full."""
NO_COPY = (
    f"there is no forecast and there are no steps to learn with method={IN_PLACE!r}, which keeps "
    "no copy of the parameters: for models that are not sharded another method has them"
)
DENSE_LIMIT = 2**28
"""Most entries that a dense Jacobian may have."""


class Probe:
    """A measurement with its settings; what is decided at the first call is kept.

    ``probe(module, batch, ...)`` is ``Probe(...)(module, batch)``; see `probe` for the arguments.

    Attributes:
        order: Methods in the order in which ``"auto"`` tries them; the one that worked comes first.
    """

    def __init__(
        self,
        *,
        state: StatePath = "auto",
        parameters: ParameterFilter = None,
        forward_fn: ForwardFn | None = None,
        target_fn: TargetFn | None = None,
        loss_fn: LossFn | None = None,
        mask_fn: MaskFn | None = None,
        modes: int = 3,
        learning_rate: float | None = None,
        tolerance: float = 0.05,
        max_products: int = 96,
        tier: Tier = "kernel",
        method: str = "auto",
        dtype: torch.dtype | str | None = torch.float32,
        chunk_size: int | None = None,
        time_limit: float | None = 120.0,
        max_memory: int | None = None,
        seed: int = 0,
    ) -> None:
        """Check and keep the settings; one that is out of its range raises a ValueError."""
        require_paths(state)
        functions = {
            "forward_fn": forward_fn,
            "target_fn": target_fn,
            "loss_fn": loss_fn,
            "mask_fn": mask_fn,
        }
        for name, function in functions.items():
            good = function is None or callable(function)
            require(good, name, "a function (in YAML its import path), or None", function)
        require(modes >= 0, "modes", "a number of target modes, 0 or more", modes)
        require(tolerance >= 0, "tolerance", "a relative standard error, 0 or more", tolerance)
        least = _least_products(modes) if tier == "kernel" else 0
        require(
            max_products >= least,
            "max_products",
            f"at least {least} (with modes={modes})",
            max_products,
        )
        tiers = get_args(Tier)
        require(tier in tiers, "tier", f"one of {', '.join(tiers)}", tier)
        choices = ("auto", "exact", *METHODS)
        require(method in choices, "method", f"one of {', '.join(choices)}", method)
        require(
            chunk_size is None or chunk_size >= 1, "chunk_size", "at least 1, or None", chunk_size
        )
        require(
            learning_rate is None or learning_rate > 0,
            "learning_rate",
            "positive, or None",
            learning_rate,
        )
        require(time_limit is None or time_limit > 0, "time_limit", "seconds, or None", time_limit)
        require(max_memory is None or max_memory > 0, "max_memory", "bytes, or None", max_memory)
        require(seed >= 0, "seed", "0 or more", seed)
        forward = forward_fn is not None or target_fn is not None
        one = loss_fn is None or not forward
        require(one, "loss_fn", "left out where forward_fn or target_fn are given", loss_fn)
        self.state = state
        self.parameters = imported(parameters)
        self.forward_fn = forward_fn
        self.target_fn = target_fn
        self.loss_fn = loss_fn
        self.mask_fn = mask_fn
        self.modes = modes
        self.learning_rate = learning_rate
        self.tolerance = tolerance
        self.max_products = max_products
        self.tier = tier
        self.method = method
        self.dtype = _dtype(dtype)
        self.time_limit = time_limit
        self.max_memory = max_memory
        self.seed = seed
        self._wanted_chunk_size = chunk_size
        self.reset()

    def reset(self) -> None:
        """Forget what was decided at earlier calls."""
        self.chunk_size = self._wanted_chunk_size
        self._missed: set[str] = set()
        self.order: tuple[str, ...] = PREFERENCE
        self._compared: set[Any] = set()
        self._by_graph: dict[Any, bool | None] = {}
        self._at_sites: dict[Any, bool] = {}
        self._apart: dict[Any, bool] = {}

    def prefer(self, order: Sequence[str]) -> None:
        """Go on with what an earlier probe decided.

        Args:
            order: Its ``order``; something else than methods raises a ValueError.
        """
        require(set(order) <= set(METHODS), "order", "a sequence of methods", order)
        self.order = tuple(order) or PREFERENCE

    def __call__(
        self,
        module: nn.Module,
        batch: Any,  # noqa: ANN401
        *,
        learning_rate: float | None = None,
        descent: Descent | None = None,
        horizon: float = math.inf,
        second: Any = None,  # noqa: ANN401
        source: Any = None,  # noqa: ANN401
        seed: int | None = None,
        max_products: int | None = None,
        tier: Tier | None = None,
        ranks: Ranks = ALONE,
        noise: int | None = None,
    ) -> Snapshot:
        """Measure a module on a batch; see `probe`.

        Args:
            module: The model; left exactly as it was.
            batch: What to call it on.
            learning_rate: Of plain gradient descent, in place of the setting for this call.
            descent: How the training steps; plain gradient descent at the learning rate, if there
                is one, where left out.
            horizon: Steps that remain. Of a mode that needs more it is found out what would change
                that.
            second: Another batch of the training, to measure what a step on one does to the other.
            source: A batch of the training, where ``batch`` is none: the steps are made on it.
            seed: Takes the place of the setting for this call.
            max_products: Likewise, but never fewer than any probe needs.
            tier: Likewise, but never further than the setting.
            ranks: The processes that make this call together, each on a batch of its own, with the
                same settings and parameters: they measure the batch that all of these make up.
            noise: Names what a step draws at random, the same at every probe; None for what it
                would draw now.

        Returns:
            The snapshot, the same in every process. If one process fails, all do, the others with a
            ``RankError``.
        """
        deadline = Deadline(self.time_limit)
        wanted: tuple[Tier, Tier] = (tier or self.tier, self.tier)
        reach = min(wanted, key=get_args(Tier).index)
        module = plain_module(module)
        with ExitStack() as stack:
            stack.enter_context(ranks.together())
            require_tensors(module, batch)  # in one process, perhaps: the others hear of it
            stack.enter_context(quiet(module, kernels="any"))
            stack.enter_context(deadline.keep())
            if noise is not None:
                draw_anew(noise)
            lin, core = self._linearize(module, batch, ranks)
            if reach != "core":
                lin = self._with_sites_that_agree(lin)
            targets, remarks = self._targets(lin)
            pulled = self._pulled(lin, core, targets, reach)
            remarks += _remarks(lin, targets)
            predicted = self._predicted(
                lin,
                targets,
                pulled,
                Setting(self._descent(module, descent, learning_rate), horizon, second, source),
                reach,
            )
            outputs = tuple(map(_described, lin.comparisons)) if lin.loss is not None else ()
            lin = replace(lin, outputs=None, comparisons=())  # which may be larger than all else
            told = _Told(pulled, outputs, remarks, predicted, *_idle_units(lin), deadline, reach)
            if not ranks.all(core.is_finite and bool(torch.isfinite(lin.state).all())):
                _warn_non_finite("activations", ranks)
                return self._snapshot(lin, core, told, None, math.nan)
            if reach != "kernel" or not lin.parameters:
                return self._snapshot(lin, core, told, None, math.nan)
            most = self.max_products if max_products is None else max_products
            try:
                kernel, adjoint_error, squares = self._measure(
                    lin,
                    core,
                    self.seed if seed is None else seed,
                    max(most, _least_products(self.modes)),
                    deadline,
                )
            finally:
                if lin.jacobian.halved:
                    self.chunk_size = lin.jacobian.chunk_size
            return self._snapshot(lin, core, told, kernel, adjoint_error, squares)

    def _linearize(
        self,
        module: nn.Module,
        batch: Any,  # noqa: ANN401
        ranks: Ranks,
    ) -> tuple[Linearization, CoreGram]:
        """The model's operators and its core; the activity behind the core is not kept."""
        parts = Activities(ranks)
        wanted: str | Sequence[str] = self.method
        if not is_sharded(module) and self.method in {"auto", "exact"}:
            wanted = self.order
        lin = linearize(
            module,
            batch,
            state=self.state,
            parameters=self.parameters,
            forward_fn=self.forward_fn,
            target_fn=self.target_fn,
            loss_fn=self.loss_fn,
            mask_fn=self.mask_fn,
            method=wanted,
            dtype=self.dtype,
            chunk_size=self.chunk_size,
            accuracy=max(self.tolerance, 0.01) / 5,
            ranks=ranks,
            max_memory=self.max_memory,
            consume=parts.add,
            copies=False,
        )
        missed = [name for name in lin.coverage.missed if name not in self._missed]
        if missed:
            self._missed.update(missed)
            _warn(
                "the core misses weights, since no operation with them was seen: "
                f"{', '.join(missed)}; numbers of the core are without them, all others with them",
                ranks,
            )
        parts.add(lin.state.new_zeros(lin.rows, 0))
        return lin, CoreGram.of(parts)

    def _with_sites_that_agree(self, lin: Linearization) -> Linearization:
        """Products at the weight sites where they are those with vectors of all parameters.

        That is found out once for a module. It shows whether what was seen in one forward pass is
        where weights act in the passes that products take.

        Args:
            lin: The model.

        Returns:
            The same, without wide sites where these do not agree.
        """
        key = _key(lin)
        factor = lin.factor(self.seed)
        if not isinstance(factor, SiteFactor) or key in self._at_sites:
            return lin if self._at_sites.get(key, True) else lin.without_wide_sites()
        generator = torch.Generator(device=lin.state.device).manual_seed(self.seed)
        u = torch.randn(lin.state.shape, generator=generator, device=lin.state.device)
        try:
            distance = factor.distance_to_parameters(u.to(lin.state.dtype))
            factor.sample(range(1))
        except (RuntimeError, FloatingPointError) as error:
            logger.info("no products at the weight sites: %s", error)
            distance = math.inf
        lin.jacobian.products = 0  # once for a module: no part of what may be spent
        self._at_sites[key] = not distance > max(AGREES, self.tolerance / 2)
        logger.info("products at the weight sites are %.2g from those in parameters", distance)
        return self._with_sites_that_agree(lin)

    def _targets(self, lin: Linearization) -> tuple[dict[int, Target], tuple[str, ...]]:
        """The targets by the number of their comparison, and what cannot be one."""
        found: dict[int, Target] = {}
        remarks: list[str] = []
        ranks = lin.ranks
        for number, comparison in enumerate(lin.comparisons) if self.modes else ():
            output = lin.placed_output(comparison)
            if not ranks.all(comparison.target is not None and output is not None):
                continue
            assert output is not None
            try:
                target = target_like(comparison, output, lin)
            except ValueError as error:
                if self.target_fn is not None:
                    raise
                whose = "batch" if comparison.head.loss is None else comparison.head.name
                remark = f"the {whose}'s target is left aside: {error}"
                _warn(remark, ranks)
                remarks.append(remark)
                continue
            if not ranks.all(bool(torch.isfinite(target.values).all())):
                _warn_non_finite("targets", ranks)
                continue
            found[number] = target
        return found, tuple(remarks)

    def _pulled(
        self,
        lin: Linearization,
        core: CoreGram,
        targets: dict[int, Target],
        tier: Tier,
    ) -> tuple[PulledMode, ...]:
        return pull_back(targets, self.modes, lin, core, derivatives=tier != "core")

    def _descent(
        self, module: nn.Module, descent: Descent | None, learning_rate: float | None
    ) -> Descent | None:
        rate = self.learning_rate if learning_rate is None else learning_rate
        if descent is not None or rate is None:
            return descent
        return plain_descent(module, rate)

    def _predicted(
        self,
        lin: Linearization,
        targets: dict[int, Target],
        pulled: tuple[PulledMode, ...],
        setting: Setting,
        tier: Tier,
    ) -> Predicted:
        """What the coming steps do, as far as the tier and the method go."""
        finite = lin.loss is None or math.isfinite(lin.loss)
        if tier == "core" or not finite:
            return Predicted(loss=lin.loss)
        if lin.jacobian.method == IN_PLACE:
            told = (NO_COPY,) if setting.descent is not None and targets else ()
            return Predicted(loss=lin.loss, remarks=told)
        key = _key(lin)
        setting = setting._replace(by_graph=self._by_graph.get(key))
        try:
            found = predict(lin, targets, pulled, setting)
            self._by_graph[key] = found.by_graph
            return found
        except (RankError, TimeoutError):
            raise
        except Exception as error:
            if lin.ranks.everyone.size > 1:  # the others are in the middle of it
                raise
            logger.info("there is no forecast: %r", error, exc_info=True)
            told = (f"there is no forecast of this training: {error}",)
            return Predicted(loss=lin.loss, remarks=told)

    def _measure(
        self,
        lin: Linearization,
        core: CoreGram,
        seed: int,
        max_products: int,
        deadline: Deadline,
    ) -> tuple[Measured | ExactKernel, float, dict[str, Tensor]]:
        """The kernel, exactly where that is no dearer than sampling.

        Returns:
            The kernel, the adjoint error, and what each weight site adds to the trace, on average
            over some draws.

        Raises:
            FloatingPointError: If finite differences do not settle, and there is no other way.
        """
        J, ranks = lin.jacobian, lin.ranks
        if self._is_exact(lin, max_products):
            J.defer("finite-difference")
            exact = ExactKernel(_dense(lin, ranks.total(lin.rows) * lin.state.shape[2]), core)
            return exact, self._adjoint_error(lin, seed), of_entries(lin, exact)

        in_time, asked, begun = 0.0, J.products, 0
        trials = self._by_trial(lin, core, seed)

        def left() -> int:
            nonlocal in_time, asked
            spent = J.products - asked  # the same in all processes
            # Several meet for it anew when a part of what was left is spent.
            if ranks.size == 1 or 8 * spent >= in_time:
                in_time = ranks.everyone.least(deadline.left(J.products, SAMPLING_SHARE))
                asked, spent = J.products, 0
            most = max_products + begun - J.products - J.most_extra
            return int(min(most, in_time - spent)) - kept_back()

        def kept_back() -> int:
            return PULLS if trials is None else 0

        def begin_anew() -> Factor[Any]:
            nonlocal in_time, asked, begun
            in_time, begun = 0.0, J.products
            asked = begun
            return lin.factor(seed)

        factor = lin.factor(seed)
        if ranks.size > 1:
            ranks.everyone.require_same(
                "their random tangents",
                factor.fingerprint,
                "give all the same seed, and the same kind of device",
            )
        gap: float | None = None
        while True:
            try:
                gap = self._gap_to_backward(lin, factor, seed) if gap is None else gap
                measured = sample_kernel(
                    factor,
                    core,
                    tolerance=self.tolerance,
                    left=left,
                    seed=seed,
                    max_memory=room(self.max_memory, lin.state.device),
                    trials=trials,
                )
            except FloatingPointError as unsettled:
                if trials is not None:  # whose tangents have no other way
                    logger.info("trials are not told apart: %s", unsettled)
                    trials, factor = None, begin_anew()
                    continue
                if not isinstance(factor, SiteFactor):
                    raise
                logger.info("no products at the weight sites: %s", unsettled)
                lin, gap = lin.without_wide_sites(), None
                factor = begin_anew()
                continue
            error = max(measured.adjoint_error, gap)
            if self._agrees(J, error):
                break
            # Something is detached on the way: training's derivative is the one backward.
            if self.method != "auto" or not J.fall_back(BACKWARD):
                self._require_adjoint(J, error)
            gap, factor = 0.0, begin_anew()
        self._prefer(J.method)
        spared = min(PULLS, left() + kept_back())
        squares = of_draws(lin, trials if measured.trials is not None else None, spared, seed)
        return measured, measured.adjoint_error, squares

    def _is_exact(self, lin: Linearization, max_products: int) -> bool:
        """Whether the kernel is taken as a whole: where that is asked for, or no dearer."""
        J, rows = lin.jacobian, lin.ranks.total(lin.rows)
        cost = min(math.prod(J.shape_in), rows * lin.state.shape[2]) + 2
        affordable = cost <= max_products - J.products
        whole = J.method != IN_PLACE and rows <= EXACT_ROWS
        return self.method == "exact" or (self.method == "auto" and affordable and whole)

    def _prefer(self, method: str) -> None:
        """Try what worked first from now on.

        Training can make it fail (a step of finite differences across many kinks), and then the
        next one takes over.
        """
        if method in self.order:
            self.order = (method, *(other for other in self.order if other != method))

    def _by_trial(self, lin: Linearization, core: CoreGram, seed: int) -> ByTrial | None:
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
        key = _key(lin)
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
        factor, ranks = lin.factor(seed), lin.ranks
        y = factor.sample(range(1))[0]
        (z,) = lin.directions(1, seed)
        size = math.sqrt(ranks.sum(y.double().square().sum()))
        forward = float(ranks.sum((y.double() * z.double()).sum()))
        error = relative_gap(forward - factor.inner(0, factor.pull(z)), size)
        self._require_adjoint(lin.jacobian, error)
        return error

    def _gap_to_backward(self, lin: Linearization, factor: Factor[Any], seed: int) -> float:
        """How far a product is from what training's derivative makes of the same tangent.

        One pair of directions hardly tells of a small part that is detached. Once for a module and
        a method both are compared in many directions, a backward pass each.

        Args:
            lin: The model.
            factor: Its Jacobian, with tangents.
            seed: Names the directions.

        Returns:
            The distance over the size; 0 where it is known already.
        """
        J = lin.jacobian
        key = (_key(lin), J.method, type(factor))
        if key in self._compared or J.method == BACKWARD:
            return 0.0
        self._compared.add(key)
        before = J.products
        own = factor.sample(range(1))[0].double()
        spent = J.products - 1 if J.products > before else before  # it is taken again as a sample
        try:
            return self._gap_of(lin, factor, own, seed)
        finally:
            J.products = spent  # once for a module: no part of what may be spent

    def _gap_of(self, lin: Linearization, factor: Factor[Any], own: Tensor, seed: int) -> float:
        """The gap for one product."""
        ranks, gaps = lin.ranks, []
        size = math.sqrt(ranks.sum(own.square().sum()))
        # Of rows of each process by themselves, so that no gradients are sent around.
        every = factor.pulls(lin.directions(PAIRS, seed), here=True)
        for z, pulled in zip(lin.directions(PAIRS, seed), every, strict=True):
            backward = factor.inner(0, pulled)
            forward = float((own * z.double()).sum())
            gap = ranks.sum(torch.tensor([forward, backward], dtype=torch.float64, device="cpu"))
            gap[1] = backward if lin.is_sharded else gap[1]
            gaps.append(relative_gap(float(gap[0] - gap[1]), size))
            del pulled  # before the next one is made
        return math.sqrt(sum(gap**2 for gap in gaps) / len(gaps))

    def _agrees(self, J: Derivative, error: float) -> bool:
        return not error > self._adjoint_limit(J)  # what is not finite is told of elsewhere

    def _adjoint_limit(self, J: Derivative) -> float:
        """How far both directions may differ: by rounding; finite differences by the tolerance."""
        limit = 10 * math.sqrt(torch.finfo(J.dtype).eps)
        by_differences = J.method in {"finite-difference", "in-place"}
        return max(limit, self.tolerance) if by_differences else limit

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

    def _snapshot(
        self,
        lin: Linearization,
        core: CoreGram,
        told: _Told,
        measured: Measured | ExactKernel | None,
        adjoint_error: float,
        squares: Mapping[str, Tensor] | None = None,
    ) -> Snapshot:
        """Put the numbers together."""
        n, ranks = lin.state.shape[2], lin.ranks
        statistics = _unknown(n) if measured is None else measured.statistics
        if measured is not None and statistics.trace.is_finite:
            spectrum, modes = measured.temporal_eigenpairs(TEMPORAL_MODES, self.seed)
        else:
            spectrum, modes = torch.empty(0, device="cpu"), lin.state.new_empty(lin.rows, 0)
            if measured is not None:
                _warn_non_finite("derivatives", ranks)
        modes = _whole(modes.T.reshape(-1, *lin.state.shape[:2]), ranks)
        pulled, predicted = told.pulled, told.predicted
        terms = shares(squares or {})
        return Snapshot(
            core_cosine=statistics.core_cosine,
            temporal_core_cosine=statistics.temporal_core_cosine,
            effective_rank=statistics.effective_rank,
            temporal_effective_rank=statistics.temporal_effective_rank,
            spatial_effective_rank=statistics.spatial_effective_rank,
            trace=statistics.trace,
            frobenius_norm=statistics.frobenius_norm,
            core_effective_rank=core.effective_rank,
            core_spectrum=core.spectrum,
            temporal_spectrum=spectrum.cpu(),
            temporal_modes=modes,
            target_modes=target_modes(pulled, statistics.frobenius_norm, predicted.modes),
            target_patterns=_whole(stacked_patterns(pulled), ranks) if pulled else modes[:0],
            coverage=lin.coverage,
            state_shape=(*modes.shape[1:], n),
            state=lin.modules,
            products=int(-ranks.least(-lin.jacobian.products)),
            seconds=-ranks.everyone.least(-told.deadline.elapsed),
            method="exact" if isinstance(measured, ExactKernel) else lin.jacobian.method,
            scheme=measured.scheme if isinstance(measured, Measured) else "exact",
            tier=told.tier if lin.parameters else _lower(told.tier),
            tolerance_met=measured.tolerance_met if isinstance(measured, Measured) else True,
            adjoint_error=adjoint_error,
            step=lin.step,
            loss=predicted.loss,
            transfer=predicted.transfer,
            forecast=predicted.forecast,
            instruments=predicted.instruments,
            dead_units=told.dead,
            saturated_units=told.saturated,
            outputs=told.outputs,
            remarks=told.remarks + predicted.remarks,
            trace_by_site=tuple((name, share) for name, share, _ in terms),
            trace_by_site_stderr=tuple(error for *_, error in terms),
        )


class _Told(NamedTuple):
    """What is known of a snapshot before any product."""

    pulled: tuple[PulledMode, ...]
    outputs: tuple[ComparedOutput, ...]
    remarks: tuple[str, ...]
    predicted: Predicted
    dead: float
    saturated: float
    deadline: Deadline
    tier: Tier


CONSTANT = 1e-6
"""Spread of a unit's activity over rows, over its size or 1, below which it is the same on all."""
AT_THE_END = 0.01
"""How close to an end of their range saturated units are."""


def _idle_units(lin: Linearization) -> tuple[float, float]:
    """The shares of units that are dead, and that are saturated."""
    h, valid, ranks = lin.state.detach().flatten(0, 1).double(), lin.valid, lin.ranks
    if valid is not None and valid.numel() == len(h):
        h = h[valid.flatten()]
    ends = ((h.abs() - 1).abs() < AT_THE_END) | (h.abs() < AT_THE_END)
    moments = torch.stack([
        h.sum(0),
        h.square().sum(0),
        ends.sum(0).double(),
        (h.abs() > 1).sum(0).double(),
    ])
    count = ranks.total(len(h))
    mean, square, at_ends, beyond = ranks.sum(moments) / max(count, 1)
    spread = (square - mean.square()).clamp_min(0).sqrt()
    dead = spread <= CONSTANT * mean.abs().clamp_min(1)
    saturated = (at_ends > 1 - AT_THE_END) & (beyond == 0) & ~dead
    return float(dead.double().mean()), float(saturated.double().mean())


def _key(lin: Linearization) -> tuple[Any, ...]:
    """What is found out once is found out for a module, its state and its parameters."""
    return id(lin.module), lin.modules, lin.parameters


def _lower(tier: Tier) -> Tier:
    """How far a measurement goes of a state that nothing trained reaches."""
    return "modes" if tier == "kernel" else tier


def _described(comparison: Comparison) -> ComparedOutput:
    """One output that the loss compares, in words."""
    head, target = comparison.head, comparison.target
    assert head.loss is not None
    assert comparison.output is not None
    kind = {"values": "values", "bits": "yes or no", "classes": "classes"}[head.loss.kind]
    shape = () if target is None else tuple(target.shape)
    counts = comparison.counts
    part = "" if counts is None else f", {float(counts.double().mean()):.0%} of the entries count"
    return ComparedOutput(
        head.name, head.loss.name, tuple(comparison.output.shape), f"{kind} {shape}{part}"
    )


def _remarks(lin: Linearization, targets: dict[int, Target]) -> tuple[str, ...]:
    """What was not found or not measured, each with what to do about it."""
    remarks = []
    if not lin.parameters:
        remarks.append(
            f"nothing that is trained moves the state {', '.join(lin.modules)!r} yet: there are no "
            "numbers of the kernel until its parameters require gradients; state=... names another"
        )
    if lin.loss is not None and not math.isfinite(lin.loss):
        remarks.append(f"the loss of {lin.step} is {lin.loss} on the kept batch")
    if not targets and lin.without_targets:
        remarks.append(lin.without_targets)
    return tuple(remarks)


@suggesting
def probe(
    module: nn.Module,
    batch: Any,  # noqa: ANN401
    *,
    state: StatePath = "auto",
    parameters: ParameterFilter = None,
    forward_fn: ForwardFn | None = None,
    target_fn: TargetFn | None = None,
    loss_fn: LossFn | None = None,
    mask_fn: MaskFn | None = None,
    modes: int = 3,
    learning_rate: float | None = None,
    tolerance: float = 0.05,
    max_products: int = 96,
    tier: Tier = "kernel",
    method: str = "auto",
    dtype: torch.dtype | str | None = torch.float32,
    chunk_size: int | None = None,
    time_limit: float | None = 120.0,
    max_memory: int | None = None,
    seed: int = 0,
) -> Snapshot:
    """Measure what gradient descent can do to a model's state, on one batch.

    The module is left exactly as it was. The cost is at most ``max_products`` products, most of
    them about a plain forward pass each, and the memory of one backward pass.

    Args:
        module: The model, a plain ``nn.Module`` or a ``LightningModule``.
        batch: What training would call it on.
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
        learning_rate: For ``steps_to_learn``, which is None without it.
        tolerance: Wanted relative standard error of the sampled numbers; sampling stops there.
        max_products: Most products to spend, unless ``method="exact"``. Finite differences hold
            three of them back for steps that have to be shortened.
        tier: How far to go. ``"core"`` takes no derivative: the core, the learned fractions and the
            core overlaps. ``"modes"`` adds what is exact about the target modes, at one product
            each: gains and steps to learn. ``"kernel"`` adds what is sampled.
        method: How ``J g`` is computed: ``"finite-difference"``, in the memory of a forward pass
            and with a step that is checked; ``"forward-ad"`` or ``"double-backward"``, to rounding,
            in several times the memory; ``"in-place"``, finite differences that call the model
            itself, as sharded ones and those that keep parameters past torch's registry need, in
            the parameters' own arithmetic. ``"exact"`` forms the dense Jacobian, for small models,
            at ``min(p, k n)`` products. ``"auto"`` takes ``"exact"`` where that fits in
            ``max_products``, else the first of the others that works, ``"in-place"`` aside.
        dtype: Arithmetic of the probe; None keeps the model's.
        chunk_size: Tangents carried at once by forward mode; chosen if left out.
        time_limit: Seconds. After four fifths of them there is no further sample, and the numbers
            have larger errors; after all of them no forward pass begins, and a TimeoutError is
            raised. None for no limit.
        max_memory: Bytes that the activations which are kept to find the weight sites may take, and
            then again the samples; by default half of the free memory. Activations that need more
            take a few more forward passes, which keep none, and the numbers are the same; samples
            are kept in fewer rows, and the standard errors hold what that costs.
        seed: Names the random tangents; the same seed draws the same ones at every probe.

    Returns:
        The snapshot. Where the model's activations are not finite it holds nan and says so in
        ``is_finite``, and a RuntimeWarning is given.

    References:
        Hazelden, Driscoll, Shlizerman and Shea-Brown, The Global Empirical NTK,
        arXiv:2605.08746 (2026).

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        ... )
        >>> x = torch.randn(16, 3)
        >>> snapshot = probe(model, (x, x[:, :1]), learning_rate=0.1)
        >>> snapshot.method, snapshot.state_shape
        ('exact', (16, 1, 8))
    """
    measure = Probe(
        state=state,
        parameters=parameters,
        forward_fn=forward_fn,
        target_fn=target_fn,
        loss_fn=loss_fn,
        mask_fn=mask_fn,
        modes=modes,
        learning_rate=learning_rate,
        tolerance=tolerance,
        max_products=max_products,
        tier=tier,
        method=method,
        dtype=dtype,
        chunk_size=chunk_size,
        time_limit=time_limit,
        max_memory=max_memory,
        seed=seed,
    )
    return measure(module, batch)


def _least_products(modes: int) -> int:
    """One for each mode, the fewest samples, the adjoint self-test, and a step check's most."""
    return modes + MIN_SAMPLES + 1 + 3


def _whole(patterns: Tensor, ranks: Ranks) -> Tensor:
    """Patterns over the trials of all processes, each with its largest entry positive.

    Args:
        patterns: Over this process's, shape ``(m, B, T)``; others may have shorter or longer ones.
        ranks: The processes.

    Returns:
        Shape ``(m, B, T)``, on the CPU.
    """
    longest = max(ranks.counts(patterns.shape[2]))
    padded = torch.nn.functional.pad(patterns, (0, longest - patterns.shape[2]))
    whole = ranks.join(padded, 1)
    return fix_signs(whole.flatten(1).T).T.reshape(whole.shape).contiguous().cpu()


def _dense(lin: Linearization, values: float) -> Tensor:
    """This process's entries of the Jacobian by columns, shape ``(p, k, n)``."""
    J = lin.jacobian
    entries = math.prod(J.shape_in) * values
    if entries > DENSE_LIMIT:
        raise ValueError(
            f"method='exact' needs a dense Jacobian of {values:.0f} x "
            f"{math.prod(J.shape_in)} entries, more than the {DENSE_LIMIT} that fit: use "
            "method='auto', a smaller batch, or fewer parameters"
        )
    size_in, size_out = math.prod(J.shape_in), math.prod(J.shape_out)
    if size_in <= values:  # of all processes: all must go the same way
        basis = torch.eye(size_in, dtype=J.dtype, device=J.device)
        columns = J.matmat(basis.reshape(size_in, *J.shape_in)).flatten(1, 2)
    else:
        basis = torch.eye(size_out, dtype=J.dtype, device=J.device)
        rows = J.rmatmat(basis.reshape(size_out, *J.shape_out)).flatten(1)
        columns = rows.T.reshape(size_in, lin.rows, -1)
    return at_least_float32(columns).contiguous()


def _unknown(units: int) -> KernelStatistics:
    """The statistics of a kernel that could not be measured: nan throughout."""
    nan = torch.full((1,), torch.nan, device="cpu")
    return KernelStatistics(Estimate(math.nan, math.nan), nan, nan, nan, nan, nan, nan[0], units)


def _warn_non_finite(what: str, ranks: Ranks) -> None:
    _warn(f"nan or infinite {what} in this probe; its snapshot is marked non-finite", ranks)


def _warn(what: str, ranks: Ranks) -> None:
    if ranks.everyone.index:
        return
    message = f"ntk_monitor: {what}"
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    except RuntimeWarning:  # where warnings are errors: the numbers are not lost for it
        logger.warning(message)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating type, given as such or by its name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    is_floating = isinstance(found, torch.dtype) and found.is_floating_point
    require(dtype is None or is_floating, "dtype", "a floating torch.dtype or None", dtype)
    return found
