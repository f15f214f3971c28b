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
    multiplexer = EventMultiplexer(
        size_guidance={"tensors": PICTURES},
        tensor_size_guidance={SCALARS: ALL, PLUGIN: ALL, "text": ALL, IMAGES: PICTURES},
    )
    for name, folder in names.items():
        if folder in events:
            multiplexer.AddRun(str(folder), name)
    multiplexer.Reload()
    others = {name: folder for name, folder in names.items() if folder in tables}
    return Runs(multiplexer, str(paths[0]), others)


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


class Runs(MultiplexerDataProvider):  # type: ignore[misc]
    """Runs with event files, and beside them those of Lightning's CSVLogger.

    The latter have no wall times; of records there are none.
    """

    def __init__(
        self, multiplexer: EventMultiplexer, logdir: str, folders: Mapping[str, Path]
    ) -> None:
        """Read every table.

        Args:
            multiplexer: What has read the event files.
            logdir: Where they are.
            folders: Where each other run's ``metrics.csv`` is, by the run's name.
        """
        super().__init__(multiplexer, logdir)
        self._tables = {name: _read_csv(folder / TABLE) for name, folder in folders.items()}

    def list_runs(self, ctx: Any = None, *, experiment_id: str) -> list[Run]:  # noqa: ANN401
        """All runs."""
        found = super().list_runs(ctx, experiment_id=experiment_id)
        tables = (Run(run_id=name, run_name=name, start_time=None) for name in self._tables)
        return [*found, *tables]

    def list_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, dict[str, ScalarTimeSeries]]:
        """All curves, without their points."""
        return dict(super().list_scalars(ctx, **asked)) | {
            run: {tag: _without_points(points) for tag, points in curves.items()}
            for run, curves in self._curves(**asked).items()
        }

    def read_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, Curves]:
        """All curves, with their points."""
        return dict(super().read_scalars(ctx, **asked)) | self._curves(**asked)

    def read_last_scalars(
        self,
        ctx: Any = None,  # noqa: ANN401
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, dict[str, ScalarDatum]]:
        """The last point of each curve."""
        return dict(super().read_last_scalars(ctx, **asked)) | {
            run: {tag: points[-1] for tag, points in curves.items()}
            for run, curves in self._curves(**asked).items()
        }

    def _curves(
        self,
        *,
        plugin_name: str,
        run_tag_filter: RunTagFilter | None = None,
        **others: Any,  # noqa: ANN401
    ) -> dict[str, Curves]:
        """The curves of tables that are asked for, with every point."""
        del others
        if plugin_name != SCALARS:
            return {}
        only = run_tag_filter or RunTagFilter()
        return {
            run: {tag: points for tag, points in curves.items()
                  if only.tags is None or tag in only.tags}
            for run, curves in self._tables.items()
            if only.runs is None or run in only.runs
        }  # fmt: skip


def _without_points(points: Sequence[ScalarDatum]) -> ScalarTimeSeries:
    return ScalarTimeSeries(
        max_step=points[-1].step, max_wall_time=points[-1].wall_time, plugin_content=b"",
        description="", display_name="",
    )  # fmt: skip


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
