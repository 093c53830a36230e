"""Gaussians to a mesh: the plain surface, and the whole way to a textured asset with a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Material, Mesh
from maquette.surface.appearance import fit_texture, fit_vertices, mismatch
from maquette.surface.bake import bake_colors, bake_texture, chart_texels
from maquette.surface.captures import Captures, UnitGaussians, capture, sphere_cameras, unit_gaussians
from maquette.surface.decimate import MIN_FACES, decimate
from maquette.surface.extract import extract_density
from maquette.surface.fusion import check_fusion, fuse_captures, fuse_gaussians, smooth_normals
from maquette.surface.manifold import Doubles, Faces, separate_sheets
from maquette.surface.report import SurfaceReport, describe, likeness_to
from maquette.surface.stages import Progress, Stages
from maquette.surface.unwrap import unwrap

Method = Literal["auto", "fusion", "density"]
METHODS = ("auto", "fusion", "density")

DENSITY_LEVEL = 0.25
"""Low enough that sides which no input view saw, where networks are unsure, close."""
_FEW = 64
"""Fewer Gaussians are blobs without a surface that views could agree on: density suits them."""
_SHAPE_VIEWS, _SHAPE_SIZE = 48, 256
_COLOR_VIEWS, _COLOR_SIZE = 32, 512
_MIN_PART = 0.02
_FULL_FACES, _FAST_FACES = 20_000, 10_000
_FULL_STEPS, _FAST_STEPS = 80, 20
_TEST_VIEWS = 8
"""Views that a fit does not see, which judge it."""
_TEXTURE_SHARE = 5
"""One step for the texture for so many for the vertices."""
_MAX_TEXTURE = 4096


@dataclass(frozen=True)
class SurfaceOptions:
    """How Gaussians become a mesh.

    Attributes:
        method: see `gaussians_to_mesh`.
        resolution: grid points along the longest side, 16 to 384.
        num_faces: triangles, at least 16; None is 20,000, or 10,000 when fast. Less where the surface has less.
        colors: "texture", or "vertices" for colours at the vertices, without seams.
        texture_size: side of the texture in texels, 64 to 4096.
        fast: take fewer triangles, at most 20 steps of the fit for the vertices, and none for the texture.
        fit_steps: of the fit of the vertices to the pictures, 0 to 10,000; a fifth as many follow for the texture.
        watertight: refuse to give a mesh that is not closed and manifold with a volume.
        measure: compare the mesh with the Gaussians for the report.

    Raises:
        InvalidInputError: an option is out of range.
    """

    method: Method = "auto"
    resolution: int = 160
    num_faces: int | None = None
    colors: Literal["texture", "vertices"] = "texture"
    texture_size: int = 1024
    fast: bool = False
    fit_steps: int = _FULL_STEPS
    watertight: bool = False
    measure: bool = True

    def __post_init__(self) -> None:
        _check_method(self.method)
        check_fusion(self.resolution, _SHAPE_VIEWS, _SHAPE_SIZE, 0)
        if self.colors not in ("texture", "vertices"):
            raise InvalidInputError(f"colors must be 'texture' or 'vertices', got {self.colors!r}")
        if self.num_faces is not None and self.num_faces < MIN_FACES:
            raise InvalidInputError(f"the number of faces must be at least {MIN_FACES}, got {self.num_faces}")
        if not 64 <= self.texture_size <= _MAX_TEXTURE:
            raise InvalidInputError(f"texture_size must lie in 64..{_MAX_TEXTURE}, got {self.texture_size}")
        if not 0 <= self.fit_steps <= 10_000:
            raise InvalidInputError(f"fit_steps must lie in 0..10000, got {self.fit_steps}")

    @property
    def faces_wanted(self) -> int:
        """Triangles to reduce to."""
        return self.num_faces or (_FAST_FACES if self.fast else _FULL_FACES)


@dataclass(frozen=True)
class SurfaceResult:
    """A mesh in the Gaussians' coordinates, and what is known about it."""

    mesh: Mesh
    report: SurfaceReport


def gaussians_to_mesh(gaussians: Gaussians, *, method: Method = "auto", resolution: int = 160) -> Mesh:
    """Extracts a closed surface with outward normals and vertex colours, in the Gaussians' own coordinates.

    Args:
        gaussians: unbatched `[N]`.
        method: "fusion" fuses rendered depth and takes colours from rendered views (see `fuse_gaussians`); "density"
            is the level set of the summed Gaussians (see `extract_density`); "auto" takes fusion, and density for
            less than 64 Gaussians.
        resolution: grid points along the longest side, 16 to 384.

    Raises:
        InvalidInputError: a batch, an unknown method, a resolution out of range, or Gaussians without a surface.
    """
    if _chosen_method(gaussians, method) == "density":
        return extract_density(gaussians, resolution=resolution, level=DENSITY_LEVEL)
    return fuse_gaussians(gaussians, resolution=resolution)


