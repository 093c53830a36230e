"""Edits of a painted region of a mesh: the part of the "Edit" tab that knows nothing of web pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.raster.api import render_gaussians
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import interpolate, surface_weights
from maquette.rendering import render
from maquette.surface.folds import neighbor_means, unfolded, without_turning
from maquette.surface.fusion import smooth_normals
from maquette.surface.manifold import Doubles, Faces, unique_edges
from maquette.surface.normal_maps import NormalMaps
from maquette.surface.recolor import recolored
from maquette.surface.refine import RefineOptions, refine, region_freedom
from maquette.surface.remesh import Patch

Shows = Literal["color", "normals"]
Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

MAX_STRENGTH = 10
"""Of smoothing."""

_ROUNDS = 8
"""Passes of smoothing for every step of its strength."""
_SHRINK, _PASS_BAND = 0.5, 0.2
"""Taubin's first factor, and the frequency (0 to 2) that his pair of passes leaves as it is, at strength 1."""
_AROUND = ((0.0, 0.0), (25.0, 0.0), (-25.0, 0.0), (0.0, 20.0), (0.0, -20.0))
"""Azimuth and elevation of the views that refinement looks from, relative to the view that was painted on."""
_BLUR_PX = 3.0
_DEPTH_TOLERANCE = 0.05
"""Depth of the Gaussians farther from the mesh than this belongs to something else."""


@dataclass(frozen=True)
class EditView:
    """A view of the mesh to paint on.

    Attributes:
        azimuth_deg: 0 looks at the front, 90 at the object's left side.
        elevation_deg: in [-90, 90]; above is positive.
        shows: the mesh in its colours, or its normals as colours.
        image_size: height and width in pixels, 64 to 1024.

    Raises:
        InvalidInputError: a value is out of range.
    """

    azimuth_deg: float = 0.0
    elevation_deg: float = 0.0
    shows: Shows = "normals"
    image_size: int = 512

    def __post_init__(self) -> None:
        if not -90 <= self.elevation_deg <= 90:
            raise InvalidInputError(f"elevation must lie in -90..90 degrees, got {self.elevation_deg:g}")
        if self.shows not in ("color", "normals"):
            raise InvalidInputError(f"a view shows 'color' or 'normals', got {self.shows!r}")
        if not 64 <= self.image_size <= 1024:
            raise InvalidInputError(f"image_size must lie in 64..1024 pixels, got {self.image_size}")

    def camera(self) -> Cameras:
        """The camera, `[1]`."""
        return self._cameras(((0.0, 0.0),))

    def cameras_around(self) -> Cameras:
        """The camera and four beside it, `[5]`."""
        return self._cameras(_AROUND)

    def _cameras(self, offsets: tuple[tuple[float, float], ...]) -> Cameras:
        azimuths = [self.azimuth_deg + azimuth for azimuth, _ in offsets]
        elevations = [min(max(self.elevation_deg + elevation, -90.0), 90.0) for _, elevation in offsets]
        return Cameras.orbit(azimuths, elevations, height=self.image_size, width=self.image_size)


@dataclass(frozen=True)
class EditHistory:
    """The states of a mesh under edits, the present one last.

    Attributes:
        meshes: at least one.
        limit: most states kept; the oldest go first.
    """

    meshes: tuple[Mesh, ...]
    limit: int = 9

    @property
    def mesh(self) -> Mesh:
        """The present state."""
        return self.meshes[-1]

    @property
    def num_undos(self) -> int:
        """How many edits can be undone."""
        return len(self.meshes) - 1

    def edited(self, mesh: Mesh) -> EditHistory:
        """With a new state on top."""
        return dataclasses.replace(self, meshes=(*self.meshes, mesh)[-self.limit :])

    def undone(self) -> EditHistory:
        """Without the last edit.

        Raises:
            InvalidInputError: there is none.
        """
        if not self.num_undos:
            raise InvalidInputError("there is no edit to undo")
        return dataclasses.replace(self, meshes=self.meshes[:-1])


