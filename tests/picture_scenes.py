"""Simple pictures with a known outline."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 200


def grid(size: int = SIZE) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return x, y


def disc(x: float = 0.0, y: float = 0.0, radius: float = 0.5, size: int = SIZE) -> Tensor:
    """Soft mask of a disc, `[size, size]`."""
    columns, rows = grid(size)
    distance = ((columns - x) ** 2 + (rows - y) ** 2).sqrt()
    return ((radius - distance) * size / 2 + 0.5).clamp(0, 1)


def flat(*color: float, size: int = SIZE) -> Tensor:
    return torch.tensor(color)[:, None, None].expand(3, size, size)


def over(color: Tensor, alpha: Tensor, ground: Tensor) -> Tensor:
    return (color * alpha + ground * (1 - alpha)).clamp(0, 1)


def overlap(found: Tensor, true: Tensor) -> float:
    first, second = found > 0.5, true > 0.5
    return float((first & second).sum() / (first | second).sum())


def ball(ambient: float) -> Tensor:
    """A white shaded ball of radius 0.5."""
    x, y = grid()
    z = (1 - (x**2 + y**2) / 0.25).clamp_min(0).sqrt()
    return (ambient + (1 - ambient) * (0.8 * z - 0.6 * x - y).clamp(0, 1)).expand(3, SIZE, SIZE)


BROWN = flat(0.4, 0.2, 0.1)
