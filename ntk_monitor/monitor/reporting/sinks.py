"""Where pictures and words go in each kind of logger."""

from __future__ import annotations

import io
import posixpath
import re
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from fsspec.core import url_to_fs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Severity = Literal["info", "warning"]
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
"""Packages that have loggers of the same names, which are different classes."""
LONGEST_TITLE = 63
"""Characters that a title of a W&B alert may have."""


class Sink:
    """Takes pictures and words for one logger; this one has no use for either.

    The logger is an argument and not kept, so that a callback can be copied after a training.
    """

    def name_of(self, tag: str) -> str:
        """Under which name the logger keeps a number.

        Args:
            tag: The number's tag.

        Returns:
            The tag itself, where the logger takes any.
        """
        return tag

    def takes_figures(self, logger: Any) -> bool:  # noqa: ANN401
        """Whether figures are worth drawing for this logger.

        Args:
            logger: The logger.

        Returns:
            True if `figures` does something.
        """
        del logger
        return type(self).figures is not Sink.figures

    def figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:  # noqa: ANN401
        """Keep figures.

        Args:
            logger: The logger.
            figures: Matplotlib figures by tag.
            step: Where on the x-axis.
        """

    def text(self, logger: Any, tag: str, text: str, step: int, severity: Severity) -> None:  # noqa: ANN401
        """Keep something said.

        Args:
            logger: The logger.
            tag: Under which tag.
            text: Markdown.
            step: Where on the x-axis.
            severity: How much it matters.
        """


class WriterSink(Sink):
    """TensorBoard, and any logger whose ``experiment`` has the methods of ``SummaryWriter``."""

    def takes_figures(self, logger: Any) -> bool:  # noqa: ANN401, D102
        return _can(logger, "add_figure")

    def figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:  # noqa: ANN401, D102
        if _can(logger, "add_figure"):
            for tag, figure in figures.items():
                logger.experiment.add_figure(tag, figure, global_step=step, close=False)

    def text(self, logger: Any, tag: str, text: str, step: int, severity: Severity) -> None:  # noqa: ANN401, D102
        del severity
        if _can(logger, "add_text"):
            logger.experiment.add_text(tag, text, global_step=step)


class CSVSink(Sink):
    """Figures as PNG files in ``figures/`` beside ``metrics.csv``, wherever the logger keeps it."""

    def takes_figures(self, logger: Any) -> bool:  # noqa: ANN401, D102
        return bool(logger.log_dir)

    def figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:  # noqa: ANN401, D102
        files = file_system(logger.log_dir)
        for tag, figure in figures.items():
            picture = io.BytesIO()  # a file then holds all of it or, for a moment, nothing
            figure.savefig(picture, format="png")
            path = f"{logger.log_dir}/figures/{file_of(tag, step, 'png')}"
            files.makedirs(posixpath.dirname(path), exist_ok=True)
            with files.open(path, "wb") as file:
                file.write(picture.getvalue())


class WandbSink(Sink):
    """Figures as images with a step slider; words as a table and as an alert.

    The table, which has all that was said so far, is in the workspace for everybody; the alert goes
    to the Slack or e-mail of those who asked W&B for that, after ``wandb sync`` if offline.

    Everything goes through the logger's ``log_metrics``, without a step of W&B's own: its step only
    counts rows, it drops a row that comes with an earlier one, and the x-axis of Lightning's runs
    is ``trainer/global_step``. Figures of a probe share a row.
    """

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._said: dict[str, list[list[Any]]] = {}

    def figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:  # noqa: ANN401, D102
        import wandb  # noqa: PLC0415 (the logger has imported it)

        logger.log_metrics({tag: wandb.Image(figure) for tag, figure in figures.items()}, step)

    def text(self, logger: Any, tag: str, text: str, step: int, severity: Severity) -> None:  # noqa: ANN401, D102
        said = self._said.setdefault(tag, [])
        said.append([step, text])
        # W&B holds an alert back that has the title of one just before; these name mode and step.
        level = "WARN" if severity == "warning" else "INFO"
        logger.experiment.alert(title_of(text), text, level=level)
        logger.log_text(tag, columns=["step", "text"], data=list(said), step=step)


USUAL = frozenset({"loss", "gradient", "update"})
"""Names that users give numbers of their own."""


