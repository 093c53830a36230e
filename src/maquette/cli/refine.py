"""`maquette refine`: a mesh moved until its normals match given normal maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from maquette.cli.console import StageLines, size_text


@dataclass(frozen=True)
class Args:
    """Moves the vertices of a closed mesh so that its rendered normals match normal maps from known cameras."""

    normals: Annotated[Path, arg(metavar="DIR")]
    """Folder with transforms.json whose frames have normal_file_path, as maquette data render writes it."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """Mesh to write; its suffix decides the format. A file of that name is replaced."""
    mesh: Annotated[Positional[Path | None], arg(metavar="MESH")] = None
    """Closed mesh (.glb, .obj, .stl, .ply), in the world of the cameras. Its colours are not kept. Left out, it
    starts from the visual hull of the maps' coverage, carved by the depth that the normals imply."""
    frames: Annotated[str | None, arg(metavar="LIST")] = None
    """Positions in transforms.json of the frames to use, such as 0,1,2,3; by default all."""
    region: Annotated[Path | None, arg(metavar="PNG")] = None
    """Picture of the size of the normal maps, light where the surface may change; the rest stays as it is."""
    view: int = 0
    """Which of the frames in use the region was painted on, from 0."""
    steps: int = 150
    """Steps of the optimizer."""
    finest: float = 0.02
    """Smallest edges, as a share of the object's radius."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """cpu, cuda or cuda:N: where normals are rendered; by default the GPU if there is one."""


def run(args: Args) -> int:
    """Refines one mesh."""
    from maquette.device import choose_device
    from maquette.errors import InvalidInputError
    from maquette.io import read_image, read_mesh, write_mesh
    from maquette.surface.carve import carved_mesh
    from maquette.surface.normal_maps import read_normal_maps
    from maquette.surface.refine import RefineOptions, refine
    from maquette.surface.stages import Stages

    try:
        frames = None if args.frames is None else [int(part) for part in args.frames.split(",")]
    except ValueError as error:
        raise InvalidInputError(f"--frames needs whole numbers separated by commas, got {args.frames!r}") from error
    options = RefineOptions(steps=args.steps, edge_lengths=(args.finest, max(0.15, args.finest)))
    stages = Stages(StageLines())
    with stages.run("read"):
        maps = read_normal_maps(args.normals, frames=frames)
        mesh = carved_mesh(maps) if args.mesh is None else read_mesh(args.mesh)
        maps = maps.to(choose_device(args.device))
        region = None
        if args.region is not None:
            picture = read_image(args.region)
            region = picture[:3].mean(dim=0) * picture[3]
    with stages.run("refine", args.steps) as step:
        refined = refine(mesh, maps, options, region=region, region_view=args.view, progress=step)
    with stages.run("write"):
        write_mesh(args.output, refined)
    print(f"{args.output}  {size_text(args.output.stat().st_size)}  ({refined.num_faces:,} triangles)")
    return 0
