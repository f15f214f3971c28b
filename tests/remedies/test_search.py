"""Trials and their ranking, on trainings in a loop."""

import io
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ntk_monitor.remedies import (
    Adam,
    Clipping,
    FourierFeatures,
    LearningRate,
    PlainTraining,
    Remedy,
    Trial,
    Trials,
    WeightDecay,
    remedies,
    try_remedies,
)
from ntk_monitor.remedies import search as search_module
from ntk_monitor.remedies.race import Race
from ntk_monitor.remedies.trial import Job, run_trial
from ntk_monitor.remedies.workers import Worker
from remedies import small


class Unbiased(Remedy):
    """Makes `small.deadly` end its process."""

    name = "no bias"

    def change_model(self, model: nn.Module, look: Any) -> None:
        nn.init.zeros_(model[0].bias)  # type: ignore[index]


class Interrupted(Remedy):
    name = "interrupted"

    def change_model(self, model: nn.Module, look: Any) -> None:
        raise KeyboardInterrupt


class Sleepy(Remedy):
    name = "sleepy"

    def change_data(self, data: Any, progress: float) -> None:
        time.sleep(1.0)


class Broken(Remedy):
    name = "broken"

    def change_model(self, model: nn.Module, look: Any) -> None:
        raise OSError("No space left on device")


def here(make: Any, *tried: Remedy, **settings: Any) -> Trials:
    """In this process, since a lambda cannot be sent to another."""
    again = lambda: make()  # noqa: E731, PLW0108
    with pytest.warns(UserWarning, match="cannot be sent to another process"):
        return try_remedies(again, remedies=tried, progress=False, **settings)


