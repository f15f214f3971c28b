"""The states of target modes, and what alerts advise."""

import math

from ntk_monitor.views.dashboard.board import advice, alert_of_text, history_of, with_replacements
from ntk_monitor.views.verdict import ModeRow


def row(index: int, state: str) -> ModeRow:
    return ModeRow(index, state)


def test_history_of_a_run_without_recorded_states() -> None:
    learned = [(0, 0.0), (100, 0.1), (200, 0.1), (300, 0.5), (400, 0.95), (500, math.nan)]
    stalled = [(100, 0.0), (200, 1.0), (300, 0.0), (400, 0.0)]
    assert history_of(learned, stalled, ()) == [
        (0, "not judged"),
        (200, "stalled"),
        (300, "recovered"),
        (400, "learned"),
        (500, "insufficient data"),
    ]


def test_a_stall_lasts_until_it_is_said_to_end() -> None:
    assert history_of([(0, 0.0), (100, 0.0), (200, 0.0)], [(100, 1.0)], ()) == [
        (0, "not judged"),
        (100, "stalled"),
    ]


def test_recorded_states_go_before_the_rest() -> None:
    changes = [(300, "stalled"), (0, "warming up"), (400, "stalled")]
    assert history_of([(0, 0.99)], [], changes) == [(0, "warming up"), (300, "stalled")]


def test_alerts_alone_give_a_history() -> None:
    assert history_of([], [(0, 0.0), (100, 1.0)], ()) == [(0, "not judged"), (100, "stalled")]


def test_alerts_as_text_are_understood() -> None:
    alert = alert_of_text(
        "Target mode 3 is stalled at step 7: learned 0.0. Reason: core (core overlap 1e-11)", 7
    )
    assert (alert["mode"], alert["kind"], alert["severity"], alert["reason"]) == (
        3, "stalled", "warning", "core",
    )  # fmt: skip
    again = alert_of_text("Target mode 12 has recovered at step 9: learned 0.5.", 9)
    assert (again["mode"], again["kind"], again["severity"]) == (12, "recovered", "info")
    assert alert_of_text("something else", 1)["mode"] is None
    new = alert_of_text(
        "Target mode 2 is stalled at step 7: learned 0.0. Reason: gradient noise (x)", 7
    )
    assert new["reason"] == "gradient noise"
    noise = alert_of_text("Target mode 4 is unpredictable at step 9: learned 0.1", 9)
    assert (noise["kind"], noise["severity"], noise["reason"]) == ("unpredictable", "info", None)


def test_advice_is_that_of_the_newest_alert_of_stalled_modes() -> None:
    def alert(mode: int, message: str, reason: str | None = None) -> dict[str, object]:
        return {"mode": mode, "message": message, "reason": reason}

    alerts = [
        alert(2, "What helps: larger steps."),
        alert(2, "What helps: old advice."),
        alert(1, "What helps: nothing, it is learned."),
        alert(3, "no word", "gradient noise"),
    ]
    rows = [row(1, "learned"), row(2, "stalled"), row(3, "stalled")]
    assert advice(alerts, rows) == (
        "Larger steps. Use larger batches, or a lower learning rate towards the end."
    )
    assert not advice(alerts, [row(2, "learning")])


def test_alerts_say_which_later_one_of_their_mode_replaced_them() -> None:
    alerts = [{"mode": mode, "step": step} for mode, step in ((1, 10), (2, 20), (1, 30), (1, 50))]
    found = with_replacements(alerts)
    assert [(each["step"], each["replaced"]) for each in found] == [
        (50, None), (30, 50), (20, None), (10, 30),
    ]  # fmt: skip
