"""What the NTK tab shows, read from a TensorBoard data provider."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider, RunTagFilter

from ntk_monitor.views.dashboard.board import alert_of_text
from ntk_monitor.views.dashboard.changes import and_then, merged
from ntk_monitor.views.dashboard.checks import (
    NOTHING,
    Changed,
    checked_changes,
    checked_facts,
    checked_snapshot,
)
from ntk_monitor.views.dashboard.selection import chosen, natural, shown, states_in, wanted_tags
from ntk_monitor.views.dashboard.summary import Curve, curve_of, summary_of, without_state
from ntk_monitor.views.facts import FACTS_TAG
from ntk_monitor.views.glossary import GLOSSARY, explained
from ntk_monitor.views.record import CHANGES_TAG, PLUGIN, SNAPSHOT_TAG

SCALARS = "scalars"
MOST_POINTS = 1000
FEWEST_POINTS = 150
ALL_POINTS = 3000
"""Points of a curve: at most, at least, and of all runs together."""
MOST_SNAPSHOTS = 40
MOST_READ = 1000
"""Records of a run that are shown, and that are looked at to choose them evenly."""
EVERY = 1_000_000
"""Asks a data provider for every point that it has."""

_TEXT_TAG = "alert/text_summary"


class Origin(NamedTuple):
    """Who asks, of what: TensorBoard's request context and its name of the experiment."""

    ctx: RequestContext = RequestContext()
    experiment: str = ""


NOBODY = Origin()


