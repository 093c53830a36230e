"""`RenderedDataset`: reads what `maquette data render` wrote into one uint8 tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.cameras import OPENGL_TO_OPENCV, Cameras
from maquette.data.depths import InputDepths, read_input_depths
from maquette.data.layout import ROLES, ObjectInfo, read_index
from maquette.data.png import decode_rgba
from maquette.errors import FileFormatError, InvalidInputError
from maquette.views import Views

INPUT, TARGET = 0, 1
"""Values of `RenderedDataset.roles`."""

_CHUNK_BYTES = 1 << 30


@dataclass(frozen=True)
class RenderedDataset:
    """Posed pictures of O objects with F frames each, all of one image size.

    Attributes:
        root: folder it was read from.
        images: RGBA, sRGB-encoded, straight alpha, uint8 `[O, F, 4, H, W]`, on the device asked for.
        world_to_camera: rigid, OpenCV camera axes, float32 `[O, F, 4, 4]`, same device.
        intrinsics: in pixels, float32 `[O, F, 3, 3]`, same device.
        roles: `INPUT` (0) or `TARGET` (1) per frame, uint8 `[O, F]`, on the CPU.
        variants: number of the variant (light, scale, textures) that a frame shows, int64 `[O, F]`, on the CPU. Only
            frames of one variant show the same thing.
        objects: metadata per object, sorted by id.
        settings: how it was rendered: image_size, fov_deg, radius, plan, lighting, seed...
        depths: true depth of the input frames, same device; None when it was not asked for.
        reshaped: frames whose object was turned and reshaped, bool `[O, F]`, on the CPU; None: not one.
    """

    root: Path
    images: Tensor
    world_to_camera: Tensor
    intrinsics: Tensor
    roles: Tensor
    variants: Tensor
    objects: tuple[ObjectInfo, ...]
    settings: dict[str, Any]
    depths: InputDepths | None = None
    reshaped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def image_size(self) -> int:
        """Height of the (square) pictures in pixels."""
        return int(self.images.shape[-2])

    @property
    def num_frames(self) -> int:
        """Frames per object, all variants together (F)."""
        return int(self.images.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the pictures are."""
        return self.images.device

    def views(self, object_index: int | Tensor, frame_indices: Sequence[int] | Tensor) -> Views:
        """Frames as floating-point views.

        Args:
            object_index: one index, or `[B]`.
            frame_indices: `[V]`, or `[B, V]` for `[B]` objects.

        Returns:
            Views `[V]` or `[B, V]`, images float32 in 0..1.
        """
        frames = torch.as_tensor(frame_indices, device=self.device, dtype=torch.int64)
        objects = torch.as_tensor(object_index, device=self.device, dtype=torch.int64)
        if frames.ndim != objects.ndim + 1 or (objects.ndim == 1 and frames.shape[0] != objects.shape[0]):
            raise InvalidInputError(
                f"frame_indices must be [V] for one object or [B, V] for [B] objects, got {list(frames.shape)} "
                f"for {list(objects.shape)}"
            )
        where = (objects[..., None], frames)
        height, width = self.images.shape[-2:]
        cameras = Cameras(self.world_to_camera[where], self.intrinsics[where], height, width)
        return Views(self.images[where].float().div_(255), cameras)

    @staticmethod
    def load(
        root: str | Path,
        split: str | None = None,
        *,
        device: torch.device | str = "cpu",
        ids: Sequence[str] | None = None,
        workers: int | None = None,
        input_depths: bool = False,
    ) -> RenderedDataset:
        """Reads a rendered data set.

        Args:
            root: folder that `maquette data render` wrote.
            split: only objects of this split; None reads all.
            device: where images and cameras go (in chunks: host memory stays small when it is a GPU).
            ids: only these objects.
            workers: decoding threads; None takes one per CPU core.
            input_depths: read the depth of the input frames as well.

        Raises:
            FileFormatError: missing, truncated or mixed-size files; the message names the file.
            InvalidInputError: no object is left, an id is unknown, or there is no depth.
        """
        root, target = Path(root), torch.device(device)
        settings, listed = read_index(root)
        objects = _choose(root, listed, split, ids)
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            frames = list(pool.map(lambda info: _read_frames(root / info.id), objects))
            counts = {len(item.roles) for item in frames}
            sizes = {item.size for item in frames}
            if len(counts) != 1 or len(sizes) != 1:
                raise FileFormatError(
                    f"{root} mixes objects of {sorted(counts)} frames and sizes {sorted(sizes)} (width, height): "
                    "render them into separate folders"
                )
            roles = torch.tensor([item.roles for item in frames], dtype=torch.uint8)
            depths = None  # first: a data set without them should not cost the time of reading the pictures
            if input_depths:
                folders = [root / info.id for info in objects]
                depths = read_input_depths(pool, folders, roles, frames[0].size, target)
            images = _read_images(pool, frames, target)
        return RenderedDataset(
            root=root,
            images=images,
            world_to_camera=torch.stack([item.world_to_camera for item in frames]).to(target),
            intrinsics=torch.stack([item.intrinsics for item in frames]).to(target),
            roles=roles,
            variants=torch.tensor([item.variants for item in frames], dtype=torch.int64),
            objects=tuple(objects),
            settings=settings,
            depths=depths,
            reshaped=torch.tensor([item.reshaped for item in frames]),
        )


