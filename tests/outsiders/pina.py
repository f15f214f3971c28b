"""Problems and solvers of PINA, in its Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback
from pina import Trainer
from pina.model import FeedForward
from pina.problem.zoo import Poisson2DSquareProblem, SupervisedProblem
from pina.solver import PhysicsInformedSingleModelSolver, SupervisedSingleModelSolver
from torch import nn

from outsiders.data import curves
from outsiders.training import Fit, Fitted, Training, quiet

REQUIREMENTS = ("torch==2.13.0", "pina-mathlab==0.3.2.post2610")
LIBRARY = "pina-mathlab"


def fitted(make: Callable[[], Any], **settings: Any) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        solver = make()
        trainer = Trainer(solver, callbacks=callbacks, **quiet(**settings))
        trainer.train()
        return Fitted(trainer, solver)

    return fit


def poisson() -> PhysicsInformedSingleModelSolver:
    problem = Poisson2DSquareProblem()
    problem.discretise_domain(n=60, mode="random")
    model = FeedForward(2, 1, layers=[24, 24], func=nn.Tanh)
    return PhysicsInformedSingleModelSolver(problem=problem, model=model)


def supervised() -> SupervisedSingleModelSolver:
    x, y = curves()
    model = FeedForward(3, 1, layers=[32, 32], func=nn.ReLU)
    return SupervisedSingleModelSolver(problem=SupervisedProblem(x, y), model=model, use_lt=False)


TRAININGS = (
    Training(
        "pina poisson",
        fitted(poisson),
        states=("model.model.[0-3]", "_pina_models.0.model.[0-3]"),
        targets="the residual and the boundary are compared with 0",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "pina supervised",
        fitted(supervised, batch_size=64),
        states=("model.model.[0-3]", "_pina_models.0.model.[0-3]"),
        targets="y, 1 value",
        modes=True,
        library=LIBRARY,
    ),
)
