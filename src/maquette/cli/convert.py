"""`maquette convert`: one 3D file format to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from maquette.cli.console import size_text


@dataclass(frozen=True)
class Args:
    """Converts between Gaussians (.ply, .splat) and meshes (.glb, .obj, .stl, .ply); Gaussians can become a mesh."""

    source: Annotated[Positional[Path], arg(metavar="FILE")]
    """File to read."""
    target: Annotated[Positional[Path], arg(metavar="NEW_FILE")]
    """File to write; its suffix decides the format. A file of that name is replaced."""


def run(args: Args) -> int:
    """Converts one file."""
    from maquette.pipelines import convert

    path = convert(args.source, args.target)
    print(f"{path}  {size_text(path.stat().st_size)}")
    return 0