def gaussians_to_asset(
    gaussians: Gaussians, options: SurfaceOptions | None = None, *, progress: Progress | None = None
) -> SurfaceResult:
    """Makes a closed mesh of a given number of triangles with a texture or vertex colours, and reports on it.

    Args:
        gaussians: unbatched `[N]`.
        options: how.
        progress: told about every stage.

    Raises:
        InvalidInputError: a batch, Gaussians without a surface, or a watertight mesh was wanted and none came out.
    """
    options = options or SurfaceOptions()
    stages = Stages(progress)
    with stages.run("mesh: render"):
        unit = unit_gaussians(gaussians)
        captures = capture(unit.gaussians, sphere_cameras(_SHAPE_VIEWS, _SHAPE_SIZE))
    with stages.run("mesh: surface"):
        points, faces = _surface(gaussians, unit, captures, options)
    with stages.run("mesh: simplify"):
        points, faces = decimate(points, faces, options.faces_wanted)
    with stages.run("mesh: pictures"):
        pictures = capture(unit.gaussians, sphere_cameras(_COLOR_VIEWS, _COLOR_SIZE))
    steps = min(options.fit_steps, _FAST_STEPS) if options.fast else options.fit_steps
    if steps:
        with stages.run("mesh: fit", steps) as step:
            points = _fitted(unit, pictures, points, faces, steps, step)
    if options.colors == "texture":
        mesh = _textured(unit, pictures, points, faces, options, stages)
    else:
        with stages.run("mesh: colors"):
            mesh = _colored(unit, pictures, points, faces)
    mesh = mesh.to(gaussians.device)
    likeness = None
    if options.measure:
        with stages.run("mesh: measure"):
            likeness = likeness_to(gaussians, mesh, unit.center, unit.radius)
    report = describe(mesh, stages.timings_s, gaussians, likeness)
    if options.watertight and not (report.watertight and report.volume is not None and report.volume > 0):
        raise InvalidInputError(
            "no watertight surface came out of these Gaussians: try another --resolution, or --method density"
        )
    return SurfaceResult(mesh, report)


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise InvalidInputError(f"unknown surface method {method!r}: valid are {', '.join(METHODS)}")


def _chosen_method(gaussians: Gaussians, method: Method) -> Method:
    _check_method(method)
    if method == "auto":
        return "density" if not gaussians.batch_shape and gaussians.num_gaussians < _FEW else "fusion"
    return method


def _surface(
    gaussians: Gaussians, unit: UnitGaussians, captures: Captures, options: SurfaceOptions
) -> tuple[Doubles, Faces]:
    """Closed manifold surface in the unit sphere."""
    if _chosen_method(gaussians, options.method) == "density":
        mesh = extract_density(unit.gaussians, resolution=options.resolution, level=DENSITY_LEVEL).to("cpu")
        points, faces = mesh.vertices.double().numpy(), mesh.faces.numpy()
    else:
        points, faces, _ = fuse_captures(captures, unit.gaussians, resolution=options.resolution, min_part=_MIN_PART)
    return separate_sheets(points, faces)


def _fitted(
    unit: UnitGaussians, captures: Captures, points: Doubles, faces: Faces, steps: int, step: Callable[[int, int], None]
) -> Doubles:
    """Vertices fitted to the views, or as they were where views in between do not gain by it."""
    vertices, triangles = torch.from_numpy(points), torch.from_numpy(faces)
    colors = bake_colors(captures, vertices, triangles, points, smooth_normals(points, faces))
    fitted = fit_vertices(captures, points, faces, colors, steps=steps, progress=step)
    unseen = capture(unit.gaussians, sphere_cameras(_TEST_VIEWS, _COLOR_SIZE, turn=0.5))
    better = mismatch(unseen, fitted, faces, colors) < mismatch(unseen, points, faces, colors)
    return fitted if better else points


def _colored(unit: UnitGaussians, captures: Captures, points: Doubles, faces: Faces) -> Mesh:
    normals = smooth_normals(points, faces)
    triangles = torch.from_numpy(faces)
    colors = torch.from_numpy(bake_colors(captures, torch.from_numpy(points), triangles, points, normals))
    return Mesh(
        unit.to_world(points),
        triangles,
        normals=torch.from_numpy(normals),
        vertex_colors=torch.cat([colors, torch.ones_like(colors[:, :1])], dim=1),
    )


def _textured(
    unit: UnitGaussians, captures: Captures, points: Doubles, faces: Faces, options: SurfaceOptions, stages: Stages
) -> Mesh:
    with stages.run("mesh: unwrap"):
        unwrapped = unwrap(points, faces, options.texture_size)
    with stages.run("mesh: bake"):
        cut_points, cut_faces = torch.from_numpy(points[unwrapped.origins]).float(), torch.from_numpy(unwrapped.faces)
        normals = torch.from_numpy(smooth_normals(points, faces)[unwrapped.origins])
        uvs, to = torch.from_numpy(unwrapped.uvs), captures.device
        charts = chart_texels(cut_points.to(to), normals.to(to), uvs.to(to), cut_faces.to(to), options.texture_size)
        texture = bake_texture(captures, cut_points, cut_faces, charts)
    if not options.fast and options.fit_steps:
        steps = -(-options.fit_steps // _TEXTURE_SHARE)
        with stages.run("mesh: fit texture", steps) as step:
            texture = fit_texture(captures, points, unwrapped, texture, steps=steps, progress=step)
    return Mesh(
        unit.to_world(points[unwrapped.origins]),
        cut_faces,
        normals=normals,
        uvs=uvs,
        materials=(Material(base_color_texture=texture),),
    )
