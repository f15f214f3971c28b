"""Batches that are kept, compared, cast, or copied afresh for each call."""

from __future__ import annotations

import io
import pickle
import zlib
from typing import Any

import torch
from torch import Tensor

from ntk_monitor.model.batch.structure import copy_batch, tensors_of
from ntk_monitor.processes import checksum


def keep_batch(batch: Any) -> Any:  # noqa: ANN401
    """Copy a batch, so that nobody else's later change reaches it.

    Args:
        batch: Anything; tensors are found in containers and in objects.

    Returns:
        The same structure with tensors of its own, outside inference mode.
    """
    with torch.inference_mode(mode=False):
        return copy_batch(batch, lambda t: t.detach().clone())


def fingerprint(batch: Any) -> int | None:  # noqa: ANN401
    """A number that tells whether two batches hold the same numbers.

    Args:
        batch: Nested tuples, lists, mappings or dataclasses of tensors; or an object of the user's.

    Returns:
        A checksum over all tensors, or, where there are none in containers, over what pickle
        writes, with checksums of tensors in their places; None where that cannot be had.
    """
    tensors, written = tensors_of(batch), io.BytesIO()
    try:
        if tensors:
            return checksum(*tensors)
        _Pickler(written).dump(batch)
        return zlib.crc32(written.getvalue())
    except Exception:
        return None


class _Pickler(pickle.Pickler):
    """Writes tensors as checksums: pickle writes where they are in memory, too."""

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401
        """What to write in a value's place."""
        if isinstance(value, Tensor):
            return tuple, ((checksum(value), tuple(value.shape), str(value.dtype)),)
        return NotImplemented


def on_cpu(batch: Any) -> Any:  # noqa: ANN401
    """Move every tensor of a batch to the CPU.

    Args:
        batch: Anything.

    Returns:
        The same structure.
    """
    return copy_batch(batch, Tensor.cpu)


def cast_batch(batch: Any, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
    """Move every tensor of a batch to a device, and floating ones to a dtype.

    Args:
        batch: Anything.
        dtype: Floating type.
        device: Device.

    Returns:
        The same structure, its tensors outside inference mode.
    """

    def cast(tensor: Tensor) -> Tensor:
        # A copy, as a monitor keeps it, may be laid out in another way than what is no whole.
        whole = tensor.layout != torch.strided or tensor.is_contiguous()
        tensor = tensor.detach() if whole and not tensor.is_inference() else tensor.detach().clone()
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    with torch.inference_mode(mode=False):
        return copy_batch(batch, cast)


class FreshBatch:
    """A batch for one call after another, each of which gets it as it was."""

    def __init__(self, batch: Any) -> None:  # noqa: ANN401
        """Keep it.

        Args:
            batch: The batch, which nobody else changes.
        """
        self._batch = batch
        self._is_changed: bool | None = None
        self._lent: list[tuple[Tensor, int, bool]] = []

    def lend(self) -> Any:  # noqa: ANN401
        """The batch for one call.

        Returns:
            A copy, with tensors of its own until it is known that no call changes them.
        """
        if self._is_changed is False:
            return copy_batch(self._batch, lambda tensor: tensor)
        lent = copy_batch(self._batch, lambda tensor: tensor.detach().clone())
        if self._is_changed is None:
            self._lent = [(t, t._version, t.requires_grad) for t in tensors_of(lent)]
        return lent

    def settle(self) -> None:
        """Look whether the call that the batch was lent to has changed a tensor of it."""
        if self._is_changed is None:
            now = zip(self._lent, tensors_of(self._batch), strict=True)
            self._is_changed = any(
                t._version != version or t.requires_grad != requires_grad or not _same(t, before)
                for (t, version, requires_grad), before in now
            )
            self._lent = []


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers; not, where they cannot be compared."""
    try:
        return torch.equal(a, b) or (
            torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        )
    except (RuntimeError, NotImplementedError):
        return False
