"""The kernels of `tsdf.py` in PyTorch, for GPUs: the same arguments as tensors, the same results up to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 20


def integrate(arguments: Sequence[Tensor], shape: tuple[int, int, int]) -> Tensor:
    """Signed distances `[X, Y, Z]` on a grid of that shape.

    Args:
        arguments: those of `tsdf.integrate` from `depth` to `settings`.
        shape: of the grid.
    """
    depth, alpha, weights, matrices, pinhole, reliance, geometry, settings = arguments
    truncation, solid, free_weight, hidden_weight = settings.unbind()
    axes = [geometry[i] + geometry[3] * torch.arange(n, device=depth.device) for i, n in enumerate(shape)]
    grid = torch.cartesian_prod(*axes)
    distance = torch.empty(len(grid), device=depth.device)
    for start in range(0, len(grid), _CHUNK):
        points = grid[start : start + _CHUNK]
        sums, total = torch.zeros_like(points[:, 0]), torch.zeros_like(points[:, 0])
        for view in range(len(depth)):
            x, y, z = _local(points, matrices[view])
            fx, fy, cx, cy = pinhole[view]
            pixel, inside = _pixel(torch.floor(fx * x / z + cx), torch.floor(fy * y / z + cy), depth[view])
            covered = torch.where(inside, alpha[view].reshape(-1)[pixel] / solid, 0.0)
            ahead = (depth[view].reshape(-1)[pixel] - z) / truncation
            weight = weights[view].reshape(-1)[pixel] * reliance[view]
            weight = torch.where(ahead < -1, hidden_weight, torch.where(ahead > 1, weight * free_weight, weight))
            free = covered < 1
            weight = torch.where(free, free_weight * (1 - covered).square(), weight)
            sums += weight * torch.where(free, 1.0, ahead.clamp(-1, 1))
            total += weight
        distance[start : start + _CHUNK] = sums / total.clamp_min(1e-12)
    return distance.reshape(shape)


def gather_colors(arguments: Sequence[Tensor], tolerance: float) -> Tensor:
    """Weighted colours and weights `[N, 4]`.

    Args:
        arguments: those of `tsdf.gather_colors` from `points` to `positions`.
        tolerance: as there.
    """
    points, normals, color, depth, weights, matrices, pinhole, positions = arguments
    sums = points.new_zeros(len(points), 4)
    height, width = depth.shape[1:]
    for view in range(len(depth)):
        towards = positions[view] - points
        cosine = (towards * normals).sum(dim=1) / towards.norm(dim=1)
        x, y, z = _local(points, matrices[view])
        fx, fy, cx, cy = pinhole[view]
        px, py = fx * x / z + cx - 0.5, fy * y / z + cy - 0.5
        left, top = px.floor(), py.floor()
        usable = (cosine >= 0.1) & (left >= 0) & (top >= 0) & (left + 1 < width) & (top + 1 < height)
        trust = torch.where(usable, cosine.square().square(), 0.0)
        for corner in range(4):
            right, below = corner % 2, corner // 2
            pixel, _ = _pixel(left + right, top + below, depth[view])
            share = (px - left if right else 1 - px + left) * (py - top if below else 1 - py + top)
            near = (z - depth[view].reshape(-1)[pixel]).abs() <= tolerance
            weight = torch.where(near & usable, share * trust * weights[view].reshape(-1)[pixel], 0.0)
            sums[:, :3] += weight[:, None] * color[view].reshape(-1, 3)[pixel]
            sums[:, 3] += weight
    return sums


def _local(points: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = points.unbind(dim=1)
    first, second, third = (m[0] * x + m[1] * y + m[2] * z + m[3] for m in matrix[:3])
    return first, second, third


def _pixel(column: Tensor, row: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Index into the flat picture `[H, W]`, clamped, and whether it lies inside."""
    height, width = picture.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row.nan_to_num(0).clamp(0, height - 1) * width + column.nan_to_num(0).clamp(0, width - 1)
    return index.long(), inside
