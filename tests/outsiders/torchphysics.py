"""Conditions on sampled points, solved by torchphysics."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torchphysics as tp
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from outsiders.training import Fitted, Training, quiet

REQUIREMENTS = ("torch==2.13.0", "torchphysics==1.1.2")
CONSTRAINED = False  # constraints.txt has versions that it cannot take
LIBRARY = "torchphysics"


def poisson() -> Any:
    X, U = tp.spaces.R2("x"), tp.spaces.R1("u")
    square = tp.domains.Parallelogram(X, [0, 0], [1, 0], [0, 1])
    model = tp.models.FCN(input_space=X, output_space=U, hidden=(24, 24))

    def inner(u: Tensor, x: Tensor) -> Tensor:
        source = torch.sin(torch.pi * x[:, :1]) * torch.sin(torch.pi * x[:, 1:])
        return tp.utils.laplacian(u, x) + 2 * torch.pi**2 * source

    def bound(u: Tensor) -> Tensor:
        return u

    conditions = [
        tp.conditions.PINNCondition(
            module=model,
            sampler=tp.samplers.RandomUniformSampler(square.boundary, n_points=64),
            residual_fn=bound,
            weight=10,
        ),
        tp.conditions.PINNCondition(
            module=model,
            sampler=tp.samplers.RandomUniformSampler(square, n_points=64),
            residual_fn=inner,
        ),
    ]
    return tp.solver.Solver(conditions, optimizer_setting=adam())


def adam() -> Any:
    return tp.OptimizerSetting(torch.optim.Adam, lr=1e-3)


def data_driven() -> Any:
    X, U = tp.spaces.R1("x"), tp.spaces.R1("u")
    model = tp.models.FCN(input_space=X, output_space=U, hidden=(24, 24))
    x = torch.linspace(-1, 1, 128)[:, None]
    points = tp.spaces.Points(x, X), tp.spaces.Points(torch.sin(3 * x), U)
    loader = tp.utils.PointsDataLoader(points, batch_size=32, shuffle=True)
    condition = tp.conditions.DataCondition(model, loader, norm=2)
    return tp.solver.Solver([condition], optimizer_setting=adam())


def fitted(make: Any) -> Any:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        solver = make()
        trainer = Trainer(callbacks=callbacks, **quiet())
        trainer.fit(solver)
        return Fitted(trainer, solver)

    return fit


TRAININGS = (
    Training(
        "torchphysics poisson",
        fitted(poisson),
        states=("train_conditions.*.module.sequential.[0-3]",),
        targets="the residual and the boundary are compared with 0",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "torchphysics data",
        fitted(data_driven),
        states=("train_conditions.*.module.sequential.[0-3]",),
        targets="u, 1 value",
        modes=True,
        library=LIBRARY,
    ),
)
