"""Where views agree: the visual hull of the input silhouettes and a plane sweep along the rays of every view.

LGM leaves all correspondence to attention. A small network learns it faster when it is told, for every ray, which
depths lie inside the silhouettes of the other views (Laurentini, "The visual hull concept", PAMI 1994) and where the
neighbouring views show the ray's own colour (plane sweep: Collins, CVPR 1996). Nothing here is trained and no gradient
flows through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras

SWEEP_RANGE = 0.64
"""The sweep covers this distance to both sides of the point of a ray that is closest to the origin, world units."""

_COARSE_FACTOR = 4
"""The sweep looks at pictures that are smaller by this factor: their blur is about the step of the sweep."""
_FINE_STEPS = 10
_SIMILARITY_DECAY = 8.0
"""Mean colour difference 1/8 counts as a similarity of 1/e."""


@dataclass(frozen=True)
class Sweep:
    """What the sweep found, for views `[B, V]`.

    Attributes:
        entry: signed distance of the first hull point of each pixel's ray from the point of the ray that is closest to
            the origin, `[B, V, 1, H, W]`; where no depth is inside all silhouettes, the best one; 0 off the object.
        profile: for each plane of the sweep, lowest coverage in the other views, then similarity to the next view, then
            to the previous one, each 0..1, `[B, V, 3 * planes, h, w]`.
    """

    entry: Tensor
    profile: Tensor


@torch.no_grad()
def plane_sweep(images: Tensor, cameras: Cameras, *, planes: int, grid: int) -> Sweep:
    """Sweeps all rays of all views.

    Args:
        images: RGBA, straight alpha, 0..1, `[B, V, 4, H, W]`, H = W, in the order of the orbit.
        cameras: of the pictures, `[B, V]`.
        planes: number of depths per ray.
        grid: side of the profile, h = w; H is a multiple of it.
    """
    batch, views, _, size, _ = images.shape
    alpha = images[:, :, 3:].float()
    premultiplied = torch.cat([images[:, :, :3].float() * alpha, alpha], dim=2)
    coarse = _pooled(premultiplied, size // _COARSE_FACTOR)
    own = _pooled(premultiplied, grid)
    own = own[:, :, :3] / own[:, :, 3:].clamp_min(1e-3)
    depths = torch.linspace(-SWEEP_RANGE, SWEEP_RANGE, planes, device=images.device)
    rays = _Rays(cameras.to(torch.float32).resized(grid, grid))
    step = 2 * SWEEP_RANGE / (planes - 1)

    lowest: Tensor | None = None
    similarities = []
    for shift in range(1, views):
        maps = coarse if shift in (1, views - 1) else coarse[:, :, 3:]
        seen = rays.sample(maps, shift, depths.expand(batch, views, grid * grid, planes))
        lowest = seen[:, :, -1] if lowest is None else torch.minimum(lowest, seen[:, :, -1])
        if shift in (1, views - 1):
            similarities.append(_similarity(seen, own.flatten(3)))
    assert lowest is not None  # at least two views
    first, _ = _first_inside(lowest, depths.expand_as(lowest))
    # Refined at full resolution around the coarse answer of the pixel's cell.
    around = torch.linspace(-1.5 * step, step, _FINE_STEPS, device=images.device)
    nearby = first.reshape(batch * views, 1, grid, grid)
    nearby = F.interpolate(nearby, size=(size, size), mode="nearest").reshape(batch, views, size * size, 1)
    entry = _refine(_Rays(cameras.to(torch.float32)), alpha, nearby + around)
    entry = torch.where(alpha.flatten(2) > 0, entry, 0.0)
    profile = torch.cat([lowest, *similarities], dim=-1)  # [B, V, hw, 3 * planes]
    return Sweep(
        entry.reshape(batch, views, 1, size, size),
        profile.transpose(-1, -2).reshape(batch, views, 3 * planes, grid, grid),
    )


class _Rays:
    """The rays of views `[B, V]`, and their points in the other views."""

    def __init__(self, cameras: Cameras) -> None:
        origins, directions = (value.flatten(2, 3) for value in cameras.rays())  # [B, V, hw, 3]
        self._closest = origins - directions * (origins * directions).sum(-1, keepdim=True)
        self._directions = directions
        size = cameras.intrinsics.new_tensor([cameras.width, cameras.height])
        # Rows give x and y in -1..1 (over z) and z.
        pixels = cameras.intrinsics @ cameras.world_to_camera[..., :3, :]
        clip = pixels[..., :2, :] * (2 / size)[:, None] - pixels[..., 2:, :]
        self._projections = torch.cat([clip, pixels[..., 2:, :]], dim=-2)  # [B, V, 3, 4]

    def sample(self, maps: Tensor, shift: int, distances: Tensor) -> Tensor:
        """Maps `[B, V, C, h, w]` of the view that is `shift` further, at points `[B, V, hw, D]`: `[B, V, C, hw, D]`."""
        batch, views, channels = maps.shape[:3]
        projections = self._projections.roll(-shift, dims=1)
        constant = torch.einsum("bvij,bvpj->bvpi", projections[..., :3], self._closest)
        constant = constant + projections[..., None, :, 3]
        slope = torch.einsum("bvij,bvpj->bvpi", projections[..., :3], self._directions)
        points = torch.addcmul(constant[..., None, :], distances[..., None], slope[..., None, :])  # [B, V, hw, D, 3]
        places = points[..., :2] / points[..., 2:].clamp_min(1e-3)
        sampled = F.grid_sample(
            maps.roll(-shift, dims=1).flatten(0, 1), places.flatten(0, 1), mode="bilinear", align_corners=False
        )
        return sampled.reshape(batch, views, channels, *distances.shape[2:])


def _similarity(seen: Tensor, own: Tensor) -> Tensor:
    """How much premultiplied RGBA `[B, V, 4, hw, D]` looks like colours `[B, V, 3, hw]`, 0..1, `[B, V, hw, D]`."""
    coverage = seen[:, :, 3]
    colors = seen[:, :, :3] / coverage[:, :, None].clamp_min(1e-3)
    difference = (colors - own[..., None]).abs().mean(dim=2)
    return coverage * torch.exp(-_SIMILARITY_DECAY * difference)


def _first_inside(coverage: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """First of the `depths` whose `coverage` reaches half of the highest one, and its index; both `[..., 1]`.

    Halves, so that parts thinner than the step, which no sample covers fully, are found as well.
    """
    inside = coverage >= 0.5 * coverage.amax(dim=-1, keepdim=True)
    index = inside.to(torch.uint8).argmax(dim=-1, keepdim=True)
    return depths.gather(-1, index), index


def _refine(rays: _Rays, alpha: Tensor, distances: Tensor) -> Tensor:
    """Entry `[B, V, HW]` into the hull of silhouettes `[B, V, 1, H, W]`, among sorted `distances` `[B, V, HW, D]`."""
    coverage: Tensor | None = None
    for shift in range(1, alpha.shape[1]):
        seen = rays.sample(alpha, shift, distances)[:, :, 0]
        coverage = seen if coverage is None else torch.minimum(coverage, seen)
    assert coverage is not None
    after, index = _first_inside(coverage, distances)
    before_index = (index - 1).clamp_min(0)
    before = distances.gather(-1, before_index)
    high, low = coverage.gather(-1, index), coverage.gather(-1, before_index)
    threshold = 0.5 * coverage.amax(dim=-1, keepdim=True)
    share = ((threshold - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    crossing = torch.where(index > 0, torch.lerp(before, after, share), after)
    middle = distances[..., distances.shape[-1] // 2 :][..., :1]
    return torch.where(coverage.amax(dim=-1, keepdim=True) > 0, crossing, middle)[..., 0]


def _pooled(maps: Tensor, size: int) -> Tensor:
    pooled = F.adaptive_avg_pool2d(maps.flatten(0, 1), size)
    return pooled.reshape(*maps.shape[:3], size, size)
