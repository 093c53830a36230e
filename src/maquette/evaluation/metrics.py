"""Measures of agreement between pictures, one number per picture."""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.errors import InvalidInputError

PSNR_LIMIT = 100.0
"""PSNR given to identical pictures, dB."""


def psnr(predicted: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, at most `PSNR_LIMIT`.

    Args:
        predicted, reference: `[..., C, H, W]` in 0..1; values outside are clamped.

    Returns:
        `[...]`.

    Raises:
        InvalidInputError: shapes differ.
    """
    _check_shapes(predicted, reference, 3)
    error = (predicted.clamp(0, 1) - reference.clamp(0, 1)).square().mean(dim=(-3, -2, -1))
    return -10 * torch.log10(error.clamp_min(10 ** (-PSNR_LIMIT / 10)))


def alpha_iou(predicted: Tensor, reference: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of two coverages, each `[..., H, W]` in 0..1, after thresholding; `[...]`.

    Two empty coverages agree: 1.

    Raises:
        InvalidInputError: shapes differ.
    """
    _check_shapes(predicted, reference, 2)
    first, second = predicted > threshold, reference > threshold
    intersection = (first & second).sum(dim=(-2, -1)).float()
    union = (first | second).sum(dim=(-2, -1)).float()
    return torch.where(union > 0, intersection / union.clamp_min(1), 1.0)


def _check_shapes(predicted: Tensor, reference: Tensor, dimensions: int) -> None:
    if predicted.shape != reference.shape or predicted.ndim < dimensions:
        raise InvalidInputError(
            f"pictures to compare must have one shape of at least {dimensions} dimensions, got "
            f"{list(predicted.shape)} and {list(reference.shape)}"
        )
