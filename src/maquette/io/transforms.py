"""Posed pictures in a folder: `transforms.json` in the layout of nerfstudio and instant-ngp.

Matrices are camera-to-world in OpenGL camera axes; the world is taken as it is (maquette: Y up, front +Z).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.cameras import OPENGL_TO_OPENCV, Cameras
from maquette.errors import FileFormatError, InvalidInputError
from maquette.io import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES
from maquette.io.images import ImageInfo, read_image, read_image_info, write_image
from maquette.io.regular import read_limited
from maquette.views import Views

FILE_NAME = "transforms.json"
"""Name of the camera file in a folder of views."""

_MAX_JSON_BYTES = 64 << 20
_MAX_TOTAL_PIXELS = 256_000_000
_RIGID_TOLERANCE = 1e-3
_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_PINHOLE_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")


def read_views(
    folder: str | Path,
    *,
    frames: Sequence[int] | None = None,
    min_views: int = 1,
    require_alpha: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Views:
    """Reads posed pictures, unbatched `[V]`, CPU float32, in the order of the file.

    Args:
        folder: holds `transforms.json`, or that file itself. Intrinsics are `fl_x, fl_y, cx, cy, w, h` or
            `camera_angle_x`, for all frames or per frame; `file_path` is relative, with or without suffix.
        frames: positions in the file of the frames to read, in this order; None reads all.
        min_views: fewer views are an error that says so.
        require_alpha: refuse pictures without an alpha channel (False: alpha 1).
        max_pixels: per picture.

    Raises:
        FileNotFoundError: no such folder.
        FileFormatError: a camera file or picture is missing, leaves the folder, or does not fit; the message
            names the frame and what is wrong.
        InvalidInputError: `frames` names a frame that does not exist.
    """
    root, content = _read_json(folder)
    listed = content.get("frames")
    if not isinstance(listed, list) or not all(isinstance(f, dict) for f in listed):
        raise FileFormatError(f"{root / FILE_NAME}: no list 'frames' of objects")
    chosen = list(range(len(listed))) if frames is None else list(frames)
    outside = [i for i in chosen if not 0 <= i < len(listed)]
    if outside:
        raise InvalidInputError(f"{root / FILE_NAME} has {len(listed)} frames (0 to {len(listed) - 1}), not {outside}")
    if len(chosen) < max(min_views, 1):
        raise FileFormatError(
            f"{root}: {len(chosen)} views found, {max(min_views, 1)} needed; add the missing frames to {FILE_NAME}"
        )
    labels = [f"{root / FILE_NAME}, frame {i}" for i in chosen]
    settings: list[Mapping[str, Any]] = [{**content, **listed[i]} for i in chosen]
    paths = [_picture_path(root, s.get("file_path"), label) for s, label in zip(settings, labels, strict=True)]
    infos = [read_image_info(path, max_pixels=max_pixels) for path in paths]
    _check_pictures(paths, infos, require_alpha)
    width, height = infos[0].width, infos[0].height
    poses = torch.stack([_pose(s.get("transform_matrix"), label) for s, label in zip(settings, labels, strict=True)])
    rows = [_intrinsics(s, width, height, label) for s, label in zip(settings, labels, strict=True)]
    opencv = poses * poses.new_tensor(OPENGL_TO_OPENCV)
    world_to_camera = torch.linalg.inv(opencv).to(torch.float32)
    images = torch.empty(len(paths), 4, height, width)
    for image, path in zip(images, paths, strict=True):
        picture = read_image(path, max_pixels=max_pixels)
        if picture.shape != image.shape:
            raise FileFormatError(f"{path}: the size in the header is not the size of the picture")
        image.copy_(picture)
    return Views(images, Cameras(world_to_camera, torch.stack(rows).to(torch.float32), height, width))


def _read_json(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    given = Path(folder)
    path = given if given.suffix == ".json" else given / FILE_NAME
    root = path.parent
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder (expected pictures and {FILE_NAME})")
    if not path.exists():
        pictures = sum(p.suffix.lower() in IMAGE_SUFFIXES for pattern in ("*", "*/*") for p in root.glob(pattern))
        raise FileFormatError(
            f"{root}: the camera file {path.name} is missing ({pictures} pictures found); "
            "it must list the frames with file_path and transform_matrix, and fl_x or camera_angle_x"
        )
    try:
        content = json.loads(read_limited(path, "a camera file", _MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path}: expected a JSON object with 'frames'")
    return root, content


def _picture_path(root: Path, name: Any, label: str) -> Path:
    """The picture of a frame, inside the folder also after following links."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise FileFormatError(f"{label}: file_path is missing")
    name = name.replace("\\", "/")
    if Path(name).is_absolute():
        raise FileFormatError(f"{label}: file_path '{name}' is absolute; it must be relative to the folder")
    suffixes = ("",) if Path(name).suffix.lower() in IMAGE_SUFFIXES else IMAGE_SUFFIXES
    try:
        found: Path | None = next((root / (name + s) for s in suffixes if (root / (name + s)).is_file()), None)
        inside = (root / name).resolve() if found is None else found.resolve()
    except (OSError, RuntimeError) as error:
        raise FileFormatError(f"{label}: file_path '{name[:80]}' cannot be followed: {error}") from error
    if not inside.is_relative_to(root.resolve()):
        raise FileFormatError(f"{label}: file_path '{name}' leaves the folder {root}; copy the picture into it")
    if found is None:
        raise FileFormatError(f"{label}: the picture '{name}' is missing")
    return found


