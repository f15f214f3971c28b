"""What the NTK sees of a target mode, over trials and time."""

from __future__ import annotations

import torch
from torch import Tensor

from ntk_monitor.snapshot import Snapshot


def reached_patterns(snapshot: Snapshot) -> Tensor | None:
    r"""The projection of each target pattern on the leading temporal modes of the NTK.

    .. math:: \sum_j v_j \langle v_j, u_i\rangle

    It is ``u_i`` itself where those modes contain it, and zero where none of them has a part of it.

    Args:
        snapshot: The measurement.

    Returns:
        Shape ``(modes, B, T)``, as ``target_patterns``; None where those are not on the state's
        rows, or nothing is known of the kernel.
    """
    targets, modes = snapshot.target_patterns.double(), snapshot.temporal_modes.double()
    if targets.shape[1:] != snapshot.state_shape[:2] or not len(modes):
        return None
    overlaps = torch.einsum("rbt,mbt->mr", modes, targets)
    return torch.einsum("mr,rbt->mbt", overlaps, modes)
