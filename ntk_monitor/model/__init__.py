"""From an ``nn.Module`` and a batch to operators.

This layer decides which activations are the state, finds the sites at which weights multiply
activity, differentiates the state with respect to the parameters in both directions, and does
all of it inside a context that leaves no trace on the module, its gradients or any random state.
`linearize` is the door; the rest of the package sees models only through it.
"""

from ntk_monitor.model.batch.reading import default_forward, default_target
from ntk_monitor.model.derivatives.derivative import Derivative
from ntk_monitor.model.derivatives.products import METHODS, ProductMethod
from ntk_monitor.model.derivatives.propagator import Propagator
from ntk_monitor.model.isolation.quiet import quiet
from ntk_monitor.model.linearization import Linearization
from ntk_monitor.model.linearize import linearize
from ntk_monitor.model.sites.registry import weight_sites
from ntk_monitor.model.sites.weight_sites import Coverage, WeightSite

__all__ = [
    "METHODS",
    "Coverage",
    "Derivative",
    "Linearization",
    "ProductMethod",
    "Propagator",
    "WeightSite",
    "default_forward",
    "default_target",
    "linearize",
    "quiet",
    "weight_sites",
]
