"""The page of `maquette app`: its tabs. Needs gradio."""

from __future__ import annotations

import gradio as gr

from maquette.app.page_create_tab import create_tab
from maquette.app.page_desk import Desk
from maquette.app.page_edit_tab import edit_tab

TITLE = "maquette"
_HEAD = (
    '<div class="mq-head"><h1>maquette</h1><p>A picture or a sentence in, a 3D object out. '
    'All of it is computed on this machine. <a href="api/docs" target="_blank" rel="noopener">HTTP API</a></p></div>'
)


def build_page(desk: Desk) -> gr.Blocks:
    """The page, to be mounted with the style and theme of `maquette.app.page_style`."""
    page: gr.Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(_HEAD)
        job = gr.State("")  # the result that is shown
        with gr.Tabs():
            with gr.Tab("Create", id="create"):
                create_tab(desk, job)
            with gr.Tab("Edit", id="edit") as edit:
                edit_tab(desk, job, edit)
    return page
