"""True depth of the input frames of a rendered data set, as 16-bit levels in one tensor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.data.png import decode_gray16
from maquette.errors import FileFormatError, InvalidInputError

_CHUNK_BYTES = 1 << 30
_LEVELS = 65535


@dataclass(frozen=True)
class InputDepths:
    """Depth of the D input frames of each of O objects.

    Attributes:
        levels: unsigned 16-bit values in int16 tensors (GPUs index those), `[O, D, H, W]`.
        slots: place of each frame in `levels`, -1 for frames without depth, int64 `[O, F]`, same device.
        scales: depth at the highest level, world units, float32 `[O]`, same device.
    """

    levels: Tensor
    slots: Tensor
    scales: Tensor

    def gather(self, objects: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Levels `[B, V, H, W]` and scales `[B]` of input frames `[B, V]` of objects `[B]`, for `decode_levels`."""
        return self.levels[objects[:, None], self.slots[objects[:, None], frames]], self.scales[objects]


def decode_levels(levels: Tensor, scales: Tensor) -> Tensor:
    """Depth in world units, 0 where there is no surface, float32 `[B, V, H, W]`."""
    return (levels.int() & _LEVELS).float() * (scales / _LEVELS)[:, None, None, None]


def read_input_depths(
    pool: Executor, folders: Sequence[Path], roles: Tensor, size: tuple[int, int], device: torch.device
) -> InputDepths:
    """Reads the depth maps of all input frames.

    Args:
        pool: threads that decode.
        folders: one per object.
        roles: 0 for input frames, `[O, F]`.
        size: width and height of the pictures, px.
        device: where they go (chunk by chunk when it is a GPU).

    Raises:
        InvalidInputError: the data set was rendered without geometry.
        FileFormatError: a depth map is missing or damaged, or objects have different numbers of input frames.
    """
    is_input = roles.cpu() == 0
    counts = is_input.sum(1)
    if int(counts.min()) != int(counts.max()):
        raise FileFormatError(f"{folders[0].parent}: objects have {int(counts.min())} to {int(counts.max())} inputs")
    slots = torch.where(is_input, is_input.long().cumsum(1) - 1, -1)
    listed = list(pool.map(_depth_files, folders, is_input.tolist()))
    width, height = size
    shape = (int(counts[0]), height, width)
    levels = torch.empty(len(folders), *shape, dtype=torch.int16, device=device)
    chunk = max(1, min(len(folders), _CHUNK_BYTES // max(1, 2 * shape[0] * height * width)))
    for first in range(0, len(folders), chunk):
        part = listed[first : first + chunk]
        buffer: NDArray[np.uint16] = np.empty((len(part), *shape), np.uint16)
        files = [path for _, paths in part for path in paths]
        for _ in pool.map(_decode, files, buffer.reshape(-1, height, width), chunksize=16):
            pass
        levels[first : first + len(part)].copy_(torch.from_numpy(buffer.view(np.int16)))
    scales = torch.tensor([scale for scale, _ in listed], dtype=torch.float32)
    return InputDepths(levels, slots.to(device), scales.to(device))


def _depth_files(folder: Path, is_input: list[bool]) -> tuple[float, list[Path]]:
    """Scale and depth files of the input frames of one object."""
    document = json.loads((folder / "transforms.json").read_text("utf-8"))
    if "depth_scale" not in document:
        raise InvalidInputError(
            f"{folder.parent} was rendered without depth: render it again without --no-geometry into another folder, "
            "or train with --no-use-depth"
        )
    try:
        names = [str(f["depth_file_path"]) for f, wanted in zip(document["frames"], is_input, strict=True) if wanted]
        scale = float(document["depth_scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{folder} has a malformed transforms.json ({error!r}): delete it and run `maquette data render` again"
        ) from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise FileFormatError(f"{folder / 'transforms.json'} names a depth map outside its folder")
    return scale, [folder / name for name in names]


def _decode(path: Path, target: NDArray[np.uint16]) -> None:
    try:
        decode_gray16(path.read_bytes(), target)
    except (OSError, FileFormatError) as error:
        raise FileFormatError(
            f"{path} is missing or damaged ({error}): delete {path.parent.parent} and run `maquette data render` again"
        ) from error
