"""Shading in plain PyTorch: the specification that `shading_cpu.py` is tested against; runs on every device."""

from __future__ import annotations

import torch
from torch import Tensor

HOPS = 32
"""Triangles that the search for a silhouette crosses at most."""


def weights(points: Tensor, faces: Tensor, pinhole: Tensor, triangle_id: Tensor) -> Tensor:
    """Weights `[V, H, W, 3]` float64; see `maquette.raster.shading.surface_weights`.

    Args:
        points: vertices in camera axes `[V, N, 3]`, float64.
        faces: `[M, 3]`.
        pinhole: fx, fy, cx, cy `[V, 4]`.
        triangle_id: `[V, H, W]`.
    """
    seen = (triangle_id >= 0).nonzero()
    view, row, column = seen.unbind(1)
    corners = points[view[:, None], faces[triangle_id[view, row, column].long()]]
    focal_x, focal_y, center_x, center_y = pinhole[view].unbind(1)
    x, y = (column + 0.5 - center_x) / focal_x, (row + 0.5 - center_y) / focal_y
    ray = torch.stack([x, y, torch.ones_like(x)], dim=1)
    a, b, c = corners.unbind(1)
    edges = [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)]
    values = torch.stack([(ray * edge).sum(1) for edge in edges], dim=1)
    result = points.new_zeros(*triangle_id.shape, 3)
    return result.index_put((view, row, column), values / values.sum(1, keepdim=True))


def interpolate(attributes: Tensor, faces: Tensor, triangle_id: Tensor, weights: Tensor) -> Tensor:
    """`[P, C]` of `[N, C]`, ids `[P]` and weights `[P, 3]`."""
    seen = triangle_id >= 0
    corners = attributes[faces[triangle_id.clamp_min(0).long()]]
    return torch.where(seen[:, None], (corners * weights.to(attributes.dtype)[..., None]).sum(1), 0)


def texture(texels: Tensor, sizes: Tensor, uvs: Tensor, levels: Tensor) -> Tensor:
    """`[P, C]`: all levels of a texture one after the other `[T, C]`, their sizes `[L, 2]`, `[P, 2]` and `[P]`."""
    sizes = sizes.to(uvs.device)
    counts = sizes.prod(1)
    starts = counts.cumsum(0) - counts
    level = levels.clamp(0, len(sizes) - 1)
    low = level.floor().long()
    high = (low + 1).clamp_max(len(sizes) - 1)
    part = (level - low)[:, None]
    return (1 - part) * _bilinear(texels, sizes[low], starts[low], uvs) + part * _bilinear(
        texels, sizes[high], starts[high], uvs
    )


def _bilinear(texels: Tensor, sizes: Tensor, starts: Tensor, uvs: Tensor) -> Tensor:
    height, width = sizes.unbind(1)
    x, y = uvs[:, 0] * width - 0.5, uvs[:, 1] * height - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    right_part, lower_part = (x - left)[:, None], (y - top)[:, None]
    columns = [(left.long() + i) % width for i in (0, 1)]
    rows = [(top.long() + i) % height for i in (0, 1)]
    (a, b), (c, d) = ([texels[starts + row * width + column] for column in columns] for row in rows)
    upper = a * (1 - right_part) + b * right_part
    return upper * (1 - lower_part) + (c * (1 - right_part) + d * right_part) * lower_part


def antialias(
    color: Tensor, screen: Tensor, faces: Tensor, neighbors: Tensor, triangle_id: Tensor, depth: Tensor
) -> Tensor:
    """`[V, H, W, C]`; see `maquette.raster.shading.antialias`.

    Args:
        color: `[V, H, W, C]`.
        screen: pixel coordinates and depth of the vertices `[V, N, 3]`, float64.
        faces, neighbors: `[M, 3]`.
        triangle_id, depth: `[V, H, W]`.
    """
    if not len(faces):
        return color
    corners = screen[:, faces]
    first, second = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    facing = (first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]) > 0
    drawable = (corners[..., 2] > 0).all(-1)
    result = color
    for axis in (0, 1):
        result = result + _blend(color, screen, faces, neighbors, triangle_id, depth, facing, drawable, axis)
    return result


