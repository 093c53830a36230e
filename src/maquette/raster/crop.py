"""Patches of images: which tiles of the whole image a patch needs, and cutting it out of them.

A patch is rendered as part of its whole image: on the tiles of that image and with its field of view, both of which
decide what a Gaussian reaches. So every pixel of a patch is the pixel of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.raster.reference import TILE, Window


@dataclass(frozen=True)
class Patches:
    """One patch per view, all of one size.

    Attributes:
        window: the tiles to render.
        offsets: first pixel (x, y) of each patch in its window, `[B, V, 2]` integers on the CPU.
        height, width: of the patches, in pixels.
    """

    window: Window
    offsets: Tensor
    height: int
    width: int

    def cut(self, images: Tensor) -> Tensor:
        """The patches `[B, V, ..., height, width]` of windows `[B, V, ..., H, W]`."""
        corners = self.offsets.reshape(-1, 2).tolist()
        if all(corner == corners[0] for corner in corners):
            return self._at(images, *corners[0])
        parts = [self._at(image, *corner) for image, corner in zip(images.flatten(0, 1), corners, strict=True)]
        return torch.stack(parts).reshape(*images.shape[:-2], self.height, self.width)

    def _at(self, images: Tensor, x: int, y: int) -> Tensor:
        return images[..., y : y + self.height, x : x + self.width]


def patches_of(crop: Sequence[int] | Tensor, cameras: Cameras, outer: tuple[int, ...]) -> Patches:
    """The patches that `crop` asks for.

    Args:
        crop: (x, y, width, height) in pixels of the whole image, or integers `[*outer, 4]`.
        cameras: `[B, V]`.
        outer: batch dimensions that the caller gave.

    Raises:
        InvalidInputError: not four integers, another shape, sizes that differ, or a patch that leaves the image.
    """
    valid = f"(x, y, width, height) in pixels within an image of {cameras.width} x {cameras.height} (width x height)"
    try:
        values = torch.as_tensor(crop, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"crop must be {valid}, got {crop!r}") from error
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InvalidInputError(f"crop must be integers {valid}, got {values.dtype}")
    if tuple(values.shape) not in {(4,), (*outer, 4)}:
        raise InvalidInputError(f"crop must be {valid}, or {[*outer, 4]} (one per view), got {list(values.shape)}")
    batch = cameras.batch_shape
    values = values.to(torch.int64)
    boxes = values.expand(*batch, 4) if values.ndim == 1 else values.reshape(*batch, 4)
    corners, sizes = boxes[..., :2], boxes[..., 2:]
    size = sizes.flatten(0, -2)[0]
    if not bool((sizes == size).all()):
        raise InvalidInputError("crop must have one width and height in all views")
    inside = (corners >= 0) & (sizes >= 1) & (corners + sizes <= torch.tensor([cameras.width, cameras.height]))
    if not bool(inside.all()):
        worst = boxes.flatten(0, -2)[(~inside).any(-1).flatten().nonzero()[0, 0]]
        raise InvalidInputError(f"crop must be {valid}, got {tuple(worst.tolist())}")
    origins = corners.div(TILE, rounding_mode="floor") * TILE
    offsets = corners - origins
    width, height = (offsets + sizes).flatten(0, -2).amax(0).tolist()
    return Patches(Window(origins, height, width), offsets, int(size[1]), int(size[0]))
