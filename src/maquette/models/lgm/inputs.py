"""The cameras that LGM's inference assumes."""

from __future__ import annotations

from maquette.cameras import Cameras

INPUT_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
"""Azimuths of the four input views."""


def default_cameras(elevation_deg: float = 0.0, size: int = 256, *, radius: float = 1.5) -> Cameras:
    """The four cameras `[4]` that LGM's inference assumes.

    Args:
        elevation_deg: of all four, up is positive (the official code counts downwards: negate its values).
        size: side of the square pictures, px.
        radius: distance from the origin.
    """
    return Cameras.orbit(INPUT_AZIMUTHS_DEG, elevation_deg, radius=radius, height=size, width=size)
