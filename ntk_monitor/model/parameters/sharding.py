"""Parameters of which each process has a part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from ntk_monitor.compat import StridedShard
from ntk_monitor.processes import ALONE, Processes


def is_sharded(module: nn.Module) -> bool:
    """Whether no process has all numbers of a module's parameters.

    Args:
        module: The module.

    Returns:
        True if a parameter is a ``DTensor``, as `fully_shard` and tensor parallelism make them.
    """
    return any(isinstance(p, DTensor) for p in module.parameters())


def reshard(module: nn.Module) -> None:
    """Let go of gathered parameters, so that the module's own are the parts again.

    `fully_shard` keeps those of the outermost module from a forward pass to the next; what is
    written to the parts is seen only after they were let go of.

    Args:
        module: The module.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def of_batches(module: nn.Module, everyone: Processes) -> Processes:
    """The processes that have batches of their own.

    Those that share the parts of one layer by tensor parallelism have the same batch.

    Args:
        module: The module.
        everyone: All processes that train it.

    Returns:
        All of them, or those with which this one sums over batches.

    Raises:
        ValueError: If it cannot be told which have.
    """
    if everyone.size == 1 or not is_sharded(module):
        return everyone
    mesh = next((group.mesh_info.mesh for group in _groups(module)), None)
    if mesh is not None and mesh.size() < everyone.size:
        if mesh.ndim > 1:  # sharded, and then copied
            mesh = mesh._flatten()
        return everyone.within(mesh.get_group())
    parts = (p.device_mesh.size() for p in module.parameters() if isinstance(p, DTensor))
    if mesh is None and max(parts) < everyone.size:
        raise ValueError(
            f"tensor parallelism spreads the model over fewer than its {everyone.size} processes, "
            "and which of these have the same batch is known only with fully_shard over the others"
        )
    return everyone if mesh is not None else everyone.within(None)


def _groups(module: nn.Module) -> Iterator[Any]:
    """What `fully_shard` knows of each group of parameters that it gathers together."""
    yield from (group for part in module.modules() if (group := _group(part)) is not None)


def _group(part: nn.Module) -> Any:  # noqa: ANN401
    """That of the module itself, or None."""
    if not isinstance(part, FSDPModule):
        return None
    return getattr(part._get_fsdp_state(), "_fsdp_param_group", None)


@contextmanager
def waiting_gradients(module: nn.Module) -> Iterator[None]:
    """Gradients that `fully_shard` keeps from batch to batch, unsummed; none are there inside.

    Inside, backward passes are summed over processes, whatever the module was told.

    Args:
        module: The module.

    Yields:
        Nothing.
    """
    kept: list[tuple[Any, str, Any]] = []
    for group in _groups(module):
        held: list[tuple[Any, str, Any]] = []
        held += [(group, name, True) for name in ("reduce_grads", "all_reduce_grads")]
        held += [(p, "unsharded_accumulated_grad", None) for p in group.fsdp_params]
        whole = (getattr(p, "_unsharded_param", None) for p in group.fsdp_params)
        held += [(tensor, "grad", None) for tensor in whole if tensor is not None]
        for owner, name, inside in held:
            if hasattr(owner, name):
                kept.append((owner, name, getattr(owner, name)))
                setattr(owner, name, inside)
    try:
        yield
    finally:
        for owner, name, before in kept:
            setattr(owner, name, before)


def require_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """Refuse a module that `fully_shard` computes in less precision than its parameters have.

    Args:
        module: The module.
        dtype: Of the parameters.

    Raises:
        ValueError: If it does.
    """
    for group in _groups(module):
        computed = group.mp_policy.param_dtype or dtype
        if torch.finfo(computed).eps > torch.finfo(dtype).eps:
            raise ValueError(
                f"fully_shard computes this model in {computed} (MixedPrecisionPolicy), in which "
                "finite differences drown in rounding, and sharded models have no other method: "
                "probe a model that is sharded without param_dtype, or in strategy='ddp', where a "
                "probe works in float32"
            )


def averaged_by(module: nn.Module, size: int) -> dict[str, float]:
    """By what `fully_shard` divides the sum of gradients over processes.

    Args:
        module: The module.
        size: How many processes have batches of their own.

    Returns:
        The divisors by the parameters' names; of others there is a sum.
    """
    found: dict[str, float] = {}
    parts = [name for name, p in module.named_parameters() if isinstance(p, DTensor)]
    for path, part in module.named_modules():
        group = _group(part)
        if group is None:
            continue
        processes = group.mesh_info.mesh.size()
        chosen = getattr(group, "gradient_divide_factor", None) or processes
        inside = [name for name in parts if not path or name.startswith(f"{path}.")]
        # Of batches that are the same in all processes, one counts.
        found.update(dict.fromkeys(inside, chosen * size / processes))  # the innermost comes last
    return found


