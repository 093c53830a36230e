"""LGM's augmentations of the input views: pictures that disagree slightly, as generated multi-view pictures do.

Source: LGM (Tang et al., ECCV 2024), section 3.4. Everything is vectorised; random numbers are arguments, and the
`random_*` functions draw them from a generator without synchronising a GPU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras

MIN_KNOTS, MAX_KNOTS = 8, 16
GRID_STRENGTH = 0.5
JITTER_STRENGTH = 0.1


def grid_distortion(
    images: Tensor, uniforms: Tensor, num_knots: Tensor | None = None, strength: float = GRID_STRENGTH
) -> Tensor:
    """Stretches and squeezes pictures along both axes, piecewise linearly between displaced knots.

    Args:
        images: `[M, C, H, W]`.
        uniforms: numbers in 0..1 that displace the knots of the x and y axis, `[M, 2, K]`.
        num_knots: how many of the K knots each picture uses, `[M]`, 2..K; None uses all.
        strength: displacement as a share of the distance between knots, 0..1.
    """
    count, _, height, width = images.shape
    knots = torch.full((count,), uniforms.shape[-1], device=images.device) if num_knots is None else num_knots
    x = _distorted_axis(uniforms[:, 0], knots, width, strength)
    y = _distorted_axis(uniforms[:, 1], knots, height, strength)
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def _distorted_axis(uniforms: Tensor, num_knots: Tensor, size: int, strength: float) -> Tensor:
    """Sampling coordinates -1..1 of the `size` pixels of one axis, `[M, size]`."""
    index = torch.arange(uniforms.shape[-1], device=uniforms.device)
    last = (num_knots - 1)[:, None]
    moved = index / last + strength * (uniforms - 0.5) / last
    pixels = (moved.clamp(0.0, 1.0) * size).long()
    pixels = torch.where(index >= last, size, pixels)
    pixels = torch.where(index == 0, 0, pixels)  # [M, K], non-decreasing
    position = torch.arange(size, device=uniforms.device).expand(len(uniforms), -1).contiguous()
    segment = torch.searchsorted(pixels, position, right=True) - 1  # [M, size]
    start, end = pixels.gather(1, segment), pixels.gather(1, segment + 1)
    along = (position - start) / (end - start - 1).clamp_min(1)
    return (segment + along) * 2.0 / last - 1.0


def orbit_jitter(cameras: Cameras, uniforms: Tensor, strength: float = JITTER_STRENGTH) -> Cameras:
    """Turns cameras about the origin, about their own up axis and then their own right axis.

    Args:
        cameras: `[...]`.
        uniforms: numbers in 0..1, `[..., 2]`: the first turns by up to strength * 180 degrees about the up axis,
            the second by up to strength * 90 degrees about the right axis; 0.5 does nothing.
        strength: see above; 0.1 gives +-18 and +-9 degrees.
    """
    axes = cameras.world_to_camera[..., :3, :3]  # rows: right, down, forward in the world
    angles = strength * math.pi * (uniforms * 2 - 1) * uniforms.new_tensor([1.0, 0.5])
    about_up = _rotation(-axes[..., 1, :], angles[..., 0])
    about_right = _rotation(axes[..., 0, :], angles[..., 1])
    turned = cameras.world_to_camera.clone()
    turned[..., :3, :3] = axes @ (about_up @ about_right).mT
    return Cameras(turned, cameras.intrinsics, cameras.height, cameras.width)


def _rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Rodrigues' formula: matrices `[..., 3, 3]` from unit axes `[..., 3]` and angles `[...]` in radians."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*axis.shape[:-1], 3, 3)
    sine, versine = angle.sin()[..., None, None], (1 - angle.cos())[..., None, None]
    return torch.eye(3, dtype=axis.dtype, device=axis.device) + sine * cross + versine * (cross @ cross)


def random_grid_distortion(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Distorts all views of an object, or none, with `probability`; one number of knots per object.

    Args:
        images: `[B, V, C, H, W]`.
        probability: 0..1.
        generator: source of the random numbers; may live on another device.
    """
    batch, views = images.shape[:2]
    chosen = _draw((batch, 1, 1, 1, 1), generator, images) < probability
    knots = MIN_KNOTS + (_draw((batch,), generator, images) * (MAX_KNOTS - MIN_KNOTS + 1)).long()
    uniforms = _draw((batch * views, 2, MAX_KNOTS), generator, images)
    knots = knots.clamp_max(MAX_KNOTS).repeat_interleave(views)
    distorted = grid_distortion(images.flatten(0, 1), uniforms, knots)
    return torch.where(chosen, distorted.reshape(images.shape), images)


def random_orbit_jitter(cameras: Cameras, probability: float, generator: torch.Generator) -> Cameras:
    """Turns each camera of an object by its own angles, or none of them, with `probability`.

    Args:
        cameras: `[B, V]`.
        probability: 0..1.
        generator: source of the random numbers; may live on another device.
    """
    matrices = cameras.world_to_camera
    chosen = _draw((matrices.shape[0], 1, 1), generator, matrices) < probability
    uniforms = _draw((*matrices.shape[:2], 2), generator, matrices)
    return orbit_jitter(cameras, torch.where(chosen, uniforms, 0.5))


def _draw(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
    return drawn.to(like.device, non_blocking=True)
