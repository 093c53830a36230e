"""`ViewerOptions`: how a page of the viewer looks when it opens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from maquette.errors import InvalidInputError

Lighting = Literal["studio", "unlit"]
TRANSPARENT = "transparent"
"""The background that a checkerboard stands for on the screen and that screenshots leave open."""
MAX_SPLAT_SCALE = 2.0
"""Upper end of the slider for the size of the Gaussians."""

_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_NAMED = {"white": "#ffffff", "gray": "#8c8c8c", "black": "#000000", TRANSPARENT: TRANSPARENT}


@dataclass(frozen=True)
class ViewerOptions:
    """What a page shows first; everything can be changed on the page.

    Attributes:
        background: `#rrggbb` (sRGB), or "transparent".
        azimuth_deg: 0 looks at the front (+Z), growing to the object's left; any value.
        elevation_deg: in [-90, 90], up is positive.
        radius: distance of the camera from the middle of the object in world units, > 0; None fits it into the window.
        fov_deg: vertical field of view in degrees, 1 to 120.
        splat_scale: factor on the scales of Gaussians, 0.05 to `MAX_SPLAT_SCALE`.
        lighting: of meshes: "studio" shows their shape, "unlit" their colours as stored.
        turntable: whether the object turns by itself.
        controls: whether title and buttons are shown; without them dragging and the wheel still work.

    Raises:
        InvalidInputError: a value outside these ranges.
    """

    background: str = "#ffffff"
    azimuth_deg: float = 25.0
    elevation_deg: float = 12.0
    radius: float | None = None
    fov_deg: float = 49.1
    splat_scale: float = 1.0
    lighting: Lighting = "studio"
    turntable: bool = False
    controls: bool = True

    def __post_init__(self) -> None:
        if self.background != TRANSPARENT and not _COLOR.fullmatch(self.background):
            raise InvalidInputError(
                f"background must be a colour such as #ffffff, or {TRANSPARENT!r}; got {self.background!r}"
            )
        if not math.isfinite(self.azimuth_deg):
            raise InvalidInputError(f"azimuth_deg must be a finite number, got {self.azimuth_deg}")
        if not -90 <= self.elevation_deg <= 90:
            raise InvalidInputError(f"elevation_deg must lie in [-90, 90], got {self.elevation_deg}")
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise InvalidInputError(f"radius must be > 0, or None to fit the object, got {self.radius}")
        if not 1 <= self.fov_deg <= 120:
            raise InvalidInputError(f"fov_deg must lie in 1 to 120 degrees, got {self.fov_deg}")
        if not 0.05 <= self.splat_scale <= MAX_SPLAT_SCALE:
            raise InvalidInputError(f"splat_scale must lie in 0.05 to {MAX_SPLAT_SCALE:g}, got {self.splat_scale}")
        if self.lighting not in get_args(Lighting):
            raise InvalidInputError(f"unknown lighting {self.lighting!r}; valid: {', '.join(get_args(Lighting))}")


def background_of(text: str) -> str:
    """A background as people type it, as `ViewerOptions` takes it.

    Args:
        text: white, gray, black, transparent, or six hexadecimal digits with or without # in front.

    Raises:
        InvalidInputError: anything else.
    """
    found = _NAMED.get(text.lower(), f"#{text.removeprefix('#')}".lower())
    if found != TRANSPARENT and not _COLOR.fullmatch(found):
        raise InvalidInputError(f"unknown background {text!r}; valid: {', '.join(_NAMED)}, or a colour such as d8e2dc")
    return found
