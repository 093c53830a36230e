"""Vertices and texture fitted to the pictures through the differentiable rasterizer.

Vertices follow coverage and colours at silhouettes. Their gradient is averaged over neighbours, and its scale is one
number for all of them: what no silhouette moves stays, and the surface stays smooth. The pictures are halved for it:
Gaussians have soft borders of a fixed number of pixels, which would be twice as wide in pictures rendered at half the
size. Texels follow the pictures' colours without their background, weighted by how squarely and surely a pixel sees
the surface: nothing of a background bleeds into them, and slanted views do not blur them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import (
    antialias,
    face_neighbors,
    interpolate,
    sample_texture,
    surface_weights,
    texture_levels,
)
from maquette.surface.captures import Captures
from maquette.surface.manifold import Doubles, Faces
from maquette.surface.triangles import Floats
from maquette.surface.unwrap import Unwrapped

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

_VIEWS_PER_STEP = 4
_TEXTURE_RATE = 0.005
_VERTEX_RATE = 4e-3
"""In units of the object's radius, for the twentieth of the vertices that the pictures move most."""
_MOVED_SHARE = 20
_SMOOTHING = 3
_MOMENTS = (0.9, 0.95)
_LAST_RATE = 0.1


def fit_vertices(
    captures: Captures,
    points: Doubles,
    faces: Faces,
    colors: Floats,
    *,
    steps: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Doubles:
    """Moves the vertices of a closed mesh so that its silhouettes are those of the pictures.

    Args:
        captures: the pictures; four of them are compared in every step.
        points: `[N, 3]`; faces: `[M, 3]`: the mesh, in the pictures' coordinates.
        colors: of the vertices, `[N, 3]`.
        steps: of the optimizer, >= 1.
        seed: of the choice of pictures.
        progress: told after every step.

    Returns:
        New positions `[N, 3]`.
    """
    triangles, start, rgba = _colored(captures, points, faces, colors)
    neighbors, around = face_neighbors(triangles), _Neighbors(triangles, len(points))
    moved, mean, square = start.clone(), torch.zeros_like(start), start.new_zeros(())
    pictures, cameras = captures.halved
    batches = torch.tensor(list(_batches(len(pictures), steps, seed))).to(captures.device)
    for step, chosen in enumerate(batches):
        moved.requires_grad_()
        difference = _drawn(rgba, moved, triangles, cameras[chosen], neighbors) - pictures[chosen]
        (gradient,) = torch.autograd.grad(difference.square().mean(), moved)
        with torch.no_grad():
            gradient = around.averaged(gradient, _SMOOTHING)
            mean = mean.lerp(gradient, 1 - _MOMENTS[0])
            most = gradient.square().sum(dim=1).topk(-(-len(points) // _MOVED_SHARE)).values.mean()
            square = square.lerp(most, 1 - _MOMENTS[1])
            scale = (1 - _MOMENTS[0] ** (step + 1)) * (square / (1 - _MOMENTS[1] ** (step + 1))).sqrt()
            moved = moved - _VERTEX_RATE * (1 - step / steps) * mean / scale.clamp_min(1e-20)
        if progress is not None:
            progress(step + 1, steps)
    return moved.double().cpu().numpy()


def mismatch(captures: Captures, points: Doubles, faces: Faces, colors: Floats) -> float:
    """Mean squared difference between pictures and a mesh with vertex colours, both on white; arguments as above."""
    triangles, vertices, rgba = _colored(captures, points, faces, colors)
    with torch.no_grad():
        pictures, cameras = captures.halved
        drawn = _drawn(rgba, vertices, triangles, cameras, face_neighbors(triangles))
        return float((drawn - pictures).square().mean())


def _colored(captures: Captures, points: Doubles, faces: Faces, colors: Floats) -> tuple[Tensor, Tensor, Tensor]:
    """Faces, vertices and opaque colours of the vertices `[N, 4]`, where the pictures are."""
    rgba = np.concatenate([colors[:, :3], np.ones_like(colors[:, :1])], axis=1)
    given = (faces, points.astype(np.float32), rgba)
    triangles, vertices, shades = (torch.from_numpy(value).to(captures.device) for value in given)
    return triangles, vertices, shades


def _drawn(rgba: Tensor, vertices: Tensor, faces: Tensor, cameras: Cameras, neighbors: Tensor) -> Tensor:
    """Antialiased picture on white `[V, H, W, 3]`; gradients by vertices come from silhouettes alone."""
    fragments = rasterize_mesh(vertices, faces, cameras)
    flat = interpolate(rgba, faces, fragments.triangle_id, fragments.barycentrics)
    smooth = antialias(flat, vertices, faces, cameras, fragments, neighbors=neighbors)
    return smooth[..., :3] + 1 - smooth[..., 3:]


def fit_texture(
    captures: Captures,
    points: Doubles,
    unwrapped: Unwrapped,
    texture: Tensor,
    *,
    steps: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Fits a texture to pictures.

    Args:
        captures: the pictures; four of them are compared in every step.
        points: vertices before they were cut along seams, `[N, 3]`, in the pictures' coordinates.
        unwrapped: the mesh cut along seams.
        texture: start, `[S, S, 4]`.
        steps: of the optimizer, >= 1.
        seed: of the choice of pictures.
        progress: told after every step.

    Returns:
        `[S, S, 4]`, 0..1, opaque, on the CPU.
    """
    device = captures.device
    colors = texture[..., :3].to(device).clone().requires_grad_()
    vertices = torch.from_numpy(points[unwrapped.origins]).float().to(device)
    mapped = (torch.from_numpy(unwrapped.faces).to(device), torch.from_numpy(unwrapped.uvs).to(device))
    looks = [_look(captures, view, vertices, *mapped, colors.shape[0]) for view in range(len(captures.alpha))]
    optimizer, schedule = _optimizer(colors, _TEXTURE_RATE, steps)
    for step, views in enumerate(_batches(len(looks), steps, seed)):
        optimizer.zero_grad()
        uvs, levels, wanted, trust = (torch.cat([looks[view][i] for view in views]) for i in range(4))
        difference = (sample_texture(colors, uvs, levels) - wanted).square().sum(dim=1)
        torch.autograd.backward((trust * difference).sum() / trust.sum().clamp_min(1e-6))
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            colors.clamp_(0, 1)
        if progress is not None:
            progress(step + 1, steps)
    return torch.cat([colors.detach(), torch.ones_like(colors[..., :1])], dim=-1).cpu()


def _look(
    captures: Captures, view: int, vertices: Tensor, faces: Tensor, mapped: Tensor, size: int
) -> tuple[Tensor, ...]:
    """Texture coordinates, mip levels, colours and their trust, of the pixels of one view that see the mesh."""
    cameras = captures.cameras[view : view + 1]
    fragments = rasterize_mesh(vertices, faces, cameras)
    seen = fragments.triangle_id >= 0
    weights = surface_weights(vertices, faces, cameras, fragments)[seen]
    uvs = interpolate(mapped, faces, fragments.triangle_id[seen], weights)
    levels = texture_levels(vertices, faces, mapped, cameras, fragments, (size, size))[seen]
    return uvs, levels, captures.color[view][seen[0]], captures.color_trust[view][seen[0]]


def _optimizer(
    parameter: Tensor, rate: float, steps: int
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.ExponentialLR]:
    optimizer = torch.optim.Adam([parameter], lr=rate, betas=_MOMENTS, eps=1e-12)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, _LAST_RATE ** (1 / steps))


def _batches(count: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Views of every step: all come once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < _VIEWS_PER_STEP:
            order += torch.randperm(count, generator=generator).tolist()
        yield order[:_VIEWS_PER_STEP]
        order = order[_VIEWS_PER_STEP:]


class _Neighbors:
    """Averages over the vertices around each."""

    def __init__(self, faces: Tensor, count: int) -> None:
        self.edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        self.degrees = torch.bincount(self.edges[:, 0], minlength=count)[:, None].float()

    def averaged(self, values: Tensor, times: int) -> Tensor:
        """Values `[N, C]`, so many times mixed with those of their neighbours."""
        for _ in range(times):
            sums = torch.zeros_like(values).index_add(0, self.edges[:, 0], values[self.edges[:, 1]])
            values = (values + sums) / (1 + self.degrees)
        return values
