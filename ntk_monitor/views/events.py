"""Runs of log folders, read without TensorBoard: event files, or else a CSVLogger's numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.data.provider import DataProvider, Run, RunTagFilter, ScalarDatum, ScalarTimeSeries

from ntk_monitor.views.dashboard.data import NOBODY, SCALARS
from ntk_monitor.views.record import PLUGIN

ALL = 0
"""Asks TensorBoard's reader to keep every point of a plugin."""
PICTURES = 4
TABLE = "metrics.csv"
IMAGES = "images"

Curves = dict[str, list[ScalarDatum]]


class NoRunsError(ValueError):
    """A path holds nothing to report on; the message says what to do."""


def open_runs(paths: Sequence[Path]) -> DataProvider:
    """Read everything below some folders.

    Files that are still written, or that end in the middle of a record, are read as far as they go.

    Args:
        paths: Log folders, of one run or of several; or event files.

    Returns:
        A data provider, as TensorBoard has one.

    Raises:
        NoRunsError: If a path does not exist, there are no numbers below it, or a table cannot be
            read.
    """
    events: dict[Path, Path] = {}
    tables: dict[Path, Path] = {}  # the folders of each, with the path that they are below
    for path in paths:
        if not path.exists():
            raise NoRunsError(f"{path} does not exist: give the log folder of a run")
        top = path if path.is_dir() else path.parent
        files = sorted(path.rglob("*tfevents*")) if path.is_dir() else [path]
        found = {f.parent: top for f in files if "tfevents" in f.name and f.is_file()}
        csvs = {}
        if path.is_dir() or not found:
            csvs = {f.parent: top for f in sorted(top.rglob(TABLE)) if f.is_file()}
        if not found and not csvs:
            raise NoRunsError(
                f"{path} holds no event files (events.out.tfevents...), nor a metrics.csv of a "
                "CSVLogger: give the folder that TensorBoard would be given as --logdir"
            )
        events |= found
        tables |= csvs
    tables = {folder: top for folder, top in tables.items() if folder not in events}
    names = _named(events | tables)
    csv_runs = CSVRuns({name: folder for name, folder in names.items() if folder in tables})
    if not events:
        return csv_runs
    multiplexer = EventMultiplexer(
        size_guidance={"tensors": PICTURES},
        tensor_size_guidance={SCALARS: ALL, PLUGIN: ALL, "text": ALL, IMAGES: PICTURES},
    )
    for name, folder in names.items():
        if folder in events:
            multiplexer.AddRun(str(folder), name)
    multiplexer.Reload()
    return BothRuns(multiplexer, str(paths[0]), csv_runs)


class Picture(NamedTuple):
    """A figure that was logged: at which step, and as PNG."""

    step: int
    png: bytes


def pictures(provider: DataProvider, run: str) -> dict[str, Picture]:
    """The figures that a run has logged last, by tag.

    Args:
        provider: What `open_runs` gave.
        run: A run's name.

    Returns:
        The pictures; none where no figures were logged.
    """
    read = provider.read_blob_sequences(
        NOBODY.ctx, experiment_id="", plugin_name=IMAGES, downsample=PICTURES,
        run_tag_filter=RunTagFilter(runs=[run]),
    )  # fmt: skip
    found = {}
    for tag, data in sorted(((read or {}).get(run) or {}).items()):
        if data and tag.endswith(("ntk/cumulative_variance", "ntk/temporal_modes", "target/modes")):
            picture = data[-1].values[-1]  # before it come its width and its height
            png = provider.read_blob(NOBODY.ctx, blob_key=picture.blob_key)
            found[tag] = Picture(int(data[-1].step), png)
    return found


