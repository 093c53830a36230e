"""What a sphere of views sees of Gaussians: the pictures from which surfaces and textures are made."""

from __future__ import annotations

import dataclasses
import functools
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
    """Pictures of an object in the unit sphere, float32 on one device; what is derived from them is made at first use.

    Attributes:
        cameras: of the pictures.
        premultiplied: colour as rendered on black, `[V, H, W, 3]`.
        depth: expected depth along z where something is seen, `[V, H, W]`.
        alpha: coverage, `[V, H, W]`.
    """

    cameras: Cameras
    premultiplied: Tensor
    depth: Tensor
    alpha: Tensor

    @property
    def device(self) -> torch.device:
        """Of the pictures."""
        return self.alpha.device

    @property
    def on_gpu(self) -> bool:
        """Whether CUDA kernels work on the pictures, or those for the CPU."""
        return self.device.type == "cuda"

    @functools.cached_property
    def solid(self) -> float:
        """Coverage from which a pixel counts as solid.

        Raises:
            InvalidInputError: the Gaussians cover too little.
        """
        typical = _typical_coverage(self.alpha)
        if typical < _MIN_COVERAGE:
            raise InvalidInputError(
                f"no surface: the Gaussians are fog (coverage {typical:.3g} where they are, at least "
                f"{_MIN_COVERAGE} needed)"
            )
        return _SOLID_SHARE * typical

    @functools.cached_property
    def color(self) -> Tensor:
        """Not multiplied by coverage, `[V, H, W, 3]`."""
        return (self.premultiplied / self.alpha.clamp_min(1e-6)[..., None]).clamp(0, 1)

    @property
    def trust(self) -> Tensor:
        """Weight of the depth of each pixel, `[V, H, W]`."""
        return self._weights[0]

    @property
    def color_trust(self) -> Tensor:
        """Weight of the colour of each pixel, `[V, H, W]`."""
        return self._weights[1]

    @functools.cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        trust, inner = _depth_trust(self.depth, self.alpha, self.solid, self.cameras.intrinsics[0, 0, 0])
        return trust, trust * inner

    @functools.cached_property
    def halved(self) -> tuple[Tensor, Cameras]:
        """The pictures on white at half their size `[V, H, W, 3]`, and their cameras."""
        shown = (self.premultiplied + (1 - self.alpha)[..., None]).permute(0, 3, 1, 2)
        cameras = self.cameras
        smaller = cameras.intrinsics * cameras.intrinsics.new_tensor([[0.5], [0.5], [1.0]])
        pictures = functional.avg_pool2d(shown, 2).permute(0, 2, 3, 1).contiguous()
        return pictures, Cameras(cameras.world_to_camera, smaller, cameras.height // 2, cameras.width // 2)

    @functools.cached_property
    def matrices(self) -> Tensor:
        """World to camera, `[V, 4, 4]`."""
        return self.cameras.world_to_camera.contiguous()

    @functools.cached_property
    def pinhole(self) -> Tensor:
        """fx, fy, cx, cy in pixels, `[V, 4]`."""
        k = self.cameras.intrinsics
        return torch.stack([k[:, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], dim=1)

    @functools.cached_property
    def positions(self) -> Tensor:
        """Of the cameras, `[V, 3]`."""
        return self.cameras.positions.contiguous()


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
    """Renders Gaussians in the unit sphere, on their device."""
    there = cameras.to(gaussians.device)
    with torch.no_grad():
        rendered = render_gaussians(gaussians, there, background=(0.0, 0.0, 0.0))
        depth = rendered.depth / rendered.alpha.clamp_min(1e-6)
        return Captures(there, rendered.color.permute(0, 2, 3, 1).contiguous(), depth, rendered.alpha.contiguous())


def _typical_coverage(alpha: Tensor) -> float:
    """What nine tenths of the pixels that show something do not exceed; 0 where nothing is shown."""
    covered = alpha[alpha > 1 / 255].cpu().numpy()
    return float(np.quantile(covered, 0.9)) if covered.size else 0.0


def _depth_trust(depth: Tensor, alpha: Tensor, solid: float, focal: Tensor) -> tuple[Tensor, Tensor]:
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
