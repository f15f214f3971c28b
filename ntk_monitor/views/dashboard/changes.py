"""What the alert of a run has recorded, one record after the other."""

from __future__ import annotations

from ntk_monitor.views.dashboard.checks import Changed


def and_then(before: Changed, record: Changed, step: int) -> Changed:
    """What is known after one more record; they come in the order in which they were written.

    Args:
        before: What was known.
        record: The record.
        step: Its step.

    Returns:
        What is known now.
    """
    # What lies behind the record's step was in a future that a resumed training has left.
    end = step if record.whole else step + 1
    alerts = [alert for alert in before.alerts if alert["step"] < end]
    history = {
        index: [entry for entry in entries if entry[0] < end]
        for index, entries in before.history.items()
    }
    return merged(before._replace(alerts=alerts, history=history), record)


def merged(before: Changed, after: Changed) -> Changed:
    """Both: an alert of the same step, mode and kind once, and so a state of the same step.

    Args:
        before: What came first.
        after: What came then; of what is known once only, this is taken.

    Returns:
        Both together.
    """
    alerts = {
        (alert["step"], alert["mode"], alert["kind"]): alert
        for alert in (*before.alerts, *after.alerts)
    }
    history = {
        index: sorted(
            dict.fromkeys([*before.history.get(index, ()), *after.history.get(index, ())]),
            key=lambda entry: entry[0],
        )
        for index in before.history.keys() | after.history.keys()
    }
    return after._replace(alerts=list(alerts.values()), history=history)
