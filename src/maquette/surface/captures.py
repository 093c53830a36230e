"""What a sphere of views sees of Gaussians: the pictures from which surfaces and textures are made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.raster.api import render_gaussians
from maquette.raster.cpu_jit import Array
from maquette.surface.selection import surface_gaussians

_CAMERA_DISTANCE = 3.0
"""Of the views, for an object in the unit sphere: far enough for parallel-looking views and the near plane."""
_FRAME = 1.03
_SOLID_SHARE = 0.4
"""A pixel is solid from this share of the typical coverage."""
_MIN_COVERAGE = 0.2
"""Gaussians that typically cover less are fog."""
_MIN_TRUST = 0.02


@dataclass(frozen=True)
class Captures:
    """Pictures of an object in the unit sphere: arrays `[V, ...]` of float32.

    Attributes:
        cameras: of the pictures, on the CPU.
        premultiplied: colour as rendered on black, `[V, H, W, 3]`.
        color: the same, not multiplied by coverage.
        depth: expected depth along z where something is seen, `[V, H, W]`.
        alpha: coverage, `[V, H, W]`.
        trust: weight of the depth of each pixel, `[V, H, W]`.
        color_trust: weight of the colour of each pixel, `[V, H, W]`.
        matrices: world to camera, `[V, 4, 4]`.
        pinhole: fx, fy, cx, cy, `[V, 4]`.
        positions: of the cameras, `[V, 3]`.
        solid: coverage from which a pixel counts as solid.
    """

    cameras: Cameras
    premultiplied: Array
    color: Array
    depth: Array
    alpha: Array
    trust: Array
    color_trust: Array
    matrices: Array
    pinhole: Array
    positions: Array
    solid: float


@dataclass(frozen=True)
class UnitGaussians:
    """Gaussians that take part in a surface, moved into the unit sphere.

    Attributes:
        gaussians: `[M]`, float32; world = center + radius * unit.
        center: `[3]`, float64 on the CPU.
        radius: in world units.
    """

    gaussians: Gaussians
    center: Tensor
    radius: float

    def to_world(self, points: Array) -> Tensor:
        """World positions (float32, CPU) of unit ones `[N, 3]`."""
        return (torch.from_numpy(np.asarray(points, np.float64)) * self.radius + self.center).float()


def unit_gaussians(gaussians: Gaussians) -> UnitGaussians:
    """Chooses the Gaussians that have a surface and moves them into the unit sphere, on their device.

    Raises:
        InvalidInputError: a batch, or nothing that has a surface.
    """
    if gaussians.batch_shape:
        raise InvalidInputError(f"pass one set of Gaussians, got batch {gaussians.batch_shape}; use gaussians[i]")
    chosen = surface_gaussians(gaussians)
    reach = gaussian_reach(chosen)
    center = ((chosen.means - reach).amin(0) + (chosen.means + reach).amax(0)) / 2
    radius = float(((chosen.means - center).norm(dim=1) + reach[:, 0]).max())
    if not radius > 0:
        raise InvalidInputError("no surface: the Gaussians have no size")
    unit = dataclasses.replace(chosen, means=(chosen.means - center) / radius, scales=chosen.scales / radius)
    return UnitGaussians(unit.to(gaussians.device), center.double(), radius)


def gaussian_reach(gaussians: Gaussians) -> Tensor:
    """How far each Gaussian reaches, `[N, 1]`: two of its largest standard deviations."""
    return 2 * gaussians.scales.amax(dim=1, keepdim=True)


def sphere_cameras(count: int, image_size: int, *, turn: float = 0.0) -> Cameras:
    """Views spread evenly over a sphere (a golden spiral), which frame the unit sphere.

    Args:
        count: number of views.
        image_size: in pixels.
        turn: of the spiral about the vertical axis and along it, in steps, for views between those of turn 0.
    """
    index = torch.arange(count, dtype=torch.float64)
    height = 1 - (2 * torch.remainder(index + turn, count) + 1) / count
    azimuth = torch.remainder((index + turn) * (180 * (3 - math.sqrt(5))), 360)
    fov = 2 * math.degrees(math.asin(_FRAME / _CAMERA_DISTANCE))
    return Cameras.orbit(
        azimuth,
        torch.rad2deg(torch.asin(height.clamp(-1, 1))),
        radius=_CAMERA_DISTANCE,
        fov_deg=fov,
        height=image_size,
        width=image_size,
    )


def capture(gaussians: Gaussians, cameras: Cameras) -> Captures:
    """Renders Gaussians in the unit sphere, and tells how far each pixel can be trusted.

    Raises:
        InvalidInputError: they cover too little.
    """
    with torch.inference_mode():
        there = cameras.to(gaussians.device)
        rendered = render_gaussians(gaussians, there, background=(0.0, 0.0, 0.0))
        alpha, depth = rendered.alpha, rendered.depth
        covered = alpha[alpha > 1 / 255]
        typical = float(np.quantile(covered.cpu().numpy(), 0.9)) if covered.numel() else 0.0
        if typical < _MIN_COVERAGE:
            raise InvalidInputError(
                f"no surface: the Gaussians are fog (coverage {typical:.3g} where they are, at least "
                f"{_MIN_COVERAGE} needed)"
            )
        solid = _SOLID_SHARE * typical
        shown = rendered.color.permute(0, 2, 3, 1).contiguous()
        color = shown / alpha.clamp_min(1e-6)[..., None]
        depth = depth / alpha.clamp_min(1e-6)
        trust, inner = _trust(depth, alpha, solid, float(cameras.intrinsics[0, 0, 0]))
        k = cameras.intrinsics
        pinhole = torch.stack([k[:, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], dim=1)

    def array(picture: Tensor) -> Array:
        return picture.cpu().contiguous().numpy()

    return Captures(
        cameras,
        array(shown),
        array(color.clamp(0, 1)),
        array(depth),
        array(alpha),
        array(trust),
        array(trust * inner),
        cameras.world_to_camera.contiguous().numpy(),
        pinhole.contiguous().numpy(),
        cameras.positions.contiguous().numpy(),
        solid,
    )


def _trust(depth: Tensor, alpha: Tensor, solid: float, focal: float) -> tuple[Tensor, Tensor]:
    """Weights `[V, H, W]` of the depth, and factors on them for colours.

    The weight is the cosine of the surface seen, from the range of depth among the neighbours, times coverage; where
    depth jumps (silhouettes) it is next to nothing. Pixels that touch an empty one count less for colours, as the
    colours there mix with what lies behind.
    """
    seen = alpha >= solid
    highest = functional.max_pool2d(torch.where(seen, depth, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    lowest = -functional.max_pool2d(torch.where(seen, -depth, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    slope = (highest - lowest) / 2 * focal / depth.clamp_min(1e-6)
    cosine = torch.rsqrt(1 + slope.square())
    trust = torch.where(seen, (cosine * alpha).clamp_min(_MIN_TRUST), 0.0)
    edge = functional.max_pool2d((~seen).float()[:, None], 3, 1, 1)[:, 0]
    inner = (cosine * alpha).square() * torch.where(edge > 0, 0.05, 1.0)
    return trust.float(), inner.float()
