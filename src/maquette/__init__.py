"""maquette: pictures in, 3D assets out. Importing this package does not import torch.

The names below are loaded from their modules on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maquette.cameras import Cameras
    from maquette.conversion import convert
    from maquette.gaussians import Gaussians
    from maquette.io import read_gaussians, read_mesh, read_views, write_gaussians, write_mesh, write_views
    from maquette.mesh import Mesh
    from maquette.pipelines import generate
    from maquette.raster import render_gaussians
    from maquette.registry import load
    from maquette.rendering import render
    from maquette.views import Views

__version__ = "0.1.0"

_EXPORTS = {
    "Cameras": "maquette.cameras",
    "Gaussians": "maquette.gaussians",
    "Mesh": "maquette.mesh",
    "Views": "maquette.views",
    "convert": "maquette.conversion",
    "generate": "maquette.pipelines",
    "load": "maquette.registry",
    "read_gaussians": "maquette.io",
    "read_mesh": "maquette.io",
    "read_views": "maquette.io",
    "render": "maquette.rendering",
    "render_gaussians": "maquette.raster",
    "write_gaussians": "maquette.io",
    "write_mesh": "maquette.io",
    "write_views": "maquette.io",
}

__all__ = [
    "Cameras",
    "Gaussians",
    "Mesh",
    "Views",
    "__version__",
    "convert",
    "generate",
    "load",
    "read_gaussians",
    "read_mesh",
    "read_views",
    "render",
    "render_gaussians",
    "write_gaussians",
    "write_mesh",
    "write_views",
]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'maquette' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
