"""The whole way from posed pictures to files, stage by stage."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import maquette
from maquette.cameras import Cameras
from maquette.choices import FORMATS as FORMATS
from maquette.contact_sheet import SheetRow, contact_sheet
from maquette.conversion import write_surface
from maquette.device import choose_device
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.io import (
    IMAGE_SUFFIXES,
    read_views,
    write_gaussians,
    write_image,
    write_video,
)
from maquette.io.atomic import atomic_write_text
from maquette.preparation import PreparedViews, prepare_views
from maquette.rendering import Asset, Lighting, Turntable, fitted, read_asset, render, render_turntable
from maquette.surface import SurfaceOptions, SurfaceReport
from maquette.surface.stages import Progress, Stages
from maquette.views import Views

MIN_OPACITY = 0.005
"""Gaussians below this are invisible and left out of the files, as in LGM's own exporter."""

REPORT_NAME = "report.json"

Reconstruct = Callable[[Views], Gaussians]
_SHEET_VIEW_SIZE = 256
_SHEET_ROWS = ((10.0, (45.0, 135.0, 225.0, 315.0)), (30.0, (22.5, 112.5, 202.5, 292.5)))


@dataclass(frozen=True)
class Result:
    """What `generate` made.

    Attributes:
        gaussians: the reconstruction without invisible Gaussians, `[N]`, in the canonical world.
        files: format to path.
        timings_s: stage to seconds, in order.
        warnings: what differs from the pictures the model was trained for.
        surface: about the mesh, if one was written.
    """

    gaussians: Gaussians
    files: dict[str, Path]
    timings_s: dict[str, float]
    warnings: tuple[str, ...]
    surface: SurfaceReport | None = None


