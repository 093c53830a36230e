"""sRGB transfer function (IEC 61966-2-1), for formats that store linear light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def linear_to_srgb(linear: NDArray[np.floating]) -> NDArray[np.float32]:
    """Encodes linear light, clamped to 0..1."""
    value = np.clip(np.asarray(linear, np.float64), 0.0, 1.0)
    encoded = np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)
    return encoded.astype(np.float32)


def srgb_to_linear(encoded: NDArray[np.floating]) -> NDArray[np.float32]:
    """Decodes to linear light, clamped to 0..1."""
    value = np.clip(np.asarray(encoded, np.float64), 0.0, 1.0)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)
