"""`maquette data render`: 3D assets to posed pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class RenderArgs:
    """Render 3D assets to posed RGBA pictures, with depth and normals, for training and evaluation.

    Objects stand upright (Y up), are scaled to one bounding sphere and lit by soft studio light that is fixed in the
    world. Run the same command again to continue an interrupted one. Broken assets are listed in failures.json.
    """

    assets: tyro.conf.Positional[Path]
    """A .glb, a .tar or .tar.xz of .glb files, or a folder of these; an index.csv among them gives metadata."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder of the data set."""
    split: str | None = None
    """Only assets of this split (column of index.csv)."""
    ids: tuple[str, ...] = ()
    """Only these assets (file names without .glb)."""
    limit: int | None = None
    """At most this many assets."""
    plan: Literal["standard", "training", "sides", "custom"] = "standard"
    """standard: 4 input and 8 novel views, the evaluation protocol. training: per variant random light, size, colours
    and 4 + 12 views. sides: per variant random light and size and 4 views from around the object. custom: all
    --azimuths at all --elevations."""
    azimuths: tuple[float, ...] | None = None
    """Degrees; 0 sees the front, 90 the object's left. For --plan custom; default 0 90 180 270."""
    elevations: tuple[float, ...] | None = None
    """Degrees, up is positive. For --plan custom; default 0."""
    radius: float = 1.5
    """Distance of the cameras from the centre, in world units (objects have a radius of 0.6)."""
    fov_deg: float = 49.1
    """Field of view in degrees."""
    image_size: int = 256
    """Width and height in pixels."""
    lighting: Literal["studio", "unlit", "random"] | None = None
    """unlit shows the base colour. Default: random for --plan training and sides, else studio."""
    variants: int | None = None
    """Looks per object. Default: 3 for --plan training, 8 for sides, else 1."""
    augment_textures: bool | None = None
    """Vary textures and colours. Default: for --plan training only."""
    reshape_probability: float = 0.0
    """For --plan sides and training: share of the variants beyond the first whose object is turned, stretched, leant
    and tapered at random, 0 to 1."""
    aligned_probability: float = 0.0
    """For --plan sides and training: share of the variants with the size and the input cameras of --plan standard,
    whose first sees the front, 0 to 1."""
    supersample: int = 2
    """Samples per pixel and axis, 1 to 4."""
    geometry: bool = True
    """Write depth and normals too."""
    seed: int = 0
    """Of everything random."""
    workers: int | None = None
    """Processes; default: one per CPU core."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def render(args: RenderArgs) -> int:
    """Runs the verb; 1 when no object could be rendered."""
    from maquette.data.batch import render_set
    from maquette.data.plans import RenderOptions

    options = RenderOptions(
        plan=args.plan,
        image_size=args.image_size,
        lighting=args.lighting,
        variants=args.variants,
        azimuths_deg=args.azimuths,
        elevations_deg=args.elevations,
        radius=args.radius,
        fov_deg=args.fov_deg,
        supersample=args.supersample,
        geometry=args.geometry,
        augment_textures=args.augment_textures,
        reshape_probability=args.reshape_probability,
        aligned_probability=args.aligned_probability,
        seed=args.seed,
    )
    show, close = _progress_bar()
    try:
        report = render_set(
            args.assets,
            args.output,
            options,
            device=args.device,
            workers=args.workers,
            split=args.split,
            ids=args.ids,
            limit=args.limit,
            progress=show,
        )
    finally:
        close()
    print(f"{report.rendered} objects rendered in {report.seconds:.1f} s, {report.skipped} were there: {args.output}")
    if report.failed:
        print(f"{report.failed} failed: see {args.output / 'failures.json'}", file=sys.stderr)
    return 0 if report.rendered or report.skipped else 1


def _progress_bar() -> tuple[Callable[[int, int, int], None], Callable[[], None]]:
    from tqdm import tqdm

    bar = tqdm(unit="object", desc="render", dynamic_ncols=True)

    def show(finished: int, failed: int, total: int) -> None:
        if bar.total != total:
            bar.total, bar.initial = total, finished
        bar.n = finished + failed
        if failed:
            bar.set_postfix(failed=failed, refresh=False)
        bar.update(0)

    return show, bar.close


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {"render": (RenderArgs, render)}
"""Nested verbs of `maquette data`."""
