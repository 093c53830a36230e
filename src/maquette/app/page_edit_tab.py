"""The "Edit" tab: a view of the mesh to paint on, what to do there, and the edited mesh. Needs gradio."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from maquette.app import page_edit as edit
from maquette.app import page_words as words
from maquette.app.page_desk import Desk
from maquette.errors import InvalidInputError, MaquetteError

_log = logging.getLogger(__name__)
_NOTHING = "There is no mesh yet: make an object in the Create tab, or choose one of this session's results there."
_HOW = "Paint over a part of the object, then smooth or refine it. The rest stays as it is."
_SIDES = (("Front", 0), ("Left", 90), ("Back", 180), ("Right", -90))
Update = dict[Any, Any]


@dataclass(frozen=True)
class _Parts:
    painting: gr.ImageEditor
    message: gr.HTML
    download: gr.HTML
    viewer: gr.HTML
    undo: gr.Button
    session: gr.State
    azimuth: gr.Slider
    elevation: gr.Slider
    shows: gr.Radio

    def components(self) -> list[Any]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def edit_tab(desk: Desk, job: gr.State, tab: gr.Tab) -> None:
    """Lays the tab out; whenever it is opened, it takes the mesh of `job`."""
    session = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            message = gr.HTML(words.note_html(_NOTHING), elem_id="mq-edit-message")
            painting = gr.ImageEditor(
                type="numpy",
                image_mode="RGBA",
                sources=(),
                transforms=(),
                layers=False,
                show_label=False,
                canvas_size=(edit.VIEW_SIZE, edit.VIEW_SIZE),
                fixed_canvas=True,
                format="png",
                buttons=[],
                height=560,
                brush=gr.Brush(default_size=48, colors=["rgba(225, 29, 72, 0.6)"], color_mode="fixed"),
                eraser=gr.Eraser(default_size=48),
                elem_id="mq-painting",
            )
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                sides = [gr.Button(name, size="sm", min_width=60) for name, _ in _SIDES]
            azimuth = gr.Slider(-180, 180, 0, step=5, label="Around", info="degrees; 0 is the front")
            elevation = gr.Slider(-80, 80, 0, step=5, label="Height", info="degrees; above is positive")
            shows = gr.Radio([("Shape", "normals"), ("Colours", "color")], value="normals", label="Show")
            strength = gr.Slider(1, 10, 3, step=1, label="Strength of smoothing")
            with gr.Row():
                smooth = gr.Button("Smooth region", variant="primary", size="md", min_width=120, elem_id="mq-smooth")
                refine = gr.Button("Refine region", size="md", min_width=120, elem_id="mq-refine")
            undo = gr.Button("Undo", size="md", interactive=False, elem_id="mq-undo")
            download = gr.HTML(elem_id="mq-edit-download")
    viewer = gr.HTML(elem_id="mq-edit-viewer")
    parts = _Parts(painting, message, download, viewer, undo, session, azimuth, elevation, shows)
    _wire_views(desk, job, tab, parts, sides)
    _wire_edits(desk, parts, smooth, refine, strength)


def _wire_views(desk: Desk, job: gr.State, tab: gr.Tab, parts: _Parts, sides: list[gr.Button]) -> None:
    def opened(job_id: str, session: edit.EditSession | None) -> Update:
        if not job_id or (session is not None and session.job_id == job_id):
            return {parts.session: session}

        def start() -> Update:
            files = words.ResultFiles.of(desk.queue.state(job_id).files)
            if not (files.glb and files.ply):
                raise InvalidInputError("this result has no mesh")
            fresh = edit.start_session(job_id, desk.queue.file(job_id, files.glb), desk.queue.file(job_id, files.ply))
            return {
                **_state(desk, parts, fresh, _HOW),
                parts.azimuth: 0,
                parts.elevation: 0,
                parts.shows: "normals",
            }

        return _in_words(parts, start)

    def turned(session: edit.EditSession | None, azimuth: float, elevation: float, shows: str) -> Update:
        def turn() -> Update:
            looked = _present(session).turned(edit.view_of(azimuth, elevation, shows))
            return {parts.session: looked, parts.painting: _picture(looked)}

        return _in_words(parts, turn)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    outputs = parts.components()
    inputs = [parts.session, parts.azimuth, parts.elevation, parts.shows]
    tab.select(opened, [job, parts.session], outputs, concurrency_limit=2, **quiet)
    for field in (parts.azimuth, parts.elevation):
        field.release(turned, inputs, outputs, **quiet)
    parts.shows.input(turned, inputs, outputs, **quiet)
    for button, (_, degrees) in zip(sides, _SIDES, strict=True):
        button.click(lambda to=degrees: (to, 0), None, [parts.azimuth, parts.elevation], queue=False, **quiet).then(
            turned, inputs, outputs, **quiet
        )


def _wire_edits(desk: Desk, parts: _Parts, smooth: gr.Button, refine: gr.Button, strength: gr.Slider) -> None:
    def change(
        kind: edit.Kind,
        session: edit.EditSession | None,
        painting: dict[str, Any] | None,
        power: float,
        progress: gr.Progress,
    ) -> Update:
        def work() -> Update:
            before = _present(session)
            region = edit.painted_region(painting)
            after = edit.edited(
                before, kind, region, int(power), desk.busy, lambda share, what: progress(share, desc=what)
            )
            return _state(desk, parts, after, edit.change_words(before, after))

        return _in_words(parts, work)

    def smoothed(session: Any, painting: Any, power: float, progress: gr.Progress = gr.Progress()) -> Update:  # noqa: B008
        return change("smooth", session, painting, power, progress)

    def refined(session: Any, painting: Any, power: float, progress: gr.Progress = gr.Progress()) -> Update:  # noqa: B008
        return change("refine", session, painting, power, progress)

    def undone(session: edit.EditSession | None) -> Update:
        return _in_words(parts, lambda: _state(desk, parts, _present(session).undone(), "The last edit is undone."))

    inputs, outputs = [parts.session, parts.painting, strength], parts.components()
    visible: dict[str, Any] = {"show_progress_on": parts.message, "api_visibility": "private"}
    smooth.click(smoothed, inputs, outputs, **visible)
    refine.click(refined, inputs, outputs, **visible)
    parts.undo.click(undone, parts.session, outputs, **visible)


def _in_words(parts: _Parts, work: Callable[[], Update]) -> Update:
    """Does something; an error becomes a message, and nothing else changes."""
    try:
        return work()
    except MaquetteError as error:
        return {parts.message: words.error_html(str(error))}
    except Exception as error:
        _log.exception("the page failed")
        return {parts.message: words.error_html(words.surprise(error))}


def _present(session: edit.EditSession | None) -> edit.EditSession:
    if session is None:
        raise InvalidInputError(_NOTHING)
    return session


def _picture(session: edit.EditSession) -> dict[str, Any]:
    picture = edit.picture_of(session)
    return {"background": picture, "layers": [], "composite": picture}


def _state(desk: Desk, parts: _Parts, session: edit.EditSession, message: str) -> Update:
    """Everything that follows from a state of the mesh."""
    from maquette.io import write_mesh

    name = f"{session.name}-edited.glb" if session.history.num_undos else f"{session.name}.glb"
    key, path = desk.shelf.new(name)
    write_mesh(path, session.history.mesh)
    return {
        parts.session: session,
        parts.painting: _picture(session),
        parts.message: words.note_html(message),
        parts.undo: gr.update(interactive=session.history.num_undos > 0),
        parts.download: words.downloads_row(words.kept_url("kept", key, name), name, path.stat().st_size),
        parts.viewer: words.viewer_html(words.kept_url("kept-view", key, name), "The edited mesh, to turn"),
    }
