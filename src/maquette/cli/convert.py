"""`maquette convert`: one 3D file format to another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from maquette.cli.console import StageLines, size_text


@dataclass(frozen=True)
class Args:
    """Converts between Gaussians (.ply, .splat) and meshes (.glb, .obj, .stl, .ply); Gaussians can become a mesh."""

    source: Annotated[Positional[Path], arg(metavar="FILE")]
    """File to read."""
    target: Annotated[Positional[Path], arg(metavar="NEW_FILE")]
    """File to write; its suffix decides the format. A file of that name, and NEW_FILE's .report.json, are replaced."""
    fast: FlagCreatePairsOff[bool] = False
    """Gaussians to a mesh in seconds: 10,000 triangles, and no fit of texture and vertices to the Gaussians' views."""
    faces: Annotated[int | None, arg(metavar="N")] = None
    """Triangles of the mesh; by default 20,000, or 10,000 with --fast, for Gaussians, and as they are for a mesh."""
    watertight: FlagCreatePairsOff[bool] = False
    """Write only a mesh that is closed and manifold with a volume; otherwise stop with an error."""
    colors: Literal["texture", "vertices"] = "texture"
    """Of a .glb from Gaussians: a texture, or colours at the vertices. Other formats get colours at the vertices."""
    texture_size: Annotated[int, arg(metavar="PIXELS")] = 1024
    """Side of the texture."""
    method: Literal["auto", "fusion", "density"] = "auto"
    """How Gaussians become a surface: fusion of rendered depth, or the density of the Gaussians."""
    resolution: Annotated[int, arg(metavar="N")] = 160
    """Grid points along the longest side, 16 to 384: finer details, and more time."""
    as_mesh: FlagCreatePairsOff[bool] = False
    """Make a mesh of Gaussians although NEW_FILE is a .ply."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """cpu, cuda or cuda:N: where Gaussians are rendered; by default the GPU if there is one."""


def run(args: Args) -> int:
    """Converts one file."""
    from maquette.conversion import convert, report_path
    from maquette.device import choose_device
    from maquette.surface import SurfaceOptions

    options = SurfaceOptions(
        method=args.method,
        resolution=args.resolution,
        num_faces=args.faces,
        colors=args.colors,
        texture_size=args.texture_size,
        fast=args.fast,
        watertight=args.watertight,
    )
    device = str(choose_device(args.device))
    path = convert(
        args.source, args.target, options=options, as_mesh=args.as_mesh, device=device, progress=StageLines()
    )
    print(f"{path}  {size_text(path.stat().st_size)}{_summary(report_path(path))}")
    return 0


def _summary(report: Path) -> str:
    """One line about the mesh, where there is one."""
    content = json.loads(report.read_text(encoding="utf-8"))
    if "triangles" not in content:
        return ""
    words = [f"{content['triangles']:,} triangles", "watertight" if content["watertight"] else "not watertight"]
    if content["psnr_db"] is not None:
        words.append(f"{content['psnr_db']:.1f} dB against the Gaussians")
    return "  (" + ", ".join(words) + f"; {report.name})"
