"""The NTK tab: a TensorBoard plugin that serves its page and its data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import Request, Response

from ntk_monitor.views.dashboard.data import DashboardData, Origin, to_json
from ntk_monitor.views.dashboard.files import TYPES, static_file, static_files
from ntk_monitor.views.record import PLUGIN

MOST_RUNS = 500

_log = logging.getLogger(__name__)


class NTKPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """What TensorBoard needs to know of the tab."""

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        """Keep where the data is.

        Args:
            context: What TensorBoard gives to every plugin.
        """
        self._data = DashboardData(context.data_provider)
        self._active = False

    def is_active(self) -> bool:
        """Whether a run has numbers of a probe."""
        try:
            self._active = self._active or self._data.has_data()
        except errors.PublicError as error:
            _log.debug("the NTK tab could not see whether there is data: %s", error)
        return self._active

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The name of the tab, and where its page begins."""
        return base_plugin.FrontendMetadata(
            es_module_path="/index.js", tab_name="NTK", disable_reload=True
        )

    def get_plugin_apps(self) -> dict[str, Any]:
        """Every address that is served: the static files by name, and the data."""
        apps: dict[str, Any] = {f"/{name}": _static(name) for name in static_files()}
        return apps | {
            "/runs": _json(self._runs),
            "/series": _json(self._series),
            "/snapshots": _json(self._snapshots),
        }

    def _runs(self, request: Request) -> dict[str, Any]:
        return self._asked(request).runs()

    def _series(self, request: Request) -> dict[str, Any]:
        runs = list(dict.fromkeys(request.values.getlist("run")))
        if not runs:
            raise ValueError("run is missing: name one or more, as run=NAME")
        if len(runs) > MOST_RUNS:
            raise ValueError(f"run must be given at most {MOST_RUNS} times, got {len(runs)}")
        return self._asked(request).series(runs, _state(request))

    def _snapshots(self, request: Request) -> dict[str, Any]:
        runs = request.values.getlist("run")
        if len(runs) != 1:
            raise ValueError(f"run must be given once, got {len(runs)}")
        return self._asked(request).snapshots(runs[0], _state(request))

    def _asked(self, request: Request) -> DashboardData:
        """The data for who asks."""
        environ = request.environ
        origin = Origin(plugin_util.context(environ), plugin_util.experiment_id(environ))
        return replace(self._data, origin=origin)


def _state(request: Request) -> str:
    state = request.values.get("state", "")
    if state and (state.count("/") != 1 or not state.endswith("/")):
        raise ValueError(f"state must be empty, or a name that ends with '/', got {state!r}")
    return state


def _static(name: str) -> Any:  # noqa: ANN401
    """An app that serves one file."""

    @Request.application
    def serve(request: Request) -> Response:
        return _respond(request, static_file(name), TYPES[name.rpartition(".")[2]], 200)

    return serve


def _json(answer: Callable[[Request], dict[str, Any]]) -> Any:  # noqa: ANN401
    """An app that serves data, and says what went wrong as JSON."""

    @Request.application
    def serve(request: Request) -> Response:
        try:
            content, code = to_json(answer(request)), 200
        except ValueError as error:
            content, code = to_json({"error": str(error)}), 400
        except Exception as error:
            _log.warning("the NTK tab could not read its data", exc_info=True)
            reason = f"TensorBoard could not read the data: {error}"
            content, code = to_json({"error": reason}), 503
        return _respond(request, content, "application/json", code)

    return serve


def _respond(request: Request, content: bytes | str, kind: str, code: int) -> Response:
    response: Response = http_util.Respond(request, content, kind, code)
    return response
