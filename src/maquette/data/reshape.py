"""Random changes of an object's shape, so that a generator of views sees more shapes than there are assets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maquette.data.surface import Surface

_STRETCH_SPREAD, _MAX_STRETCH = 0.25, 0.5
_LEAN_SPREAD, _MAX_LEAN = 0.07, 0.18
_TAPER_SPREAD, _MAX_TAPER = 0.15, 0.4


@dataclass(frozen=True)
class Reshape:
    """Tapers, stretches and leans an object of radius 1 about the origin, then turns it about the vertical axis.

    Attributes:
        stretch: factors along x, y and z, > 0; the object is scaled to its bounding sphere afterwards.
        lean: how far z moves per unit of height (y): forwards, so that left and right stay alike.
        taper: x and z are scaled by 1 + taper * y, in (-1, 1).
        turn_deg: its front looks to this azimuth afterwards.
    """

    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lean: float = 0.0
    taper: float = 0.0
    turn_deg: float = 0.0

    def apply(self, surface: Surface) -> Surface:
        """The changed surface; normals follow by the inverse transpose of the map's derivative.

        Args:
            surface: within the unit sphere about the origin.
        """
        x, y, z = surface.vertices.unbind(-1)
        width = 1 + self.taper * y
        matrix = self._matrix().to(surface.vertices)
        vertices = torch.stack([x * width, y, z * width], dim=-1) @ matrix.T
        normals = surface.normals
        if normals is not None:
            side, depth = normals[:, 0] / width, normals[:, 2] / width
            up = normals[:, 1] - self.taper * (x * side + z * depth)
            normals = functional.normalize(torch.stack([side, up, depth], dim=-1) @ torch.linalg.inv(matrix), dim=-1)
        return surface.moved(vertices, normals)

    def _matrix(self) -> Tensor:
        """Stretch, lean, turn, in this order, float64 `[3, 3]`."""
        stretch = torch.diag(torch.tensor(self.stretch, dtype=torch.float64))
        lean = torch.eye(3, dtype=torch.float64)
        lean[2, 1] = self.lean
        cos, sin = math.cos(math.radians(self.turn_deg)), math.sin(math.radians(self.turn_deg))
        turn = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=torch.float64)
        return turn @ lean @ stretch

    def settings(self) -> dict[str, object]:
        """What `transforms.json` says."""
        return dataclasses.asdict(self)


def random_reshape(generator: np.random.Generator) -> Reshape:
    """Stretches of e^(0.25 n) with n normal, and a little leaning and tapering, all of them limited.

    Half of the turns bring one of the four sides to the front, the others any azimuth.
    """

    def draw(spread: float, limit: float) -> float:
        return float(np.clip(generator.normal(0, spread), -limit, limit))

    x, y, z = (math.exp(draw(_STRETCH_SPREAD, _MAX_STRETCH)) for _ in range(3))
    lean, taper = draw(_LEAN_SPREAD, _MAX_LEAN), draw(_TAPER_SPREAD, _MAX_TAPER)
    anywhere, side = float(generator.uniform(0, 360)), 90.0 * float(generator.integers(4))
    return Reshape((x, y, z), lean, taper, side if generator.random() < 0.5 else anywhere)
