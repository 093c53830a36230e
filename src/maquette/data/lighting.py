"""Soft studio light: a sky and ground hemisphere, a key and a fill light, all fixed in the world.

Every light is distant, so shading needs only the surface normal, and all views of an object agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.errors import InvalidInputError

Lighting = Literal["studio", "unlit", "random"]
LIGHTINGS: tuple[Lighting, ...] = ("studio", "unlit", "random")
RGB = tuple[float, float, float]
Direction = tuple[float, float, float]

_WRAP = 0.25
"""How far directional light reaches around the terminator, as a large soft box would: 0 is a point light."""


@dataclass(frozen=True)
class Light:
    """Light on an object, in linear units where 1 shows a white diffuse surface as white.

    Attributes:
        sky, ground: colour arriving at a surface that faces straight up or down; in between they blend.
        key_color, key_direction: main light and where it comes FROM (unit vector, world axes).
        fill_color, fill_direction: second light, likewise.
    """

    sky: RGB
    ground: RGB
    key_color: RGB = (0.0, 0.0, 0.0)
    key_direction: Direction = (0.0, 1.0, 0.0)
    fill_color: RGB = (0.0, 0.0, 0.0)
    fill_direction: Direction = (0.0, 1.0, 0.0)

    def irradiance(self, normals: Tensor) -> Tensor:
        """Light on surfaces with unit normals `[..., 3]`, linear RGB `[..., 3]`."""
        up = normals[..., 1:2] * 0.5 + 0.5
        sky, ground = normals.new_tensor(self.sky), normals.new_tensor(self.ground)
        total = ground + (sky - ground) * up
        for color, direction in ((self.key_color, self.key_direction), (self.fill_color, self.fill_direction)):
            if any(color):
                cosine = (normals @ normals.new_tensor(direction))[..., None]
                total = total + ((cosine + _WRAP) / (1 + _WRAP)).clamp_min(0) * normals.new_tensor(color)
        return total


UNLIT = Light(sky=(1.0, 1.0, 1.0), ground=(1.0, 1.0, 1.0))
"""Shows the base colour as it is."""


def _unit(x: float, y: float, z: float) -> Direction:
    length = math.sqrt(x * x + y * y + z * z)
    return (x / length, y / length, z / length)


STUDIO = Light(
    sky=(0.57, 0.58, 0.60),
    ground=(0.38, 0.366, 0.352),
    key_color=(0.437, 0.428, 0.41),
    key_direction=_unit(0.55, 0.75, 0.60),
    fill_color=(0.16, 0.17, 0.18),
    fill_direction=_unit(-0.70, 0.25, -0.65),
)
"""Key from the upper front left of the object, fill from behind on the other side. White
surfaces lie between 0.38 and 0.99 in linear light, so nothing burns out."""


def make_light(lighting: Lighting, generator: np.random.Generator) -> Light:
    """The light for a named choice; only "random" draws from the generator.

    Raises:
        InvalidInputError: unknown name.
    """
    if lighting == "studio":
        return STUDIO
    if lighting == "unlit":
        return UNLIT
    if lighting == "random":
        return random_light(generator)
    raise InvalidInputError(f"lighting must be one of {', '.join(LIGHTINGS)}, got {lighting!r}")


def random_light(generator: np.random.Generator) -> Light:
    """A random studio for training: from overcast to a clear key light, tinted, from any side of the upper half.

    The brightest white surface reaches 0.75..1.05.
    """
    ambient = float(generator.uniform(0.4, 0.95)) if generator.random() < 0.85 else 1.0
    sky = _tint(generator, 0.06)
    ground = _tint(generator, 0.10) * generator.uniform(0.35, 1.0)
    key, fill = _tint(generator, 0.08), _tint(generator, 0.08)
    key_level = (1 - ambient) * generator.uniform(0.7, 1.3)
    fill_level = (1 - ambient) * generator.uniform(0.0, 0.6)
    key_azimuth, fill_azimuth = generator.uniform(0, 2 * math.pi, 2)
    key_elevation, fill_elevation = math.radians(generator.uniform(5, 80)), math.radians(generator.uniform(-20, 60))
    light = Light(
        sky=_rgb(sky * ambient),
        ground=_rgb(ground * ambient),
        key_color=_rgb(key * key_level),
        key_direction=_direction(key_azimuth, key_elevation),
        fill_color=_rgb(fill * fill_level),
        fill_direction=_direction(fill_azimuth, fill_elevation),
    )
    brightest = float(light.irradiance(_sphere_normals()).amax())
    return _scaled(light, float(generator.uniform(0.75, 1.05)) / brightest)


def _tint(generator: np.random.Generator, strength: float) -> NDArray[np.float64]:
    """A colour near white: warm or cool, with a little green or magenta."""
    warm, green = generator.normal(0, strength), generator.normal(0, strength / 3)
    tint: NDArray[np.float64] = np.exp(np.array([warm, green, -warm]))
    return tint


def _rgb(color: NDArray[np.float64]) -> RGB:
    return (float(color[0]), float(color[1]), float(color[2]))


def _direction(azimuth: float, elevation: float) -> Direction:
    horizontal = math.cos(elevation)
    return (horizontal * math.sin(azimuth), math.sin(elevation), horizontal * math.cos(azimuth))


def _scaled(light: Light, factor: float) -> Light:
    def scale(color: RGB) -> RGB:
        return (color[0] * factor, color[1] * factor, color[2] * factor)

    return Light(
        scale(light.sky),
        scale(light.ground),
        scale(light.key_color),
        light.key_direction,
        scale(light.fill_color),
        light.fill_direction,
    )


def _sphere_normals(count: int = 256) -> Tensor:
    """Even directions (Fibonacci sphere), `[count, 3]`."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    y = 1 - 2 * index / count
    azimuth = index * (math.pi * (3 - math.sqrt(5)))
    horizontal = (1 - y * y).sqrt()
    return torch.stack([horizontal * azimuth.sin(), y, horizontal * azimuth.cos()], -1)
