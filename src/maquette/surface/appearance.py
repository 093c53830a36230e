"""Vertices and texture fitted to the pictures through the differentiable rasterizer.

Vertices follow coverage and colours at silhouettes, and stay smooth relative to where they came from. Texels follow the
pictures' colours without their background, weighted by how squarely and surely a pixel sees the surface: nothing of a
background bleeds into them, and slanted views do not blur them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

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
_TEXTURE_RATE = 0.02
_VERTEX_RATE = 1.5e-3
"""In units of the object's radius."""
_SMOOTHNESS = 3e3
_MOMENTS = (0.9, 0.99)
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
    triangles, shades = torch.from_numpy(faces), torch.from_numpy(colors[:, :3].copy())
    rgba = torch.cat([shades, torch.ones_like(shades[:, :1])], dim=1)
    neighbors, roughness = face_neighbors(triangles), _Roughness(triangles, len(points))
    start = torch.from_numpy(points).float()
    offsets = torch.zeros_like(start).requires_grad_()
    optimizer, schedule = _optimizer(offsets, _VERTEX_RATE, steps)
    for step, views in enumerate(_batches(len(captures.color), steps, seed)):
        optimizer.zero_grad()
        moved = start + offsets
        cameras = captures.cameras[torch.tensor(views)]
        fragments = rasterize_mesh(moved, triangles, cameras)
        flat = interpolate(rgba, triangles, fragments.triangle_id, fragments.barycentrics)
        drawn = antialias(flat, moved, triangles, cameras, fragments, neighbors=neighbors)
        wanted = torch.cat([torch.from_numpy(captures.premultiplied[views]), _alpha(captures, views)], dim=-1)
        loss = (drawn - wanted).square().mean() + _SMOOTHNESS * roughness(offsets)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    return (start + offsets.detach()).double().numpy()


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
        `[S, S, 4]`, 0..1, opaque.
    """
    colors = texture[..., :3].clone().requires_grad_()
    vertices = torch.from_numpy(points[unwrapped.origins]).float()
    looks = [_look(captures, view, vertices, unwrapped, colors.shape[0]) for view in range(len(captures.color))]
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
    return torch.cat([colors.detach(), torch.ones_like(colors[..., :1])], dim=-1)


def _look(captures: Captures, view: int, vertices: Tensor, unwrapped: Unwrapped, size: int) -> tuple[Tensor, ...]:
    """Texture coordinates, mip levels, colours and their trust, of the pixels of one view that see the mesh."""
    faces, mapped = torch.from_numpy(unwrapped.faces), torch.from_numpy(unwrapped.uvs)
    cameras = captures.cameras[view : view + 1]
    fragments = rasterize_mesh(vertices, faces, cameras)
    seen = fragments.triangle_id >= 0
    weights = surface_weights(vertices, faces, cameras, fragments)[seen]
    uvs = interpolate(mapped, faces, fragments.triangle_id[seen], weights)
    levels = texture_levels(vertices, faces, mapped, cameras, fragments, (size, size))[seen]
    pixels = seen[0].numpy()
    color, trust = captures.color[view][pixels], captures.color_trust[view][pixels]
    return uvs, levels, torch.from_numpy(color), torch.from_numpy(trust)


def _alpha(captures: Captures, views: list[int]) -> Tensor:
    return torch.from_numpy(captures.alpha[views])[..., None]


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


class _Roughness:
    """Mean squared difference between the offsets of vertices and the mean of their neighbours'."""

    def __init__(self, faces: Tensor, count: int) -> None:
        self.edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        self.degrees = torch.bincount(self.edges[:, 0], minlength=count).clamp_min(1)[:, None].float()

    def __call__(self, offsets: Tensor) -> Tensor:
        sums = torch.zeros_like(offsets).index_add(0, self.edges[:, 0], offsets[self.edges[:, 1]])
        return (offsets - sums / self.degrees).square().mean()
