"""Gaussian rasterizer on NVIDIA GPUs: CUDA C++ kernels (`gaussian_*.cu`) compiled at first use through NVRTC.

All views of all items go through each kernel together. Forward: project and count per tile; segment the pair list;
write the pairs; order every tile's segment by depth (all in cuda_bins.py); blend. The image is the same to the last
bit in every run. Backward: blend again, adding the gradients of the projected Gaussians; then one pass per Gaussian
over its views. Its floating-point atomics make the last digits of gradients vary between runs. Features are blended
like colours, three channels a launch, over the same pairs, and add to the same gradients of the projected Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.errors import InvalidInputError, UnsupportedError
from maquette.raster.channels import CHANNELS, in_threes, joined
from maquette.raster.cuda_bins import (
    MAX_INDEX,
    MAX_PARTS,
    MAX_TILES_PER_VIEW,
    Bins,
    Part,
    Shape,
    bin_gaussians,
    count_rows,
    number_rows,
    rows_to_expect,
    shape_of,
)
from maquette.raster.nvrtc import launch, load_kernels
from maquette.raster.reference import Window

Pass: TypeAlias = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor | None, ...]]
"""Three channels of the Gaussians; colour, depth and alpha as blended from them; the gradients of these."""

_DEVICE = "cuda"
_BLEND_THREADS = 128
_GRADIENT_THREADS = 128
_GRADIENT_FLOATS = 10
_RECORDS_PER_PART = 2**18


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
    """Renders every set of Gaussians from every camera of its item; see `reference.rasterize` for the semantics.

    Args:
        means, quats, scales: `[B, N, 3]`, `[B, N, 4]`, `[B, N, 3]` on one CUDA device; computed in float32.
        opacities: `[B, N]`.
        colors: `[B, N, 3]` or `[B, V, N, 3]`.
        world_to_camera, intrinsics: `[B, V, 4, 4]`, `[B, V, 3, 3]`.
        height, width: size of the whole image in pixels, > 0.
        background: `[B, V, 3]`.
        scale_modifier: factor on all scales.
        features: `[B, N, C]` or None.
        antialiased: whether opacities are compensated for the dilation.
        window: the part of the image to render, or None.

    Returns:
        Colour `[B, V, 3, H, W]`, depth `[B, V, H, W]`, alpha `[B, V, H, W]` and, where features are given, their images
        `[B, V, C, H, W]`, differentiable (once) in the first five arguments and the features.

    Raises:
        InvalidInputError: the tensors are not on a CUDA device.
        UnsupportedError: more than 2^31 - 1 projected Gaussians, tiles or pairs, or a GPU older than Ampere.
        MissingDependencyError: cuda-core or NVRTC is missing.
    """
    if means.device.type != _DEVICE:
        raise InvalidInputError(f"the CUDA backend needs CUDA tensors, got {means.device}: move them with .to('cuda')")
    if window is not None:
        intrinsics = _moved(intrinsics, window.origins)
    size = (height, width) if window is None else (window.height, window.width)
    shape = shape_of(means.shape[0], world_to_camera.shape[1], means.shape[1], *size, height, width)
    groups = in_threes(features)
    if groups or colors.ndim == 4:  # the kernels look for bad values among shared colours only
        opacities = torch.where(_all_finite(colors, *groups), opacities, 0.0)
    constants = [_kernel_ready(t.detach() if t.requires_grad else t) for t in (world_to_camera, intrinsics, background)]
    values = [_kernel_ready(t) for t in (means, quats, scales, opacities, colors, *groups)]
    differentiable = torch.is_grad_enabled() and any(value.requires_grad for value in values)
    apply: Callable[..., tuple[Tensor, ...]] = _Rasterize.apply
    return joined(apply(shape, scale_modifier, antialiased, differentiable, *constants, *values), features)


def _moved(intrinsics: Tensor, origins: Tensor) -> Tensor:
    """Intrinsics `[B, V, 3, 3]` whose principal points count from `origins` `[B, V, 2]`."""
    result = intrinsics.clone()
    result[..., :2, 2] -= origins.to(result)
    return result


def _all_finite(*channels: Tensor) -> Tensor:
    """Whether all values `[B, N, 3]` or `[B, V, N, 3]` of a Gaussian are finite, `[B, N]`."""
    parts = [torch.isfinite(value).all(-1) for value in channels]
    return torch.stack([part if part.ndim == 2 else part.all(1) for part in parts]).all(0)


def _kernel_ready(value: Tensor) -> Tensor:
    """The values as contiguous float32 at an address that 16-byte loads accept."""
    if value.dtype != torch.float32 or not value.is_contiguous():
        value = value.to(torch.float32).contiguous()
    return value.clone() if value.data_ptr() % 16 else value


class _Rasterize(torch.autograd.Function):
    """Inputs: sizes and settings, cameras and background, the Gaussians with their colours, groups of features.
    Outputs: colour, depth, alpha and an image of every group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shape: Shape,
        scale_modifier: float,
        antialiased: bool,
        differentiable: bool,
        world_to_camera: Tensor,
        intrinsics: Tensor,
        background: Tensor,
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        if max(shape.records, shape.tiles) > MAX_INDEX or shape.tiles_per_view > MAX_TILES_PER_VIEW:
            raise UnsupportedError(
                f"{shape.images} views of {shape.count} Gaussians at {shape.height} x {shape.width} pixels are more "
                f"than the CUDA backend indexes ({MAX_INDEX} projected Gaussians or tiles): render fewer views or "
                "smaller images"
            )
        settings = (scale_modifier, antialiased)
        with torch.cuda.device(values[0].device):
            images = _empty_images(shape, values[0])  # before the GPU has to wait for the host
            cameras, items_per_part = (world_to_camera, intrinsics), _items_per_part(shape, values[4:])
            bins = bin_gaussians(shape, values[:5], cameras, *settings, items_per_part)
            _blend(shape, bins, values[4], background, images, mark_rows=differentiable)
            ticket = number_rows(bins) if differentiable else None
            extra = []
            for group in values[5:]:
                again = _empty_images(shape, group)  # depth and alpha once more, unused
                _blend(shape, bins, group, torch.zeros_like(background), again)
                extra.append(again[0])
        if not differentiable:
            return (*images, *extra)
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.settings, ctx.bins, ctx.ticket = shape, settings, bins, ticket
        ctx.save_for_backward(world_to_camera, intrinsics, *images, *values, *extra)
        return (*images, *extra)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(upstream) - 3
        cameras, images, gaussians = saved[:2], saved[2:5], saved[5:10]
        groups, extra = saved[10 : 10 + count], saved[10 + count :]
        shape, settings = ctx.shape, ctx.settings
        with torch.cuda.device(gaussians[0].device):
            # The bins are let go as soon as they are used, to save memory; a second backward pass makes them again.
            bins, ctx.bins, ticket = ctx.bins, None, ctx.ticket
            if bins is None:
                items_per_part = _items_per_part(shape, saved[9 : 10 + count])
                bins = bin_gaussians(shape, gaussians, cameras, settings[0], settings[1], items_per_part)
                bins.counters.row_words()[:, 1] = -1  # all may be seen
                ticket = number_rows(bins)
            parts, seen, counters = bins.parts, bins.seen, bins.counters
            passes: list[Pass] = [
                (group, (image, *images[1:]), (gradient, None, None))
                for group, image, gradient in zip(groups, extra, upstream[3:], strict=True)
            ]
            passes.append((gaussians[4], images, upstream[:3]))
            room, needed = rows_to_expect(bins), None
            if room is None:
                room = needed = count_rows(bins, ticket)
            sums = images[0].new_empty(room * _GRADIENT_FLOATS)
            gradients: list[Tensor] = []
            for part in parts:
                of_channels = _sum_gradients(shape, bins, part, passes, sums)
                if needed is None:  # the GPU is busy now: time to see whether there was room for all
                    needed = count_rows(bins, ticket)
                    if needed > room:
                        sums = images[0].new_empty(needed * _GRADIENT_FLOATS)
                        of_channels = _sum_gradients(shape, bins, part, passes, sums)
                if part is parts[-1]:
                    del bins
                gradients = gradients or [torch.empty_like(value) for value in (*gaussians[:4], gaussians[0])]
                _project_backward(shape, part, gaussians, cameras, seen, counters.rows, sums, gradients, *settings)
        *of_groups, of_colors = of_channels
        return (*[None] * 7, *gradients[:4], gradients[4] if of_colors is None else of_colors, *of_groups)


