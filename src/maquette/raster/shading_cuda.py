"""Shading on NVIDIA GPUs: launches the kernels of `shading.cu`; see `shading_reference.py` for what they compute.

Sums into vertices and texels are atomic, so gradients vary in the last digits from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from maquette.raster.nvrtc import KernelArgument, launch, load_kernels

_THREADS = 128
_KERNELS = tuple(
    f"shade_{stage}{way}" for stage in ("weights", "interpolate", "texture", "antialias") for way in ("", "_backward")
)
_REAL = {torch.float32: ("REAL=float",), torch.float64: ("REAL=double",)}


def weights(points: Tensor, faces: Tensor, pinhole: Tensor, triangle_id: Tensor) -> Tensor:
    """Weights `[V, H, W, 3]` float64; arguments as in `shading_reference.weights`."""
    apply = cast(Callable[..., Tensor], _Weights.apply)
    return apply(points.contiguous(), faces.contiguous(), pinhole.contiguous(), triangle_id.int().contiguous())


def interpolate(attributes: Tensor, faces: Tensor, triangle_id: Tensor, weights: Tensor) -> Tensor:
    """`[P, C]`; arguments as in `shading_reference.interpolate`."""
    apply = cast(Callable[..., Tensor], _Interpolate.apply)
    shares = weights.to(attributes.dtype).contiguous()
    return apply(attributes.contiguous(), faces.contiguous(), triangle_id.int().contiguous(), shares)


def texture(texels: Tensor, sizes: Tensor, uvs: Tensor, levels: Tensor) -> Tensor:
    """`[P, C]`; arguments as in `shading_reference.texture`."""
    apply = cast(Callable[..., Tensor], _Texture.apply)
    where, chosen = (value.to(texels.dtype).contiguous() for value in (uvs, levels))
    return apply(texels.contiguous(), sizes.to(texels.device), where, chosen)


def antialias(
    color: Tensor, screen: Tensor, faces: Tensor, neighbors: Tensor, triangle_id: Tensor, depth: Tensor
) -> Tensor:
    """`[V, H, W, C]`; arguments as in `shading_reference.antialias`."""
    apply = cast(Callable[..., Tensor], _Antialias.apply)
    scene = (value.contiguous() for value in (color, screen, faces, neighbors, triangle_id, depth))
    return apply(*scene)


def _run(name: str, count: int, value: Tensor, *arguments: KernelArgument) -> None:
    """Launches a kernel for so many pixels or points, on the device and for the type of a tensor."""
    with torch.cuda.device(value.device):
        kernel = load_kernels("shading.cu", _KERNELS, _REAL[value.dtype])[name]
        launch(kernel, -(-count // _THREADS), _THREADS, *arguments)


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, faces: Tensor, pinhole: Tensor, triangle_id: Tensor) -> Tensor:
        ctx.save_for_backward(points, faces, pinhole, triangle_id)
        result = points.new_zeros(*triangle_id.shape, 3)
        scene = (points, faces, pinhole, triangle_id, *_sizes(points, triangle_id))
        _run("shade_weights", triangle_id.numel(), points, *scene, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        points, faces, pinhole, triangle_id = ctx.saved_tensors
        moved = torch.zeros_like(points)
        scene = (points, faces, pinhole, triangle_id, *_sizes(points, triangle_id))
        _run("shade_weights_backward", triangle_id.numel(), points, *scene, gradient.contiguous(), moved)
        return moved, None, None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attributes: Tensor, faces: Tensor, triangle_id: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(attributes, faces, triangle_id, weights)
        count, channels = len(triangle_id), attributes.shape[1]
        result = attributes.new_zeros(count, channels)
        _run("shade_interpolate", count, attributes, attributes, faces, triangle_id, weights, count, channels, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        attributes, faces, triangle_id, weights = ctx.saved_tensors
        spread, slopes = torch.zeros_like(attributes), torch.zeros_like(weights)
        scene = (attributes, faces, triangle_id, weights, gradient.contiguous())
        size = (len(triangle_id), attributes.shape[1])
        _run("shade_interpolate_backward", len(triangle_id), attributes, *scene, *size, spread, slopes)
        return spread, None, None, slopes


class _Texture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, texels: Tensor, sizes: Tensor, uvs: Tensor, levels: Tensor) -> Tensor:
        ctx.save_for_backward(texels, sizes, uvs, levels)
        count, channels = len(uvs), texels.shape[1]
        result = texels.new_zeros(count, channels)
        size = (count, channels, len(sizes))
        _run("shade_texture", count, texels, texels, sizes, uvs, levels, *size, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        texels, sizes, uvs, levels = ctx.saved_tensors
        spread, slopes = torch.zeros_like(texels), torch.zeros_like(uvs)
        scene = (texels, sizes, uvs, levels, gradient.contiguous())
        size = (len(uvs), texels.shape[1], len(sizes))
        _run("shade_texture_backward", len(uvs), texels, *scene, *size, spread, slopes)
        return spread, None, slopes, None


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        color: Tensor,
        screen: Tensor,
        faces: Tensor,
        neighbors: Tensor,
        triangle_id: Tensor,
        depth: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(color, screen, faces, neighbors, triangle_id, depth)
        result = color.clone()
        if len(faces):
            scene = (color, screen, faces, neighbors, triangle_id, depth)
            size = (*_sizes(screen, triangle_id), color.shape[3])
            _run("shade_antialias", triangle_id.numel(), color, *scene, *size, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        color, screen, faces, neighbors, triangle_id, depth = ctx.saved_tensors
        slopes = gradient.contiguous()
        spread, moved = slopes.clone(), torch.zeros_like(screen)
        if len(faces):
            scene = (color, screen, faces, neighbors, triangle_id, depth, slopes)
            size = (*_sizes(screen, triangle_id), color.shape[3])
            _run("shade_antialias_backward", triangle_id.numel(), color, *scene, *size, spread, moved)
        return spread, moved, None, None, None, None


def _sizes(points: Tensor, triangle_id: Tensor) -> tuple[int, int, int, int]:
    """Views, vertices, height and width."""
    num_views, height, width = triangle_id.shape
    return num_views, points.shape[1], height, width