def _check_pictures(paths: list[Path], infos: list[ImageInfo], require_alpha: bool) -> None:
    sizes: dict[tuple[int, int], Path] = {}
    for path, info in zip(paths, infos, strict=True):
        sizes.setdefault((info.width, info.height), path)
    if len(sizes) > 1:
        found = ", ".join(f"{w} x {h} ({path.name})" for (w, h), path in list(sizes.items())[:4])
        raise FileFormatError(f"{paths[0].parent}: the pictures must have one size, found {found}")
    total = len(infos) * infos[0].width * infos[0].height
    if total > _MAX_TOTAL_PIXELS:
        raise FileFormatError(
            f"{len(infos)} pictures have {total:,} pixels, at most {_MAX_TOTAL_PIXELS:,} are read at once: pass frames"
        )
    opaque = [path.name for path, info in zip(paths, infos, strict=True) if not info.has_alpha]
    if require_alpha and opaque:
        raise FileFormatError(
            f"{len(opaque)} of {len(paths)} pictures have no alpha channel (first: {opaque[0]}); "
            "cut the object out of its background and save RGBA PNG"
        )


def _number(settings: Mapping[str, Any], name: str, label: str) -> float | None:
    value = settings.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise FileFormatError(f"{label}: {name} must be a finite number, got {str(value)[:40]}")
    return float(value)