@dataclass(frozen=True)
class _Frames:
    """One object's transforms.json."""

    paths: list[Path]
    world_to_camera: Tensor
    intrinsics: Tensor
    roles: list[int]
    variants: list[int]
    reshaped: list[bool]
    size: tuple[int, int]


def _choose(root: Path, objects: list[ObjectInfo], split: str | None, ids: Sequence[str] | None) -> list[ObjectInfo]:
    if ids is not None:
        unknown = sorted(set(ids) - {info.id for info in objects})
        if unknown:
            raise InvalidInputError(f"{root} has no objects {unknown[:5]}; its dataset.json lists {len(objects)}")
    chosen = [info for info in objects if split in (None, info.split) and (ids is None or info.id in set(ids))]
    if not chosen:
        splits = sorted({info.split for info in objects})
        raise InvalidInputError(f"{root} has no object of split {split!r}: its {len(objects)} objects have {splits}")
    return sorted(chosen, key=lambda info: info.id)


def _read_frames(folder: Path) -> _Frames:
    path = folder / "transforms.json"
    try:
        document = json.loads(path.read_text("utf-8"))
        frames = document["frames"]
        poses = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)
        focal, center = (document["fl_x"], document["fl_y"]), (document["cx"], document["cy"])
        rows = [[focal[0], 0.0, center[0]], [0.0, focal[1], center[1]], [0.0, 0.0, 1.0]]
        names = [str(frame["file_path"]) for frame in frames]
        roles = [ROLES.index(frame["role"]) for frame in frames]
        variants = [int(frame["variant"]) for frame in frames]
        reshaped = [bool(frame.get("reshaped", False)) for frame in frames]
        size = (int(document["w"]), int(document["h"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path} is missing or malformed ({error!r}): delete {folder} and run `maquette data render` again"
        ) from error
    if poses.shape[1:] != (4, 4):
        raise FileFormatError(f"{path} needs 4 x 4 matrices, got {list(poses.shape[1:])}")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise FileFormatError(f"{path} names a picture outside its folder")
    opencv = poses * poses.new_tensor(OPENGL_TO_OPENCV)
    world_to_camera = torch.linalg.inv(opencv).to(torch.float32)
    intrinsics = torch.tensor(rows).expand(len(names), 3, 3)
    return _Frames([folder / name for name in names], world_to_camera, intrinsics, roles, variants, reshaped, size)


def _read_images(pool: ThreadPoolExecutor, frames: list[_Frames], device: torch.device) -> Tensor:
    """Decodes all pictures; a GPU gets them chunk by chunk through one host buffer."""
    (width, height), num_frames = frames[0].size, len(frames[0].roles)
    images = torch.empty(len(frames), num_frames, 4, height, width, dtype=torch.uint8, device=device)
    on_cpu = device.type == "cpu"
    per_object = max(1, num_frames * 4 * height * width)
    chunk = len(frames) if on_cpu else max(1, min(len(frames), _CHUNK_BYTES // per_object))
    buffer = images if on_cpu else torch.empty(chunk, *images.shape[1:], dtype=torch.uint8)
    for first in range(0, len(frames), chunk):
        part = frames[first : first + chunk]
        target: NDArray[np.uint8] = buffer.numpy()
        jobs = [(path, target[i, f]) for i, item in enumerate(part) for f, path in enumerate(item.paths)]
        for _ in pool.map(_decode_many, _slices(jobs, 16)):
            pass
        if not on_cpu:
            images[first : first + len(part)].copy_(buffer[: len(part)])
    return images


def _slices(jobs: list[tuple[Path, NDArray[np.uint8]]], size: int) -> Iterator[list[tuple[Path, NDArray[np.uint8]]]]:
    for first in range(0, len(jobs), size):
        yield jobs[first : first + size]


def _decode_many(jobs: list[tuple[Path, NDArray[np.uint8]]]) -> None:
    for path, target in jobs:
        _decode(path, target)


def _decode(path: Path, target: NDArray[np.uint8]) -> None:
    """One RGBA picture into `[4, H, W]`."""
    try:
        decode_rgba(path.read_bytes(), target)
    except (OSError, FileFormatError) as error:
        raise FileFormatError(
            f"{path} is missing or damaged ({error}): delete {path.parent.parent} and run `maquette data render` again"
        ) from error
