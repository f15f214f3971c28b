"""The result of a probe."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from ntk_monitor import brief
from ntk_monitor.estimators import Estimate
from ntk_monitor.model import Coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from ntk_monitor.snapshot.parts import ComparedOutput, Forecast, Instruments, TargetMode
from ntk_monitor.snapshot.saving import FORMAT, put_together, taken_apart

AHEAD = (10, 30)
"""Steps ahead for which the loss is logged."""


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot:
    r"""One measurement of one model on one batch.

    With state ``h`` of shape (B, T, n), ``k = B T``, ``J = dh/dtheta``, ``A = J J*``,
    ``T = tr_n(A)/n``, ``S = tr_k(A)/k``, ``G = V V*`` and ``PR(M) = (tr M)^2 / ||M||_F^2``:

    Attributes:
        core_cosine: ``cos(A, G (x) I_n)``, in [0, 1].
        temporal_core_cosine: ``cos(T, G)``, in [0, 1].
        effective_rank: ``PR(A)``, from 1 to ``k n``.
        temporal_effective_rank: ``PR(T)``, from 1 to ``k``.
        spatial_effective_rank: ``PR(S)``, from 1 to ``n``.
        trace: ``tr A``, in squared units of the state per squared unit of the parameters.
        frobenius_norm: ``||A||_F``, in the same units.
        trace_by_site: Where the state can be moved: the share of the trace that each weight site (a
            bias with its weight), and each parameter without one, has; the largest first. Empty
            where the budget did not reach so far.
        trace_by_site_stderr: Standard errors of these shares, in the same order.
        core_effective_rank: ``PR(G)``, exact.
        core_spectrum: Eigenvalues of ``G``, descending, shape ``(min(k, m),)``.
        temporal_spectrum: Leading eigenvalues of ``T``, descending, shape ``(r,)``; of the samples
            of the temporal view, however few its effective rank needs.
        temporal_modes: Their eigenvectors over trials and time, shape ``(r, B, T)``.
        target_modes: The leading modes of the target.
        target_patterns: Their time courses ``u_i``, shape ``(modes, B, T)`` on the target's rows.
        coverage: How much of what moves the state the core accounts for.
        state_shape: ``(B, T, n)``.
        state: Paths of the modules whose outputs are the state.
        products: Products spent.
        seconds: Wall time of the probe.
        method: How ``J g`` was computed: one of the methods, or ``"exact"``.
        scheme: ``"exact"``; ``"sampled"``; or ``"deflated"``, where leading directions were taken
            out of the samples exactly and only the rest was sampled.
        tolerance_met: Whether every sampled number reached the wanted relative standard error;
            if not, the budget ended the sampling.
        tier: How far the measurement went; see `probe`. What it did not reach is nan or None.
        step: What was called: a training step, a user's loss, or a forward pass.
        loss: The loss that training minimises, on this batch; where only a forward pass is known,
            the mean squared error or cross-entropy with the batch's target. None without either.
        transfer: What a step on some trials does to the loss of others, over what it does to that
            of its own. None where there are no others.
        forecast: What the coming steps do. None without a loss of outputs, or an optimizer.
        instruments: What a flat loss asks for. None without a loss.
        dead_units: Share of the state's units that have the same activity on all rows.
        saturated_units: Share of its units that are at one end of their range, -1, 0 or 1, on
            nearly all rows, and never beyond.
        outputs: What the loss compares.
        remarks: What was not found or not measured, each with what to do about it.
        adjoint_error: ``|<J g, z> - <g, J* z>| / ||J g||`` for random ``g`` and ``z``: both
            directions of differentiation must agree.
    """

    core_cosine: Estimate
    temporal_core_cosine: Estimate
    effective_rank: Estimate
    temporal_effective_rank: Estimate
    spatial_effective_rank: Estimate
    trace: Estimate
    frobenius_norm: Estimate
    core_effective_rank: float
    core_spectrum: Tensor
    temporal_spectrum: Tensor
    temporal_modes: Tensor
    target_modes: tuple[TargetMode, ...]
    target_patterns: Tensor
    coverage: Coverage
    state_shape: tuple[int, int, int]
    products: int
    seconds: float
    method: str
    scheme: str
    tolerance_met: bool
    adjoint_error: float
    tier: str = "kernel"
    state: tuple[str, ...] = ()
    step: str = ""
    loss: float | None = None
    transfer: Estimate | None = None
    forecast: Forecast | None = None
    instruments: Instruments | None = None
    dead_units: float = math.nan
    saturated_units: float = math.nan
    outputs: tuple[ComparedOutput, ...] = ()
    remarks: tuple[str, ...] = ()
    trace_by_site: tuple[tuple[str, float], ...] = ()
    trace_by_site_stderr: tuple[float, ...] = ()

    def __repr__(self) -> str:
        """In ten lines; every number is an attribute."""
        return brief.text(self)

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return brief.html(self)

    def plot(self) -> Figure:
        """What of the target is learned, what the next steps do, and how rich the kernel is.

        Returns:
            A matplotlib figure.
        """
        from ntk_monitor import plots  # noqa: PLC0415  (matplotlib, when it is asked for)

        return plots.plot(self)

    @property
    def is_finite(self) -> bool:
        """Whether all could be measured; False after nan or infinite activations."""
        kernel = self.tier != "kernel" or self.trace.is_finite
        return kernel and (self._has_no_core or math.isfinite(self.core_effective_rank))

    @property
    def _has_no_core(self) -> bool:
        """Whether nothing that is trained acts on the state, as with a frozen body."""
        return self.tier != "kernel" and not self.coverage.sites

    def scalars(self) -> dict[str, float]:
        """Every number that is logged, by its tag.

        Returns:
            Values, and standard errors under the same tag with the suffix ``_stderr``; those of the
            kernel only where the tier reached it.
        """
        kernel = self.tier == "kernel"
        tags: dict[str, float | Estimate | None] = {
            "core/effective_rank": None if self._has_no_core else self.core_effective_rank,
        }
        if kernel:
            tags |= {
                "ntk/core_cosine": self.core_cosine,
                "ntk/temporal_core_cosine": self.temporal_core_cosine,
                "ntk/effective_rank": self.effective_rank,
                "ntk/temporal_effective_rank": self.temporal_effective_rank,
                "ntk/spatial_effective_rank": self.spatial_effective_rank,
                "ntk/trace": self.trace,
            }
        for mode in self.target_modes:
            tags[f"target/mode_{mode.index}/alignment"] = mode.alignment if kernel else None
            tags[f"target/mode_{mode.index}/learned"] = mode.learned
            tags[f"target/mode_{mode.index}/rate"] = None if math.isnan(mode.rate) else mode.rate
            tags[f"target/mode_{mode.index}/steps_to_learn"] = mode.steps_to_learn
            tags[f"target/mode_{mode.index}/transfer"] = mode.transfer
        tags |= {"loss/now": self.loss, "loss/transfer": self.transfer}
        if self.forecast is not None:
            for ahead in AHEAD:
                tags[f"loss/in_{ahead}_steps"] = self.forecast.loss_in(ahead)
            tags["loss/forecast_holds_for"] = self.forecast.valid_for
        if self.instruments is not None:
            found = self.instruments
            tags["gradient/norm"] = found.gradient_norm
            tags["gradient/signal_to_noise"] = found.signal_to_noise
            of_the_step = {
                "gradient/clip_coefficient": found.clip_coefficient,
                "update/learning_rate": found.learning_rate,
                "update/relative_size": found.relative_update,
                "update/headroom": found.headroom,
            }
            tags |= {tag: x if math.isfinite(x) else None for tag, x in of_the_step.items()}
        tags["ntk/probe_seconds"] = self.seconds
        scalars: dict[str, float] = {}
        for tag, value in tags.items():
            if isinstance(value, Estimate):
                scalars[tag], scalars[f"{tag}_stderr"] = value.value, value.stderr
            elif value is not None:
                scalars[tag] = value
        return scalars

    def save(self, path: str | Path) -> Path:
        """Write the snapshot to a file, without pickle.

        The file is a NumPy archive: one array per tensor, and all numbers as JSON text. It appears
        under its name only when it is complete.

        Args:
            path: Where to write; missing folders are made.

        Returns:
            The path written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        record, arrays = taken_apart(self)
        text = json.dumps({"format": FORMAT, **record})
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            with unfinished.open("wb") as file:
                np.savez_compressed(file, record=np.array(text), **arrays)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Snapshot:
        """Read a snapshot that `save` wrote. Nothing in the file is executed.

        Args:
            path: The file.

        Returns:
            The snapshot.

        Raises:
            ValueError: If the file is not a snapshot of this format.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                record = json.loads(str(archive["record"]))
                arrays = {name: archive[name] for name in archive if name != "record"}
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is not a snapshot: {error}") from error
        found = record.pop("format", None) if isinstance(record, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{path} is a snapshot of format {found}, this version reads format {FORMAT}"
            )
        try:
            snapshot = put_together(cls, record, arrays)
            snapshot._require_shapes()
        except ValueError as error:
            raise ValueError(f"{path} is not a complete snapshot: {error}") from error
        return snapshot

    def require_valid(self) -> None:
        """Check every field's type, and the shapes of the tensors.

        One that is not what it should be raises a ValueError.
        """
        put_together(type(self), *taken_apart(self))
        self._require_shapes()

    def _require_shapes(self) -> None:
        counts = (*self.state_shape, self.products, *(mode.index for mode in self.target_modes))
        if min(counts) < 0:
            raise ValueError(
                f"negative counts among state_shape, products and indices of modes: {counts}"
            )
        modes = (len(self.temporal_spectrum), *self.state_shape[:2])
        if self.temporal_modes.shape != modes:
            found = tuple(self.temporal_modes.shape)
            raise ValueError(f"temporal_modes must have shape {modes}, got {found}")
        if self.core_spectrum.ndim != 1 or self.target_patterns.ndim != 3:
            raise ValueError("core_spectrum must have one axis, and target_patterns three")