def _sum_gradients(
    shape: Shape,
    bins: Bins,
    part: Part,
    passes: list[Pass],
    sums: Tensor,
) -> list[Tensor | None]:
    """Fills the gradients of the rows, as far as there is room for them.

    Args:
        passes: groups of features, then the colours.
        sums: ten for each row.

    Returns:
        The gradients of the channels of every pass; None for none, or where they are left in the sums.
    """
    sums.zero_()
    taken: list[Tensor | None] = []
    for index, (channels, images, gradients) in enumerate(passes):
        last = index == len(passes) - 1
        if not last and gradients[0] is None:
            taken.append(None)
            continue
        _blend_backward(shape, bins, part, channels, images, gradients, sums)
        left = last and channels.ndim == 3
        taken.append(None if left else _take_channel_gradients(shape, bins, sums, channels))
    return taken


def _items_per_part(shape: Shape, channels: tuple[Tensor, ...]) -> int:
    """How many items to take backward at a time: large batches go in parts, one after the other in the same memory."""
    if len(channels) > 1 or channels[0].ndim == 4:  # the gradients of these are gathered over the whole batch
        return max(1, shape.items)
    return max(1, math.ceil(shape.items / max(1, min(shape.records // _RECORDS_PER_PART, MAX_PARTS))))


def _take_channel_gradients(shape: Shape, bins: Bins, sums: Tensor, like: Tensor) -> Tensor:
    """Gradients of three channels `[B, N, 3]` or `[B, V, N, 3]`, taken out of the gradients by row."""
    slots, rows = _numbers(bins.seen)[:, : shape.count], _numbers(bins.counters.row_words()).flatten()
    rows = torch.cat([rows, rows.new_full((1,), -1)])  # for those without a slot; -1 is the last one
    rows[rows >= sums.numel() // _GRADIENT_FLOATS] = -1
    taken = sums[: sums.numel() // _GRADIENT_FLOATS * 8].view(-1, 8)[:, 4 : 4 + CHANNELS]
    filled = torch.cat([taken, taken.new_zeros(1, CHANNELS)])  # the last row is for those without one
    taken.zero_()
    each = filled[rows[slots]].view(shape.items, shape.views, shape.count, CHANNELS)
    return each if like.ndim == 4 else each.sum(1)


def _numbers(ranked: Tensor) -> Tensor:
    """Numbers of all neighbours of `Ranked` words `[..., W, 2]`, -1 for those that have none: `[..., 32 * W]`."""
    first, bits = ranked[..., :1].long(), ranked[..., 1:].long()
    chosen = bits >> torch.arange(32, device=bits.device) & 1
    return torch.where(chosen > 0, first + chosen.cumsum(-1) - 1, -1).flatten(-2)


def _empty_images(shape: Shape, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = (shape.items, shape.views, shape.height, shape.width)
    return like.new_empty(*size[:2], 3, *size[2:]), like.new_empty(size), like.new_empty(size)


def _blend(
    shape: Shape,
    bins: Bins,
    colors: Tensor,
    background: Tensor,
    images: tuple[Tensor, ...],
    *,
    mark_rows: bool = False,
) -> None:
    """Writes the colour, depth and alpha images; on demand marks the slots that a pixel may see."""
    kernel = load_kernels("gaussian_blend.cu", ("blend_forward",))["blend_forward"]
    lists = (bins.pairs, bins.starts, bins.ends)
    sources, rows = (bins.records, colors, background), bins.counters.rows if mark_rows else None
    launch(kernel, shape.tiles, _BLEND_THREADS, *sources, *lists, rows, *images, *shape.blend_arguments(colors))


def _blend_backward(
    shape: Shape,
    bins: Bins,
    part: Part,
    colors: Tensor,
    images: tuple[Tensor, ...],
    upstream: tuple[Tensor | None, ...],
    gradients: Tensor,
) -> None:
    """Adds to the gradients of the rows: eight floats each, then two, see gaussian_blend_backward.cu."""
    images_in, steps = _by_steps(upstream)
    kernel = load_kernels("gaussian_blend_backward.cu", ("blend_backward",))["blend_backward"]
    tiles_per_item = shape.views * shape.tiles_per_view
    launch(
        kernel,
        part.items * tiles_per_item,
        _BLEND_THREADS,
        bins.records,
        colors,
        bins.pairs,
        bins.starts,
        bins.ends,
        bins.counters.rows,
        *images,
        *images_in,
        *steps,
        gradients,
        _second_part(gradients),
        gradients.numel() // _GRADIENT_FLOATS,
        part.first_item * tiles_per_item,
        *shape.blend_arguments(colors),
    )


def _by_steps(upstream: tuple[Tensor | None, ...]) -> tuple[list[Tensor | None], list[int]]:
    """Gradients of the images with the steps to the next view, (channel,) row and pixel of each.

    They are read where they lie, in any layout whose items and views are evenly spaced: a loss may leave them
    transposed, or as one number for all pixels, as a sum does.
    """
    images: list[Tensor | None] = []
    steps: list[int] = []
    for gradient, kept in zip(upstream, (3, 2, 2), strict=True):  # dimensions behind items and views
        if gradient is None:
            images.append(None)
            steps += [0] * (1 + kept)
            continue
        items, views = gradient.shape[:2]
        item, view, *others = gradient.stride()
        even = items == 1 or views == 1 or item == views * view
        if not even or max(gradient.stride()) > MAX_INDEX:
            gradient = gradient.contiguous()
            item, view, *others = gradient.stride()
        images.append(gradient)
        steps += [item if views == 1 else view, *others]
    return images, steps


def _second_part(gradients: Tensor) -> int:
    """Address of the two floats each, behind the eight floats each."""
    return gradients.data_ptr() + gradients.numel() // _GRADIENT_FLOATS * 8 * gradients.element_size()


def _project_backward(
    shape: Shape,
    part: Part,
    gaussians: tuple[Tensor, ...],
    cameras: tuple[Tensor, ...],
    seen: Tensor,
    rows: int,
    sums: Tensor,
    gradients: list[Tensor],
    scale_modifier: float,
    antialiased: bool,
) -> None:
    """Writes the gradients of means, quats, scales, opacities and of colours that all views share."""
    kernel = load_kernels("gaussian_grad.cu", ("project_backward",))["project_backward"]
    blocks_per_item = math.ceil(shape.count / _GRADIENT_THREADS)
    launch(
        kernel,
        part.items * blocks_per_item,
        _GRADIENT_THREADS,
        *gaussians[:4],
        *cameras,
        seen,
        rows,
        sums,
        _second_part(sums),
        sums.numel() // _GRADIENT_FLOATS,
        *gradients,
        part.first_item,
        shape.count,
        shape.views,
        shape.warps_per_view,
        blocks_per_item,
        shape.image_width,
        shape.image_height,
        int(antialiased),
        scale_modifier,
    )
