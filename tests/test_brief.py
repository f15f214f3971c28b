"""A snapshot as one meets it in a console and in a notebook."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from IPython.core.formatters import PNGFormatter
from lightning.pytorch import Trainer
from torch import nn

from ntk_monitor import Monitor, NTKMonitor, Snapshot, probe
from ntk_monitor.metrics import CoreCosine, EffectiveRank, TargetModeAlignment
from ntk_monitor.models import GRURegression
from ntk_monitor.tasks import MemoryProDataModule


def measured(**settings: object) -> Snapshot:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5))
    batch = torch.randn(16, 3), torch.randn(16, 5)
    return probe(net, batch, learning_rate=0.1, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("modes", [0, 1, 3, 5])
@pytest.mark.parametrize("tier", ["core", "modes", "kernel"])
def test_it_has_ten_lines_at_most(tier: str, modes: int) -> None:
    snapshot = measured(tier=tier, modes=modes)
    shown = repr(snapshot).splitlines()
    assert 2 <= len(shown) <= 10
    assert shown[0].startswith("Snapshot of 1 (16 trials x 1 steps x 8 units)")
    assert ("loss" in shown[0]) == (tier != "core" and modes > 0)
    assert f"tier {tier}" in shown[0]
    assert sum("target mode" in line for line in shown) == min(modes, 3)
    assert any("and 2 more" in line for line in shown) == (modes == 5)
    assert any("core cosine" in line for line in shown) == (tier == "kernel")
    assert all(len(line) < 120 for line in shown)


def test_the_numbers_are_those_of_the_snapshot() -> None:
    snapshot = measured()
    shown = repr(snapshot)
    assert f"core cosine        {snapshot.core_cosine.value:.3g} " in shown
    rough = replace(snapshot.core_cosine, stderr=0.0123)
    assert f"{rough.value:.3g} ± 0.01 " in repr(replace(snapshot, core_cosine=rough))
    assert f"learned {snapshot.target_modes[0].learned:z.2f} of" in shown
    never = replace(snapshot.target_modes[0], steps_to_learn=float("inf"))
    assert "never learned" in repr(replace(snapshot, target_modes=(never,)))
    unknown = replace(snapshot.target_modes[0], steps_to_learn=None)
    assert "need a learning_rate" in repr(replace(snapshot, target_modes=(unknown,)))


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_notebook_gets_a_table() -> None:
    snapshot = replace(measured(), state=("<script>",))
    found = Cells()
    page = snapshot._repr_html_()
    found.feed(page)
    assert not found.open
    assert found.rows == len(repr(snapshot).splitlines()) - 1
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.filterwarnings("ignore")
def test_the_history_of_a_training_is_a_table() -> None:
    monitor = NTKMonitor(every_n_steps=2, max_overhead=None, tier="modes", figures=False)
    trainer = Trainer(
        max_steps=4, callbacks=[monitor], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    data = MemoryProDataModule(trials=16, batch_size=4, evaluation_trials=4)
    trainer.fit(GRURegression(hidden_size=4), data)
    assert [row["step"] for row in monitor.history] == [0, 2, 4]
    last = monitor.snapshot
    assert last is not None
    assert monitor.history[-1]["loss/now"] == last.loss
    assert monitor.history[-1]["target/mode_1/learned"] == last.target_modes[0].learned
    monitor.history.clear()  # a copy
    assert len(monitor.history) == 3


def test_several_states_share_a_row() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    batch = torch.randn(16, 3), torch.randn(16, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = Monitor(every_n_steps=1, state={"a": "1", "b": "3"}, tier="modes", figures=False)
    with monitor.attach(net, optimizer, batch=batch, total_steps=2):
        monitor.step()
    first = monitor.history[0]
    assert {"a/core/effective_rank", "b/core/effective_rank"} <= set(first)


@pytest.mark.parametrize("tier", ["core", "modes", "kernel"])
@pytest.mark.parametrize("modes", [0, 3])
def test_it_can_be_drawn_as_far_as_it_was_measured(tier: str, modes: int) -> None:
    figure = measured(tier=tier, modes=modes).plot()
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    missing = [each for each in texts if "not measured" in each]
    assert len(missing) == (modes == 0) + (tier == "core" or modes == 0)
    figure.canvas.draw()


def test_a_notebook_shows_the_figure_without_pyplot() -> None:
    """IPython asks an object for a picture where no backend of matplotlib was chosen."""
    formatter = PNGFormatter()
    picture = formatter(measured().plot())
    assert isinstance(picture, bytes)
    assert picture.startswith(b"\x89PNG")


def test_metrics_are_drawn_as_those_of_torchmetrics() -> None:
    snapshot = measured()
    for metric in (EffectiveRank("temporal"), CoreCosine(), TargetModeAlignment(1)):
        metric.update(snapshot)
        figure, axes = metric.plot()
        figure.canvas.draw()
        assert axes.has_data()
