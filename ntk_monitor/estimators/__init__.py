"""Numbers with standard errors, from operators.

Everything here sees an operator only through its products. One set of samples ``y = J g`` with
Gaussian ``g`` has covariance ``A = J J*``, so a single batch of products serves the trace, the
norms, the ranks and the cosines of ``A`` and of its partial traces at once: `TangentSketch` takes
the samples, `KernelStatistics` turns their moments over pairs into numbers, and the jackknife
attaches a standard error to every ratio. With a dense Jacobian the same numbers come out exactly.
For any operator there are traces (`hutchinson`, `hutch_plus_plus`, `xtrace`, `xnystrace`), norms,
cosines, ranks and leading eigenpairs; each counts its budget in products, draws from an explicit
generator and returns an `ntk_monitor.Estimate`.
"""

from ntk_monitor.estimators.effective_ranks import correction_rank, effective_rank
from ntk_monitor.estimators.formulas import cosine, participation_ratio
from ntk_monitor.estimators.hutchinson import hutch_plus_plus, hutchinson
from ntk_monitor.estimators.kernel.adaptive import Measured, sample_kernel
from ntk_monitor.estimators.kernel.core import Activities, CoreGram
from ntk_monitor.estimators.kernel.exact import ExactKernel
from ntk_monitor.estimators.kernel.statistics import KernelStatistics
from ntk_monitor.estimators.kernel.tangent_sketch import TangentSketch
from ntk_monitor.estimators.kernel.tangents import draw_tangents
from ntk_monitor.estimators.norms import frobenius_norm, inner_product, operator_cosine
from ntk_monitor.estimators.spectrum import (
    CumulativeVariance,
    Eigenpairs,
    cumulative_variance,
    leading_eigenpairs,
    operator_norm,
)
from ntk_monitor.estimators.xtrace import xnystrace, xtrace
from ntk_monitor.uncertainty import Estimate

__all__ = [
    "Activities",
    "CoreGram",
    "CumulativeVariance",
    "Eigenpairs",
    "Estimate",
    "ExactKernel",
    "KernelStatistics",
    "Measured",
    "TangentSketch",
    "correction_rank",
    "cosine",
    "cumulative_variance",
    "draw_tangents",
    "effective_rank",
    "frobenius_norm",
    "hutch_plus_plus",
    "hutchinson",
    "inner_product",
    "leading_eigenpairs",
    "operator_cosine",
    "operator_norm",
    "participation_ratio",
    "sample_kernel",
    "xnystrace",
    "xtrace",
]
