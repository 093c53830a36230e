"""Resampling of a picture through a window that may reach beyond its border."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maquette.errors import InvalidInputError


def resample_window(image: Tensor, window: tuple[float, float, float, float], size: int) -> Tensor:
    """The part of an RGBA picture inside a window, resampled to a square; beyond the border it is transparent.

    The filter is a triangle as wide as the larger of the two pixel pitches (so shrinking does not alias), applied to
    premultiplied colours. A window on whole pixels at the same pitch returns exactly these pixels.

    Args:
        image: `[4, H, W]`, straight alpha, 0..1.
        window: left, top, right, bottom in pixels of `image` (0, 0 is the outer corner of the first pixel).
        size: side of the result in pixels, >= 1.

    Returns:
        `[4, size, size]`, straight alpha.

    Raises:
        InvalidInputError: the window is empty or the size is not positive.
    """
    left, top, right, bottom = window
    if not (right > left and bottom > top and size >= 1):
        raise InvalidInputError(f"the window must not be empty and size be >= 1, got window {window}, size {size}")
    height, width = image.shape[-2:]
    premultiplied = torch.cat([image[:3] * image[3:], image[3:]]).to(torch.float64)
    rows = _filter_matrix(top, bottom, size, height).to(premultiplied.device)
    columns = _filter_matrix(left, right, size, width).to(premultiplied.device)
    result = rows @ premultiplied @ columns.T
    alpha = result[3:]
    color = torch.where(alpha > 1e-6, result[:3] / alpha.clamp_min(1e-6), torch.zeros_like(alpha))
    return torch.cat([color, alpha]).clamp(0, 1).to(image.dtype)


def _filter_matrix(start: float, stop: float, size: int, length: int) -> Tensor:
    """Weights `[size, length]` of `length` source pixels for `size` pixels that share the interval start..stop."""
    pitch = (stop - start) / size
    reach = max(1.0, pitch)
    centers = start + (torch.arange(size, dtype=torch.float64) + 0.5) * pitch
    first = min(0, math.floor(start - reach))
    last = max(length, math.ceil(stop + reach))
    sources = torch.arange(first, last, dtype=torch.float64) + 0.5
    weights = (1 - (sources[None, :] - centers[:, None]).abs() / reach).clamp_min(0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights[:, -first : length - first]
