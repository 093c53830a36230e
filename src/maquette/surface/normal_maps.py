"""Normal maps with their cameras: what refinement aims at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maquette.cameras import OPENGL_TO_OPENCV, Cameras
from maquette.errors import FileFormatError, InvalidInputError
from maquette.io import read_image, read_views

MAX_SIZE = 1024
"""Larger maps are refused: scale them down."""


@dataclass(frozen=True)
class NormalMaps:
    """Wanted normals, seen by cameras.

    Attributes:
        cameras: `[V]`, on one device with the maps: there refinement renders.
        normals: unit, in the world, `[V, H, W, 3]`; ignored where alpha is 0.
        alpha: coverage 0..1, `[V, H, W]`.

    Raises:
        InvalidInputError: shapes disagree, or the maps are too large.
    """

    cameras: Cameras
    normals: Tensor
    alpha: Tensor

    def __post_init__(self) -> None:
        expected = (*self.cameras.batch_shape, self.cameras.height, self.cameras.width)
        if tuple(self.alpha.shape) != expected or tuple(self.normals.shape) != (*expected, 3) or len(expected) != 3:
            raise InvalidInputError(
                f"normals and alpha must be {[*expected, 3]} and {list(expected)}, got {list(self.normals.shape)} and "
                f"{list(self.alpha.shape)}"
            )
        if max(expected[1:]) > MAX_SIZE:
            raise InvalidInputError(f"normal maps may have at most {MAX_SIZE} pixels a side, got {expected[1:]}")

    def halved(self) -> NormalMaps:
        """Maps of half the size: normals averaged by coverage."""
        height, width = self.cameras.height // 2, self.cameras.width // 2
        covered = torch.cat([self.normals * self.alpha[..., None], self.alpha[..., None]], dim=-1).permute(0, 3, 1, 2)
        pooled = functional.interpolate(covered, (height, width), mode="area").permute(0, 2, 3, 1)
        normals = functional.normalize(pooled[..., :3], dim=-1)
        return NormalMaps(self.cameras.resized(height, width), normals, pooled[..., 3].contiguous())

    def to(self, device: torch.device | str) -> NormalMaps:
        """The same on a device."""
        return NormalMaps(self.cameras.to(device), self.normals.to(device), self.alpha.to(device))


def read_normal_maps(folder: str | Path, *, frames: list[int] | None = None) -> NormalMaps:
    """Reads the normal maps of a `transforms.json` folder.

    Every frame has `normal_file_path`, an 8-bit picture with `(normal + 1) / 2`, beside `file_path`, whose alpha is the
    coverage. The axes are the world's unless `normal_axes` says `camera` (x right, y up, z towards the camera).

    Args:
        folder: with `transforms.json`, as `maquette data render` writes it.
        frames: positions of the frames to read, or None for all.

    Raises:
        FileFormatError: a file is missing or broken, or a frame has no normal map.
    """
    views = read_views(folder, frames=frames)
    path = Path(folder)
    path = path if path.suffix == ".json" else path / "transforms.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    axes = content.get("normal_axes", "world")
    if axes not in ("world", "camera"):
        raise FileFormatError(f"{path}: normal_axes must be 'world' or 'camera', got {axes!r}")
    listed = content["frames"]
    chosen = listed if frames is None else [listed[i] for i in frames]
    maps = []
    for frame in chosen:
        name = frame.get("normal_file_path")
        if not isinstance(name, str):
            raise FileFormatError(f"{path}: {frame.get('file_path')} has no normal_file_path")
        picture = read_image(path.parent / name)[:3]
        if picture.shape[1:] != views.images.shape[2:]:
            raise FileFormatError(f"{path.parent / name}: must have the size of {frame.get('file_path')}")
        maps.append(picture)
    normals = functional.normalize(torch.stack(maps) * 2 - 1, dim=1).permute(0, 2, 3, 1)
    if axes == "camera":
        to_opencv = normals.new_tensor(OPENGL_TO_OPENCV[:3])
        rotation = views.cameras.camera_to_world[:, :3, :3].to(normals)
        normals = torch.einsum("vij,vhwj->vhwi", rotation, normals * to_opencv)
    return NormalMaps(views.cameras, normals.contiguous(), views.images[:, 3].contiguous())
