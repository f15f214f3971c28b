"""One probe against what one would otherwise write, at equal error.

Otherwise one would write a dense Jacobian, or one stochastic estimate for each number with products
by the NTK (a VJP, then a JVP):

    tr A                mean of <z, A z> over random signs z
    ||A||^2             mean of ||A z||^2
    <A, G (x) I>        mean of <(G (x) I) z, A z>
    ||n T||^2           mean of <T_1 w, T_2 w>, T_i w = (I (x) z_i*) A (w (x) z_i), two products
    ||k S||^2           likewise over time
    temporal modes      scipy's eigsh on the mean of T_i over as many z_i as the error wants

How many samples an error takes follows from the spread of a few; the time is their number times the
measured time of a product. Ratios such as the cosine are charged nothing beyond their parts. The
same is asked for errors five times as large.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from results import save
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from workloads import wide_gru

from ntk_monitor import linearize, operators, probe

FINE, COARSE = "NTK products", "NTK products at five times the error"
COARSER = 5.0
"""How many times as large an error is asked of them as well."""
MODES = 20
"""How many temporal modes a snapshot holds."""


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    work = wide_gru()
    ours, snapshots = [], []
    for _ in range(arguments.repeats + 1):
        started = time.perf_counter()
        snapshots.append(
            probe(work.model, work.batch, state=work.state, tolerance=arguments.tolerance)
        )
        ours.append(time.perf_counter() - started)
    lin = linearize(work.model, work.batch, state=work.state)
    A, core = lin.ntk, lin.core
    B, T, n = lin.state.shape
    generator = torch.Generator().manual_seed(0)

    def signs(*shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1

    def time_view(w: Tensor) -> Tensor:
        z = signs(n)
        return A.matvec(w[..., None] * z) @ z

    def space_view(w: Tensor) -> Tensor:
        z = signs(B, T)
        return torch.einsum("btn,bt->n", A.matvec(z[..., None] * w), z)

    def pair(view: Callable[[Tensor], Tensor], *shape: int) -> float:
        w = signs(*shape)
        return float((view(w) * view(w)).sum())

    def quadratic() -> float:
        z = signs(B, T, n)
        return float((z * A.matvec(z)).sum())

    def squared() -> float:
        return float(A.matvec(signs(B, T, n)).double().square().sum())

    def with_core() -> float:
        z = signs(B, T, n)
        return float((core.matvec(z) * A.matvec(z)).sum())

    estimates: dict[str, tuple[Callable[[], float], int]] = {
        "tr A": (quadratic, 1),
        "||A||^2": (squared, 1),
        "<A, G (x) I>": (with_core, 1),
        "||n T||^2": (lambda: pair(time_view, B, T), 2),
        "||k S||^2": (lambda: pair(space_view, n), 2),
    }
    quadratic()
    started = time.perf_counter()
    for _ in range(arguments.samples):
        quadratic()
    product = (time.perf_counter() - started) / arguments.samples
    rows = []
    for name, (draw, cost) in estimates.items():
        values = torch.tensor([draw() for _ in range(arguments.samples)], dtype=torch.float64)
        spread = float(values.std() / values.mean())

        def samples(tolerance: float, name: str = name, spread: float = spread) -> int:
            # A norm has half the relative error of its square.
            wanted = tolerance * (1 if name in {"tr A", "<A, G (x) I>"} else 2)
            return max(2, math.ceil((spread / wanted) ** 2))

        rows.append(row(name, cost, samples, arguments.tolerance))
    calls, views = modes(A, signs, arguments.samples)
    rows.append(row(f"{MODES} temporal modes", calls, views, arguments.tolerance))
    products, coarser = (sum(int(str(each[key])) for each in rows) for key in (FINE, COARSE))
    seconds = statistics.median(ours[1:])
    found = {
        "tolerance": arguments.tolerance,
        "rows": rows,
        "seconds of an NTK product": product,
        "dense Jacobian, GiB": math.prod(lin.jacobian.shape_in) * B * T * n * 4 / 2**30,
        "probe, products": snapshots[-1].products,
        "probe, seconds": seconds,
        FINE: products,
        COARSE: coarser,
        "times faster": products * product / seconds,
        "times faster at a fifth of the error": coarser * product / seconds,
    }
    print(json.dumps(found))
    save("alternatives", found)


def row(
    name: str, cost: int, samples: Callable[[float], int], tolerance: float
) -> dict[str, object]:
    """What a number costs, at the tolerance and at a larger one."""
    found = {
        "number": name,
        FINE: cost * samples(tolerance),
        COARSE: cost * samples(COARSER * tolerance),
    }
    print(json.dumps(found), flush=True)
    return found


def modes(
    A: operators.LinearOperator, signs: Callable[..., Tensor], samples: int
) -> tuple[int, Callable[[float], int]]:
    """What eigsh takes on the mean of as many ``T_i`` as the error wants.

    One ``T_i`` is off by ``||T_i - T|| / ||T|| = sqrt(r)``, ``r + 1`` the ratio of the means of
    ``||T_i w||^2`` and ``<T_i w, T_j w>``; the mean of ``m`` by ``sqrt(r / m)``.

    Args:
        A: The NTK.
        signs: Draws random signs of a shape.
        samples: From how many the spread is taken.

    Returns:
        How often it applies the matrix, and how many ``T_i`` a relative error of it takes.
    """
    B, T, n = A.shape_out

    def view(w: Tensor, z: Tensor) -> Tensor:
        return A.matvec(w[..., None] * z) @ z

    own, cross = 0.0, 0.0
    for _ in range(samples):
        w = signs(B, T)
        first, second = view(w, signs(n)), view(w, signs(n))
        own += float(first.square().sum() + second.square().sum()) / 2
        cross += float((first * second).sum())
    calls, z = 0, signs(n)

    def matvec(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        w = torch.from_numpy(np.ascontiguousarray(x)).float().reshape(B, T)
        return view(w, z).flatten().double().numpy()

    operator = LinearOperator((B * T, B * T), matvec=matvec, dtype=np.float64)
    eigsh(operator, k=MODES, tol=1e-2)
    return calls, lambda tolerance: max(1, math.ceil((own / cross - 1) / tolerance**2))


if __name__ == "__main__":
    main()
