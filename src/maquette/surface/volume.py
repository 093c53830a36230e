"""Cleaning of a volume before its surface is taken: hidden interior, specks, the border."""

from __future__ import annotations

import numpy as np

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
    from scipy import ndimage

    labels, count = ndimage.label(field <= 0)
    if count > 1:
        field[(labels > 0) & (labels != labels[0, 0, 0])] = 0.5


def _drop_specks(field: Floats, min_part: float) -> None:
    from scipy import ndimage

    labels, count = ndimage.label(field > 0, structure=np.ones((3, 3, 3)))
    if count > 1:
        volumes = np.bincount(labels.ravel())
        volumes[0] = 0
        small = volumes < min_part * volumes.max()
        small[0] = False
        field[small[labels]] = -0.5
