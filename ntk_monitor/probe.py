"""One measurement of one model on one batch, usable without Lightning."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Unpack, get_args

import torch
from torch import nn

from ntk_monitor.checks import require
from ntk_monitor.descent import Descent, Predicted, Setting, plain_descent, predict
from ntk_monitor.estimators import Activities, CoreGram
from ntk_monitor.keywords import with_keywords
from ntk_monitor.model import METHODS, Linearization, linearize, quiet
from ntk_monitor.model.batch.reading import require_tensors
from ntk_monitor.model.derivatives.products import IN_PLACE
from ntk_monitor.model.isolation.deadline import Deadline
from ntk_monitor.model.isolation.quiet import draw_anew
from ntk_monitor.model.parameters.sharding import is_sharded
from ntk_monitor.model.parameters.unwrapping import plain_module
from ntk_monitor.notices import NOT_FINITE, say
from ntk_monitor.probing.assembly import Findings, assembled, described, idle_units, remarks_on
from ntk_monitor.probing.kernel import PREFERENCE, KernelMeasurement, key_of
from ntk_monitor.probing.settings import ProbeKeywords, ProbeSettings, Tier
from ntk_monitor.processes import ALONE, ProcessError, Processes
from ntk_monitor.pulled_modes import PulledMode, pull_back
from ntk_monitor.snapshot import Snapshot
from ntk_monitor.targets import Target, target_like

logger = logging.getLogger(__name__)

__all__ = ["Probe", "Tier", "probe"]
NO_COPY = (
    f"there is no forecast and there are no steps to learn with method={IN_PLACE!r}, which keeps "
    "no copy of the parameters: for models that are not sharded another method has them"
)


class Probe(ProbeSettings):
    """A measurement with its settings; what is decided at the first call is kept.

    ``probe(module, batch, ...)`` is ``Probe(...)(module, batch)``; the settings are attributes, see
    `ntk_monitor.probing.settings.ProbeSettings`.
    """

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self._kernel = KernelMeasurement(self)
        self.reset()

    def reset(self) -> None:
        """Forget what was decided at earlier calls."""
        self._chunk_size = self.chunk_size
        self._missed: set[str] = set()
        self._by_graph: dict[Any, bool | None] = {}
        self._kernel.reset()

    @property
    def order(self) -> tuple[str, ...]:
        """Methods in the order in which ``"auto"`` tries them; the one that worked comes first."""
        return self._kernel.order

    def prefer(self, order: Sequence[str]) -> None:
        """Go on with what an earlier probe decided.

        Args:
            order: Its ``order``; something else than methods raises a ValueError.
        """
        require(set(order) <= set(METHODS), "order", "a sequence of methods", order)
        self._kernel.order = tuple(order) or PREFERENCE

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
        processes: Processes = ALONE,
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
            processes: Those that make this call together, each on a batch of its own, with the same
                settings and parameters: they measure the batch that all of these make up.
            noise: Names what a step draws at random, the same at every probe; None for what it
                would draw now.

        Returns:
            The snapshot, the same in every process. If one process fails, all do, the others with a
            ``ProcessError``.
        """
        deadline = Deadline(self.time_limit)
        wanted: tuple[Tier, Tier] = (tier or self.tier, self.tier)
        reach = min(wanted, key=get_args(Tier).index)
        module = plain_module(module)
        with ExitStack() as stack:
            stack.enter_context(processes.together())
            require_tensors(module, batch)  # in one process, perhaps: the others hear of it
            stack.enter_context(quiet(module, kernels="any"))
            stack.enter_context(deadline.keep())
            if noise is not None:
                draw_anew(noise)
            lin, core = self._linearize(module, batch, processes)
            if reach != "core":
                lin = self._kernel.with_sites_that_agree(lin)
            targets, remarks = self._targets(lin)
            pulled = pull_back(targets, self.modes, lin, core, derivatives=reach != "core")
            remarks += remarks_on(lin, targets)
            rate = self.learning_rate if learning_rate is None else learning_rate
            if descent is None and rate is not None:
                descent = plain_descent(module, rate)
            setting = Setting(descent, horizon, second, source)
            predicted = self._predicted(lin, targets, pulled, setting, reach)
            outputs = tuple(map(described, lin.comparisons)) if lin.loss is not None else ()
            lin = replace(lin, outputs=None, comparisons=())  # which may be larger than all else
            found = Findings(pulled, outputs, remarks, predicted, *idle_units(lin), deadline, reach)
            finite = processes.all(core.is_finite and bool(torch.isfinite(lin.state).all()))
            if not finite:
                say(NOT_FINITE.format("activations"), RuntimeWarning)
            if not finite or reach != "kernel" or not lin.parameters:
                return assembled(lin, core, found, None, self.seed)
            draws = self.seed if seed is None else seed
            most = self.max_products if max_products is None else max_products
            most = max(most, self.least_products)
            try:
                measured = self._kernel(lin, core, draws, most, deadline)
            finally:
                if lin.jacobian.halved:
                    self._chunk_size = lin.jacobian.chunk_size
            return assembled(lin, core, found, measured, self.seed)

    def _linearize(
        self,
        module: nn.Module,
        batch: Any,  # noqa: ANN401
        processes: Processes,
    ) -> tuple[Linearization, CoreGram]:
        """The model's operators and its core; the activity behind the core is not kept."""
        parts = Activities(processes)
        wanted: str | Sequence[str] = self.method
        if not is_sharded(module) and self.method in {"auto", "exact"}:
            wanted = self._kernel.order
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
            dtype=self.arithmetic,
            chunk_size=self._chunk_size,
            accuracy=max(self.tolerance, 0.01) / 5,
            processes=processes,
            max_memory=self.max_memory,
            consume=parts.add,
            copies=False,
        )
        missed = [name for name in lin.coverage.missed if name not in self._missed]
        if missed:
            self._missed.update(missed)
            say(
                "ntk_monitor: the core misses weights, since no operation with them was seen: "
                f"{', '.join(missed)}; numbers of the core are without them, all others with them",
                RuntimeWarning,
            )
        parts.add(lin.state.new_zeros(lin.rows, 0))
        return lin, CoreGram.of(parts)

    def _targets(self, lin: Linearization) -> tuple[dict[int, Target], tuple[str, ...]]:
        """The targets by the number of their comparison, and what cannot be one."""
        found: dict[int, Target] = {}
        remarks: list[str] = []
        processes = lin.processes
        for number, comparison in enumerate(lin.comparisons) if self.modes else ():
            output = lin.placed_output(comparison)
            if not processes.all(comparison.target is not None and output is not None):
                continue
            assert output is not None
            try:
                target = target_like(comparison, output, lin)
            except ValueError as error:
                if self.target_fn is not None:
                    raise
                whose = "batch" if comparison.head.loss is None else comparison.head.name
                remark = f"the {whose}'s target is left aside: {error}"
                say(f"ntk_monitor: {remark}", RuntimeWarning)
                remarks.append(remark)
                continue
            if not processes.all(bool(torch.isfinite(target.values).all())):
                say(NOT_FINITE.format("targets"), RuntimeWarning)
                continue
            found[number] = target
        return found, tuple(remarks)

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
        key = key_of(lin)
        setting = setting._replace(by_graph=self._by_graph.get(key))
        try:
            found = predict(lin, targets, pulled, setting)
            self._by_graph[key] = found.by_graph
            return found
        except (ProcessError, TimeoutError):
            raise
        except Exception as error:
            if lin.processes.everyone.size > 1:  # the others are in the middle of it
                raise
            logger.info("there is no forecast: %r", error, exc_info=True)
            told = (f"there is no forecast of this training: {error}",)
            return Predicted(loss=lin.loss, remarks=told)


@with_keywords(ProbeSettings)
def probe(
    module: nn.Module,
    batch: Any,  # noqa: ANN401
    **settings: Unpack[ProbeKeywords],
) -> Snapshot:
    """Measure what gradient descent can do to a model's state, on one batch.

    The module is left exactly as it was. The cost is at most ``max_products`` products, most of
    them about a plain forward pass each, and the memory of one backward pass.

    Args:
        module: The model, a plain ``nn.Module`` or a ``LightningModule``.
        batch: What training would call it on.
        **settings: Those of `ProbeSettings`.

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
    return Probe(**settings)(module, batch)
