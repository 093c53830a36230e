"""`Views`: posed pictures of one object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError


@dataclass(frozen=True)
class Views:
    """Pictures with their cameras.

    Attributes:
        images: RGBA, sRGB-encoded 0..1, straight (not premultiplied) alpha, `[..., V, 4, H, W]`.
        cameras: batch shape `[..., V]`, image size (H, W).
        depths: true z of the surface in each camera's axes, world units, 0 where there is none or it is not known,
            `[..., V, H, W]`; None where nobody knows them.

    Raises:
        InvalidInputError: shapes disagree or images are not floating point.
    """

    images: Tensor
    cameras: Cameras
    depths: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.ndim < 4 or shape[-3] != 4:
            raise InvalidInputError(f"images must be [..., V, 4, H, W] (RGBA), got {list(shape)}")
        if not self.images.is_floating_point():
            raise InvalidInputError(f"images must be floating point in 0..1, got {self.images.dtype}")
        if shape[:-3] != self.cameras.batch_shape:
            raise InvalidInputError(
                f"images have batch {list(shape[:-3])}, cameras {list(self.cameras.batch_shape)}: they must agree"
            )
        if shape[-2:] != (self.cameras.height, self.cameras.width):
            raise InvalidInputError(
                f"images are {shape[-2]} x {shape[-1]}, cameras {self.cameras.height} x {self.cameras.width}"
            )
        if self.depths is not None and tuple(self.depths.shape) != (*shape[:-3], *shape[-2:]):
            raise InvalidInputError(
                f"depths must be {[*shape[:-3], *shape[-2:]]} to fit images, got {list(self.depths.shape)}"
            )

    @property
    def num_views(self) -> int:
        """Number of views per object (V)."""
        return int(self.images.shape[-4])

    def to(self, target: torch.device | torch.dtype | str) -> Views:
        """Moves to a device or casts to a floating-point dtype."""
        depths = None if self.depths is None else self.depths.to(target)
        return Views(self.images.to(target), self.cameras.to(target), depths)

    def composited(self, background: tuple[float, float, float] | Tensor = (1.0, 1.0, 1.0)) -> Tensor:
        """RGB over one background colour, `[..., V, 3, H, W]`."""
        color = torch.as_tensor(background, dtype=self.images.dtype, device=self.images.device).reshape(3, 1, 1)
        alpha = self.images[..., 3:4, :, :]
        return self.images[..., :3, :, :] * alpha + color * (1 - alpha)
