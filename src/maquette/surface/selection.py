"""Which Gaussians take part in a surface."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians

MIN_OPACITY = 0.02
"""Fainter Gaussians are left out: a feed-forward network parks the ones it does not need at low opacity."""

_MAX_VALUE = 1e12
"""Larger values overflow when they are squared."""


def surface_gaussians(gaussians: Gaussians) -> Gaussians:
    """Finite Gaussians that are opaque enough and near the others, `[M]`, float32 on the CPU.

    Raises:
        InvalidInputError: none is left.
    """
    plain = gaussians.detach().to("cpu").to(torch.float32)
    colors = plain.colors.flatten(1)
    stacked = torch.cat([plain.means, plain.quats, plain.scales, plain.opacities[:, None], colors], dim=1)
    keep = (stacked.abs() < _MAX_VALUE).all(dim=1) & (plain.opacities >= MIN_OPACITY)
    if not bool(keep.any()):
        raise InvalidInputError(
            f"no surface: none of {plain.num_gaussians:,} Gaussians has an opacity of {MIN_OPACITY} or more and "
            f"finite values below {_MAX_VALUE:g}"
        )
    keep &= _not_stray(plain.means, plain.scales, keep)
    if not bool(keep.any()):
        raise InvalidInputError("no surface: the Gaussians are scattered, or each is as large as the object")
    return plain.select(keep)


def _not_stray(means: Tensor, scales: Tensor, keep: Tensor) -> Tensor:
    """Mask of Gaussians near the bulk (the 1 % to 99 % box, doubled) and not as large as the bulk itself."""
    chosen = means[keep]
    ordered = chosen.sort(dim=0).values
    last = len(chosen) - 1
    low, high = ordered[math.floor(0.01 * last)], ordered[math.ceil(0.99 * last)]
    extent = float((high - low).max())
    if extent <= 0:
        return keep
    center = (low + high) / 2
    near = ((means - center).abs() <= (high - low) + 0.05 * extent).all(dim=1)
    return near & (scales.amax(dim=1) <= 0.25 * extent)
