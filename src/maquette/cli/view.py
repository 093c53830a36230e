"""`maquette view`: a 3D file in the browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from maquette.cli.console import size_text


@dataclass(frozen=True)
class Args:
    """Shows Gaussians (.ply, .splat) or a mesh (.glb, .obj, .stl, .ply) in the browser, until Ctrl-C."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """File to show."""
    export: Annotated[Path | None, arg(metavar="PAGE")] = None
    """Instead write one HTML page that shows the object anywhere, also offline and opened from a disk."""
    title: Annotated[str | None, arg(metavar="TEXT")] = None
    """What stands above the object; by default the file's name."""
    background: Annotated[str, arg(metavar="COLOR")] = "white"
    """white, gray, black, transparent, or a colour such as d8e2dc. It can be changed on the page, as all below."""
    turntable: FlagCreatePairsOff[bool] = False
    """Let the object turn by itself."""
    lighting: Literal["studio", "unlit"] = "studio"
    """Light on a mesh: studio shows its shape, unlit its colours as stored. Gaussians carry their light."""
    port: Annotated[int, arg(metavar="N")] = 0
    """Of the page on this machine (127.0.0.1); 0 takes a free one."""
    open: bool = True
    """Whether to open the browser."""


def run(args: Args) -> int:
    """Shows or exports one file."""
    from maquette.viewer import ViewerOptions, ViewerServer, background_of, export_html, viewer_html

    options = ViewerOptions(background=background_of(args.background), turntable=args.turntable, lighting=args.lighting)
    if args.export is not None:
        path = export_html(args.file, args.export, title=args.title, options=options)
        print(f"{path}  {size_text(path.stat().st_size)}")
        return 0
    page = viewer_html(args.file, title=args.title, options=options)
    with ViewerServer(page, args.port) as server:
        print(server.url, flush=True)
        if args.open and not _open_browser(server.url):
            print("no browser found: open the address above in one", file=sys.stderr)
        print("Ctrl-C ends it", file=sys.stderr)
        try:
            server.wait()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    return 0


def _open_browser(url: str) -> bool:
    """False where there is none with windows: one in the terminal could not show the page."""
    if sys.platform == "linux" and not any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return False
    return webbrowser.open(url)
