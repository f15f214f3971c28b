"""``ntk-monitor try``, and training with what it writes."""

from pathlib import Path

import pytest
import yaml

from ntk_monitor.cli import main

CONFIG = Path(__file__).parents[1] / "configs" / "memory_pro_network1.yaml"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*number of training batches:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ntk_monitor.monitor.StallWarning"),
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short training of a small Network 1, in a folder of its own."""
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"] |= {"max_steps": 60, "enable_progress_bar": False, "callbacks": []}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path / "runs")
    config["model"]["init_args"]["hidden_size"] = 8
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 1e-5
    config["data"]["init_args"] |= {"trials": 64, "batch_size": 16}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["ntk-monitor", *arguments])
    return main()


def test_try_then_fit_with_the_winner(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(monkeypatch, "try", "--config", str(config), "--max-cost", "3", "--reason", "core")
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "helps: after 30 of 60 steps" in printed.replace("\n", " ")
    assert f"ntk-monitor fit --config {config} --config winner.yaml" in printed
    assert not Path("runs").exists()
    winner = yaml.safe_load(Path("winner.yaml").read_text())
    (callback,) = winner["trainer"]["callbacks+"]
    assert callback["class_path"] == "ntk_monitor.remedies.ApplyRemedy"
    assert run(monkeypatch, "fit", "--config", str(config), "--config", "winner.yaml") == 0
    saved = yaml.safe_load(next(Path("runs").rglob("config.yaml")).read_text())
    assert saved["trainer"]["callbacks"] == [callback] or (
        saved["trainer"]["callbacks"][0]["class_path"] == callback["class_path"]
    )


def test_mistakes_are_told_before_anything_begins(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ((), "--config must be the file that `ntk-monitor fit` trains with, got none"),
        (("--config", str(config), "--reason", "luck"), "invalid choice: 'luck'"),
        (("--config", str(config), "--trainer.max_stepz", "3"), "max_stepz"),
        (("--config", "no.yaml"), "no.yaml"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, "try", *arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_its_help_has_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "try", "--help")
    assert "--time-limit" in capsys.readouterr().out