def _pose(matrix: Any, label: str) -> Tensor:
    """Camera-to-world matrix as float64 `[4, 4]`, checked to be rigid."""
    if matrix is None:
        raise FileFormatError(f"{label}: transform_matrix is missing")
    try:
        pose = torch.tensor(matrix, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise FileFormatError(f"{label}: transform_matrix is not a table of numbers") from error
    if tuple(pose.shape) == (3, 4):
        pose = torch.cat([pose, pose.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    if tuple(pose.shape) != (4, 4):
        raise FileFormatError(f"{label}: transform_matrix must be 4 x 4, got {list(pose.shape)}")
    if not bool(torch.isfinite(pose).all()) or float(pose.abs().max()) > 1e6:
        raise FileFormatError(f"{label}: transform_matrix has NaN, infinite or huge values")
    rotation = pose[:3, :3]
    deviation = float((rotation.mT @ rotation - torch.eye(3, dtype=torch.float64)).abs().max())
    last_row = bool(torch.allclose(pose[3], pose.new_tensor([0.0, 0.0, 0.0, 1.0]), atol=1e-6))
    if deviation > _RIGID_TOLERANCE or float(torch.linalg.det(rotation)) < 0 or not last_row:
        raise FileFormatError(
            f"{label}: transform_matrix is not rigid (a rotation and a translation; rotation off by {deviation:.3g}); "
            "remove scale, shear and mirroring"
        )
    return pose


def _intrinsics(settings: Mapping[str, Any], width: int, height: int, label: str) -> Tensor:
    """Pinhole matrix in pixels as float64 `[3, 3]`."""
    model = settings.get("camera_model", "PINHOLE")
    if not isinstance(model, str) or model.upper() not in _PINHOLE_MODELS:
        raise FileFormatError(
            f"{label}: camera_model '{str(model)[:40]}' is not a pinhole; undistort the pictures first"
        )
    bent = [name for name in _DISTORTION if _number(settings, name, label)]
    if bent:
        raise FileFormatError(f"{label}: lens distortion {', '.join(bent)} is not zero; undistort the pictures first")
    claimed = (_number(settings, "w", label) or width, _number(settings, "h", label) or height)
    if claimed != (width, height):
        raise FileFormatError(
            f"{label}: w x h is {claimed[0]:g} x {claimed[1]:g}, the picture has {width} x {height} pixels"
        )
    focal_x, focal_y = _number(settings, "fl_x", label), _number(settings, "fl_y", label)
    if focal_x is None:
        focal_x = _focal(_number(settings, "camera_angle_x", label), width, label)
    if focal_y is None:
        focal_y = _focal(_number(settings, "camera_angle_y", label), height, label)
    focal_x = focal_y if focal_x is None else focal_x
    focal_y = focal_x if focal_y is None else focal_y
    if focal_x is None or focal_y is None or focal_x <= 0 or focal_y <= 0:
        raise FileFormatError(
            f"{label}: the focal length is missing; give fl_x (pixels, > 0) or camera_angle_x (radians)"
        )
    center_x, center_y = _number(settings, "cx", label), _number(settings, "cy", label)
    center_x = width / 2 if center_x is None else center_x
    center_y = height / 2 if center_y is None else center_y
    return torch.tensor([[focal_x, 0.0, center_x], [0.0, focal_y, center_y], [0.0, 0.0, 1.0]], dtype=torch.float64)


def _focal(angle: float | None, size: int, label: str) -> float | None:
    if angle is None:
        return None
    if not 0 < angle < math.pi:
        raise FileFormatError(f"{label}: camera_angle must lie in (0, pi) radians, got {angle:g}")
    return 0.5 * size / math.tan(angle / 2)


def write_views(folder: str | Path, views: Views, *, overwrite: bool = False) -> None:
    """Writes `transforms.json` and `rgb/000.png`... (RGBA, 8 bit); the folder appears complete or not at all.

    Args:
        folder: must not exist (or be empty) unless `overwrite`.
        views: unbatched `[V]`.
        overwrite: replace an existing folder and everything in it, provided it is a folder of views.

    Raises:
        InvalidInputError: a batch, or a folder that must not be replaced.
    """
    target = Path(folder)
    if len(views.cameras.batch_shape) != 1 or views.num_views == 0:
        raise InvalidInputError(f"write_views() needs views [V], got batch {list(views.cameras.batch_shape)}")
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (overwrite and (target / FILE_NAME).is_file()):
        raise InvalidInputError(
            f"{target} exists; choose another folder, or overwrite=True for a folder that has {FILE_NAME}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
        fresh, old = Path(name) / "new", Path(name) / "old"
        fresh.mkdir()
        _write_content(fresh, views)
        if target.exists():
            target.replace(old)
        fresh.replace(target)
        shutil.rmtree(old, ignore_errors=True)


def _write_content(folder: Path, views: Views) -> None:
    cameras = views.cameras.to("cpu").to(torch.float64)
    intrinsics = cameras.intrinsics
    shared = bool((intrinsics == intrinsics[:1]).all())
    frames = []
    for index, pose in enumerate(cameras.opengl_poses()):
        name = f"rgb/{index:03d}.png"
        write_image(folder / name, views.images[index])
        frame: dict[str, Any] = {"file_path": name, "transform_matrix": pose.tolist()}
        frames.append(frame if shared else frame | _focal_fields(intrinsics[index]))
    content: dict[str, Any] = {"camera_model": "PINHOLE", "w": cameras.width, "h": cameras.height}
    content |= _focal_fields(intrinsics[0]) if shared else {}
    content["frames"] = frames
    with (folder / FILE_NAME).open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _focal_fields(intrinsics: Tensor) -> dict[str, float]:
    fields = {"fl_x": intrinsics[0, 0], "fl_y": intrinsics[1, 1], "cx": intrinsics[0, 2], "cy": intrinsics[1, 2]}
    return {name: float(value) for name, value in fields.items()}