class CSVRuns(DataProvider):  # type: ignore[misc]
    """The numbers of Lightning's CSVLogger, as a data provider has them.

    They have no wall times; of records there are none.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Read every table.

        Args:
            folders: Where each run's ``metrics.csv`` is, by the run's name.
        """
        self._runs = {name: _read_csv(folder / TABLE) for name, folder in folders.items()}

    def list_runs(self, ctx: Any = None, *, experiment_id: str) -> list[Run]:  # noqa: ANN401
        """All runs."""
        del ctx, experiment_id
        return [Run(run_id=name, run_name=name, start_time=None) for name in self._runs]

    def list_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, dict[str, ScalarTimeSeries]]:
        """All curves, without their points."""
        return {
            run: {
                tag: ScalarTimeSeries(
                    max_step=points[-1].step,
                    max_wall_time=points[-1].wall_time,
                    plugin_content=b"",
                    description="",
                    display_name="",
                )
                for tag, points in curves.items()
            }
            for run, curves in self.read_scalars(ctx, **asked).items()
        }

    def read_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        *,
        experiment_id: str,
        plugin_name: str,
        downsample: int | None = None,
        run_tag_filter: RunTagFilter | None = None,
    ) -> dict[str, Curves]:
        """All curves, with every point."""
        del ctx, experiment_id, downsample
        if plugin_name != SCALARS:
            return {}
        only = run_tag_filter or RunTagFilter()
        return {
            run: {tag: points for tag, points in curves.items()
                  if only.tags is None or tag in only.tags}
            for run, curves in self._runs.items()
            if only.runs is None or run in only.runs
        }  # fmt: skip

    def read_last_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, dict[str, ScalarDatum]]:
        """The last point of each curve."""
        return {run: {tag: points[-1] for tag, points in curves.items()}
                for run, curves in self.read_scalars(ctx, **asked).items()}  # fmt: skip


class BothRuns(MultiplexerDataProvider):  # type: ignore[misc]
    """Runs with event files, and beside them runs of a CSVLogger."""

    def __init__(self, multiplexer: EventMultiplexer, logdir: str, tables: CSVRuns) -> None:
        """Keep both.

        Args:
            multiplexer: What has read the event files.
            logdir: Where they are.
            tables: The other runs.
        """
        super().__init__(multiplexer, logdir)
        self._tables = tables

    def list_runs(self, ctx: Any = None, *, experiment_id: str) -> list[Run]:  # noqa: ANN401
        """All runs."""
        found = super().list_runs(ctx, experiment_id=experiment_id)
        return [*found, *self._tables.list_runs(experiment_id=experiment_id)]

    def list_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, dict[str, ScalarTimeSeries]]:
        """All curves, without their points."""
        found = super().list_scalars(ctx, **asked) or {}
        return dict(found) | self._tables.list_scalars(ctx, **asked)

    def read_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, Curves]:
        """All curves, with their points."""
        found = super().read_scalars(ctx, **asked) or {}
        return dict(found) | self._tables.read_scalars(ctx, **asked)

    def read_last_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, dict[str, ScalarDatum]]:
        """The last point of each curve."""
        found = super().read_last_scalars(ctx, **asked) or {}
        return dict(found) | self._tables.read_last_scalars(ctx, **asked)


def _read_csv(path: Path) -> Curves:
    """Curves by tag; a last line that is not complete is left out."""
    curves: Curves = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            for row in csv.DictReader(file):
                _add_row(curves, row)
        except csv.Error as error:
            raise NoRunsError(
                f"{path} cannot be read as a table of a CSVLogger: {error}"
            ) from error
    return curves


def _add_row(curves: Curves, row: dict[str, Any]) -> None:
    step = _number(row.pop("step", None))
    if step is None or not math.isfinite(step):
        return
    for tag, text in row.items():
        value = _number(text)
        if tag and value is not None:
            datum = ScalarDatum(step=int(step), wall_time=0.0, value=value)
            curves.setdefault(tag, []).append(datum)


def _number(text: Any) -> float | None:  # noqa: ANN401
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _named(tops: Mapping[Path, Path]) -> dict[str, Path]:
    """A short name for each folder: its path below the folder that was given, or that one's own."""
    several = len(set(tops.values())) > 1
    names: dict[str, Path] = {}
    for folder, top in tops.items():
        below = folder.relative_to(top).as_posix()
        whole = top.resolve()
        own = "/".join(whole.parts[-2:]) if whole.name.startswith("version_") else whole.name
        name = own if below == "." else f"{own}/{below}" if several else below
        names[name if name not in names else folder.as_posix()] = folder
    return names
