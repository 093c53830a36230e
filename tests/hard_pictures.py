"""Ten pictures that are hard to make an object of, drawn in code."""

from __future__ import annotations

import torch
from torch import Tensor

from picture_scenes import ball, disc, flat, grid, over

_WHITE = (0.97, 0.97, 0.97)


def hard_pictures() -> dict[str, Tensor]:
    """Name to picture, `[3|4, H, W]` in 0..1."""
    x, y = grid()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 200, 200, generator=generator)
    legs = sum(
        ((x - place).abs() < 0.015).float() * ((y > -0.1) & (y < 0.8)).float() for place in (-0.5, -0.2, 0.2, 0.5)
    )
    table = ((x.abs() < 0.6) & ((y + 0.15).abs() < 0.05)).float().clamp(0, 1)
    two = (disc(-0.5, 0, 0.3) + disc(0.5, 0, 0.3)).clamp(0, 1)
    ring = (disc(0, 0, 0.6) - disc(0, 0, 0.4)).clamp(0, 1)
    glass = torch.cat([flat(0.7, 0.8, 0.9), 0.35 * disc(0, 0, 0.6)[None]])
    return {
        "white on white": over(ball(0.7), disc(), flat(*_WHITE)),
        "thin legs": over(flat(0.3, 0.2, 0.1), (legs + table).clamp(0, 1), flat(*_WHITE)),
        "two objects": over(flat(0.8, 0.1, 0.1), two, flat(*_WHITE)),
        "nothing": flat(*_WHITE) + 0.0,
        "busy background": over(flat(0.1, 0.3, 0.8), disc(), noise),
        "cut by the edge": over(flat(0.1, 0.6, 0.2), disc(0.8, 0, 0.6), flat(*_WHITE)),
        "ring with a hole": over(flat(0.6, 0.5, 0.1), ring, flat(*_WHITE)),
        "glass cut-out": glass,
        "tiny object": over(flat(0.1, 0.1, 0.1), disc(0.3, 0.3, 0.05), flat(*_WHITE)),
        "transparent everywhere": torch.zeros(4, 200, 200),
    }
