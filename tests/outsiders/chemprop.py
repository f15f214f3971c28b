"""Message passing networks of chemprop on molecules."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
from chemprop import data, models, nn
from lightning.pytorch import Callback, Trainer

from outsiders.training import Fit, Fitted, Training, quiet

REQUIREMENTS = ("torch==2.13.0", "chemprop==2.3.1")
LIBRARY = "chemprop"

GROUPS = ("O", "N", "C(=O)O", "Cl", "F", "C#N", "OC", "c1ccccc1", "S", "C=C")


def molecules() -> list[str]:
    """Two groups on chains of carbon."""
    return [
        f"{'C' * length}{first}" if first == second else f"C({first}){'C' * length}({second})"
        for first in GROUPS
        for second in GROUPS
        for length in (1, 2, 3)
    ]


def labels(smiles: list[str], *, classes: bool) -> np.ndarray:
    carbons = np.array([[text.upper().count("C") / 5] for text in smiles])
    oxygens = np.array([["O" in text] for text in smiles], dtype=float)
    return oxygens if classes else np.concatenate([carbons, oxygens - 0.5 * carbons], axis=1)


def loader(*, classes: bool) -> Any:
    smiles = molecules()
    points = [
        data.MoleculeDatapoint.from_smi(text, y)
        for text, y in zip(smiles, labels(smiles, classes=classes), strict=True)
    ]
    dataset = data.MoleculeDataset(points)
    if not classes:
        dataset.normalize_targets()
    return data.build_dataloader(dataset, batch_size=32, num_workers=0, seed=0)


def fitted(passing: Any, predictor: Any, *, classes: bool) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        model = models.MPNN(passing(d_h=32, depth=2), nn.MeanAggregation(), predictor(), True)
        trainer = Trainer(callbacks=callbacks, **quiet(max_epochs=5, max_steps=-1))
        trainer.fit(model, loader(classes=classes))
        return Fitted(trainer, model)

    return fit


STATES = ("message_passing*", "agg", "bn", "predictor.ffn.0*", "predictor.ffn.1.[01]")

TRAININGS = (
    Training(
        "chemprop regression",
        fitted(
            nn.BondMessagePassing,
            lambda: nn.RegressionFFN(n_tasks=2, input_dim=32, hidden_dim=32),
            classes=False,
        ),
        states=STATES,
        targets="2 values a molecule",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "chemprop classification",
        fitted(
            nn.AtomMessagePassing,
            lambda: nn.BinaryClassificationFFN(input_dim=32, hidden_dim=32),
            classes=True,
        ),
        states=STATES,
        targets="0 or 1, 1 logit a molecule",
        modes=True,
        library=LIBRARY,
    ),
)
