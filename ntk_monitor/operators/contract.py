"""What is asked of an operator by what is computed with it."""

from __future__ import annotations

from typing import Protocol

import torch

Shape = tuple[int, ...]


class Mapped(Protocol):
    """What is known of a linear map between spaces of tensors; every `LinearOperator` is one."""

    shape_in: Shape
    shape_out: Shape
    dtype: torch.dtype
    device: torch.device


def check_same(what: str, left: Mapped, right: Mapped) -> None:
    """Refuse two operators that do not share a dtype and a device.

    Args:
        what: The construction that needs them to agree, for the message.
        left: One operator.
        right: The other.

    Raises:
        ValueError: If they differ.
    """
    if left.dtype != right.dtype or left.device != right.device:
        raise ValueError(
            f"{what} needs one dtype and one device: {left} has {left.dtype} on {left.device}, "
            f"{right} has {right.dtype} on {right.device}"
        )
