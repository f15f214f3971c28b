"""Figures, layout and tables say what the snapshot says."""

import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CASES
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from rich.table import Table

from ntk_monitor import Snapshot, probe
from ntk_monitor.views import (
    band_scalars,
    custom_scalars_layout,
    introduction,
    own_style,
    snapshot_figures,
    summary_tables,
    summary_verdict,
)
from ntk_monitor.views.reach import reached_patterns
from ntk_monitor.views.verdict import Judge


def snapshot(name: str = "gru", **settings: object) -> Snapshot:
    case = CASES[name]
    settings = {"state": case.state, "learning_rate": 0.1, "modes": 2} | settings
    return probe(case.make_model(), case.make_batch(), **settings)


@pytest.mark.parametrize("name", CASES)
def test_figures_show_the_snapshot(name: str) -> None:
    s = snapshot(name, method="exact")
    figures = snapshot_figures(s)
    assert set(figures) == {"ntk/cumulative_variance", "ntk/temporal_modes", "target/modes"}
    ntk, core = figures["ntk/cumulative_variance"].axes[0].get_lines()[:2]
    assert ntk.get_ydata()[-1] == pytest.approx(1.0, abs=0.01)
    assert core.get_ydata()[-1] == pytest.approx(1.0, abs=0.01)
    top = figures["target/modes"].axes[0]
    assert f"learned {s.target_modes[0].learned:z.2f}" in top.get_title(loc="left")
    if s.state_shape[1] > 1:
        lines = [line.get_ydata() for line in top.get_lines()]
        grey, coloured = lines[: s.state_shape[0]], lines[s.state_shape[0] : 2 * s.state_shape[0]]
        np.testing.assert_allclose(coloured, s.target_patterns[0].numpy())
        np.testing.assert_allclose(grey, reached_patterns(s)[0].numpy())
    for figure in figures.values():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert np.asarray(canvas.buffer_rgba()).std() > 0


def test_what_the_ntk_sees_is_a_projection_on_its_modes() -> None:
    s = snapshot(method="exact")
    few = replace(s, temporal_modes=s.temporal_modes[:3], temporal_spectrum=s.temporal_spectrum[:3])
    seen = reached_patterns(few)
    V = few.temporal_modes.flatten(1).double()
    wanted = (s.target_patterns.flatten(1).double() @ torch.linalg.pinv(V)) @ V
    torch.testing.assert_close(seen.flatten(1), wanted, rtol=1e-5, atol=1e-7)
    missed = s.target_patterns - seen
    assert reached_patterns(replace(few, target_patterns=missed)).abs().max() < 1e-6
    assert missed.abs().max() > 0.01
    assert reached_patterns(replace(s, target_patterns=s.target_patterns[:, :, :1])) is None
    none = replace(s, temporal_modes=s.temporal_modes[:0], temporal_spectrum=torch.empty(0))
    assert reached_patterns(none) is None


def test_without_target_modes_there_is_no_figure_of_them() -> None:
    assert "target/modes" not in snapshot_figures(snapshot(modes=0))


def test_bands_are_95_percent_of_the_estimate() -> None:
    s = snapshot(method="forward-ad", max_products=40)
    bands = band_scalars(s)
    low, high = (bands[f"ntk_bands/core_cosine/{end}"] for end in ("lower", "upper"))
    assert (low + high) / 2 == pytest.approx(s.core_cosine.value)
    assert (high - low) / 2 == pytest.approx(1.96 * s.core_cosine.stderr)


def test_layout_names_only_tags_that_are_logged() -> None:
    s = snapshot(method="forward-ad", max_products=40)
    logged = {*s.scalars(), *band_scalars(s)}
    layout = custom_scalars_layout(modes=2)
    charts = [chart for category in layout.values() for chart in category.values()]
    margins = [tag for kind, tags in charts if kind == "Margin" for tag in tags]
    alerts = {"alert/mode_1", "alert/mode_2"}
    assert len(margins) == 18 + 3 * (2 + 2 + 2)
    assert set(margins) - alerts <= logged
    lines = [re.compile(rule) for kind, rules in charts if kind == "Multiline" for rule in rules]
    assert all(any(rule.search(tag) for tag in logged) for rule in lines)
    assert "NTK target modes" not in custom_scalars_layout(modes=0)


