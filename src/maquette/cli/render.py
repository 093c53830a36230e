"""`maquette render`: pictures of a 3D file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from maquette.cli.console import StageLines, size_text


@dataclass(frozen=True)
class Args:
    """Renders Gaussians (.ply, .splat) or a mesh (.glb): a turntable (.mp4), a contact sheet or one view (.png)."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """File to render; the object is expected at the origin, inside [-1, 1]^3, Y up, front +Z."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="PICTURE")] = None
    """.mp4: turntable; .png: contact sheet, or one view if an angle is given. By default FILE-render.png."""
    azimuth: Annotated[float | None, arg(metavar="DEGREES")] = None
    """Renders one view from here: 0 is the front, growing to the object's left."""
    elevation: Annotated[float | None, arg(metavar="DEGREES")] = None
    """Height of the camera, -90 to 90. For one view 0, for a turntable 10 by default."""
    radius: float = 1.5
    """Distance of the camera."""
    fov_deg: float = 49.1
    """Vertical field of view in degrees."""
    image_size: int = 384
    """Side of the turntable's or the view's pictures in pixels."""
    frames: int = 60
    """Frames of the turntable, one turn."""
    fps: int = 30
    """Frames per second of the turntable."""
    lighting: Literal["studio", "unlit"] = "studio"
    """Light on a mesh: studio shows its shape, unlit its colours as stored. Gaussians carry their light."""
    fit: FlagCreatePairsOff[bool] = False
    """First moves the object to the origin and scales it to fill the picture."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """cpu, cuda or cuda:N; by default the GPU if there is one."""


def run(args: Args) -> int:
    """Renders one file and says where the picture is."""
    from maquette.pipelines import render_file
    from maquette.rendering import Turntable

    turntable = Turntable(
        num_frames=args.frames,
        fps=args.fps,
        image_size=args.image_size,
        elevation_deg=10.0 if args.elevation is None else args.elevation,
        radius=args.radius,
        fov_deg=args.fov_deg,
    )
    one_view = args.azimuth is not None or args.elevation is not None
    path = render_file(
        args.file,
        args.output if args.output is not None else args.file.with_name(f"{args.file.stem}-render.png"),
        view_deg=(args.azimuth or 0.0, args.elevation or 0.0) if one_view else None,
        turntable=turntable,
        lighting=args.lighting,
        fit=args.fit,
        device=args.device,
        progress=StageLines(),
    )
    print(f"{path}  {size_text(path.stat().st_size)}")
    return 0
