"""One HTML page that holds an object and everything that shows it: no other file, no network."""

from __future__ import annotations

import base64
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from maquette.data.lighting import STUDIO, UNLIT, Light
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.io.atomic import atomic_write_text
from maquette.mesh import Mesh
from maquette.rendering import read_asset
from maquette.viewer.gaussian_payload import pack_gaussians
from maquette.viewer.mesh_payload import pack_mesh
from maquette.viewer.options import MAX_SPLAT_SCALE, ViewerOptions
from maquette.viewer.payload import Payload, pack_arrays

SCRIPTS = ("payload", "camera", "gl", "splat_order", "splats", "mesh", "stage", "controls", "main")
"""The parts of the page's program, in the order in which they are joined."""
PAGE_SUFFIXES = (".html", ".htm")

_MAX_TITLE = 200
_HOLES = re.compile(r"\{\{(\w+)\}\}")


def export_html(
    asset: Path | str | Gaussians | Mesh,
    output: Path | str,
    *,
    title: str | None = None,
    options: ViewerOptions | None = None,
) -> Path:
    """Writes one self-contained page that shows an object, also offline and from a disk; atomically.

    Args:
        asset: Gaussians `[N]`, a mesh, or a file of either kind.
        output: `.html` or `.htm`; missing parent folders are made.
        title: shown above the object; by default the file's name.
        options: how the page looks when it opens.

    Returns:
        The path of the page.

    Raises:
        InvalidInputError: another suffix, or an object that cannot be shown (see `viewer_html`).
        FileFormatError: the file is missing, broken or of no known kind.
    """
    path = Path(output)
    if path.suffix.lower() not in PAGE_SUFFIXES:
        raise InvalidInputError(f"{path}: a page has one of the suffixes {', '.join(PAGE_SUFFIXES)}")
    atomic_write_text(path, viewer_html(asset, title=title, options=options))
    return path


def viewer_html(
    asset: Path | str | Gaussians | Mesh, *, title: str | None = None, options: ViewerOptions | None = None
) -> str:
    """The page of `export_html` as text.

    Raises:
        InvalidInputError: a batch of Gaussians, values that are not finite, nothing visible, or too many Gaussians or
            triangles for a browser.
        FileFormatError: the file is missing, broken or of no known kind.
    """
    if isinstance(asset, (str, Path)):
        title = Path(asset).name if title is None else title
        asset = read_asset(asset)
    payload = pack_gaussians(asset) if isinstance(asset, Gaussians) else pack_mesh(asset)
    return _page(payload, " ".join((title or "maquette").split())[:_MAX_TITLE], options or ViewerOptions())


def _page(payload: Payload, title: str, options: ViewerOptions) -> str:
    entries, stream = pack_arrays(payload.arrays)
    facts = {
        "kind": payload.kind,
        "count": payload.count,
        "center": payload.center,
        "radius": payload.radius,
        "arrays": entries,
        **payload.details,
        "options": _options(options),
        "lights": {"studio": _light(STUDIO), "unlit": _light(UNLIT)},
    }
    parts = {
        "title": html.escape(title),
        "style": _source("viewer.css"),
        "facts": json.dumps(facts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "program": "\n".join(_source(f"{name}.js") for name in SCRIPTS),
        "payload": base64.b64encode(stream).decode("ascii"),
    }
    return _HOLES.sub(lambda hole: parts[hole[1]], _source("viewer.html"))


def _source(name: str) -> str:
    return resources.files("maquette.viewer").joinpath("web", name).read_text(encoding="utf-8")


def _options(options: ViewerOptions) -> dict[str, Any]:
    """In the names of the page's program."""
    return {
        "background": options.background.lower(),
        "azimuth": options.azimuth_deg,
        "elevation": options.elevation_deg,
        "radius": options.radius,
        "fov": options.fov_deg,
        "splatScale": options.splat_scale,
        "maxSplatScale": MAX_SPLAT_SCALE,
        "lighting": options.lighting,
        "turntable": options.turntable,
        "controls": options.controls,
    }


def _light(light: Light) -> dict[str, list[float]]:
    return {
        "sky": list(light.sky),
        "ground": list(light.ground),
        "keyColor": list(light.key_color),
        "keyDirection": list(light.key_direction),
        "fillColor": list(light.fill_color),
        "fillDirection": list(light.fill_direction),
    }