def test_the_first_charts_are_the_verdict_which_is_not_smoothed() -> None:
    layout = custom_scalars_layout(modes=2, prefixes=["encoder/", "decoder/"])
    first = next(iter(layout.values()))
    assert list(first.values()) == [["Margin", [f"alert/mode_{i}"] * 3] for i in (1, 2)]
    smoothed = [rule for category in layout.values() for kind, rules in category.values()
                if kind == "Multiline" for rule in rules]  # fmt: skip
    assert not any(re.search(rule, "alert/mode_1") for rule in smoothed)


def test_steps_to_learn_are_on_a_logarithmic_axis() -> None:
    s = snapshot()
    modes = [replace(mode, steps_to_learn=steps)
             for mode, steps in zip(s.target_modes, (1e6, math.inf), strict=True)]  # fmt: skip
    bands = band_scalars(replace(s, target_modes=tuple(modes)))
    assert bands["ntk_bands/target/mode_1/log10_steps_to_learn"] == pytest.approx(6)
    assert "ntk_bands/target/mode_2/log10_steps_to_learn" not in bands


def printed(tables: list[Table]) -> str:
    console = Console(file=io.StringIO(), width=120)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_tables_say_what_is_stalled_and_learned() -> None:
    s = snapshot()
    text = printed(summary_tables(s, {2: [(0, "learning"), (5, "stalled")]}))
    assert "stalled" in text
    assert "not judged" in text
    assert "learning rate" in text
    assert "left by clipping" in text
    assert "learning" not in text.replace("learning rate", "")
    assert f"{s.target_modes[0].learned:z.3f}" in text
    assert f"{s.core_effective_rank:.3g}" in text
    name, share = s.target_modes[0].by_site[0]
    assert f"mode 1: {share:.2f} in {name}" in " ".join(text.split())
    assert torch.isfinite(s.core_spectrum).all()


def test_the_introduction_is_text_in_a_notebook_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    text = introduction(snapshot())
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert introduction(snapshot()).splitlines()[1:] == text.splitlines()[1:]
    assert "state" in text


def test_a_cheap_probe_shows_the_kernel_of_the_last_whole_one() -> None:
    cheap, whole = snapshot(tier="modes"), snapshot()
    text = printed(summary_tables(cheap, whole=(40, whole)))
    assert "What gradient descent can move, at step 40" in text
    assert str(whole.core_cosine) in text
    assert "nan" not in printed(summary_tables(cheap))


def test_steps_to_learn_are_in_words() -> None:
    s = snapshot()
    modes = [replace(mode, steps_to_learn=steps, steps_band=None)
             for mode, steps in zip(s.target_modes, (math.inf, None), strict=True)]  # fmt: skip
    text = printed(summary_tables(replace(s, target_modes=tuple(modes))))
    assert "never, by the forecast" in text
    assert "no optimizer known" in text


def test_the_verdict_of_a_last_snapshot() -> None:
    s = snapshot()
    losses = [(10 * i, 0.25) for i in range(9)]
    found = summary_verdict(s, losses, {1: [(0, "learning")]}, Judge(True, planned=100))
    assert found.when == "step 80 of 100"
    assert found.text.startswith("The loss has not moved since step 0")
    assert "(mode 1) is on its way (95 % sure)" in found.text
    assert "Adding StallAlert() would judge" in summary_verdict(s).text


def test_figures_look_the_same_whatever_style_is_set() -> None:
    """Packages such as neurogym change Matplotlib's settings when they are imported."""

    def picture() -> np.ndarray:
        with own_style():
            figure = snapshot_figures(s)["ntk/cumulative_variance"]
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())

    s = snapshot()
    wanted = picture()
    with rc_context({"font.size": 30, "axes.facecolor": "black", "lines.linewidth": 9}):
        np.testing.assert_array_equal(picture(), wanted)