def generate(
    views: str | Path | Views | PreparedViews,
    output: str | Path,
    *,
    model: str | Path | Reconstruct = "lgm-mini",
    formats: str | Sequence[str] = FORMATS,
    pick: Sequence[int] | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    turntable: Turntable | None = None,
    surface: SurfaceOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Turns four posed pictures of an object into 3D files.

    Args:
        views: a folder with `transforms.json` and four RGBA pictures, or `Views` `[4]`, in any world;
            `PreparedViews` are taken as they are.
        output: folder for `<name>.<format>` and `report.json`; created when missing. Files of these names are
            replaced, each in one step: an interrupted run leaves whole files only.
        model: name of a model (`maquette models list`), a file of its weights, or a function from prepared views
            `[4]` to Gaussians `[N]`.
        formats: any of `FORMATS`, as a list or separated by commas.
        pick: positions of the four views to use, when there are more.
        name: of the files; by default that of the folder, or "asset".
        device: where the network and the rasterizer run; by default the GPU if there is one.
        turntable: camera path of the video.
        surface: how the mesh is made; by default fast, without the fit of its texture and vertices.
        progress: told about every stage.

    Returns:
        The Gaussians, the files and the times.

    Raises:
        InvalidInputError: the pictures or cameras do not fit (see `prepare_views`), or an argument is not valid.
        UnsupportedError: this machine has no such GPU.
        FileFormatError: the folder cannot be read.
        WeightsError: the model's weights are missing or broken.
    """
    formats = _checked_formats(formats.split(",") if isinstance(formats, str) else formats)
    name = plain_name(name if name is not None else _default_name(views))
    folder, place = output_folder(output), choose_device(device)
    stages = Stages(progress)
    with stages.run("read"):
        given = _read(views, pick)
    with stages.run("prepare"):
        prepared = given if isinstance(given, PreparedViews) else prepare_views(given)
    with stages.run("load model"):
        reconstruct = _load(model, place)
    with stages.run("reconstruct"):
        gaussians = _reconstruct(reconstruct, prepared.views)
    files: dict[str, Path] = {}
    about_mesh = None
    for fmt in formats:
        path = folder / f"{name}.{fmt}"
        with stages.run(f"write .{fmt}") as step:
            if fmt == "glb":
                about_mesh = write_surface(path, gaussians, surface or SurfaceOptions(fast=True), step).report
            else:
                _write(fmt, path, gaussians, prepared, turntable or Turntable(), step)
        files[fmt] = path
    result = Result(gaussians, files, stages.timings_s, prepared.warnings, about_mesh)
    atomic_write_text(folder / REPORT_NAME, json.dumps(_report(result, model, views, prepared), indent=2) + "\n")
    return result


def render_file(
    source: str | Path,
    target: str | Path,
    *,
    view_deg: tuple[float, float] | None = None,
    turntable: Turntable | None = None,
    lighting: Lighting = "studio",
    fit: bool = False,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Path:
    """Renders a 3D file to a picture or a video.

    Args:
        source: Gaussians or a mesh.
        target: `.mp4` for a turntable; `.png`, `.jpg`, `.jpeg` or `.webp` for a contact sheet, or for one view.
        view_deg: azimuth and elevation of the one view, or None for a contact sheet.
        turntable: camera path of the video; its size, radius and field of view also hold for one view.
        lighting: of a mesh, see `maquette.render`.
        fit: move the object to the origin and scale it to fill the picture first.
        device: by default the GPU if there is one.
        progress: told about every stage.

    Raises:
        InvalidInputError: the target's suffix or the device is not known.
        UnsupportedError: this machine has no such GPU.
        FileFormatError: the source cannot be read.
    """
    path, turntable, place = Path(target), turntable or Turntable(), choose_device(device)
    suffix = path.suffix.lower()
    if suffix not in (".mp4", *IMAGE_SUFFIXES):
        raise InvalidInputError(
            f"cannot render to {path.name}: the suffix must be .mp4 or one of {', '.join(IMAGE_SUFFIXES)}"
        )
    stages = Stages(progress)
    with stages.run("read"):
        asset = read_asset(source)
        asset = (fitted(asset) if fit else asset).to(place)
    with stages.run("render") as step:
        if suffix == ".mp4":
            write_video(path, render_turntable(asset, turntable, lighting=lighting, progress=step), fps=turntable.fps)
        elif view_deg is not None:
            write_image(path, render(asset, turntable.camera(*view_deg), lighting=lighting))
        else:
            write_image(path, asset_sheet(asset, lighting=lighting))
    return path


def asset_sheet(asset: Asset, inputs: Views | None = None, *, lighting: Lighting = "studio") -> Tensor:
    """Contact sheet of an asset, `[3, H, W]`: input views on top when given, below them novel views.

    Args:
        asset: Gaussians `[N]` or a mesh, in the canonical world.
        inputs: prepared views, `[4]` or the first of them only.
        lighting: of a mesh, see `maquette.render`.
    """
    rows = []
    if inputs is not None:
        labels = [f"azimuth {azimuth:g}°" for azimuth in (0, 90, 180, 270)][: inputs.num_views]
        rows.append(SheetRow("Input views", inputs.composited(), labels))
    title = "Views" if inputs is None else "Novel views"
    for elevation, azimuths in _SHEET_ROWS:
        cameras = Cameras.orbit(azimuths, elevation, height=_SHEET_VIEW_SIZE, width=_SHEET_VIEW_SIZE)
        pictures = render(asset, cameras, lighting=lighting)
        rows.append(SheetRow(f"{title}, elevation {elevation:g}°", pictures, [f"azimuth {a:g}°" for a in azimuths]))
    return contact_sheet(rows)


def _write(
    fmt: str,
    path: Path,
    gaussians: Gaussians,
    prepared: PreparedViews,
    turntable: Turntable,
    step: Callable[[int, int], None],
) -> None:
    if fmt in ("ply", "splat"):
        write_gaussians(path, gaussians)
    elif fmt == "mp4":
        write_video(path, render_turntable(gaussians, turntable, progress=step), fps=turntable.fps)
    else:
        write_image(path, asset_sheet(gaussians, prepared.views))


def _read(views: str | Path | Views | PreparedViews, pick: Sequence[int] | None) -> Views | PreparedViews:
    if isinstance(views, PreparedViews):
        return views
    return _picked(views, pick) if isinstance(views, Views) else read_views(views, frames=pick)


def _picked(views: Views, pick: Sequence[int] | None) -> Views:
    if pick is None:
        return views
    outside = [index for index in pick if not 0 <= index < views.num_views]
    if outside:
        raise InvalidInputError(f"there are {views.num_views} views (0 to {views.num_views - 1}), not {outside}")
    index = torch.tensor(list(pick), device=views.images.device)
    return Views(views.images[index], views.cameras[index])


def _load(model: str | Path | Reconstruct, device: torch.device) -> Reconstruct:
    if not isinstance(model, (str, Path)):
        return model
    loaded: Reconstruct = maquette.load(model, device=device)
    return loaded


def _reconstruct(reconstruct: Reconstruct, views: Views) -> Gaussians:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", message=".* expects cameras")  # prepare_views has said it better
        gaussians = reconstruct(views).to(torch.float32)
    finite = torch.isfinite(gaussians.means).all(dim=-1)
    visible = gaussians.select(finite & (gaussians.opacities >= MIN_OPACITY))
    if visible.num_gaussians == 0:
        raise InvalidInputError(
            f"the model saw no object in these pictures: none of {gaussians.num_gaussians} Gaussians is visible. "
            "Check that the object is sharp, centred and on a transparent background"
        )
    return visible


def _report(
    result: Result,
    model: str | Path | Reconstruct,
    views: str | Path | Views | PreparedViews,
    prepared: PreparedViews,
) -> dict[str, Any]:
    return {
        "maquette": maquette.__version__,
        "torch": torch.__version__,
        "device": str(result.gaussians.device),
        "model": str(model) if isinstance(model, (str, Path)) else getattr(model, "name", type(model).__name__),
        "input": None if isinstance(views, (Views, PreparedViews)) else str(views),
        "views": {
            "order": list(prepared.order),
            "azimuths_deg": list(prepared.azimuths_deg),
            "elevations_deg": list(prepared.elevations_deg),
            "world_to_canonical": prepared.transform.tolist(),
        },
        "gaussians": result.gaussians.num_gaussians,
        "mesh": None if result.surface is None else result.surface.as_json(),
        "files": {fmt: {"path": path.name, "bytes": path.stat().st_size} for fmt, path in result.files.items()},
        "timings_s": {stage: round(seconds, 3) for stage, seconds in result.timings_s.items()},
        "warnings": list(result.warnings),
    }


def _checked_formats(formats: Sequence[str]) -> tuple[str, ...]:
    cleaned = tuple(dict.fromkeys(fmt.strip().lower().lstrip(".") for fmt in formats))
    unknown = [fmt for fmt in cleaned if fmt not in FORMATS]
    if unknown or not cleaned:
        given = ", ".join(repr(fmt) for fmt in unknown) or "none"
        raise InvalidInputError(f"unknown format(s): {given}; valid: {', '.join(FORMATS)}")
    return cleaned


def _default_name(views: str | Path | Views | PreparedViews) -> str:
    if isinstance(views, (Views, PreparedViews)):
        return "asset"
    path = Path(views).resolve()
    return path.parent.name if path.suffix == ".json" else path.name


def plain_name(name: str) -> str:
    """The name of files, after checking that it is one.

    Raises:
        InvalidInputError: it is empty or names a folder.
    """
    if not name or Path(name).name != name or name in (".", ".."):
        raise InvalidInputError(f"name must be a plain file name without folders, got {name!r}")
    return name


def output_folder(output: str | Path) -> Path:
    """The folder, which need not exist, after checking that it can be written: before minutes of work, not after.

    Raises:
        InvalidInputError: it cannot be made or written.
    """
    folder = Path(output)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir():
        raise InvalidInputError(f"the output {folder} cannot be made: {existing} is not a folder; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InvalidInputError(f"the output {folder} cannot be made: {existing} is not writable; give another folder")
    return folder
