"""The page and the HTTP API in one application, with one queue: one job, or one edit, runs at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maquette.app.jobs import JobQueue, Report, Work
from maquette.app.limits import Limits
from maquette.app.page_desk import Desk
from maquette.app.page_examples import find_examples
from maquette.app.page_shelf import Shelf
from maquette.app.page_words import ROUTE, error_html
from maquette.app.request import GenerateRequest
from maquette.errors import MaquetteError, MissingDependencyError

if TYPE_CHECKING:
    from fastapi import FastAPI

_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}


def build_site(work: Work, folder: Path, limits: Limits | None = None) -> tuple[FastAPI, JobQueue]:
    """The application with everything: the page at `/`, the API at `/api`, and the queue behind both.

    Args:
        work: does the jobs.
        folder: for results and uploads of this run; created when missing.
        limits: of uploads and of the queue.

    Returns:
        The application, and the queue to close at the end.

    Raises:
        MissingDependencyError: the extra `app` is not installed.
    """
    limits, busy = limits or Limits(), threading.Lock()
    gradio = _gradio(folder / "uploads")
    from maquette.app.api import build_api
    from maquette.app.page import build_page
    from maquette.app.page_style import STYLE, theme

    queue = JobQueue(
        _exclusive(work, busy),
        folder / "results",
        capacity=limits.queue_capacity,
        timeout_s=limits.timeout_s,
        keep_s=limits.keep_s,
    )
    examples = find_examples(folder / "examples")
    desk = Desk(queue, Shelf(folder / "edited"), limits, busy, examples)
    app = build_api(queue, limits)
    _add_files(app, queue, desk.shelf)
    mounted: FastAPI = gradio.mount_gradio_app(
        app,
        build_page(desk),
        path="/",
        theme=theme(),
        css=STYLE,
        footer_links=[],
        show_error=True,
        max_file_size=limits.max_upload_bytes,
        allowed_paths=[str(Path(path).parent) for path in (*examples.pictures, *examples.views)],
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        pwa=False,
    )
    return mounted, queue


def _gradio(uploads: Path) -> Any:
    """Gradio, told before it starts that it has no business with other machines."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=str(uploads.absolute())
    )
    try:
        import gradio
    except ImportError as error:
        raise MissingDependencyError(
            f"the page needs the package {error.name}: run pip install 'maquette[app]'"
        ) from error
    return gradio


def _exclusive(work: Work, busy: threading.Lock) -> Work:
    """The work, done while no edit is computed."""

    def alone(request: GenerateRequest, folder: Path, report: Report) -> Sequence[str] | None:
        report("waiting for an edit", 0.0)
        with busy:
            return work(request, folder, report)

    return alone


def _add_files(app: FastAPI, queue: JobQueue, shelf: Shelf) -> None:
    """Routes of the page's own: files to show or save, and pages that show an asset from all sides."""
    from fastapi.responses import FileResponse, HTMLResponse, Response

    def saved(find: Any, key: str, name: str) -> Response:
        try:
            path = find(key, name)
        except MaquetteError as error:
            return HTMLResponse(error_html(str(error)), status_code=404)
        return FileResponse(path, headers=_HEADERS)

    def viewed(find: Any, key: str, name: str) -> Response:
        from maquette.rendering import read_asset
        from maquette.viewer import viewer_html

        try:
            return HTMLResponse(
                viewer_html(read_asset(find(key, name)), title="Mesh" if name.endswith(".glb") else "Gaussians"),
                headers=_HEADERS,
            )
        except MaquetteError as error:
            return HTMLResponse(error_html(str(error)), status_code=404)

    def file(key: str, name: str) -> Response:
        return saved(queue.file, key, name)

    def view(key: str, name: str) -> Response:
        return viewed(queue.file, key, name)

    def kept(key: str, name: str) -> Response:
        return saved(shelf.file, key, name)

    def kept_view(key: str, name: str) -> Response:
        return viewed(shelf.file, key, name)

    for route, answer in (("files", file), ("view", view), ("kept", kept), ("kept-view", kept_view)):
        app.add_api_route(
            f"/{ROUTE}/{route}/{{key}}/{{name}}",
            answer,
            include_in_schema=False,
            response_class=Response,
            response_model=None,
        )
