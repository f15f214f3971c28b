"""Probes of checkpoints from the command line."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ntk_monitor import Snapshot, probe
from ntk_monitor.cli import main
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import MemoryProDataModule

CONFIG = Path(__file__).parents[1] / "configs" / "memory_pro_network2.yaml"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


class Harmful:
    """Leaves a mark where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["ntk-monitor", *map(str, arguments)])
    main()


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config, and beside it three checkpoints of a training with it."""
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"] |= {
        "max_steps": 6,
        "enable_progress_bar": False,
        "val_check_interval": 6,
        "enable_checkpointing": True,
    }
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path / "logs")
    config["trainer"]["callbacks"][0]["init_args"] |= {"max_products": 16}
    config["trainer"]["callbacks"].append({
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "dirpath": str(tmp_path / "kept"),
            "every_n_train_steps": 2,
            "save_top_k": -1,
        },
    })
    config["model"]["init_args"]["hidden_size"] = 8
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command(monkeypatch, "fit", "--config", path)
    return path


@pytest.fixture
def folder(trained: Path) -> Path:
    """Where the checkpoints are."""
    return trained.parent / "kept"


def test_checkpoints_give_what_probes_of_their_weights_give(
    trained: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    pattern = folder / "*.ckpt"
    command(monkeypatch, "probe", "--config", trained, "--ckpt", pattern, "--output", folder / "o")
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("│")] == [
        "2", "4", "6", "2", "4", "6",
    ]  # fmt: skip
    files = sorted((folder / "o").iterdir())
    assert len(files) == 3
    model = GRURegression(hidden_size=8)
    record = torch.load(folder / "epoch=0-step=6.ckpt", weights_only=True)
    model.load_state_dict(record["state_dict"])
    batch = next(iter(MemoryProDataModule().val_dataloader()))
    wanted = probe(model, batch, max_products=16, learning_rate=0.05)
    found = Snapshot.load(files[-1])
    assert found.core_cosine == wanted.core_cosine
    assert found.target_modes == wanted.target_modes


def test_without_a_checkpoint_the_initial_model_is_probed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command(monkeypatch, "probe", "--config", trained)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["0", "0"]


def test_what_is_no_checkpoint_is_told_of_and_the_rest_probed(
    trained: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "a.ckpt").write_text("text")
    torch.save({"weights": torch.zeros(2)}, folder / "b.ckpt")
    torch.save({"state_dict": Harmful(folder / "harm")}, folder / "c.ckpt")
    torch.save({"state_dict": {"other": torch.zeros(2)}}, folder / "d.ckpt")
    capsys.readouterr()
    with pytest.warns(UserWarning, match="could not be probed") as caught:
        command(monkeypatch, "probe", "--config", trained, "--ckpt", folder / "*.ckpt")
    told = [str(warning.message) for warning in caught if "probed" in str(warning.message)]
    assert len(told) == 4
    assert "not a Lightning checkpoint" in told[1]
    assert not (folder / "harm").exists()
    assert sum(line.startswith("│") for line in capsys.readouterr().out.splitlines()) == 6
    with (
        pytest.raises(ValueError, match="no checkpoint could be probed"),
        pytest.warns(UserWarning, match="cannot be read as plain weights"),
    ):
        command(monkeypatch, "probe", "--config", trained, "--ckpt", folder / "a.ckpt")
    with pytest.raises(ValueError, match="no file matches"):
        command(monkeypatch, "probe", "--config", trained, "--ckpt", folder / "none*")
