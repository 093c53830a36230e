"""One 3D file to another: formats, Gaussians to meshes, and the report of every conversion."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maquette.errors import InvalidInputError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.io import (
    GAUSSIAN_SUFFIXES,
    MESH_SUFFIXES,
    asset_kind,
    read_gaussians,
    read_mesh,
    write_gaussians,
    write_mesh,
)
from maquette.io.atomic import atomic_write_text
from maquette.mesh import Mesh
from maquette.surface import SurfaceOptions, SurfaceResult, gaussians_to_asset
from maquette.surface.report import describe
from maquette.surface.simplify import simplified
from maquette.surface.stages import Progress, Stages

_TEXTURED = (".glb",)
"""Formats that hold a texture."""


def report_path(target: str | Path) -> Path:
    """Where the report of a conversion to `target` stands: `name.report.json` beside `name.glb`."""
    return Path(target).with_suffix(".report.json")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    options: SurfaceOptions | None = None,
    as_mesh: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Reads a 3D file and writes it in the format that the target's suffix names, with a report beside it.

    Gaussians become a mesh when the target is one (`.glb`, `.obj`, `.stl`; `.ply` with `as_mesh`).

    Args:
        source: Gaussians or a mesh.
        target: a file of that name and its report (`report_path`) are replaced.
        options: of the mesh, see `SurfaceOptions`; formats without textures get vertex colours. Of a mesh as source,
            `num_faces` and `watertight` count.
        as_mesh: make a mesh of Gaussians although the target is a `.ply`.
        device: where Gaussians are rendered; by default the CPU.
        progress: told about every stage.

    Returns:
        The target.

    Raises:
        UnsupportedError: a mesh cannot become Gaussians.
        InvalidInputError: the target's suffix is not known, or the surface cannot be made as wanted.
        FileFormatError: the source cannot be read.
    """
    target = Path(target)
    suffix = target.suffix.lower()
    if suffix not in {*GAUSSIAN_SUFFIXES, *MESH_SUFFIXES}:
        valid = ", ".join(sorted({*GAUSSIAN_SUFFIXES, *MESH_SUFFIXES}))
        raise InvalidInputError(f"cannot write {target.name}: the suffix must be one of {valid}")
    if as_mesh and suffix not in MESH_SUFFIXES:
        raise InvalidInputError(f"{target.name} cannot hold a mesh: choose one of {', '.join(MESH_SUFFIXES)}")
    stages = Stages(progress)
    with stages.run("read"):
        asset = read_gaussians(source) if asset_kind(source) == "gaussians" else read_mesh(source)
    if isinstance(asset, Mesh):
        _convert_mesh(Path(source), target, asset, options, stages)
    elif suffix in MESH_SUFFIXES and (as_mesh or suffix not in GAUSSIAN_SUFFIXES):
        made = gaussians_to_asset(asset.to(device) if device else asset, _fitting(options, suffix), progress=progress)
        stages.timings_s.update(made.report.seconds)
        with stages.run(f"write {suffix}"):
            write_mesh(target, made.mesh)
        _write_report(source, target, dataclasses.replace(made.report, seconds=stages.timings_s).as_json())
    else:
        with stages.run(f"write {suffix}"):
            write_gaussians(target, asset)
        _write_report(source, target, {"gaussians": asset.num_gaussians, "seconds": _rounded(stages.timings_s)})
    return target


def write_surface(
    path: Path, gaussians: Gaussians, options: SurfaceOptions, step: Callable[[int, int], None]
) -> SurfaceResult:
    """Makes a mesh of Gaussians and writes it; `step` is told (fit steps done, in all)."""

    def fit_only(stage: str, done: int, total: int) -> None:
        if total > 1:
            step(done, total)

    made = gaussians_to_asset(gaussians, _fitting(options, path.suffix.lower()), progress=fit_only)
    write_mesh(path, made.mesh)
    return made


def _fitting(options: SurfaceOptions | None, suffix: str) -> SurfaceOptions:
    options = options or SurfaceOptions()
    return options if suffix in _TEXTURED else dataclasses.replace(options, colors="vertices")


def _convert_mesh(source: Path, target: Path, mesh: Mesh, options: SurfaceOptions | None, stages: Stages) -> None:
    suffix = target.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise UnsupportedError(
            f"{source.name} is a mesh, and a mesh cannot become Gaussians ({suffix}) by conversion: render it "
            "(maquette data render) and reconstruct (maquette generate), or choose .glb, .obj, .stl or .ply"
        )
    if suffix not in _TEXTURED:
        mesh = dataclasses.replace(mesh, uvs=None)
    report = describe(mesh, stages.timings_s)
    if options is not None and (options.num_faces is not None or (options.watertight and not report.watertight)):
        with stages.run("mesh: simplify"):
            mesh = simplified(mesh, options.num_faces)
        report = describe(mesh, stages.timings_s)
    if options is not None and options.watertight and not (report.volume or 0) > 0:
        raise InvalidInputError(
            f"{source.name} is not watertight: it has borders, edges of more than two triangles, or its inside out. "
            "Close it in a modelling program, or reconstruct it (maquette data render, maquette generate)"
        )
    with stages.run(f"write {suffix}"):
        write_mesh(target, mesh)
    _write_report(source, target, dataclasses.replace(report, seconds=stages.timings_s).as_json())


def _write_report(source: str | Path, target: Path, content: dict[str, Any]) -> None:
    head = {"source": Path(source).name, "file": target.name, "bytes": target.stat().st_size}
    atomic_write_text(report_path(target), json.dumps(head | content, indent=2) + "\n")


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in seconds.items()}
