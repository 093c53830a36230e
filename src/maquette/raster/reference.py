"""Gaussian rasterizer in plain PyTorch: the specification that the fast backends are tested against.

EWA splatting (Zwicker et al. 2001) with front-to-back blending (Kerbl et al., "3D Gaussian Splatting for Real-Time
Radiance Field Rendering", 2023), extended by depth, alpha, features and an antialiased mode. Works in float32 and
float64 on any device and is differentiable by autograd. Every constant below is part of the semantics that published
weights were trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NEAR_Z = 0.2
"""Gaussians whose centre lies at this view-space depth or nearer are culled."""
DILATION_PX = 0.3
"""Added to both variances of a projected Gaussian, in squared pixels."""
FRUSTUM_MARGIN = 1.3
"""The projection is linearised at a ray at most this many half fields of view off the axis."""
TILE = 16
"""Side of the square tiles, in pixels, whose rectangle around three standard deviations bounds a Gaussian."""
MIN_ALPHA = 1.0 / 255.0
"""Smaller contributions to a pixel are skipped."""
MAX_ALPHA = 0.99
"""Larger contributions are cut to this value; the gradient passes as if they were not."""
MIN_TRANSMITTANCE = 1e-4
"""A contribution that would leave less light than this ends its pixel and is not added itself."""
MIN_AREA_RATIO = 1e-8
"""Antialiased mode: the smallest ratio of the determinants of a projected covariance without and with the dilation."""


@dataclass(frozen=True)
class Window:
    """The part of every view's image that is rendered. Its tiles are tiles of the whole image.

    Attributes:
        origins: first pixel (x, y) of each view's part, multiples of TILE, `[B, V, 2]` integers on the CPU.
        height, width: size in pixels, the same in all views.
    """

    origins: Tensor
    height: int
    width: int


@dataclass(frozen=True)
class Projection:
    """Gaussians as seen by every camera. Entries of culled Gaussians are finite but meaningless.

    Attributes:
        radii: three standard deviations along the longer axis in pixels, rounded up; 0 when culled, `[B, V, N]` int32.
        means2d: centres in pixels, the centre of the (window's) first pixel being (0, 0), `[B, V, N, 2]`.
        conics: inverse 2D covariances as (xx, xy, yy) in 1/pixel^2, `[B, V, N, 3]`.
        depths: view-space z in world units, `[B, V, N]`.
        tiles: covered tiles as (x0, y0, x1, y1), upper ends exclusive, `[B, V, N, 4]` int64.
        compensations: factor on the opacity in antialiased mode, in 0..1: root of the ratio of the determinants of the
            covariance without and with the dilation, `[B, V, N]`.
    """

    radii: Tensor
    means2d: Tensor
    conics: Tensor
    depths: Tensor
    tiles: Tensor
    compensations: Tensor


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    scale_modifier: float = 1.0,
    window: Window | None = None,
) -> Projection:
    """Projects 3D Gaussians to 2D Gaussians in pixels.

    Args:
        means: centres, `[B, N, 3]`.
        quats: rotations (w, x, y, z), used as they are (not normalised), `[B, N, 4]`.
        scales: standard deviations, `[B, N, 3]`.
        world_to_camera: `[B, V, 4, 4]`, OpenCV axes.
        intrinsics: in pixels, pixel centres at +0.5, `[B, V, 3, 3]`.
        height, width: image size in pixels.
        scale_modifier: factor on all scales.
        window: part of the image that matters, or None for all of it.

    Returns:
        The projections. A Gaussian with a value that is not finite, or whose projection overflows, is culled.
    """
    num_views = world_to_camera.shape[1]
    camera_points = torch.einsum("bvij,bnj->bvni", world_to_camera[..., :3, :3], means)
    camera_points = camera_points + world_to_camera[..., None, :3, 3]
    quats = quats[:, None].expand(-1, num_views, -1, -1)
    scales = scales[:, None].expand(-1, num_views, -1, -1) * scale_modifier
    with torch.no_grad():
        first = _splat(camera_points, quats, scales, world_to_camera, intrinsics, height, width, window)
        visible = (first.radii > 0)[..., None]
    # Culled Gaussians are replaced by a harmless one, so that no NaN of theirs reaches a gradient.
    camera_points = torch.where(visible, camera_points, camera_points.new_tensor([0.0, 0.0, 1.0]))
    quats = torch.where(visible, quats, 0.0)
    scales = torch.where(visible, scales, 0.0)
    splats = _splat(camera_points, quats, scales, world_to_camera, intrinsics, height, width, window)
    return replace(splats, radii=torch.where(visible[..., 0], splats.radii, 0))


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    background: Tensor,
    scale_modifier: float,
    *,
    features: Tensor | None = None,
    antialiased: bool = False,
    window: Window | None = None,
) -> tuple[Tensor, ...]:
    """Renders every set of Gaussians from every camera of its item.

    Args:
        means, quats, scales: `[B, N, 3]`, `[B, N, 4]`, `[B, N, 3]`, see `project`.
        opacities: `[B, N]`.
        colors: `[B, N, 3]`, or one for each view `[B, V, N, 3]`.
        world_to_camera, intrinsics: `[B, V, 4, 4]`, `[B, V, 3, 3]`.
        height, width: size of the whole image in pixels.
        background: colour behind everything, `[B, V, 3]`.
        scale_modifier: factor on all scales.
        features: any C values per Gaussian, `[B, N, C]`.
        antialiased: multiplies the opacities by `Projection.compensations`.
        window: the part to render, or None for the whole image.

    Returns:
        Colour over the background `[B, V, 3, H, W]`; depth (sum of z times blend weight, not divided by alpha)
        `[B, V, H, W]`; alpha (sum of the blend weights) `[B, V, H, W]`; and, where features are given, their sums
        times the blend weights `[B, V, C, H, W]`. H and W are the window's if there is one.
    """
    num_views = world_to_camera.shape[1]
    channels = colors if colors.ndim == 4 else colors[:, None].expand(-1, num_views, -1, -1)
    if features is not None:
        channels = torch.cat([channels, features[:, None].expand(-1, num_views, -1, -1)], dim=-1)  # [B, V, N, 3 + C]
    usable = torch.isfinite(opacities) & torch.isfinite(channels).all(-1).all(1)  # [B, N]
    opacities = torch.where(usable, opacities, 0.0)
    channels = torch.where(usable[:, None, :, None], channels, 0.0)
    splats = project(means, quats, scales, world_to_camera, intrinsics, height, width, scale_modifier, window)
    visible = (splats.radii > 0) & usable[:, None]
    opacities = opacities[:, None] * splats.compensations if antialiased else opacities[:, None].expand_as(visible)
    size = (height, width) if window is None else (window.height, window.width)
    images = [
        torch.stack([_blend(splats, visible, b, v, opacities, channels, *size) for v in range(num_views)])
        for b in range(visible.shape[0])
    ]
    color, extra, depth, alpha = torch.split(torch.stack(images), [3, channels.shape[-1] - 3, 1, 1], dim=2)
    color = color + (1 - alpha) * background[..., None, None]
    outputs = (color, depth.squeeze(2), alpha.squeeze(2))
    return outputs if features is None else (*outputs, extra)


def _rotation_matrices(quats: Tensor) -> Tensor:
    """Matrices `[..., 3, 3]` of quaternions (w, x, y, z) by the formula for unit ones, whatever their length."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _clamped(coordinate: Tensor, z: Tensor, limit: Tensor) -> Tensor:
    """Limits coordinate / z to +-limit; a limited coordinate passes no gradient, not even to z."""
    ratio = coordinate / z
    return torch.where(ratio.abs() <= limit, coordinate, (ratio.clamp(-limit, limit) * z).detach())


def _splat(
    camera_points: Tensor,
    quats: Tensor,
    scales: Tensor,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    window: Window | None,
) -> Projection:
    """`project` from view-space centres `[B, V, N, 3]` on; may produce NaN where radii are 0."""
    focal_x, focal_y = intrinsics[..., 0, 0, None], intrinsics[..., 1, 1, None]  # [B, V, 1]
    center_x, center_y = intrinsics[..., 0, 2, None], intrinsics[..., 1, 2, None]
    x, y, z = camera_points.unbind(-1)
    inverse_w = 1 / (z + 1e-7)
    means2d = torch.stack([focal_x * x * inverse_w + center_x, focal_y * y * inverse_w + center_y], dim=-1) - 0.5
    if window is not None:
        means2d = means2d - window.origins[:, :, None].to(means2d)

    near_x = _clamped(x, z, FRUSTUM_MARGIN * width / (2 * focal_x))
    near_y = _clamped(y, z, FRUSTUM_MARGIN * height / (2 * focal_y))
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([focal_x / z, zero, -focal_x * near_x / (z * z)], dim=-1),
            torch.stack([zero, focal_y / z, -focal_y * near_y / (z * z)], dim=-1),
        ],
        dim=-2,
    )
    axes = jacobian @ world_to_camera[..., None, :3, :3] @ (_rotation_matrices(quats) * scales[..., None, :])
    covariance = axes @ axes.mT
    var_x, cov_xy, var_y = (
        covariance[..., 0, 0] + DILATION_PX,
        covariance[..., 0, 1],
        covariance[..., 1, 1] + DILATION_PX,
    )
    determinant = var_x * var_y - cov_xy * cov_xy
    conics = torch.stack([var_y / determinant, -cov_xy / determinant, var_x / determinant], dim=-1)
    normal = torch.linalg.cross(axes[..., 0, :], axes[..., 1, :])  # its square is the determinant without the dilation
    compensations = (normal.square().sum(-1) / determinant).clamp_min(MIN_AREA_RATIO).sqrt()

    with torch.no_grad():
        middle = 0.5 * (var_x + var_y)
        largest = middle + torch.sqrt((middle * middle - determinant).clamp_min(0.1))
        radius = torch.ceil(3 * torch.sqrt(largest))
        size = (height, width) if window is None else (window.height, window.width)
        tiles, covered = _tile_rectangles(means2d, radius, *size)
        finite = torch.isfinite(means2d).all(-1) & torch.isfinite(conics).all(-1) & torch.isfinite(radius)
        visible = (z > NEAR_Z) & (determinant > 0) & finite & covered
        radii = torch.where(visible, radius.clamp(max=2.0**30), 0.0).to(torch.int32)
    return Projection(radii, means2d, conics, z, tiles, compensations)


