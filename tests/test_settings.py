"""Settings are written down once, and every function that takes them says the same of each."""

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest

from ntk_monitor import Monitor, NTKMonitor, Probe, probe
from ntk_monitor.keywords import descriptions
from ntk_monitor.monitor import NTKTrainerCallback
from ntk_monitor.monitor.settings import LoopKeywords, MonitorKeywords, PlanSettings
from ntk_monitor.probing.settings import ProbeKeywords, ProbeSettings, StatelessKeywords

SETTINGS = {f.name: f.default for source in (ProbeSettings, PlanSettings) for f in fields(source)}
TAKE_THEM = (NTKMonitor, Monitor, NTKTrainerCallback)


def test_the_keywords_of_a_probe_are_its_settings() -> None:
    assert get_type_hints(ProbeKeywords) == get_type_hints(ProbeSettings)


def test_the_keywords_of_a_plan_are_its_settings() -> None:
    own = set(get_type_hints(MonitorKeywords)) - set(get_type_hints(StatelessKeywords))
    hints = get_type_hints(MonitorKeywords)
    assert {name: hints[name] for name in own} == get_type_hints(PlanSettings)


def test_the_keywords_of_a_loop_are_those_of_the_callback() -> None:
    known = inspect.signature(NTKMonitor).parameters
    assert set(get_type_hints(LoopKeywords)) == set(known) - {"every_n_steps"}


@pytest.mark.parametrize("source", [ProbeSettings, PlanSettings])
def test_every_setting_is_described(source: type) -> None:
    found = descriptions(source)
    assert list(found) == [f.name for f in fields(source)]
    assert all(text.endswith(".") for text in found.values())


@pytest.mark.parametrize("taker", TAKE_THEM, ids=lambda taker: taker.__name__)
def test_a_monitor_has_every_setting_with_its_default_and_words(taker: type) -> None:
    known = inspect.signature(taker).parameters
    words = descriptions(taker.__init__)  # type: ignore[misc]
    described = {**descriptions(ProbeSettings), **descriptions(PlanSettings)}
    for name, default in SETTINGS.items():
        parameter = known[name]
        if name == "dtype":  # as YAML has it
            assert parameter.default == str(default).removeprefix("torch.")
        else:
            assert parameter.default == default
        if name != "state":  # of which a monitor may have several
            assert words[name].split() == described[name].split()
    assert not [p for p in known.values() if p.kind is p.VAR_KEYWORD]


def test_probe_has_every_setting_with_its_default() -> None:
    known = inspect.signature(probe).parameters
    assert {f.name: known[f.name].default for f in fields(ProbeSettings)} == {
        f.name: f.default for f in fields(ProbeSettings)
    }


@pytest.mark.parametrize("taker", [*TAKE_THEM, probe], ids=lambda taker: taker.__name__)
def test_a_misspelt_setting_is_told_apart(taker: type) -> None:
    with pytest.raises(TypeError, match="did you mean 'tolerance'"):
        taker(tolerence=0.1)


def test_a_probe_is_its_settings() -> None:
    measure = Probe(modes=2, tier="modes")
    assert (measure.modes, measure.tier, measure.seed) == (2, "modes", 0)
    assert len({measure, Probe(modes=2, tier="modes")}) == 2, "two probes are two, whatever is set"
