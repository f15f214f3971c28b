"""The command line, on the shipped configs cut short."""

from pathlib import Path

import pytest
import yaml

from ntk_monitor.cli import main

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
