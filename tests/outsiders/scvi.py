"""Models of scvi-tools on the counts that it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import scvi
from lightning.pytorch import Callback
from scvi.data import synthetic_iid
from scvi.model import SCANVI, SCVI, LinearSCVI

from outsiders.training import Fit, Fitted, Training

REQUIREMENTS = ("torch==2.13.0", "scvi-tools==1.4.2")
LIBRARY = "scvi-tools"


def fitted(make: Callable[[Any], Any]) -> Fit:
    def fit(callbacks: list[Callback]) -> Fitted:
        pl.seed_everything(0, verbose=False)
        scvi.settings.seed = 0
        model = make(synthetic_iid(batch_size=100, n_genes=40))
        model.train(
            max_epochs=10,
            batch_size=32,
            accelerator="cpu",
            enable_progress_bar=False,
            callbacks=callbacks,
        )
        return Fitted(model.trainer, model.trainer.lightning_module)

    return fit


def scvi_model(data: Any) -> SCVI:
    SCVI.setup_anndata(data, batch_key="batch")
    return SCVI(data, n_hidden=32, n_latent=5)


def linear(data: Any) -> LinearSCVI:
    LinearSCVI.setup_anndata(data, batch_key="batch")
    return LinearSCVI(data, n_hidden=32, n_latent=5)


def scanvi(data: Any) -> SCANVI:
    SCANVI.setup_anndata(data, batch_key="batch", labels_key="labels", unlabeled_category="label_0")
    return SCANVI(data, n_hidden=32, n_latent=5)


TRAININGS = (
    Training(
        "scvi",
        fitted(scvi_model),
        states=("module.z_encoder", "module.z_encoder.encoder*", "module.decoder.px_decoder*"),
        targets="none: likelihood of the counts, by a negative binomial",
        modes=False,
        library=LIBRARY,
    ),
    Training(
        "linear scvi",
        fitted(linear),
        states=("module.z_encoder.encoder*",),
        targets="the counts themselves, 40 values, by a negative binomial",
        modes=True,
        library=LIBRARY,
    ),
    Training(
        "scanvi",
        fitted(scanvi),
        states=(
            "module.z_encoder.encoder*",
            "module.decoder.px_decoder*",
            "module.encoder_z2_z1.encoder*",
            "module.decoder_z1_z2.decoder*",
        ),
        targets="the counts themselves, 40 values, by a negative binomial, and classes",
        modes=True,
        library=LIBRARY,
    ),
)