def view_picture(mesh: Mesh, view: EditView) -> Tensor:
    """What a view shows on white, `[3, H, W]`, 0..1."""
    if view.shows == "color":
        return render(mesh, view.camera())[0]
    camera = view.camera()
    fine = camera.resized(2 * camera.height, 2 * camera.width)
    normals, seen = _mesh_normals(mesh.vertices.double().numpy(), mesh.faces.numpy(), mesh.normals, fine)
    shown = torch.where(seen[..., None], (normals + 1) / 2, 1.0).permute(0, 3, 1, 2)
    return functional.avg_pool2d(shown, 2)[0].clamp(0, 1)


def smooth_region(mesh: Mesh, region: Tensor, view: EditView, *, strength: int = 3) -> Mesh:
    """Smooths what a view shows of a mesh in a painted region; triangles and texture coordinates stay.

    Vertices move along their normals, by Taubin, "A signal processing approach to fair surface design" (1995): bumps
    go, the volume stays.

    Args:
        mesh: vertices at one position move together.
        region: `[H, W]`, 0..1, painted above 0.5, at the view's size.
        view: that the region was painted on.
        strength: 1 to 10.

    Raises:
        InvalidInputError: the region is empty, has another size or shows nothing of the mesh; or the strength.
    """
    if not 1 <= strength <= MAX_STRENGTH:
        raise InvalidInputError(f"strength must lie in 1..{MAX_STRENGTH}, got {strength}")
    mesh = mesh.to("cpu")
    points, index, faces = _welded(mesh)
    freedom = region_freedom(points, faces, view.camera(), region)
    edges, _ = unique_edges(faces)
    smooth = points
    grow = 1 / (_PASS_BAND / strength - 1 / _SHRINK)  # what it grows, the pass before it has shrunk: volume stays
    for _ in range(strength * _ROUNDS):
        for share in (_SHRINK, grow):
            normals = smooth_normals(smooth, faces).astype(np.float64)
            along = ((neighbor_means(smooth, edges) - smooth) * normals).sum(axis=1, keepdims=True)
            smooth = without_turning(smooth, share * freedom[:, None] * along * normals, faces)
    smooth = unfolded(Patch(smooth, faces, freedom <= 0), 8).state
    vertices = mesh.vertices.clone()
    moved = (smooth != points).any(axis=1)[index]
    vertices[torch.from_numpy(moved)] = torch.from_numpy(smooth[index][moved]).to(vertices)
    return dataclasses.replace(mesh, vertices=vertices, normals=torch.from_numpy(smooth_normals(smooth, faces)[index]))


def refine_region(
    mesh: Mesh,
    gaussians: Gaussians,
    region: Tensor,
    view: EditView,
    *,
    steps: int = 60,
    finest: float = 0.015,
    progress: Progress | None = None,
) -> Mesh:
    """Moves what a view shows of a mesh in a painted region towards the surface that its Gaussians show there.

    The goal are the normals of their rendered depth, seen from the view and four beside it; triangles there become
    smaller. The mesh gets new texture coordinates, and its colours are carried over.

    Args:
        mesh: closed.
        gaussians: that the mesh was made of, `[N]`, in the same place.
        region: `[H, W]`, 0..1, painted above 0.5, at the view's size.
        view: that the region was painted on.
        steps: of the optimizer, 1 to 10,000.
        finest: smallest edges, as a share of the object's radius.
        progress: told after every step.

    Raises:
        InvalidInputError: the region is empty, has another size or shows nothing of the mesh; the mesh is not closed.
    """
    mesh = mesh.to("cpu")
    points, _, faces = _welded(mesh)
    cameras = view.cameras_around()
    region_freedom(points, faces, cameras[:1], region)  # says what is wrong with a region before the long part
    maps = depth_normals(gaussians, points, faces, cameras)
    plain = Mesh(torch.from_numpy(points).float(), torch.from_numpy(faces))
    options = RefineOptions(steps=steps, edge_lengths=(finest, max(0.15, finest)), views_per_step=3)
    moved = refine(plain, maps, options, region=region, region_view=0, progress=progress)
    return recolored(moved.vertices.double().numpy(), moved.faces.numpy(), mesh)