class MLFlowSink(Sink):
    """Figures and words as artifacts of the run, a file for each step in a folder for each tag."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._said: tuple[str, list[str]] = ("", [])

    def name_of(self, tag: str) -> str:
        """Another name for what would lie in a folder called as a user's own number.

        MLflow's file store keeps ``loss/now`` in a folder ``loss``, where ``loss`` is a file.

        Args:
            tag: The number's tag.

        Returns:
            The tag, under ``probe/`` where its first part is a usual name of a number.
        """
        return f"probe/{tag}" if tag.split("/", maxsplit=1)[0] in USUAL else tag

    def figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:  # noqa: ANN401, D102
        for tag, figure in figures.items():
            logger.experiment.log_figure(logger.run_id, figure, file_of(tag, step, "png"))

    def text(self, logger: Any, tag: str, text: str, step: int, severity: Severity) -> None:  # noqa: ANN401, D102
        del severity
        file = file_of(tag, step, "md")
        before = self._said[1] if self._said[0] == file else []
        self._said = (file, [*before, text])  # two modes may stall in one step
        logger.experiment.log_text(logger.run_id, "\n\n".join(self._said[1]), file)


SINKS: dict[str, type[Sink]] = {
    "CSVLogger": CSVSink,
    "WandbLogger": WandbSink,
    "MLFlowLogger": MLFlowSink,
}
"""For Lightning's loggers, by the name of the class, and for what is derived from them."""

REGISTERED: dict[type, type[Sink]] = {}
"""For loggers of others; see `register_sink`."""


def register_sink(kind: type, sink: type[Sink]) -> None:
    """Have pictures and words for a kind of logger go to a sink, which is no logger of Lightning's.

    Args:
        kind: The logger's class; it holds for what is derived from it, too.
        sink: The sink, made anew for each logger.

    Example:
        >>> class Silent: ...
        >>> register_sink(Silent, Sink)
        >>> type(sink_of(Silent())).__name__
        'Sink'
    """
    REGISTERED[kind] = sink


def sink_of(logger: Any) -> Sink:  # noqa: ANN401
    """What to do with pictures and words for a logger.

    Args:
        logger: A logger of a Trainer, of either of Lightning's packages or another's.

    Returns:
        A new sink, which remembers what was said.
    """
    for kind in type(logger).__mro__:
        if kind in REGISTERED:
            return REGISTERED[kind]()
        if kind.__name__ in SINKS and kind.__module__.partition(".")[0] in LIGHTNING:
            return SINKS[kind.__name__]()
    return WriterSink()


def file_system(path: str) -> Any:  # noqa: ANN401
    """The file system of a path or an address.

    Args:
        path: A folder here, or an address such as ``s3://bucket/runs``.

    Returns:
        The file system, of fsspec.
    """
    return url_to_fs(path)[0]


def file_of(tag: str, step: int, ending: str) -> str:
    """The file for something with a tag, sorted by step, which no tag can lead elsewhere.

    Args:
        tag: The tag; its parts are folders.
        step: The step.
        ending: Of the name.

    Returns:
        A relative path.

    Example:
        >>> file_of("ntk/temporal_modes", 500, "png")
        'ntk/temporal_modes/step_000500.png'
        >>> file_of("../a:b/modes", 0, "png")
        '_/a_b/modes/step_000000.png'
    """
    parts = [re.sub(r'^\.+$|[<>:"\\|?*\x00-\x1f]', "_", part) for part in tag.split("/")]
    return "/".join([*filter(None, parts), f"step_{step:06d}.{ending}"])


def title_of(text: str) -> str:
    """The beginning of a Markdown text as a plain title.

    Args:
        text: Markdown.

    Returns:
        Whole words of its first line.

    Example:
        >>> title_of("**Target mode 1** is stalled at step 300: learned 0.000, needs 1e+10 steps.")
        'Target mode 1 is stalled at step 300: learned 0.000, needs ...'
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    return textwrap.shorten(re.sub(r"[*#`]", "", first), LONGEST_TITLE, placeholder=" ...")


def _can(logger: Any, method: str) -> bool:  # noqa: ANN401
    return callable(getattr(getattr(logger, "experiment", None), method, None))
