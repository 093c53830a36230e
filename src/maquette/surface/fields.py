"""Surfaces of fields that are costly to ask: only points near the surface are queried.

The grid is filled from coarse to fine. A block whose corners lie on one side is taken to lie there wholly; at every
step the evaluated band grows until it encloses every piece of the surface that it has met, so that a surface whose
parts are wider than a coarse block comes out exactly as from the full grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.mesh import Mesh
from maquette.surface.fusion import smooth_normals
from maquette.surface.triangles import Floats, marching_cubes
from maquette.surface.volume import clean_volume

Field = Callable[[Tensor], Tensor]
"""Values `[P]` at points `[P, 3]` (float32), positive inside."""

_FAR = 1.0
_CHUNK = 1 << 18


def sample_field(
    field: Field,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    resolution: int,
    *,
    levels: int = 3,
    device: torch.device | str = "cpu",
) -> tuple[Floats, int]:
    """Samples a field on a grid of cubes, near its zero level only.

    Args:
        field: positive inside. It is asked in chunks of at most 262,144 points.
        low, high: corners of the box; points (i, j, k) lie at low + spacing * (i, j, k), where the longest side has
            `resolution` points.
        resolution: 8 to 1024.
        levels: halvings from the coarsest to the finest grid, 0 (the full grid) to 6. Parts thinner than 2^levels cells
            can be missed.
        device: where points are made.

    Returns:
        Values `[X, Y, Z]` (+1 or -1 where nothing was asked) and the number of points asked.

    Raises:
        InvalidInputError: an option is out of range or the box is empty.
    """
    size = np.asarray(high, np.float64) - np.asarray(low, np.float64)
    if not 8 <= resolution <= 1024 or not 0 <= levels <= 6 or not (size > 0).all():
        raise InvalidInputError(
            f"resolution must lie in 8..1024, levels in 0..6, low below high; got {resolution}, {levels}, {low}, {high}"
        )
    spacing = float(size.max()) / (resolution - 1)
    stride = 1 << levels
    cells = np.maximum(np.ceil(np.rint(size / spacing * 1e6) / 1e6), 1).astype(int)
    shape = tuple(int(n) for n in -(-cells // stride) * stride + 1)
    values = np.full(shape, np.nan, np.float32)
    asked = np.zeros(shape, bool)

    def ask(mask: NDArray[np.bool_], step: int) -> None:
        index = np.argwhere(mask) * step
        for start in range(0, len(index), _CHUNK):
            part = index[start : start + _CHUNK]
            points = torch.from_numpy((part * spacing + np.asarray(low)).astype(np.float32)).to(device)
            answer = field(points).detach().reshape(-1).float().cpu().numpy()
            values[part[:, 0], part[:, 1], part[:, 2]] = answer
            asked[part[:, 0], part[:, 1], part[:, 2]] = True

    ask(np.ones(tuple((n - 1) // stride + 1 for n in shape), bool), stride)
    while stride > 1:
        half = stride // 2
        coarse = values[::stride, ::stride, ::stride]
        values[::half, ::half, ::half] = _filled(coarse > 0, values[::half, ::half, ::half])
        band = _near_surface(values[::half, ::half, ::half] > 0)
        while (todo := band & ~asked[::half, ::half, ::half]).any():
            ask(todo, half)
            band |= _near_surface(values[::half, ::half, ::half] > 0)
        stride = half
    real = tuple(slice(0, int(n) + 1) for n in cells)
    return np.ascontiguousarray(values[real]), int(asked.sum())


def _filled(inside: NDArray[np.bool_], fine: Floats) -> Floats:
    """The finer grid, what is not known yet set to the side of the nearest coarse points."""
    nearest = inside
    for axis, length in enumerate(fine.shape):
        nearest = nearest.take(np.arange(length) // 2, axis=axis)
    return np.where(np.isnan(fine), np.where(nearest, np.float32(_FAR), np.float32(-_FAR)), fine)


def _near_surface(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Points of cells, or next to cells, whose corners lie on both sides."""
    from scipy import ndimage

    cube = np.ones((3, 3, 3), bool)
    mixed = ndimage.binary_dilation(inside, cube) & ndimage.binary_dilation(~inside, cube)
    grown: NDArray[np.bool_] = ndimage.binary_dilation(mixed, cube)
    return grown


def field_mesh(
    field: Field,
    low: tuple[float, float, float] = (-1.0, -1.0, -1.0),
    high: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    resolution: int = 256,
    levels: int = 3,
    min_part: float = 0.02,
    device: torch.device | str = "cpu",
) -> Mesh:
    """Closed surface of a field: hidden interior and specks dropped, smooth normals, no colours.

    Args:
        field, low, high, resolution, levels, device: see `sample_field`; the solid is cut at the box.
        min_part: connected parts smaller than this share of the largest one are dropped, 0..1.

    Raises:
        InvalidInputError: an option is out of range, or the field has no surface in the box.
    """
    values, _ = sample_field(field, low, high, resolution, levels=levels, device=device)
    spacing = float(max(b - a for a, b in zip(low, high, strict=True))) / (resolution - 1)
    vertices, faces = marching_cubes(clean_volume(values, min_part), 0.0)
    points = vertices * spacing + np.asarray(low, np.float64)
    return Mesh(
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(faces),
        normals=torch.from_numpy(smooth_normals(points, faces)),
    )