@dataclass(frozen=True)
class Place:
    """Where a process's part of a parameter is in the whole.

    Attributes:
        shape: The whole.
        offsets: The first index of the part along each axis.
        copies: How many processes have the same part.
    """

    shape: torch.Size
    offsets: tuple[int, ...]
    copies: int = 1

    def stretches(self, part: Sequence[int], start: int, count: int) -> Iterator[tuple[int, int]]:
        """Where successive entries of the part are in the whole, both read row by row.

        Args:
            part: The part's shape.
            start: The first of them in the part.
            count: How many.

        Yields:
            Beginnings in the whole, and lengths.
        """
        # The last axes that the part has in full make up one stretch with the one before them.
        axis = len(part)
        while axis > 0 and part[axis - 1] == self.shape[axis - 1]:
            axis -= 1
        own = math.prod(part[max(axis - 1, 0) :])
        while count:
            row, within = divmod(start, own)
            taken = min(own - within, count)
            yield self._beginning(part, row, max(axis - 1, 0)) + within, taken
            start, count = start + taken, count - taken

    def _beginning(self, part: Sequence[int], row: int, axes: int) -> int:
        """Where a row of the part begins in the whole, rows being numbered over the first axes."""
        indices = []
        for length in reversed(part[:axes]):
            row, index = divmod(row, length)
            indices.append(index)
        indices = [*reversed(indices), *[0] * (len(part) - axes)]
        found = 0
        for index, offset, length in zip(indices, self.offsets, self.shape, strict=True):
            found = found * length + offset + index
        return found


def place_of(parameter: Tensor, processes: int = 1) -> Place:
    """Where this process's part of a parameter is.

    Args:
        parameter: The parameter; one that is not a ``DTensor`` is everywhere in full.
        processes: How many there are.

    Returns:
        The place.

    Raises:
        ValueError: If the parts of the parameter are neither rows nor copies.
    """
    if not isinstance(parameter, DTensor):
        return Place(parameter.shape, (0,) * parameter.ndim, processes)
    mesh = parameter.device_mesh
    copies = max(processes // mesh.size(), 1)
    offsets, lengths = [0] * parameter.ndim, list(parameter.shape)
    # What was sharded first is so in a way that takes account of it, and comes after the others.
    axes = sorted(enumerate(parameter.placements), key=lambda a: isinstance(a[1], StridedShard))
    for axis, placement in axes:
        size, index = mesh.size(axis), mesh.get_local_rank(axis)
        if placement.is_replicate():
            copies *= size
        elif isinstance(placement, (Shard, StridedShard)):
            dim = placement.dim
            each = -(-lengths[dim] // size)  # as torch.chunk has it
            begin = min(index * each, lengths[dim])
            lengths[dim] = min(each, lengths[dim] - begin)
            offsets[dim] += begin
        else:
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} is placed as {placement}, and "
                "method='in-place' knows parameters that are sharded along an axis, or copied: "
                "shard them so, or leave them out with parameters=..."
            )
    return Place(parameter.shape, tuple(offsets), copies)


@dataclass(frozen=True)
class Sharding:
    """How parameters are spread over processes.

    Attributes:
        places: Where this process's part of each parameter is, in order.
        processes: The processes that have parts.
    """

    places: Sequence[Place]
    processes: Processes = ALONE

    @cached_property
    def offsets(self) -> list[int]:
        """Where each parameter begins in the flat vector of all, and where that ends."""
        return [0, *accumulate(place.shape.numel() for place in self.places)]

    def totals(self, numbers: Iterable[float]) -> list[float]:
        """A number of each parameter, summed over processes, copies counted once.

        Args:
            numbers: Of this process's part of each parameter, in order.

        Returns:
            The sums, the same in every process.
        """
        pairs = zip(numbers, self.places, strict=True)
        own = [number / place.copies for number, place in pairs]
        found: list[float] = self.processes.sum(
            torch.tensor(own, dtype=torch.float64, device="cpu")
        ).tolist()
        return found

    def total(self, numbers: Iterable[float]) -> float:
        """The sum over all parameters of a number, copies counted once.

        Args:
            numbers: Of this process's part of each parameter, in order.

        Returns:
            The sum, the same in every process.
        """
        return sum(self.totals(numbers))
