"""How a GRU starts: without, or with, states that it can hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def xavier_(rnn: nn.GRU, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
    """Xavier-normal weights gate by gate, and zero biases: the paper's Network 1.

    Without input its state falls to the one fixed point at zero.

    Args:
        rnn: The layer, changed in place.
        gain: Factor on all weights.
        generator: Source of the weights; the global one if left out.
    """
    for name, parameter in rnn.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            for gate in parameter.detach().chunk(3):
                nn.init.xavier_normal_(gate, gain, generator=generator)


def plant_fixed_points_(
    rnn: nn.GRU, count: int = 4, radius: float = 0.125, generator: torch.Generator | None = None
) -> Tensor:
    r"""Plant pairs of non-trivial fixed points in a one-layer GRU: the paper's Network 2.

    The paper (Equation 17) plants fixed points of :math:`h' = W \sigma(h)`. For a GRU without
    input and biases,

    .. math::
        h' = (1 - z) \odot \tanh(r \odot W_n h) + z \odot h,
        \quad r = \sigma(W_r h), \; z = \sigma(W_z h),

    take orthogonal states :math:`\bar h_i` and let :math:`\Pi` project on their span. With
    :math:`W_r \Pi = W_z \Pi = 0` both gates are 1/2 at :math:`\pm\bar h_i`, and

    .. math::
        W_n = \sum_i \frac{2\, \mathrm{artanh}(\bar h_i)\, \bar h_i^*}{\|\bar h_i\|^2}
              + W_n^{0} (I - \Pi)

    makes them fixed: :math:`\tanh(\tfrac12 W_n \bar h_i) = \bar h_i`, and likewise for the
    opposite sign. They are fixed, not necessarily attracting each by itself: activity on their
    span grows until the tanh holds it there. The other weights stay as they are.

    Args:
        rnn: The layer, changed in place; its weights take the place of :math:`W^0`.
        count: How many pairs :math:`\pm\bar h_i` to plant.
        radius: Root mean square of the entries of each :math:`\bar h_i`, in (0, 1).
        generator: Source of the states; the global one if left out.

    Returns:
        The planted states, shape ``(count, hidden_size)``.

    Raises:
        ValueError: If the layer is not a one-layer, one-direction GRU, or does not have room for
            that many states, or the radius is out of range.
    """
    if rnn.num_layers != 1 or rnn.bidirectional:
        raise ValueError(
            f"fixed points are planted in a one-layer, one-direction GRU, got num_layers="
            f"{rnn.num_layers}, bidirectional={rnn.bidirectional}"
        )
    if not 1 <= count <= rnn.hidden_size:
        raise ValueError(f"count must lie in [1, hidden_size={rnn.hidden_size}], got {count}")
    if not 0 < radius < 1:
        raise ValueError(f"radius must lie in (0, 1), the range of a state, got {radius}")
    weight = rnn.get_parameter("weight_hh_l0").detach()
    noise = torch.randn(
        rnn.hidden_size, count, generator=generator, dtype=weight.dtype, device=weight.device
    )
    basis = torch.linalg.qr(noise).Q
    # Large entries would saturate, and artanh(1) is infinite.
    scale = min(radius * math.sqrt(rnn.hidden_size), 0.95 / float(basis.abs().max()))
    states = scale * basis
    for gate in weight.chunk(3):
        gate.sub_(gate @ basis @ basis.T)
    weight.chunk(3)[2].add_(2 * states.atanh() @ basis.T / scale)
    for name, parameter in rnn.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
    planted: Tensor = states.T
    return planted
