"""`maquette generate`: posed pictures of an object to 3D files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from maquette.cli.console import StageLines, size_text


@dataclass(frozen=True)
class Args:
    """Turns four posed pictures of an object into Gaussians, a mesh, a turntable and a contact sheet."""

    views: Annotated[Positional[Path], arg(metavar="VIEWS_DIR")]
    """Folder with transforms.json (nerfstudio layout) and four RGBA pictures; the first one becomes the front."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("outputs")
    """Folder for NAME.FORMAT and report.json. It is created when missing; files of the same name are replaced."""
    model: Annotated[str, arg(metavar="NAME|FILE")] = "lgm-mini"
    """Name of a model (see: maquette models list) or a .safetensors file."""
    formats: Annotated[str, arg(metavar="LIST")] = "ply,splat,glb,mp4,png"
    """What to write, with commas and without spaces: ply, splat (Gaussians), glb (mesh), mp4 (turntable), png (contact
    sheet)."""
    pick: Annotated[str | None, arg(metavar="LIST")] = None
    """Positions in transforms.json of the four frames to use, such as 0,3,6,9, when there are more than four."""
    name: Annotated[str | None, arg(metavar="NAME")] = None
    """Name of the files; by default that of VIEWS_DIR."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """cpu, cuda or cuda:N; by default the GPU if there is one."""
    frames: int = 60
    """Frames of the turntable, one turn."""
    fps: int = 30
    """Frames per second of the turntable."""
    image_size: int = 384
    """Side of the turntable's pictures in pixels."""
    fit_mesh: FlagCreatePairsOff[bool] = False
    """Fit texture and vertices of the .glb to views of the Gaussians (half a minute on a CPU), as convert does."""


def run(args: Args) -> int:
    """Runs the pipeline and says where the files are."""
    from maquette.pipelines import generate
    from maquette.rendering import Turntable
    from maquette.surface import SurfaceOptions

    result = generate(
        args.views,
        args.output,
        model=args.model,
        formats=args.formats,
        pick=None if args.pick is None else _integers(args.pick),
        name=args.name,
        device=args.device,
        turntable=Turntable(num_frames=args.frames, fps=args.fps, image_size=args.image_size),
        surface=SurfaceOptions(fast=not args.fit_mesh),
        progress=StageLines(),
    )
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{result.gaussians.num_gaussians:,} Gaussians in {sum(result.timings_s.values()):.1f} s")
    for path in result.files.values():
        print(f"  {path}  {size_text(path.stat().st_size)}")
    return 0


def _integers(text: str) -> list[int]:
    from maquette.errors import InvalidInputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(
            f"--pick needs whole numbers separated by commas, such as 0,3,6,9, got {text!r}"
        ) from error