def test_what_helps_is_found_in_processes_of_their_own() -> None:
    before = torch.get_rng_state()
    found = try_remedies(
        small.slow, remedies=[WeightDecay(0.1), Adam(1e-2), LearningRate(10.0)], progress=False
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert found.best is not None
    assert found.best.name == "Adam, lr 0.01"
    assert next(t.name for t in found) == "Adam, lr 0.01"
    assert not found.is_ahead(found.trials[-1])
    assert found.baseline.steps == 32
    assert found.baseline.planned == 400
    assert found.cost <= 1
    assert found.baseline.held_out == "fresh training data"
    assert "Adam, lr 0.01 helps: after 32 of 400 steps" in found.verdict
    assert [m.number for m in found.best.modes] == [1, 2, 3]
    assert all(m.after > m.before for m in found.best.modes)
    assert found.best.modes[0].steps_to_learn < 1000
    assert str(found).count("Adam, lr 0.01") == 2


def test_several_processes_and_this_one_find_the_same() -> None:
    tried = [Adam(1e-2), LearningRate(10.0)]
    two = try_remedies(small.with_every_generator, remedies=tried, progress=False, processes=2)
    own = here(small.with_every_generator, *tried)
    assert [t.losses for t in two] == [t.losses for t in own]
    assert own.baseline.data == own.trials[0].data
    assert not two.remarks


def test_where_nothing_helps_it_says_so() -> None:
    found = here(small.of_noise, Adam(1e-3), WeightDecay(0.01), LearningRate(0.1))
    assert found.best is None
    assert found.verdict.startswith("None helps")
    with pytest.raises(ValueError, match=r"there is no remedy to train with\. None helps"):
        found.overlay()


def test_a_model_that_cannot_be_rebuilt_is_a_line() -> None:
    found = here(small.broken, Adam())
    assert found.baseline.ended == "failed: RuntimeError: no such file: weights.pt"
    assert found.verdict.startswith("Nothing can be said: the training as it is failed")
    assert len(found) == 0 or found.trials[0].ended.startswith("not tried")


def test_a_process_that_dies_a_full_disk_and_a_misfit_are_lines() -> None:
    tried = [Unbiased(), Broken(), Clipping(None), Adam(1e-2)]
    found = try_remedies(small.deadly, remedies=tried, progress=False)
    ended = {t.name: t.ended for t in found}
    assert ended["no bias"].startswith("failed: its process ended with code 7")
    assert ended["broken"] == "failed: OSError: No space left on device"
    assert ended["no clipping"] == "does not fit: gradients are not clipped"
    assert found.best is not None
    assert found.best.name == "Adam, lr 0.01"
    table = str(found)
    assert "no clipping: does not fit: gradients are not clipped" in table


def test_a_trial_that_diverges_is_a_line() -> None:
    found = here(small.slow, LearningRate(1e9), Adam(1e-2))
    (lost,) = [t for t in found if t.name == "learning rate x 1e+09"]
    assert lost.ended.startswith(("the loss is nan after", "the loss is inf after"))
    assert found.trials[-1] is lost


def test_data_that_cannot_be_repeated_are_told_of() -> None:
    found = here(small.without_order, Adam(1e-2))
    assert any("did not come in the same order" in remark for remark in found.remarks)
    found = here(small.slow, Adam(1e-2))
    assert not found.remarks


def test_trials_that_are_behind_end_early() -> None:
    tried = [Adam(1e-2), Adam(3e-2), WeightDecay(0.1), LearningRate(0.1)]
    found = here(small.slow, *tried)
    ended = {t.name: t.ended for t in found}
    assert ended["learning rate x 0.1"] == "ended after 8 of 32 steps: others were ahead"
    assert ended["Adam, lr 0.01"] == ""
    assert not found.baseline.ended


def test_the_cost_is_bounded() -> None:
    found = here(small.slow, *[Adam(1e-2)] * 9, max_cost=0.4)
    made = [t for t in found if t.steps]
    assert len(made) == 2
    assert found.cost <= 0.4
    assert found.trials[-1].ended == "not tried: the trials before it took what they may cost"


def test_a_time_limit_and_an_interruption_give_what_is_known() -> None:
    started = time.monotonic()
    found = try_remedies(small.slow, remedies=[Sleepy(), Adam()], progress=False, time_limit=4.0)
    assert time.monotonic() - started < 25
    assert {t.ended for t in found} == {"not tried: the time limit was reached"}
    found = here(small.slow, Adam(1e-2), Interrupted(), LearningRate(10.0))
    assert found.best is not None
    assert [t.ended for t in found][-1] == "not tried: interrupted"


def test_a_checkpoint_is_begun_from_without_initialisations(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = small.network()
    file = tmp_path / "last.pt"
    torch.save({"state_dict": trained.state_dict()}, file)
    found = here(small.slow, Unbiased(), Adam(1e-2), *remedies()[-1:], ckpt_path=file)
    x, y = small.draw(4096)
    loss = float(small.mse(trained, (x, y)).detach())
    assert sum(found.baseline.losses[0]) / 4 == pytest.approx(loss, rel=0.2)
    fresh = [r for r in remedies() if r.fresh]
    assert fresh
    found = here(small.slow, *fresh, ckpt_path=file)
    assert {t.ended for t in found} == {"not tried: it needs a training from its beginning"}


def test_the_reason_decides_what_comes_first() -> None:
    assert remedies("clipping")[0].name == "no clipping"
    assert remedies("decay")[0].name == "no weight decay"
    assert remedies("readout")[0].name == "nothing frozen"
    assert "core" in remedies("core")[0].reasons
    assert {repr(r) for r in remedies("core")} == {repr(r) for r in remedies()}


def test_a_process_that_does_not_begin_says_what_a_script_may_lack() -> None:
    worker = Worker(threads=1)
    worker.start(Job(small.slow, {}, Adam(), 0.08, 30, {}, None, 0))
    worker._process.kill()
    found = None
    while found is None:
        found = worker.result(patience=0.1)
    worker.end()
    assert found.ended.startswith("failed: its process ended with code -9 before its first step")
    assert 'below `if __name__ == "__main__":`' in found.ended
    assert not worker.is_alive


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "share must be a share above 0"),
        ({"least_steps": 0}, "least_steps must be at least 1"),
        ({"max_cost": 0.0}, "max_cost must be above 0"),
        ({"time_limit": -1.0}, "time_limit must be seconds"),
        ({"processes": 0}, "processes must be at least 1"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"remedies": [3]}, "remedies must be a sequence of remedies"),
    ],
)
def test_arguments_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        try_remedies(small.slow, **settings)
    with pytest.raises(ValueError, match="model_factory must be a function"):
        try_remedies(3)  # type: ignore[arg-type]


def test_what_is_no_training_is_a_line() -> None:
    found = here(lambda: 3)
    assert "must return a LightningModule, a PlainTraining" in found.baseline.ended
    module = nn.Linear(2, 2)
    found = here(lambda: PlainTraining(module, torch.optim.SGD(module.parameters(), lr=1.0), [], 9))
    assert "batches must have at least one batch" in found.baseline.ended


def test_the_bar_names_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = search_module.Progress.__init__.__globals__["Console"]
    monkeypatch.setitem(
        search_module.Progress.__init__.__globals__,
        "Console",
        lambda **_: console(file=screen, force_terminal=True, width=100),
    )
    again = lambda: small.slow()  # noqa: E731, PLW0108
    with pytest.warns(UserWarning, match="another process"):
        try_remedies(again, remedies=[Adam(1e-2)], progress=True)
    assert "best so far" in screen.getvalue()
    assert "Adam, lr 0.01" in screen.getvalue()


