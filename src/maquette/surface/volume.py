"""Cleaning of a volume before its surface is taken: hidden interior, specks, the border."""

from __future__ import annotations

import numpy as np

from maquette.surface import volume_kernels
from maquette.surface.triangles import Floats

_LEAST = 1e-4


def clean_volume(field: Floats, min_part: float) -> Floats:
    """Makes a field the field of solid parts without hidden interior, in place.

    Args:
        field: `[X, Y, Z]`, positive inside.
        min_part: connected solid parts of less than this share of the largest one become empty, 0..1.

    Returns:
        The same array: negative on its border, so that its surface is closed; empty parts that do not reach the
        border are solid; no value is so near 0 that its triangles would have no area.
    """
    for side in (0, -1):
        field[side], field[:, side], field[:, :, side] = -1, -1, -1
    _fill_cavities(field)
    _drop_specks(field, min_part)
    near = np.abs(field) < _LEAST
    field[near] = np.where(field[near] > 0, _LEAST, -_LEAST)
    return field


def _fill_cavities(field: Floats) -> None:
    firsts, runs = volume_kernels.find_runs(field, False)
    parts = volume_kernels.join_runs(firsts, runs, field.shape[1], False)
    volume_kernels.fill_runs(field, firsts, runs, parts != 0, 0.5)


def _drop_specks(field: Floats, min_part: float) -> None:
    firsts, runs = volume_kernels.find_runs(field, True)
    parts = volume_kernels.join_runs(firsts, runs, field.shape[1], True)
    volumes = np.bincount(parts, runs[:, 1] - runs[:, 0])
    small = volumes < min_part * volumes.max(initial=0)
    volume_kernels.fill_runs(field, firsts, runs, small[parts], -0.5)
