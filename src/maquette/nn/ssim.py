"""Structural similarity, differentiable, per picture.

Source: Wang et al. 2004 (SSIM: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03) and Wang et al. 2003
(multi-scale SSIM: five scales).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.errors import InvalidInputError

WINDOW_SIZE = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(predicted: Tensor, reference: Tensor) -> Tensor:
    """Mean SSIM of each picture.

    Args:
        predicted, reference: `[..., C, H, W]` in 0..1, at least 11 pixels on each side.

    Returns:
        `[...]`, at most 1. Only windows that lie inside the picture count; channels are averaged.

    Raises:
        InvalidInputError: shapes differ or pictures are too small.
    """
    a, b, lead = _as_batch(predicted, reference)
    full, _ = _similarity(a, b)
    return full.mean(dim=1).reshape(lead)


def multi_scale_ssim(predicted: Tensor, reference: Tensor) -> Tensor:
    """Mean multi-scale SSIM of each picture; same arguments as `ssim`.

    Five scales as published when the smaller side has at least 176 pixels, fewer below that; their weights are
    then scaled to sum to one. Negative similarities count as zero.
    """
    a, b, lead = _as_batch(predicted, reference)
    scales = min(len(_SCALE_WEIGHTS), int(math.log2(min(a.shape[-2:]) / WINDOW_SIZE)) + 1)
    total = sum(_SCALE_WEIGHTS[:scales])
    product = torch.ones(a.shape[:2], dtype=a.dtype, device=a.device)
    for scale in range(scales):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        full, contrast = _similarity(a, b)
        value = full if scale == scales - 1 else contrast
        # The floor keeps the gradient of the fractional power finite.
        product = product * value.clamp_min(1e-4) ** (_SCALE_WEIGHTS[scale] / total)
    return product.mean(dim=1).reshape(lead)


def _as_batch(predicted: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    shape = tuple(predicted.shape)
    if shape != tuple(reference.shape) or len(shape) < 3:
        raise InvalidInputError(f"needs two tensors [..., C, H, W] of one shape, got {shape} and {reference.shape}")
    if min(shape[-2:]) < WINDOW_SIZE:
        raise InvalidInputError(f"pictures must have at least {WINDOW_SIZE} pixels on each side, got {shape[-2:]}")
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    flat = [image.to(dtype).reshape(-1, *shape[-3:]) for image in (predicted, reference)]
    return flat[0], flat[1], shape[:-3]


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the picture of SSIM and of its contrast-structure part, each `[M, C]`."""
    moments = torch.stack([a, b, a * a, b * b, a * b])  # [5, M, C, H, W]
    # The window is separable, so filtering is one product with a banded matrix per axis, much faster than a
    # one-channel convolution. Variances are small differences of large means: no half precision here.
    with torch.autocast(a.device.type, enabled=False):
        moments = _window_matrix(a.shape[-2], a).mT @ moments @ _window_matrix(a.shape[-1], a)
    mean_a, mean_b, square_a, square_b, product = moments.unbind(0)
    variance_a = (square_a - mean_a**2).clamp_min(0.0)
    variance_b = (square_b - mean_b**2).clamp_min(0.0)
    contrast = (2 * (product - mean_a * mean_b) + _C2) / (variance_a + variance_b + _C2)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return (luminance * contrast).mean(dim=(-2, -1)), contrast.mean(dim=(-2, -1))


def _window_matrix(size: int, like: Tensor) -> Tensor:
    """Columns that weigh the pixels of one window each: `[size, size - WINDOW_SIZE + 1]`."""
    windows = torch.arange(size - WINDOW_SIZE + 1, dtype=like.dtype, device=like.device)
    pixels = torch.arange(size, dtype=like.dtype, device=like.device)
    offset = pixels[:, None] - windows - WINDOW_SIZE // 2
    weights = torch.exp(-(offset**2) / (2 * _SIGMA**2)).masked_fill(offset.abs() > WINDOW_SIZE // 2, 0.0)
    return weights / weights[:WINDOW_SIZE, 0].sum()
