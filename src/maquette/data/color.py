"""sRGB transfer functions (IEC 61966-2-1)."""

from __future__ import annotations

import torch
from torch import Tensor


def srgb_to_linear(value: Tensor) -> Tensor:
    """Decodes sRGB 0..1 to linear light 0..1, any shape."""
    return torch.where(value <= 0.04045, value / 12.92, ((value.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: Tensor) -> Tensor:
    """Encodes linear light 0..1 as sRGB 0..1, any shape; values outside are clamped."""
    value = value.clamp(0.0, 1.0)
    return torch.where(value <= 0.0031308, value * 12.92, 1.055 * value.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)
