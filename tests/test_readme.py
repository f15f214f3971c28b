"""What the README shows works as it is shown."""

import re
from pathlib import Path

import pytest
import torch

from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import MemoryProDataModule

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and logging intervals
def test_python_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = MemoryProDataModule(trials=4, batch_size=2, evaluation_trials=2)
    model = GRURegression(hidden_size=4)
    mean_squared = torch.nn.functional.mse_loss
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "loader": [(torch.randn(2, 6, 3), torch.randn(2, 6, 3))],
        "compute_loss": lambda batch: mean_squared(model(batch[0]), batch[1]),
        "datamodule": data,
        "inputs": torch.randn(2, 6, 3),
        "targets": torch.randn(2, 6, 3),
        "MyFusedLayer": type("MyFusedLayer", (torch.nn.Linear,), {}),
    }
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) >= 2
    for snippet in snippets:
        exec(snippet.replace("max_epochs=50", "max_epochs=1"), names)
    assert names["snapshot"].is_finite
    assert names["monitor"].snapshot.is_finite
    assert names["trainer"].callbacks[0].snapshot.is_finite


@pytest.mark.parametrize("mark", ["run", "test"])
def test_commands_set_up_a_fresh_machine(mark: str) -> None:
    found = re.search(rf"<!-- {mark} command -->\n```\n(.*)\n```", README)
    assert found, mark
    assert found[1].startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt")


def test_the_map_names_every_folder_and_no_other() -> None:
    table = README.split("| folder | what |")[1].split("\n\n")[0]
    root = Path(__file__).parents[1]
    package = root / "ntk_monitor"
    parents = [root, *(folder for folder in package.rglob("*") if folder.is_dir()), package]
    named = set()
    for path in re.findall(r"`([\w/]+(?:/|\.py))`", table):
        found = [parent / path for parent in parents if (parent / path).exists()]
        assert found, f"{path} does not exist"
        named |= {p.resolve() for p in found}
    there = {p for p in package.iterdir() if not p.name.startswith("__") and p.name != "py.typed"}
    left_out = {p.name for p in there if p.resolve() not in named} - {"configs"}
    assert not left_out