def _blend(
    color: Tensor,
    screen: Tensor,
    faces: Tensor,
    neighbors: Tensor,
    triangle_id: Tensor,
    depth: Tensor,
    facing: Tensor,
    drawable: Tensor,
    axis: int,
) -> Tensor:
    """What the pairs of pixels along x (0) or y (1) change."""
    size = triangle_id.shape[2 - axis] - 1
    ids = [triangle_id.narrow(2 - axis, start, size) for start in (0, 1)]
    shifted = [depth.narrow(2 - axis, start, size) for start in (0, 1)]
    far = [torch.where(i >= 0, d, torch.inf) for i, d in zip(ids, shifted, strict=True)]
    view, row, column = (ids[0] != ids[1]).nonzero().unbind(1)
    swapped = (far[1] < far[0])[view, row, column]
    near_row = row + (swapped * (axis == 1)).long()
    near_column = column + (swapped * (axis == 0)).long()
    step = torch.where(swapped, -1, 1)
    other_row, other_column = near_row + step * (axis == 1), near_column + step * (axis == 0)
    face = triangle_id[view, near_row, near_column].long()
    center = torch.stack([near_column, near_row], 1).to(screen.dtype) + 0.5
    reach = _reach(screen, faces, neighbors, facing, drawable, view, face, center, step, axis)
    found = ~reach.isnan()
    view, reach = view[found], reach[found].to(color.dtype)[:, None]
    near = (view, near_row[found], near_column[found])
    other = (view, other_row[found], other_column[found])
    difference = color[near] - color[other]
    change = torch.zeros_like(color)
    change = change.index_put(near, (reach - 0.5).clamp_max(0) * difference, accumulate=True)
    return change.index_put(other, (reach - 0.5).clamp_min(0) * difference, accumulate=True)


def _reach(
    screen: Tensor,
    faces: Tensor,
    neighbors: Tensor,
    facing: Tensor,
    drawable: Tensor,
    view: Tensor,
    face: Tensor,
    center: Tensor,
    step: Tensor,
    axis: int,
) -> Tensor:
    """How far the surface reaches from a pixel centre to the next, 0..1, `[P]`; NaN where no silhouette lies between.

    Silhouettes that run more along the pair than across it are left to the pairs of the other axis.
    """
    rows = torch.arange(len(face), device=face.device)
    line, origin = center[:, 1 - axis], center[:, axis]
    result = torch.full_like(line, torch.nan)
    walking = torch.ones_like(face, dtype=torch.bool)
    for _ in range(HOPS):
        starts = screen[view[:, None], faces[face]]
        ends = starts.roll(-1, dims=1)
        before, after = starts[..., 1 - axis] - line[:, None], ends[..., 1 - axis] - line[:, None]
        crosses = (before > 0) != (after > 0)
        share = before / torch.where(crosses, before - after, 1.0)
        position = starts[..., axis] + share * (ends[..., axis] - starts[..., axis])
        distance = torch.where(crosses, (position - origin[:, None]) * step[:, None], -torch.inf)
        leaving = distance.detach().argmax(1)
        exit_distance = distance[rows, leaving]
        following = neighbors[face, leaving]
        run = (ends - starts)[rows, leaving].detach().abs()
        steep = run[:, 0] <= run[:, 1] if axis == 0 else run[:, 1] < run[:, 0]
        outline = (following < 0) | (facing[view, following.clamp_min(0)] != facing[view, face])
        walking = walking & drawable[view, face] & (exit_distance >= 0) & (exit_distance <= 1)
        result = torch.where(walking & outline & steep, exit_distance, result)
        walking = walking & ~outline
        if not bool(walking.any()):
            break
        face = torch.where(walking, following, face)
    return result
