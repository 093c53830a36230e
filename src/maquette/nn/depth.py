"""Depth maps at other resolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_DEPTH_SPREAD = 0.05
"""Depths that differ by more than this within one cell belong to different surfaces, world units."""


def pool_depths(depths: Tensor, size: int, max_spread: float = MAX_DEPTH_SPREAD) -> Tensor:
    """Mean depth of each cell of a `size` x `size` grid; 0 where the cell has no single surface.

    Args:
        depths: z, 0 where there is no surface or it is not known, `[..., H, W]`.
        size: side of the grid.
        max_spread: a cell whose depths differ by more than this lies on an edge: no depth, world units.

    Returns:
        `[..., size, size]`; 0 as well where any pixel of the cell has no depth.
    """
    if depths.shape[-2:] == (size, size):
        return depths
    flat = depths.reshape(-1, 1, *depths.shape[-2:])
    nearest, farthest = -F.adaptive_max_pool2d(-flat, size), F.adaptive_max_pool2d(flat, size)
    known = (nearest > 0) & (farthest - nearest <= max_spread)
    pooled = torch.where(known, F.adaptive_avg_pool2d(flat, size), 0.0)
    return pooled.reshape(*depths.shape[:-2], size, size)
