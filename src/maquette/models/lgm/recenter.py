"""Centres the object of a picture, as the official LGM inference does before multi-view generation."""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.errors import InvalidInputError


def recenter(image: Tensor, mask: Tensor, border_ratio: float = 0.2) -> Tensor:
    """Crops the object, scales it to fill a square but for a border, and centres it there.

    As in the official code the crop leaves out the last row and column of the mask's bounding box.

    Args:
        image: `[C, H, W]` with 3 or 4 channels, uint8 or floating point.
        mask: where the object is, bool `[H, W]`.
        border_ratio: share of the square's side left free, in [0, 1).

    Returns:
        `[C, S, S]` with S = max(H, W), of the input's type; outside the object transparent (white without alpha).

    Raises:
        InvalidInputError: shapes or types do not fit, or the object is smaller than 2 x 2 pixels.
    """
    channels, height, width = image.shape
    if channels not in (3, 4) or tuple(mask.shape) != (height, width):
        raise InvalidInputError(f"needs a picture [3|4, H, W] and its mask [H, W], got {image.shape} and {mask.shape}")
    if not 0.0 <= border_ratio < 1.0:
        raise InvalidInputError(f"border_ratio must lie in [0, 1), got {border_ratio}")
    whole = image.dtype == torch.uint8
    if not (whole or image.is_floating_point()):
        raise InvalidInputError(f"the picture must be uint8 or floating point, got {image.dtype}")
    rows, columns = mask.any(dim=1).nonzero().flatten().tolist(), mask.any(dim=0).nonzero().flatten().tolist()
    if not rows or rows[-1] == rows[0] or columns[-1] == columns[0]:
        raise InvalidInputError("the mask shows no object of at least 2 x 2 pixels: check the background removal")
    crop = image[:, rows[0] : rows[-1], columns[0] : columns[-1]].to(torch.float64 if whole else image.dtype)
    side = max(height, width)
    scale = int(side * (1 - border_ratio)) / max(crop.shape[1:])
    new_height, new_width = max(int(crop.shape[1] * scale), 1), max(int(crop.shape[2] * scale), 1)
    resized = resize_area(crop, new_height, new_width)
    empty = 0.0 if channels == 4 else (255.0 if whole else 1.0)
    canvas = torch.full((channels, side, side), empty, dtype=crop.dtype, device=image.device)
    top, left = (side - new_height) // 2, (side - new_width) // 2
    canvas[:, top : top + new_height, left : left + new_width] = resized
    return canvas.round().clamp(0, 255).to(torch.uint8) if whole else canvas


def resize_area(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes `[..., H, W]` floating-point pictures like OpenCV's INTER_AREA.

    Shrinking averages over the area of each new pixel. If an axis grows, both axes interpolate linearly between
    neighbours, with weights that keep enlarged pixels flat inside.
    """
    shrink = image.shape[-2] >= height and image.shape[-1] >= width
    weights = _area_weights if shrink else _flat_linear_weights
    vertical = weights(image.shape[-2], height).to(image)
    horizontal = weights(image.shape[-1], width).to(image)
    return vertical @ image @ horizontal.mT


def _area_weights(size: int, new_size: int) -> Tensor:
    """Share of each old pixel in each new one, `[new_size, size]`."""
    edges = torch.arange(new_size + 1, dtype=torch.float64) * (size / new_size)
    pixel = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    overlap = overlap.clamp_min(0.0)
    return overlap / overlap.sum(dim=1, keepdim=True)


def _flat_linear_weights(size: int, new_size: int) -> Tensor:
    """Weights of the two neighbours of each new pixel, `[new_size, size]`."""
    step = size / new_size
    new = torch.arange(new_size, dtype=torch.float64)
    left = (new * step).floor()
    share = (new + 1) - (left + 1) / step
    share = torch.where(share <= 0, 0.0, share - share.floor())
    index = left.long().clamp_max(size - 1)
    weights = torch.zeros(new_size, size, dtype=torch.float64)
    weights.scatter_add_(1, index[:, None], (1 - share)[:, None])
    weights.scatter_add_(1, (index + 1).clamp_max(size - 1)[:, None], share[:, None])
    return weights
