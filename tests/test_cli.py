"""The command line, on the shipped configs cut short."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from ntk_monitor.cli import main
from ntk_monitor.commands.fit import MonitorCLI, correct_integers
from ntk_monitor.monitor.integrations.lightning.callback import monitors_of

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    "ignore::ntk_monitor.monitor.StallWarning",
)
@pytest.mark.parametrize("name", ["memory_pro_network1", "memory_pro_network2"])
def test_fit_runs_a_config_and_ends_with_the_table(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config["trainer"] |= {"max_steps": 4, "enable_progress_bar": False, "val_check_interval": 2}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path)
    config["trainer"]["callbacks"][0]["init_args"] |= {"every_n_steps": 2, "max_products": 16}
    config["model"]["init_args"]["hidden_size"] = 8
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr("sys.argv", ["ntk-monitor", "fit", "--config", str(path)])
    main()
    printed = capsys.readouterr().out
    assert "What becomes of the target" in printed
    assert f"ntk-monitor view {tmp_path}" in printed.replace("\n", "")
    assert list((tmp_path / name).rglob("events.out.tfevents.*"))
    assert (tmp_path / name / "version_0" / "config.yaml").exists()
    assert list(tmp_path.glob("**/*.ckpt"))  # which README's `probe` command finds


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_a_config_is_made_into_a_trainer_without_running_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["ntk-monitor"])
    arguments = ["--config", str(CONFIGS / "memory_pro_network1.yaml")]
    arguments += ["--trainer.logger.init_args.save_dir", str(tmp_path)]
    cli = MonitorCLI(
        LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
        run=False, save_config_callback=None, args=arguments,
    )  # fmt: skip
    assert cli.trainer.max_steps == 1500
    assert monitors_of(cli.trainer)


@pytest.mark.parametrize(("read", "kept"), [(500.0, 500), (500, 500), (0.25, 0.25), (None, None)])
def test_a_number_of_batches_is_an_integer(read: float | None, kept: float | None) -> None:
    settings = {"val_check_interval": read}
    correct_integers(settings)
    assert settings == {"val_check_interval": kept}
    assert type(settings["val_check_interval"]) is type(kept)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*LeafSpec.*is deprecated",
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
)
def test_functions_are_named_by_their_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_functions.py").write_text(
        "import torch\n"
        "called = []\n"
        "def target(batch):\n    called.append('target')\n    return batch[1]\n"
        "def mask(batch):\n"
        "    called.append('mask')\n"
        "    return torch.ones(batch[0].shape[:2], dtype=torch.bool)\n"
        "def pick(trainer, module):\n"
        "    called.append('pick')\n"
        "    return next(iter(trainer.datamodule.val_dataloader()))\n"
        "def only(name, parameter):\n    called.append('only')\n    return 'rnn' in name\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = yaml.safe_load((CONFIGS / "memory_pro_network1.yaml").read_text())
    config["trainer"] |= {"max_steps": 2, "enable_progress_bar": False, "logger": False}
    config["trainer"]["enable_checkpointing"] = False
    config["trainer"]["default_root_dir"] = str(tmp_path / "logs")  # where the config is saved
    config["trainer"]["callbacks"] = [
        {
            "class_path": "ntk_monitor.NTKMonitor",
            "init_args": {
                "target_fn": "own_functions.target",
                "mask_fn": "own_functions.mask",
                "probe_batch": "own_functions.pick",
                "parameters": "own_functions.only",
                "tier": "modes",
            },
        }
    ]
    config["model"]["init_args"]["hidden_size"] = 8
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr("sys.argv", ["ntk-monitor", "fit", "--config", str(path)])
    assert main() == 0
    assert "What becomes of the target" in capsys.readouterr().out
    called = __import__("own_functions").called
    assert set(called) == {"target", "mask", "pick", "only"}