def depth_normals(gaussians: Gaussians, points: Doubles, faces: Faces, cameras: Cameras) -> NormalMaps:
    """Normals of the rendered depth of Gaussians, and those of a mesh where the two are not the same surface.

    Args:
        gaussians: `[N]`.
        points: vertices `[N, 3]` of a mesh near their surface.
        faces: `[M, 3]`.
        cameras: `[V]`, on the CPU.

    Returns:
        Unit normals in the world, with the coverage of the mesh, on the CPU.
    """
    from scipy import ndimage

    with torch.inference_mode():
        rendered = render_gaussians(gaussians.to(torch.float32), cameras.to(gaussians.device))
    alpha, depth = rendered.alpha.cpu().double().numpy(), rendered.depth.cpu().double().numpy()
    fragments = rasterize_mesh(torch.from_numpy(points), torch.from_numpy(faces), cameras)
    own, seen = _mesh_normals(points, faces, None, cameras)
    near = fragments.depth.double().numpy()
    mean = depth / np.maximum(alpha, 1e-6)
    weight = alpha * ((alpha > 0.5) & seen.numpy() & (np.abs(mean - near) < _DEPTH_TOLERANCE))
    blur = (0.0, _BLUR_PX, _BLUR_PX)
    share = ndimage.gaussian_filter(weight, blur)
    # The difference to the mesh is smoothed, not the depth: its slope would be cut off at borders.
    offset = ndimage.gaussian_filter(weight * (mean - near), blur) / np.maximum(share, 1e-6)
    wanted = _normals_of_depth(torch.from_numpy(near + offset), cameras)
    trust = torch.from_numpy(ndimage.binary_erosion(share > 0.5, np.ones((1, 3, 3)), iterations=2))
    normals = torch.where(trust[..., None], wanted, own)
    return NormalMaps(cameras, functional.normalize(normals, dim=-1).float(), seen.float())


def _normals_of_depth(depth: Tensor, cameras: Cameras) -> Tensor:
    """World normals `[V, H, W, 3]` of depth along z `[V, H, W]`, by differences of the pixels beside each."""
    k = cameras.intrinsics.double()
    rows = torch.arange(cameras.height, dtype=torch.float64) + 0.5
    columns = torch.arange(cameras.width, dtype=torch.float64) + 0.5
    x = (columns[None, None, :] - k[:, 0, 2, None, None]) / k[:, 0, 0, None, None] * depth
    y = (rows[None, :, None] - k[:, 1, 2, None, None]) / k[:, 1, 1, None, None] * depth
    position = torch.stack([x, y, depth], dim=-1)
    down, right = torch.gradient(position, dim=(1, 2))
    facing = torch.linalg.cross(down, right)  # towards the camera: y is down, z is forward
    rotation = cameras.camera_to_world[:, :3, :3].double()
    return functional.normalize(torch.einsum("vij,vhwj->vhwi", rotation, facing), dim=-1)


def _mesh_normals(points: Doubles, faces: Faces, normals: Tensor | None, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Unit normals `[V, H, W, 3]` (0 where nothing is seen) and what is seen `[V, H, W]`."""
    corners = torch.from_numpy(smooth_normals(points, faces)) if normals is None else normals.cpu().float()
    vertices, triangles = torch.from_numpy(points), torch.from_numpy(faces)
    fragments = rasterize_mesh(vertices, triangles, cameras)
    weights = surface_weights(vertices.float(), triangles, cameras, fragments)
    shown = interpolate(corners, triangles, fragments.triangle_id, weights)
    return functional.normalize(shown, dim=-1), fragments.triangle_id >= 0


def _welded(mesh: Mesh) -> tuple[Doubles, NDArray[np.int64], Faces]:
    """Positions without repetitions, the position of every vertex, and the triangles between positions."""
    points, index = np.unique(mesh.vertices.detach().double().numpy(), axis=0, return_inverse=True)
    index = index.reshape(-1).astype(np.int64)
    return points, index, index[mesh.faces.numpy()]
