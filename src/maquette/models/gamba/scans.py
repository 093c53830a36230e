"""The four orders in which Gamba reads the cells of a picture, and the way back.

Source: Gamba (Shen et al., 2024), section 3.2, and the order of the released code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scan_cells(maps: Tensor) -> Tensor:
    """Cells of maps `[B, C, h, w]` in four orders one after the other, `[B, 4hw, C]`.

    Row by row; column by column; row by row, each from its end; column by column, each from its end.
    """
    columns = maps.mT
    orders = (maps, columns, maps.flip(-1), columns.flip(-1))
    return torch.cat([order.flatten(2) for order in orders], dim=2).mT


def scan_pixels(maps: Tensor, cells_per_token: int) -> Tensor:
    """As `scan_cells`, where each token stands for k x k cells: maps `[B, C, h * k, w * k]` to `[B, 4hw * k * k, C]`.

    The cells of one token follow each other row by row.
    """
    if cells_per_token == 1:
        return scan_cells(maps)
    side = cells_per_token
    channels = maps.shape[1]
    grouped = F.pixel_unshuffle(maps, side)  # [B, C * k * k, h, w]
    tokens = scan_cells(grouped)  # [B, 4hw, C * k * k]
    return tokens.reshape(*tokens.shape[:2], channels, side * side).mT.flatten(1, 2)
