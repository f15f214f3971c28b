"""Probes of checkpoints: the same measurement after the training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from ntk_monitor.compat import tree_leaves
from ntk_monitor.monitor import NTKMonitor
from ntk_monitor.monitor.integrations.lightning.callback import monitors_of
from ntk_monitor.monitor.integrations.lightning.trainer import first_batch
from ntk_monitor.snapshot import Snapshot

NUMBERS = {
    "core cosine": "core_cosine",
    "temporal core cosine": "temporal_core_cosine",
    "effective rank": "effective_rank",
    "temporal rank": "temporal_effective_rank",
    "spatial rank": "spatial_effective_rank",
}
"""Columns of the table of the kernel, and where their numbers are in a snapshot."""


class Checkpoint(NamedTuple):
    """What a probe needs of a checkpoint."""

    step: int
    weights: dict[str, Any] | None
    learning_rate: float | None


class ProbingTrainer(Trainer):
    """A Trainer that can probe checkpoints, for the command line."""

    def probe(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt: str | list[str] | None = None,
        output: str | None = None,
    ) -> list[Snapshot]:
        """Probe checkpoints of a model as the config's NTKMonitor would, and print a table.

        Args:
            model: The model.
            datamodule: Where the probe batch comes from, if not from the model's own loaders.
            ckpt: Checkpoints to probe: files or patterns such as "runs/*.ckpt". Left out, the
                model is probed as it is initialised. What cannot be probed is told of and left out.
            output: Folder to save each snapshot to, as an .npz file that `Snapshot.load` reads.

        Returns:
            A snapshot for each checkpoint that could be probed, in the order of their steps.

        Raises:
            ValueError: If no file matches, or none could be probed.
        """
        monitor = next(iter(monitors_of(self)), None) or NTKMonitor()
        model.trainer = self
        model.configure_model()
        batch = probe_batch(self, model, datamodule, monitor.probe_batch)
        console = Console()
        found: list[tuple[int, Snapshot]] = []
        files = checkpoint_files(ckpt)
        stems = ["initial" if path is None else path.stem for path in files]
        for index, path in enumerate(track(files, "probes", console=console)):
            try:
                checkpoint = read_checkpoint(path)
                if checkpoint.weights is not None:
                    model.load_state_dict(checkpoint.weights)
                rate = monitor.probe.learning_rate or checkpoint.learning_rate
                snapshot = monitor.probe(model, batch, learning_rate=rate)
            except Exception as error:
                warnings.warn(f"{path} could not be probed: {error}", stacklevel=2)
                continue
            found.append((checkpoint.step, snapshot))
            if output is not None:
                stem = stems[index]
                name = stem if stems.count(stem) == 1 else f"{index + 1}-{stem}"
                snapshot.save(Path(output) / f"{name}.npz")
        if not found:
            raise ValueError("no checkpoint could be probed; the warnings above say why")
        found.sort(key=lambda pair: pair[0])
        console.print(*series_tables(found))
        return [snapshot for _, snapshot in found]


def checkpoint_files(ckpt: str | Sequence[str] | None) -> list[Path | None]:
    """Files by names and patterns.

    Args:
        ckpt: Names or patterns; None for the model as it is initialised.

    Returns:
        Each file once; None for the initial model.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    if ckpt is None:
        return [None]
    found: dict[Path, None] = {}
    for pattern in [ckpt] if isinstance(ckpt, str) else ckpt:
        matches = sorted(glob(pattern, recursive=True))
        if not matches:
            raise ValueError(f"ckpt: no file matches {pattern!r}")
        found |= dict.fromkeys(map(Path, matches))
    return list(found)


def read_checkpoint(path: Path | None) -> Checkpoint:
    """Read a checkpoint without running anything that is in it.

    Args:
        path: The file; None for the model as it is initialised.

    Returns:
        What a probe needs of it.

    Raises:
        ValueError: If it is not a Lightning checkpoint.
    """
    if path is None:
        return Checkpoint(0, None, None)
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"it cannot be read as plain weights: {error}") from error
    if not isinstance(record, dict) or "state_dict" not in record:
        raise ValueError("it is not a Lightning checkpoint, which would have a 'state_dict'")
    groups = [g for state in record.get("optimizer_states", ()) for g in state["param_groups"]]
    rate = groups[0].get("lr") if groups else None
    return Checkpoint(int(record.get("global_step", 0)), record["state_dict"], rate or None)


def probe_batch(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    which: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """The batch that `NTKMonitor` would probe on.

    Args:
        trainer: For a callable.
        model: Has the loaders, if there is no data module.
        datamodule: Has the loaders.
        which: As in `NTKMonitor`: ``"train"``, ``"val"``, a batch, or a callable.

    Returns:
        The batch.
    """
    if callable(which):
        return which(trainer, model)
    if not isinstance(which, str):
        return which
    source: Any = datamodule or model
    if datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup("fit")
    if which == "train":
        return first_batch(source.train_dataloader())
    return next(iter(tree_leaves(source.val_dataloader())[0]))  # the first of several loaders


def series_tables(series: Sequence[tuple[int, Snapshot]]) -> list[Table]:
    """A series of snapshots, a row for each.

    Args:
        series: Steps and snapshots.

    Returns:
        A table of the target modes, where there are any, and one of the kernel.
    """
    kernel = _table("What gradient descent can move", ["step", *NUMBERS])
    modes = max(len(snapshot.target_modes) for _, snapshot in series)
    each = [f"{what} {i}" for i in range(1, modes + 1) for what in ("learned", "steps to learn")]
    targets = _table("What gradient descent can see of the target, by mode", ["step", *each])
    for step, snapshot in series:
        numbers = [getattr(snapshot, name).value for name in NUMBERS.values()]
        kernel.add_row(str(step), *(f"{number:.3g}" for number in numbers))
        cells = []
        for mode in snapshot.target_modes:
            steps = "-" if mode.steps_to_learn is None else f"{mode.steps_to_learn:.2g}"
            cells += [f"{mode.learned:z.3f}", steps]
        targets.add_row(str(step), *cells)
    return [targets, kernel] if modes else [kernel]


def _table(title: str, columns: Sequence[str]) -> Table:
    return Table(*(Column(name, justify="right") for name in columns), title=title)
