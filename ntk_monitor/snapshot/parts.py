"""What a snapshot holds besides numbers of the kernel: target modes, a forecast, instruments."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ntk_monitor.estimators import Estimate


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
        steps_to_learn: Optimizer steps until ``learned`` is 0.9, by the forecast, which a monitor
            corrects by how fast earlier ones came true; inf where it never is. None without an
            optimizer or learning rate.
        steps_band: The least and the most of them, by forecasts in fewer Krylov directions, with
            what another batch leaves of the rate, and as slow as the training so far. None where
            there are no steps.
        transfer: What a step on some trials does to this mode on others, over what it does to it on
            its own: 1 where all trials teach the same, 0 where what is learned of one is of no use
            for another. None where there are no others.
        steps_if: Steps to learn with one thing changed, by what that is; of modes that need more
            steps than remain.
        rate_if: The rate with one thing changed, likewise.
        readout: ``||q_i||^2``: 0 where the outputs do not see the state.
        by_site: Where the mode can be learned: by weight site (a bias with its weight), and by
            parameter for those that have none, its share of the gain, the largest first.
        by_output: Which outputs it is made of: the number of each, from 0, with its entry of
            ``v_i``, the largest sizes first; eight at most.
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
    by_output: tuple[tuple[int, float], ...] = ()

    @property
    def preconditioned_steps_to_learn(self) -> None:
        """None; ``steps_to_learn`` are those of the optimizer in use, whichever it is."""
        return None


@dataclass(frozen=True)
class PredictedMode:
    """What becomes of a target mode in the coming steps; see `TargetMode`."""

    learned: float
    rate: float
    steps_to_learn: float
    steps_band: tuple[float, float]
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
        learning_rate: That of the next step, of the first group of parameters that has one above 0;
            nan where there is none.
        clip_coefficient: Norm of the gradient after clipping over that before; 1 where nothing is
            clipped. Nan without an optimizer.
        rate_ahead: The largest learning rate of the steps that remain over the present one, by the
            schedule; inf where the present one is 0 and a later one is not.
    """

    gradient_norm: float
    signal_to_noise: Estimate | None
    relative_update: float
    headroom: float = math.nan
    learning_rate: float = math.nan
    clip_coefficient: float = math.nan
    rate_ahead: float = 1.0


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
