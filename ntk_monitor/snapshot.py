"""The result of a probe."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ntk_monitor import brief
from ntk_monitor.estimators import Estimate
from ntk_monitor.model import Coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 2
"""Version of the file format of `Snapshot.save`."""
AHEAD = (10, 30)
"""Steps ahead for which the loss is logged."""


@dataclass(frozen=True)
class TargetMode:
    r"""One component of the target, and what gradient descent can do about it.

    The target, read as a (rows x outputs) matrix, is :math:`\sum_i \sigma_i u_i v_i^*`; mode i is
    the unit error :math:`e_i = u_i v_i^*` on the outputs, and :math:`q_i = (dy/dh)^* e_i` its
    pull-back to the state.

    Attributes:
        index: Which mode, from 1.
        singular_value: ``sigma_i``, in units of the target.
        alignment: The paper's cosine ``gain / ||A||_F``, in [0, 1]. Its denominator is sampled;
            it does not compare across networks.
        gain: ``||J* q_i||^2 / ||q_i||^2``: how fast the state moves along ``q_i`` per unit of
            error and learning rate. Exact. Nan if the outputs do not depend on the state.
        learned: ``<y, e_i> / sigma_i``: 0 for the best constant output, 1 solved; ``y`` is what
            should equal the target (probabilities of classes, say).
        core_overlap: ``||V* u_i||^2 / ||V||_op^2``, in [0, 1]: whether site activity has the
            mode's time course at all. Where the target's rows are not the state's, ``q_i`` takes
            the place of ``u_i``.
        output: The module whose output the target is compared with, where there are several.
        share: ``sigma_i^2`` of the squared size of its target.
        rate: ``d learned / d step`` at the next step of the optimizer in use, of the studied
            parameters alone, the others being held. Nan without one.
        steps_to_learn: Optimizer steps until ``learned`` is 0.9, by the forecast; inf where it
            never is. None without an optimizer or learning rate.
        steps_band: The least and the most of them, by forecasts in fewer Krylov directions and with
            what another batch leaves of the rate. None where there are no steps.
        transfer: What a step on some trials does to this mode on others, over what it does to it on
            its own: 1 where all trials teach the same, 0 where what is learned of one is of no use
            for another. None where there are no others.
        steps_if: Steps to learn with one thing changed, by what that is; of modes that need more
            steps than remain.
        rate_if: The rate with one thing changed, likewise.
        readout: ``||q_i||^2``: 0 where the outputs do not see the state.
        by_site: Where the mode can be learned: by weight site (a bias with its weight), and by
            parameter for those that have none, its share of the gain, the largest first.
    """

    index: int
    singular_value: float
    alignment: Estimate
    gain: float
    learned: float
    core_overlap: float
    output: str = ""
    share: float = math.nan
    rate: float = math.nan
    steps_to_learn: float | None = None
    steps_band: tuple[float, float] | None = None
    transfer: Estimate | None = None
    steps_if: tuple[tuple[str, float], ...] = ()
    rate_if: tuple[tuple[str, float], ...] = ()
    readout: float = math.nan
    by_site: tuple[tuple[str, float], ...] = ()

    @property
    def preconditioned_steps_to_learn(self) -> None:
        """None; ``steps_to_learn`` are those of the optimizer in use, whichever it is."""
        return None


@dataclass(frozen=True)
class PredictedMode:
    """What becomes of a target mode in the coming steps; see `TargetMode`."""

    learned: float
    rate: float
    steps: float
    band: tuple[float, float]
    transfer: Estimate | None
    steps_if: tuple[tuple[str, float], ...] = ()
    rate_if: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Forecast:
    """What the coming optimizer steps do, by the linearised model and the real loss.

    Attributes:
        steps: Steps ahead, from 0, shape ``(h,)``.
        loss: The loss after them, on the batch that is probed, shape ``(h,)``; where the training
            has other batches, with what their steps are expected to do to this one.
        learned: The learned fraction of each target mode, shape ``(h, modes)``.
        valid_for: Steps for which it was found to hold: by earlier forecasts of the same training
            that have come true, or, where there are none, as far as fewer Krylov directions agree.
    """

    steps: Tensor
    loss: Tensor
    learned: Tensor
    valid_for: float

    def loss_in(self, steps: float) -> float | None:
        """The loss after some steps.

        Args:
            steps: How many, any number.

        Returns:
            The loss, between known ones by straight lines; None beyond the last.
        """
        if not len(self.steps) or steps > float(self.steps[-1]):
            return None
        return float(np.interp(steps, self.steps.numpy(), self.loss.numpy()))


@dataclass(frozen=True)
class Instruments:
    """What a flat loss asks for.

    Attributes:
        gradient_norm: Norm of the loss's gradient, before it is clipped.
        signal_to_noise: Of the gradient: the squared size of what all trials share, over that of
            the rest, in this batch. None where there are too few trials.
        relative_update: Norm of the next step over that of what it moves. Nan without an optimizer.
        headroom: How many times as large steps may be, before gradients are clipped by their norm,
            until the loss's curvature makes them swing ever farther: ``2 / (rate * lambda)`` of
            plain gradient descent, ``lambda`` being the largest eigenvalue that the forecast's
            Krylov space shows, hence an upper bound. Inf where nothing is stepped, nan without an
            optimizer.
    """

    gradient_norm: float
    signal_to_noise: Estimate | None
    relative_update: float
    headroom: float = math.nan


@dataclass(frozen=True)
class ComparedOutput:
    """One output that a loss compares with a target.

    Attributes:
        name: The module that computes it.
        loss: What compares it: the name of a loss function, or what a loss by hand does.
        shape: The output's, as the loss gets it, features or classes last.
        target: What it is compared with, in words.
    """

    name: str
    loss: str
    shape: tuple[int, ...]
    target: str


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
            update = found.relative_update
            tags["update/relative_size"] = None if math.isnan(update) else update
            tags["update/headroom"] = found.headroom if math.isfinite(found.headroom) else None
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
        arrays, record = {}, {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                arrays[field.name] = value.numpy()
            elif isinstance(value, Forecast):
                tensors = {f.name: getattr(value, f.name) for f in fields(value)}
                record[field.name] = tensors.pop("valid_for")
                arrays |= {f"forecast_{name}": t.numpy() for name, t in tensors.items()}
            else:
                record[field.name] = _plain(value)
        text = json.dumps({"format": FORMAT, **record})
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            with unfinished.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, record=np.array(text), **arrays)
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
                arrays = {k: torch.from_numpy(archive[k]) for k in archive if k != "record"}
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is not a snapshot: {error}") from error
        found = record.pop("format", None) if isinstance(record, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{path} is a snapshot of format {found}, this version reads format {FORMAT}"
            )
        try:
            snapshot = cls(**_with_forecast(arrays, _revive(record)))
            snapshot.require_valid()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not a complete snapshot: {error}") from error
        return snapshot

    def require_valid(self) -> None:
        """Check every field's type, and the shapes of the tensors.

        Raises:
            TypeError: If one is not what it should be.
        """
        for field in fields(self):
            value, wanted = getattr(self, field.name), _KINDS.get(str(field.type))
            if wanted is not None and not wanted(value):
                raise TypeError(f"{field.name} must be {field.type}, got {value!r}")
        if not all(map(_is_count, self.state_shape)) or len(self.state_shape) != 3:
            raise TypeError(f"state_shape must be (B, T, n), got {self.state_shape}")
        modes = (len(self.temporal_spectrum), *self.state_shape[:2])
        if self.temporal_modes.shape != modes:
            found = tuple(self.temporal_modes.shape)
            raise TypeError(f"temporal_modes must have shape {modes}, got {found}")
        if self.core_spectrum.ndim != 1 or self.target_patterns.ndim != 3:
            raise TypeError("core_spectrum must have one axis, and target_patterns three")
        for mode in self.target_modes:
            numbers = (mode.singular_value, mode.gain, mode.learned, mode.core_overlap)
            if not _is_count(mode.index) or not all(map(_is_number, numbers)):
                raise TypeError(f"target_modes must hold numbers, got {mode}")
            if not _is_estimate(mode.alignment):
                raise TypeError(f"target_modes must hold estimates of alignments, got {mode}")


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return type(value) in {int, float}


def _is_count(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int and value >= 0


def _is_estimate(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Estimate) and _is_number(value.value) and _is_number(value.stderr)


def _is_real(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Tensor) and value.is_floating_point()


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "Estimate": _is_estimate,
    "Tensor": _is_real,
    "float": _is_number,
    "int": _is_count,
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "tuple[str, ...]": lambda value: all(isinstance(item, str) for item in value),
}
"""What the value of a field must be, by the field's type."""


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A field as plain types that JSON can hold."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Coverage):
        return asdict(value)
    known = (Estimate, TargetMode, ComparedOutput, Instruments)
    return asdict(value) if isinstance(value, known) else value


