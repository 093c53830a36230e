"""The "Create" tab: inputs on the left, the result on the right, this session's results below. Needs gradio."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from maquette.app import page_create as create
from maquette.app import page_words as words
from maquette.app.page_desk import Desk
from maquette.errors import MaquetteError

_log = logging.getLogger(__name__)
_MAX_RESULTS = 24
_EMPTY = '<div class="mq-empty">The object will appear here.</div>'
Update = dict[Any, Any]


@dataclass(frozen=True)
class Made:
    """One result of this session.

    Attributes:
        job_id: of the job.
        caption: a few words.
        seed: that was used.
        picture: for the gallery, PNG.
    """

    job_id: str
    caption: str
    seed: int
    picture: bytes | None


@dataclass(frozen=True)
class _Inputs:
    source: gr.Textbox
    picture: gr.Image
    words: gr.Textbox
    sentence: gr.Textbox
    views: gr.File
    model: gr.Radio
    quality: gr.Radio
    seed: gr.Number
    random_seed: gr.Checkbox
    steps: gr.Slider
    guidance: gr.Slider
    negative: gr.Textbox

    def components(self) -> list[Any]:
        """In the order of `create.Fields`."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclass(frozen=True)
class _Outputs:
    progress: gr.HTML
    empty: gr.HTML
    result: gr.Column
    report: gr.HTML
    downloads: gr.HTML
    views: gr.HTML
    gaussians: gr.HTML
    mesh: gr.HTML
    video: gr.HTML
    gallery: gr.Gallery
    generate: gr.Button
    cancel: gr.Button
    seed: gr.Number
    running: gr.State
    made: gr.State
    job: gr.State

    def components(self) -> list[Any]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def create_tab(desk: Desk, job: gr.State) -> None:
    """Lays the tab out; `job` becomes the id of the result that is shown."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            inputs = _inputs(desk)
            with gr.Row():
                generate = gr.Button("Generate", variant="primary", elem_id="mq-generate")
                cancel = gr.Button("Cancel", visible=False, elem_id="mq-cancel")
        with gr.Column(scale=3, min_width=300):
            progress = gr.HTML(elem_id="mq-state")
            empty = gr.HTML(_EMPTY)
            with gr.Column(visible=False, elem_id="mq-result") as result:
                parts = _result()
    gallery = gr.Gallery(
        columns=6,
        fit_columns=False,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        label="This session's results",
        visible=False,
        elem_id="mq-gallery",
        buttons=[],
        interactive=False,
    )
    outputs = _Outputs(
        progress, empty, result, *parts, gallery, generate, cancel, inputs.seed, gr.State(""), gr.State(()), job
    )
    _wire(desk, inputs, outputs)


def _inputs(desk: Desk) -> _Inputs:
    source = gr.Textbox("picture", visible=False)  # set in the browser: no answer of the server to wait for
    with gr.Tabs():
        with gr.Tab("Picture") as by_picture:
            picture = gr.Image(
                label="Picture of one object",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                height=220,
                elem_id="mq-picture",
                buttons=[],
            )
            about = gr.Textbox(label="Words about it (optional)", max_lines=1, placeholder="a yellow taxi")
            if desk.examples.pictures:
                gr.Examples([[path] for path in desk.examples.pictures], [picture], label="Examples")
        with gr.Tab("Sentence") as by_sentence:
            sentence = gr.Textbox(label="What to make", lines=2, placeholder="a wooden chair", elem_id="mq-sentence")
            gr.Examples([[text] for text in desk.examples.sentences], [sentence], label="Examples")
        with gr.Tab("Four views") as by_views:
            views = gr.File(
                label=".zip with transforms.json and four RGBA pictures",
                file_types=[".zip"],
                elem_id="mq-views",
                height=140,
            )
            if desk.examples.views:
                gr.Examples([[path] for path in desk.examples.views], [views], label="Examples")
    for tab, name in ((by_picture, "picture"), (by_sentence, "sentence"), (by_views, "views")):
        tab.select(None, None, source, js=f"() => '{name}'", api_visibility="private")
    quality = gr.Radio(
        [("Fast", create.FAST), ("Fitted mesh (slower)", create.FITTED)], value=create.FAST, label="Quality"
    )
    with gr.Accordion("Seed, model and more", open=False):
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100, elem_id="mq-seed")
            random_seed = gr.Checkbox(False, label="Random seed", min_width=100)
        model = gr.Radio(list(desk.models), value=desk.models[0] if desk.models else None, label="Model")
        steps = gr.Slider(0, 100, 0, step=1, label="Steps", info="of the generator of views; 0: its own")
        guidance = gr.Slider(0, 20, 0, step=0.5, label="Guidance", info="0: the generator's own")
        negative = gr.Textbox(label="What not to show", max_lines=1)
    return _Inputs(
        source, picture, about, sentence, views, model, quality, seed, random_seed, steps, guidance, negative
    )


def _result() -> tuple[gr.HTML, gr.HTML, gr.HTML, gr.HTML, gr.HTML, gr.HTML]:
    """Report, downloads, views, Gaussians, mesh, video."""
    with gr.Tabs():
        with gr.Tab("Gaussians"):
            gaussians = gr.HTML(elem_id="mq-gaussians")
        with gr.Tab("Mesh"):
            mesh = gr.HTML(elem_id="mq-mesh")
        with gr.Tab("Views"):
            views = gr.HTML(elem_id="mq-sheet")
        with gr.Tab("Video"):
            video = gr.HTML()
    downloads = gr.HTML(elem_id="mq-downloads")
    report = gr.HTML(elem_id="mq-report")
    return report, downloads, views, gaussians, mesh, video


def _wire(desk: Desk, inputs: _Inputs, out: _Outputs) -> None:
    async def generate(made: tuple[Made, ...], *values: Any) -> AsyncIterator[Update]:
        async for update in _generate(desk, out, made, create.Fields(*values)):
            yield update

    def cancel(running: str) -> Update:
        try:
            desk.queue.cancel(running)
        except MaquetteError as error:
            return {out.progress: words.note_html(str(error))}
        return {out.progress: words.note_html("Cancelling: the job ends at its next step.")}

    def choose(made: tuple[Made, ...], chosen: gr.SelectData) -> Update:
        one = made[len(made) - 1 - int(chosen.index)]
        try:
            return {**_show(desk, out, one), out.progress: ""}
        except MaquetteError as error:
            return {out.progress: words.error_html(str(error))}

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    out.generate.click(generate, [out.made, *inputs.components()], out.components(), concurrency_limit=None, **quiet)
    out.cancel.click(cancel, out.running, [out.progress], queue=False, **quiet)
    out.gallery.select(choose, out.made, out.components(), **quiet)


async def _generate(desk: Desk, out: _Outputs, made: tuple[Made, ...], fields: create.Fields) -> AsyncIterator[Update]:
    """From the fields to a result, telling how far it is."""
    idle = {out.generate: gr.update(interactive=True), out.cancel: gr.update(visible=False), out.running: ""}
    try:
        yield {out.progress: words.waiting_html(), out.generate: gr.update(interactive=False)}
        request = await asyncio.to_thread(create.request_of, fields, desk.limits)
        state = desk.queue.submit(request)
        yield {out.running: state.id, out.cancel: gr.update(visible=True), out.seed: request.seed}
        async for state_now, seconds in create.follow(desk.queue, state.id):
            state = state_now
            yield {out.progress: words.progress_html(state, seconds)}
        if state.status != "done":
            failed = state.status == "failed"
            text = words.error_html(state.message) if failed else words.note_html("The job was cancelled.")
            yield {out.progress: text, **idle}
            return
        one = Made(state.id, create.caption_of(fields), request.seed, None)
        yield {**_show(desk, out, one), out.progress: "", **idle}
        picture = await asyncio.to_thread(create.thumbnail_of, desk.queue, state)
        made = (*made, dataclasses.replace(one, picture=picture))[-_MAX_RESULTS:]
        yield {out.made: made, out.gallery: gr.update(value=_pictures(made), visible=True)}
    except MaquetteError as error:
        yield {out.progress: words.error_html(str(error)), **idle}
    except Exception as error:
        _log.exception("the page failed")
        yield {out.progress: words.error_html(words.surprise(error)), **idle}


def _show(desk: Desk, out: _Outputs, one: Made) -> Update:
    """One result on the right."""
    state = desk.queue.state(one.job_id)
    parts = create.shown(desk.queue, state, one.caption, one.seed)
    return {
        out.report: parts.report,
        out.downloads: parts.downloads,
        out.views: parts.views,
        out.gaussians: parts.gaussians,
        out.mesh: parts.mesh,
        out.video: parts.video,
        out.empty: gr.update(visible=False),
        out.result: gr.update(visible=True),
        out.job: one.job_id,
    }


def _pictures(made: tuple[Made, ...]) -> list[tuple[Any, str]]:
    """For the gallery, the newest first."""
    from PIL import Image

    blank = Image.new("RGB", (192, 192), "white")
    return [
        (blank if one.picture is None else Image.open(io.BytesIO(one.picture)), one.caption) for one in reversed(made)
    ]