@dataclass(frozen=True)
class DashboardData:
    """Everything that the tab and the report show, as dictionaries for JSON.

    It asks a data provider only, so it reads what TensorBoard reads, from whatever server.

    Attributes:
        provider: The data provider.
        origin: Who asks.
    """

    provider: DataProvider
    origin: Origin = NOBODY

    def has_data(self) -> bool:
        """Whether some run has numbers of a probe; cheap."""
        ctx, experiment = self.origin
        if PLUGIN in (self.provider.list_plugins(ctx, experiment_id=experiment) or ()):
            return True
        tags = [term.tag for term in GLOSSARY if "<i>" not in term.tag]
        return bool(self._ask("list_scalars", SCALARS, RunTagFilter(tags=tags)) or self._states())

    def runs(self) -> dict[str, Any]:
        """The runs, the states that each follows, and the glossary.

        Returns:
            ``runs`` from the first started to the last, and ``glossary``.
        """
        states = self._states()
        ctx, experiment = self.origin
        listed = list(self.provider.list_runs(ctx, experiment_id=experiment))
        listed.sort(key=lambda run: (run.start_time or math.inf, run.run_name))
        runs = [
            {
                "name": run.run_name,
                "place": place,  # as TensorBoard counts them to give them colours
                "start": run.start_time,
                "states": sorted(states.get(run.run_name, ())),
                "reason": None
                if run.run_name in states
                else "This run has no numbers of NTKMonitor: it was logged without the callback, "
                "or before its first probe.",
            }
            for place, run in enumerate(listed)
        ]
        runs.sort(key=lambda run: (run["start"] or math.inf, natural(str(run["name"]))))
        return {"runs": runs, "glossary": explained()}

    def series(
        self, runs: Sequence[str], state: str = "", *, points: int | None = None
    ) -> dict[str, Any]:
        """Curves, target modes, verdict and alerts of some runs.

        Args:
            runs: Their names.
            state: What the tags of the state begin with: nothing, or its name and ``/``.
            points: How many points of a curve; by default fewer the more runs there are.

        Returns:
            For each run its curves, column by column, with the rest; and notes on what was skipped.
            Of a run that does not follow this state, that it does not.
        """
        if points is None:
            points = min(max(ALL_POINTS // max(len(runs), 1), FEWEST_POINTS), MOST_POINTS)
        only = RunTagFilter(runs=runs)
        listed = self._ask("list_scalars", SCALARS, only)
        states = states_in(listed, self._ask("list_tensors", PLUGIN, only))
        here = [run for run in runs if state in states.get(run, {state})]
        notes: list[str] = []
        changes = self._changes(here, state, states, notes)
        curved: dict[str, dict[str, str]] = {}
        flagged: dict[str, dict[str, str]] = {}
        for run in here:
            wanted = wanted_tags(listed.get(run, ()), state)
            flags = {tag: name for tag, name in wanted.items() if name.startswith("alert/mode_")}
            curved[run] = {tag: name for tag, name in wanted.items() if tag not in flags}
            flagged[run] = flags if run in changes else {}  # else they are of another state
        read = self._read_scalars(curved, points)
        exact = self._read_scalars(flagged, EVERY)
        latest = self._snapshots(here, state, 1, notes)
        facts = self._facts(runs, notes)
        found = {run: without_state(state, states[run]) for run in runs if run not in here}
        for run in here:
            curves = read.get(run, {}) | exact.get(run, {})
            last = next(iter(reversed(latest.get(run, ()))), None)
            found[run] = summary_of(curves, changes.get(run, NOTHING), last, facts.get(run, {}))
        return {"runs": found, "notes": shown(notes)}

    def snapshots(self, run: str, state: str = "", *, most: int = MOST_SNAPSHOTS) -> dict[str, Any]:
        """The records of a run's probes.

        Args:
            run: Its name.
            state: What the tags of the state begin with.
            most: How many at most.

        Returns:
            ``steps``, ``records``, and notes on what was skipped.
        """
        notes: list[str] = []
        found = self._snapshots([run], state, most, notes).get(run, [])
        steps, records = [step for step, _ in found], [record for _, record in found]
        return {"steps": steps, "records": records, "notes": shown(notes)}

    def _ask(
        self, method: str, plugin: str, only: RunTagFilter | None = None, **more: int
    ) -> Mapping[str, Any]:
        """What a method of the provider says of a plugin's data, by run."""
        ctx, experiment = self.origin
        ask = getattr(self.provider, method)
        found = ask(ctx, experiment_id=experiment, plugin_name=plugin, run_tag_filter=only, **more)
        return found or {}

    def _states(self) -> dict[str, set[str]]:
        """What the tags of each followed state begin with, by run."""
        return states_in(self._ask("list_scalars", SCALARS), self._ask("list_tensors", PLUGIN))

    def _read_scalars(
        self, wanted: Mapping[str, Mapping[str, str]], points: int
    ) -> dict[str, dict[str, Curve]]:
        """Curves by run and by tag without the state's name."""
        tags = sorted({tag for names in wanted.values() for tag in names})
        if not tags:
            return {}
        only = RunTagFilter(runs=list(wanted), tags=tags)
        read = self._ask("read_scalars", SCALARS, only, downsample=points)
        return {
            run: {wanted[run][tag]: curve_of(data) for tag, data in curves.items()
                  if data and tag in wanted[run]}
            for run, curves in read.items()
        }  # fmt: skip

    def _tensors(
        self,
        plugin: str,
        runs: Sequence[str],
        tag: str,
        most: int,
        order: Callable[[Any], Any] = lambda datum: int(datum.step),
    ) -> Iterable[tuple[str, int, Any]]:
        """Run, step and content of every tensor under a tag."""
        if not runs:
            return
        read = self._ask(
            "read_tensors", plugin, RunTagFilter(runs=runs, tags=[tag]), downsample=most
        )
        for run, tags in read.items():
            for datum in sorted(tags.get(tag, ()), key=order):
                yield run, int(datum.step), datum.numpy

    def _snapshots(
        self, runs: Sequence[str], state: str, most: int, notes: list[str]
    ) -> dict[str, list[tuple[int, dict[str, Any]]]]:
        tag = f"{state}{SNAPSHOT_TAG}"
        contents: dict[str, dict[int, Any]] = {}
        # A provider thins at random, which would leave gaps: only the last may be taken from it.
        asked = 1 if most == 1 else MOST_READ
        for run, step, content in self._tensors(PLUGIN, runs, tag, asked):
            contents.setdefault(run, {})[step] = content
        found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for run, by_step in contents.items():
            for step in chosen(by_step, most):
                try:
                    found.setdefault(run, []).append((step, checked_snapshot(by_step[step])))
                except ValueError as error:
                    notes.append(f"{run}: {tag} at step {step} was skipped: {error}")
        return found

    def _facts(self, runs: Sequence[str], notes: list[str]) -> dict[str, dict[str, Any]]:
        """What trains, by run, as it was recorded last."""
        found = {}
        for run, _, content in self._tensors(
            PLUGIN, runs, FACTS_TAG, EVERY, lambda datum: datum.wall_time
        ):
            try:
                found[run] = checked_facts(content)
            except ValueError as error:
                notes.append(f"{run}: {FACTS_TAG} was skipped: {error}")
        return found

    def _changes(
        self, runs: Sequence[str], state: str, states: Mapping[str, set[str]], notes: list[str]
    ) -> dict[str, Changed]:
        """Alerts and states by run; without those whose alerts are, or may be, another state's."""
        recorded = self._recorded(runs, notes)
        rest = [run for run in runs if run not in recorded]
        texts: dict[str, list[dict[str, Any]]] = {}
        for run, step, content in self._tensors("text", rest, _TEXT_TAG, EVERY):
            for text in content.ravel().tolist():
                words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
                texts.setdefault(run, []).append(alert_of_text(words, step))
        found: dict[str, Changed] = {}
        for run in runs:
            by_state = recorded.get(run, {})
            unnamed = by_state.pop(None, None)
            own = states.get(run, set())
            if len(own) > 1 and (unnamed or run in texts):
                names = " and ".join(sorted(name.rstrip("/") or "default" for name in own))
                notes.append(f"{run}: alerts that do not say of which state they are ({names}) "
                          "are left out")  # fmt: skip
            if len(own) <= 1 and unnamed:
                found[run] = merged(unnamed, by_state.get(state, NOTHING))
            elif state in by_state:
                found[run] = by_state[state]
            elif len(own) <= 1 and not by_state:
                found[run] = NOTHING._replace(alerts=texts.get(run, []))
        return found

    def _recorded(
        self, runs: Sequence[str], notes: list[str]
    ) -> dict[str, dict[str | None, Changed]]:
        """What ``alert/changes`` says, by run and by what the tags of the state begin with."""
        found: dict[str, dict[str | None, Changed]] = {}
        for run, step, content in self._tensors(
            PLUGIN, runs, CHANGES_TAG, EVERY, lambda datum: (datum.wall_time, datum.step)
        ):
            try:
                record = checked_changes(content, step)
            except ValueError as error:
                notes.append(f"{run}: {CHANGES_TAG} at step {step} was skipped: {error}")
                continue
            states = found.setdefault(run, {})
            states[record.state] = and_then(states.get(record.state, NOTHING), record, step)
        return found


def to_json(content: Any) -> str:  # noqa: ANN401
    """JSON that every browser reads.

    Args:
        content: Plain types.

    Returns:
        The text.
    """
    return json.dumps(content, allow_nan=False, separators=(",", ":"))