def test_a_trial_alone_tells_of_every_stage() -> None:
    job = Job(
        small.slow,
        {},
        Adam(1e-2),
        0.1,
        8,
        {"tier": "modes", "plan": [1], "figures": False},
        None,
        0,
    )
    moved: list[float] = []
    trial = run_trial(job, moved.append)
    assert isinstance(trial, Trial)
    assert sorted(trial.losses) == [0, 1, 2, 3]
    assert moved == [i / 40 for i in range(1, 41)]
    assert trial.is_whole
    assert trial.cost == 0.1


def whole(remedy: Remedy, *losses: float, steps: int = 80, planned: int = 1000) -> Trial:
    """A trial with these losses from its beginning to its end, of four batches that agree."""
    found = {stage: (loss,) * 4 for stage, loss in enumerate(losses)}
    return Trial(remedy, found, steps=steps, left=planned, planned=planned)


STALLED, FALLING = (2.0, 1.0, 1.0, 1.0), (2.0, 1.8, 1.5, 1.0)


@pytest.mark.parametrize(
    ("baseline", "loss", "later", "helps"),
    [
        (STALLED, 0.9, None, True),  # ahead of what stands still
        (STALLED, 0.96, None, False),  # too little
        (FALLING, 0.9, None, False),  # may be made up for, and nobody looked
        (FALLING, 0.9, (0.5, 0.40), True),  # the lead grows
        (FALLING, 0.9, (0.5, 0.46), False),  # and here it melts
        (FALLING, 0.9, (0.5, 0.5), False),
    ],
)
def test_a_lead_must_last_where_the_training_as_it_is_may_make_up_for_it(
    baseline: tuple[float, ...], loss: float, later: tuple[float, float] | None, helps: bool
) -> None:
    base, trial = whole(Remedy(), *baseline), whole(Adam(), 2.0, 1.0, 1.0, loss)
    longer = None
    if later is not None:
        longer = tuple(
            whole(r, 2.0, 2.0, 2.0, x) for r, x in zip((Remedy(), Adam()), later, strict=True)
        )
    found = Trials(base, (trial,), longer)
    assert (found.best is trial) == helps
    if helps:
        assert found.verdict.startswith("Adam, lr 0.001 helps")
    elif later is not None:
        assert "it makes up for that. None helps for certain." in found.verdict
    else:
        assert "None helps" in found.verdict


def test_a_lead_that_batches_do_not_agree_on_is_none() -> None:
    base = whole(Remedy(), *STALLED)
    sure = Trial(
        Adam(), {**base.losses, 3: (0.8, 0.8, 0.8, 0.8)}, steps=80, left=1000, planned=1000
    )
    torn = Trial(
        Adam(), {**base.losses, 3: (0.2, 1.1, 1.0, 0.9)}, steps=80, left=1000, planned=1000
    )
    assert Trials(base, (sure,)).best is sure
    assert Trials(base, (torn,)).best is None


def test_what_a_remedy_draws_is_no_draw_of_the_training() -> None:
    found = here(small.of_noise, FourierFeatures(), Adam(1e-3))
    assert [trial.ended for trial in found] == ["", ""]
    assert all(trial.data == found.baseline.data for trial in found)


def test_what_is_ahead_of_a_falling_loss_is_tried_for_longer() -> None:
    base = Job(small.slow, {}, Remedy(), 0.08, 30, {}, None, 0)
    race = Race(base, [WeightDecay(0.1), Adam()], max_cost=1.0)
    losses = {"as it is": FALLING, "weight decay 0.1": FALLING}
    losses["Adam, lr 0.001"] = (2.0, 1.5, 1.0, 0.8)
    seen = []
    for job in iter(race.next, None):
        seen.append((job.remedy.name, round(job.share, 3)))
        steps = round(job.share * 1000)
        race.learn(job, whole(job.remedy, *losses[job.remedy.name], steps=steps))
    assert seen == [
        ("as it is", 0.08), ("weight decay 0.1", 0.08), ("Adam, lr 0.001", 0.08),
        ("as it is", 0.25), ("Adam, lr 0.001", 0.25),
    ]  # fmt: skip
    found = race.result
    assert found.cost == pytest.approx(0.74)
    assert found.longer is not None
    assert found.best is not None


def test_a_longer_trial_costs_no_more_than_is_left() -> None:
    base = Job(small.slow, {}, Remedy(), 0.08, 30, {}, None, 0)
    for max_cost, shares in ((0.5, [0.08, 0.08, 0.17, 0.17]), (0.3, [0.08, 0.08])):
        race = Race(base, [Adam()], max_cost=max_cost)
        seen = []
        for job in iter(race.next, None):
            seen.append(round(job.share, 3))
            losses = FALLING if job.remedy.name == "as it is" else (2.0, 1.5, 1.0, 0.8)
            race.learn(job, whole(job.remedy, *losses, steps=round(job.share * 1000)))
        assert seen == shares
        assert race.result.cost <= max_cost
