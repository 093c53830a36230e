"""An object in the browser: one page that needs neither server nor network, and a server for it on this machine."""

from __future__ import annotations

from maquette.viewer.options import ViewerOptions, background_of
from maquette.viewer.page import export_html, viewer_html
from maquette.viewer.server import ViewerServer

__all__ = ["ViewerOptions", "ViewerServer", "background_of", "export_html", "viewer_html"]