def _revive(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn plain types back into the fields' own."""
    revived: dict[str, Any] = {
        name: Estimate(**value) if isinstance(value, dict) and "stderr" in value else value
        for name, value in record.items()
    }
    coverage = record["coverage"]
    revived["coverage"] = Coverage(
        coverage["fraction"],
        coverage["left_out"],
        tuple(coverage.get("missed", ())),
        tuple(tuple(site) for site in coverage.get("sites", ())),
    )
    revived["state"] = tuple(record.get("state", ()))
    revived["trace_by_site"] = tuple(
        (str(name), float(share)) for name, share in record.get("trace_by_site", ())
    )
    revived["trace_by_site_stderr"] = tuple(map(float, record.get("trace_by_site_stderr", ())))
    revived["remarks"] = tuple(record.get("remarks", ()))
    revived["outputs"] = tuple(
        ComparedOutput(**{**output, "shape": tuple(output["shape"])})
        for output in record.get("outputs", ())
    )
    revived["state_shape"] = tuple(record["state_shape"])
    revived["target_modes"] = tuple(_revived_mode(mode) for mode in record["target_modes"])
    if record.get("instruments") is not None:
        found = record["instruments"]
        ratio = _revived_estimate(found["signal_to_noise"])
        revived["instruments"] = Instruments(**{**found, "signal_to_noise": ratio})
    return revived


def _revived_estimate(value: Any) -> Estimate | None:  # noqa: ANN401
    return None if value is None else Estimate(**value)


def _revived_mode(mode: Mapping[str, Any]) -> TargetMode:
    band = mode["steps_band"]
    return TargetMode(**{
        **mode,
        "alignment": Estimate(**mode["alignment"]),
        "transfer": _revived_estimate(mode["transfer"]),
        "steps_band": None if band is None else tuple(band),
        **{
            name: tuple((str(what), float(number)) for what, number in mode[name])
            for name in ("steps_if", "rate_if", "by_site")
            if name in mode
        },
    })


def _with_forecast(arrays: Mapping[str, Tensor], revived: Mapping[str, Any]) -> dict[str, Any]:
    """All fields, the forecast's arrays put together."""
    found = {**arrays, **revived}
    valid_for = found.pop("forecast", None)
    own = {n: found.pop(f"forecast_{n}", None) for n in ("steps", "loss", "learned")}
    if valid_for is not None:
        found["forecast"] = Forecast(**own, valid_for=float(valid_for))
    return found
