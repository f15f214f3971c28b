"""How far one operator is from another."""

from __future__ import annotations

from math import prod

import torch

from ntk_monitor.operators.contract import Products, check_same
from ntk_monitor.uncertainty import Estimate, log_jackknife, mean_and_deletes


def relative_distance(
    A: Products, B: Products, products: int, generator: torch.Generator | None
) -> Estimate:
    """``||A - B||_F / ||B||_F``; see `LinearOperator.compare`.

    Args:
        A: One operator.
        B: The reference.
        products: Products to spend on each.
        generator: Source of the vectors; None for one of its own.

    Returns:
        The relative distance.

    Raises:
        ValueError: If the spaces differ, the reference is zero, or the budget is too small.
        FloatingPointError: If a product is not finite.
    """
    if (A.shape_in, A.shape_out) != (B.shape_in, B.shape_out):
        raise ValueError(
            f"cannot compare {A}: {A.shape_in} -> {A.shape_out} with {B}: {B.shape_in} -> "
            f"{B.shape_out}"
        )
    check_same("a comparison", A, B)
    if products < 3:
        raise ValueError(f"products must be at least 3 for a standard error, got {products}")
    exact = min(prod(A.shape_in), prod(A.shape_out)) <= products
    if exact:
        left, right = (M.to_dense().double().reshape(1, -1) for M in (A, B))
    else:
        generator = generator or torch.Generator(device=A.device).manual_seed(0)
        X = torch.randn(products, *A.shape_in, generator=generator, device=generator.device)
        X = X.to(A.device, A.dtype)
        left, right = (M.matmat(X).double().flatten(1) for M in (A, B))
    distances, sizes = (left - right).square().sum(1), right.square().sum(1)
    if not bool(torch.isfinite(distances).all() & torch.isfinite(sizes).all()):
        raise FloatingPointError(f"{A} or {B} has products that are not finite")
    if not bool(sizes.any()):
        raise ValueError(f"{B} is zero: a distance relative to it is undefined")
    if exact:
        return Estimate(float((distances / sizes).sqrt()))
    ratios = (mean_and_deletes(distances) / mean_and_deletes(sizes)).sqrt()
    return log_jackknife(ratios.cpu())