def _tile_rectangles(means2d: Tensor, radius: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Tiles `[..., 4]` within `radius` of the centres, and whether there are any."""
    grid = means2d.new_tensor([math.ceil(width / TILE), math.ceil(height / TILE)])
    low = ((means2d - radius[..., None]) / TILE).nan_to_num(0.0).clamp_min(0).minimum(grid)
    high = ((means2d + radius[..., None] + (TILE - 1)) / TILE).nan_to_num(0.0).clamp_min(0).minimum(grid)
    tiles = torch.cat([low, high], dim=-1).to(torch.int64)  # truncates towards zero
    return tiles, ((tiles[..., 2] > tiles[..., 0]) & (tiles[..., 3] > tiles[..., 1]))


def _blend(
    splats: Projection, visible: Tensor, b: int, v: int, opacities: Tensor, channels: Tensor, height: int, width: int
) -> Tensor:
    """Image `[C + 2, H, W]` of view v of item b without background: channels, depth, alpha.

    `opacities` are `[B, V, N]`, `channels` `[B, V, N, C]`.
    """
    candidates = visible[b, v].nonzero().squeeze(-1)
    order = candidates[splats.depths[b, v, candidates].argsort(stable=True)]  # front to back, ties by index
    left, top, right, bottom = splats.tiles[b, v, order].unbind(-1)
    values = torch.cat(
        [channels[b, v], splats.depths[b, v, :, None], torch.ones_like(opacities[b, v, :, None])], dim=-1
    )
    rows = []
    for tile_y in range(math.ceil(height / TILE)):
        row = []
        for tile_x in range(math.ceil(width / TILE)):
            index = order[(left <= tile_x) & (tile_x < right) & (top <= tile_y) & (tile_y < bottom)]
            xs = torch.arange(tile_x * TILE, min((tile_x + 1) * TILE, width), device=index.device)
            ys = torch.arange(tile_y * TILE, min((tile_y + 1) * TILE, height), device=index.device)
            pixels = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).to(opacities)  # [h, w, 2]
            weights = _blend_weights(
                pixels.reshape(-1, 2), splats.means2d[b, v, index], splats.conics[b, v, index], opacities[b, v, index]
            )
            row.append((weights @ values[index]).T.reshape(-1, len(ys), len(xs)))
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def _blend_weights(pixels: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor) -> Tensor:
    """Weights `[P, K]` of K Gaussians, sorted front to back, in P pixels."""
    dx, dy = (means2d - pixels[:, None]).unbind(-1)  # [P, K]
    conic_xx, conic_xy, conic_yy = conics.unbind(-1)
    power = -0.5 * (conic_xx * dx * dx + conic_yy * dy * dy) - conic_xy * dx * dy
    alpha = opacities * torch.exp(power.clamp_max(0))
    alpha = alpha + (alpha.clamp_max(MAX_ALPHA) - alpha).detach()  # straight-through clamp
    alpha = torch.where((power <= 0) & (alpha >= MIN_ALPHA), alpha, 0.0)
    light_after = torch.cumprod(1 - alpha, dim=-1)
    light_before = torch.cat([torch.ones_like(light_after[:, :1]), light_after[:, :-1]], dim=-1)[:, : len(opacities)]
    return torch.where(light_after >= MIN_TRANSMITTANCE, alpha * light_before, 0.0)
