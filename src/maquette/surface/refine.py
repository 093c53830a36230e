"""Moves the vertices of a mesh until its rendered normals match given normal maps, and remeshes as it goes.

The optimizer is that of Palfinger, "Continuous remeshing for inverse rendering" (2022): steps are in units of the local
edge length, the second moment is shared by the three axes, and the wanted edge length grows where vertices hardly move
and shrinks where they move fast. A step that would turn a triangle over is taken back at its corners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.mesh import Mesh
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import antialias, interpolate, surface_weights
from maquette.surface import mesh_kernels
from maquette.surface.flatten import flattened
from maquette.surface.folds import cut_folds, mended, neighbor_means, unfolded, without_turning
from maquette.surface.fusion import smooth_normals
from maquette.surface.manifold import Doubles, Faces, separate_sheets, topology, unique_edges
from maquette.surface.normal_maps import NormalMaps
from maquette.surface.refine_kernels import advance
from maquette.surface.remesh import Patch, remeshed
from maquette.surface.thickness import ThinGuard

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

_MOMENTS = (0.8, 0.8)
_LAST_RATE = 0.15
_FINE, _FINE_FROM = 2.0, 0.7
"""From this share of the steps on, no edge is wanted longer than so many times the smallest one."""
_POSITION, _FREEDOM, _SHOWN, _THIN, _LENGTH = slice(0, 3), 8, 9, 10, 11
"""Columns of the state that this module looks at; `refine_kernels.advance` lists all."""
_SMALL_PX = 512
"""Maps of at least so many pixels are halved for the steps; the last stage takes them whole."""
_FLAT_FROM = 0.6
"""From this share of the steps on, triangles are shaded by their own normals: corner normals hide what is jagged."""
_BORDER_PX = 6.0
_CREASES = 0.5
"""Smallest edge at creases in the last stage, relative to the smallest one elsewhere."""
_THICKNESS = 0.25
"""Least thickness, relative to the smallest wanted edge: what is thinner would cross itself in a step."""
_REMEMBERED = 0.8
"""Share of what was known before in what is known of a place: whether the maps show it, and whether it is thin."""
_SEARCH_EVERY = 3
"""Steps after which thin places are looked for everywhere; in the others, where there were some."""
_ALIKE = 0.8
"""Least cosine of normals that confirm each other."""
_MEND_FROM, _MEND_EVERY = 0.3, 25
"""From this share of the steps on, every so many of them, pieces that have shrunk to nothing are cut out."""


@dataclass(frozen=True)
class RefineOptions:
    """How a mesh is refined.

    Attributes:
        steps: 1 to 10,000.
        rate: first step in units of the edge length, in (0, 1]; it falls to 15 % at the end.
        edge_lengths: smallest and largest wanted edge, as shares of the radius of the mesh's bounding sphere.
        laplacian: pull of every vertex to the middle of its neighbours, relative to its speed, >= 0.
        views_per_step: normal maps compared in every step, >= 1.
        seed: of the choice of maps.
        flatten: rounds of the last stage, which gives triangles the very normals of the maps, 0 to 100.

    Raises:
        InvalidInputError: an option is out of range.
    """

    steps: int = 200
    rate: float = 0.3
    edge_lengths: tuple[float, float] = (0.02, 0.15)
    laplacian: float = 0.02
    views_per_step: int = 8
    seed: int = 0
    flatten: int = 6

    def __post_init__(self) -> None:
        low, high = self.edge_lengths
        if not 1 <= self.steps <= 10_000 or not 0 < self.rate <= 1 or not 0.002 <= low <= high <= 1:
            raise InvalidInputError(
                "steps must lie in 1..10000, rate in (0, 1] and 0.002 <= smallest <= largest edge length <= 1; "
                f"got {self.steps}, {self.rate} and {self.edge_lengths}"
            )
        if self.laplacian < 0 or self.views_per_step < 1 or not 0 <= self.flatten <= 100:
            raise InvalidInputError(
                "laplacian must be >= 0, views_per_step >= 1 and flatten in 0..100, got "
                f"{self.laplacian}, {self.views_per_step} and {self.flatten}"
            )


def refine(
    mesh: Mesh,
    maps: NormalMaps,
    options: RefineOptions | None = None,
    *,
    region: Tensor | None = None,
    region_view: int = 0,
    progress: Progress | None = None,
) -> Mesh:
    """Refines a mesh by normals.

    Args:
        mesh: closed; touching sheets are separated first. Textures and colours are not kept.
        maps: wanted normals; rendering runs on their device, remeshing on the CPU.
        options: how.
        region: what may change, as painted on one of the maps: `[H, W]`, 0..1, at the maps' size. Only the surface that
            this map's camera sees there moves, with a soft border; all else keeps its vertices.
        region_view: the map that the region was painted on.
        progress: told after every step.

    Returns:
        A closed mesh with smooth normals, without colours.

    Raises:
        InvalidInputError: the mesh is not closed, or the region is empty or not on it.
    """
    options = options or RefineOptions()
    patch, scale = _start(mesh, options)
    if region is not None:
        patch = _restricted(patch, maps.cameras.to("cpu"), region, region_view)
    guard = ThinGuard(_THICKNESS * options.edge_lengths[0] * scale, _FREEDOM, _SHOWN, _THIN)
    generator = torch.Generator().manual_seed(options.seed)
    small = maps.halved() if min(maps.cameras.height, maps.cameras.width) >= _SMALL_PX else maps
    wanted = torch.cat([small.normals * small.alpha[..., None], small.alpha[..., None]], dim=-1)
    for step in range(options.steps):
        share = step / max(options.steps - 1, 1)
        rate = options.rate * _LAST_RATE**share
        views = torch.randperm(maps.cameras.batch_shape[0], generator=generator)[: options.views_per_step]
        gradient, shown = _gradient(patch, small.cameras[views], wanted[views], flat=share >= _FLAT_FROM)
        patch = _moved(
            _told(patch, shown), gradient, step + 1, rate, options, _edge_limits(options, share, scale), guard
        )
        patch = unfolded(remeshed(patch), 1, guard)
        if share >= _MEND_FROM and step % _MEND_EVERY == 0:
            patch = cut_folds(patch, 0, guard)
        if progress is not None:
            progress(step + 1, options.steps)
    patch = mended(patch, guard)
    patch = flattened(patch, maps, _FREEDOM, options.flatten, _CREASES * options.edge_lengths[0] * scale, guard)
    patch = mended(patch, guard)
    points, faces = patch.state[:, _POSITION], patch.faces
    return Mesh(
        torch.from_numpy(points).float(), torch.from_numpy(faces), torch.from_numpy(smooth_normals(points, faces))
    )


def _start(mesh: Mesh, options: RefineOptions) -> tuple[Patch, float]:
    """The patch with empty moments, and the radius of the bounding sphere."""
    points, index = np.unique(mesh.vertices.detach().double().cpu().numpy(), axis=0, return_inverse=True)
    points, faces = separate_sheets(points, index.reshape(-1)[mesh.faces.cpu().numpy()])
    shape = topology(points, faces)
    if not shape.watertight:
        raise InvalidInputError(
            f"only a closed mesh can be refined: this one has {shape.boundary_edges:,} edges at borders and "
            f"{shape.bad_edges:,} of more than two triangles"
        )
    if shape.volume < 0:
        faces = np.ascontiguousarray(faces[:, ::-1])
    scale = float(np.linalg.norm(points - (points.min(axis=0) + points.max(axis=0)) / 2, axis=1).max())
    state = np.zeros((len(points), _LENGTH + 1))
    state[:, _POSITION], state[:, _FREEDOM] = points, 1
    edges, _ = unique_edges(faces)
    lengths = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    count = np.bincount(edges.reshape(-1), minlength=len(points))
    mean = np.bincount(edges.reshape(-1), np.repeat(lengths, 2), len(points)) / np.maximum(count, 1)
    state[:, _LENGTH] = mean.clip(options.edge_lengths[0] * scale, options.edge_lengths[1] * scale)
    return Patch(state, faces, np.zeros(len(points), bool)), scale


def _restricted(patch: Patch, cameras: Cameras, region: Tensor, view: int) -> Patch:
    """Freezes all that the camera does not see in the region; freedom grows over a few pixels from its border."""
    count = cameras.batch_shape[0]
    if not 0 <= view < count:
        raise InvalidInputError(f"the view of the region must lie in 0..{count - 1}, got {view}")
    freedom = region_freedom(patch.state[:, _POSITION], patch.faces, cameras[view : view + 1], region)
    state = patch.state.copy()
    state[:, _FREEDOM] = freedom
    return Patch(state, patch.faces, freedom <= 0)


def region_freedom(points: Doubles, faces: Faces, camera: Cameras, region: Tensor) -> Doubles:
    """How freely every vertex may move, `[N]`: 1 inside a painted region, falling to 0 over six pixels to its border.

    Args:
        points: vertices `[N, 3]`; what belongs to one position must be one vertex.
        faces: `[M, 3]`.
        camera: `[1]`, on the CPU; vertices that it does not see get 0.
        region: `[H, W]`, 0..1, at the camera's size; painted above 0.5.

    Raises:
        InvalidInputError: the region has another size, or shows nothing of the mesh.
    """
    from scipy import ndimage

    if tuple(region.shape) != (camera.height, camera.width):
        raise InvalidInputError(
            f"the region must have the size of the view it is painted on, {camera.width} x {camera.height} pixels, got "
            f"{region.shape[-1]} x {region.shape[0]}"
        )
    inside = region.cpu().numpy() > 0.5
    fragments = rasterize_mesh(torch.from_numpy(points), torch.from_numpy(faces), camera)
    ids = fragments.triangle_id[0].numpy()
    if not (inside & (ids >= 0)).any():
        raise InvalidInputError("the region is empty, or the mesh is not seen in it")
    ramp = np.clip(ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] / _BORDER_PX, 0, 1)
    freedom = np.full(len(points), np.inf)
    seen = ids >= 0
    # A vertex is as free as the least free pixel that shows one of its triangles.
    np.minimum.at(freedom, faces[ids[seen]].reshape(-1), np.repeat(ramp[seen], 3))
    freedom[~np.isfinite(freedom)] = 0
    return freedom


def _gradient(patch: Patch, cameras: Cameras, wanted: Tensor, *, flat: bool) -> tuple[Doubles, Doubles]:
    """Gradient of the mean absolute difference of normals and coverage `[N, 3]`, and what `_confirmed` tells.

    Args:
        patch: the surface.
        cameras, wanted: what should be seen, and from where: normals times coverage, and coverage, `[V, H, W, 4]`.
        flat: triangles are shaded by their own normals, not by those of the vertices.
    """
    device = cameras.device
    vertices = torch.from_numpy(patch.points).float().to(device).requires_grad_()
    faces = torch.from_numpy(patch.faces).to(device)
    # Not by an index in brackets: on a GPU its gradient sorts, and adds up in turn what goes to one row.
    corners = vertices.index_select(0, faces.reshape(-1)).reshape(-1, 3, 3)
    crossed = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    fragments = rasterize_mesh(vertices, faces, cameras)
    seen = fragments.triangle_id >= 0
    if flat:
        at = seen.nonzero(as_tuple=True)
        ids = fragments.triangle_id[at].long()
        shown = vertices.new_zeros(*seen.shape, 3)
        shown[at] = functional.normalize(crossed, dim=1).index_select(0, ids)
    else:
        summed = torch.zeros_like(vertices).index_add(0, faces.reshape(-1), crossed.repeat_interleave(3, dim=0))
        weights = surface_weights(vertices, faces, cameras, fragments)
        smooth = interpolate(functional.normalize(summed, dim=1), faces, fragments.triangle_id, weights)
        shown = functional.normalize(smooth, dim=-1)
    picture = torch.cat([shown, seen[..., None].float()], dim=-1)
    drawn = antialias(picture, vertices, faces, cameras, fragments)
    torch.autograd.backward((drawn - wanted).abs().mean())
    gradient: Doubles = (
        torch.nan_to_num(vertices.grad if vertices.grad is not None else vertices).double().cpu().numpy()
    )
    return gradient, _confirmed(fragments.triangle_id, functional.normalize(crossed.detach(), dim=1), wanted)


def _confirmed(triangle_id: Tensor, normals: Tensor, wanted: Tensor) -> Doubles:
    """Pixels of every triangle that show what is wanted there, less those that do not, and all of them, `[M, 2]`."""
    at = (triangle_id >= 0).nonzero(as_tuple=True)
    ids = triangle_id[at].long()
    alike = (normals.index_select(0, ids) * wanted[at][:, :3]).sum(dim=1) > _ALIKE
    sums = normals.new_zeros(len(normals), 2)
    sums.index_add_(0, ids, torch.stack([2.0 * alike - 1, torch.ones_like(alike, dtype=torch.float32)], dim=1))
    counted: Doubles = sums.double().cpu().numpy()
    return counted


def _edge_limits(options: RefineOptions, share: float, scale: float) -> tuple[float, float]:
    """Smallest and largest wanted edge after a share of the steps, in world units: long ones serve the way only."""
    low, high = options.edge_lengths
    last = min(high, _FINE * low)
    return low * scale, high * (last / high) ** min(1.0, share / _FINE_FROM) * scale


def _told(patch: Patch, shown: Doubles) -> Patch:
    """The patch with what the maps show of its triangles `[M, 2]` (a sum and the pixels) added to what was known."""
    state = patch.state.copy()
    state[:, _SHOWN] += (1 - _REMEMBERED) * (_at_vertices(shown, patch) - state[:, _SHOWN])
    return patch.with_state(state)


def _moved(
    patch: Patch, gradient: Doubles, step: int, rate: float, options: RefineOptions, limits: tuple[float, float],
    guard: ThinGuard,
) -> Patch:  # fmt: skip
    """One step of the optimizer."""
    state, points, shift = patch.state.copy(), patch.points, np.empty((len(patch.state), 3))
    middle, normals = neighbor_means(points, patch.edges[0]), smooth_normals(points, patch.faces).astype(np.float64)
    mean = float(np.abs(gradient).mean())
    parts = np.array([(1 - moment) / (1 - moment**step) for moment in _MOMENTS])
    pace = rate * min(1.0, step * (1 - _MOMENTS[0]))
    advance(state, gradient, options.laplacian, mean, middle, normals, parts, pace, *limits, shift)
    shift, near = guard.limited(patch, shift, everywhere=step % _SEARCH_EVERY == 1)
    state[:, _THIN] += (1 - _REMEMBERED) * (near - state[:, _THIN])
    state[near, _LENGTH] = np.minimum(state[near, _LENGTH], _FINE * limits[0])
    state[:, _POSITION] = without_turning(points, shift, patch.faces)
    return patch.with_state(state)


def _at_vertices(values: Doubles, patch: Patch) -> Doubles:
    """Sums of values of the triangles `[M, 2]` around vertices, the first over the second, 0 for nothing: `[N]`."""
    sums = np.zeros((len(patch.state), 2))
    mesh_kernels.corner_sums(patch.faces, values, sums)
    ratio: Doubles = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return ratio
