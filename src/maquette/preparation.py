"""Posed pictures from anybody's world -> the views that a reconstruction network was trained on.

The given cameras may live in any world (nerfstudio's is Z up, others are Y up; any unit, any origin). What fixes the
canonical world is the rig itself: the point that all cameras look at becomes the origin, the direction that no camera
is rolled about becomes Y, the mean distance becomes the networks' radius, and the first view becomes the front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.cameras import Cameras, intrinsics_from_fov
from maquette.errors import InvalidInputError
from maquette.resampling import resample_window
from maquette.views import Views

STANDARD_RADIUS = 1.5
STANDARD_FOV_DEG = 49.1
STANDARD_AZIMUTHS_DEG = (0.0, 90.0, 180.0, 270.0)
MAX_IMAGE_SIZE = 1024

_NEAR_AZIMUTH_DEG, _MAX_AZIMUTH_DEG = 10.0, 40.0
_ELEVATIONS_DEG = (-15.0, 35.0)
_MAX_ELEVATION_DEG = 75.0
_NEAR_RADIUS_RATIO, _MAX_RADIUS_RATIO = 1.15, 2.0
_NEAR_MISS, _MAX_MISS = 0.1, 0.5
_MAX_ROLL_DEG = 45.0
_SMALL_EXTENT = 0.35
_SEE = "docs/data.md says how to take or render them"


@dataclass(frozen=True)
class PreparedViews:
    """Views as the networks expect them, and how they came about.

    Attributes:
        views: the pictures at 49.1 degrees, square, first view at azimuth 0, then in growing azimuth.
        order: index of each prepared view among the given ones.
        transform: similarity `[4, 4]` from the given world to the canonical one.
        azimuths_deg, elevations_deg: where the prepared cameras stand.
        warnings: what differs from the standard orbit, as sentences.
    """

    views: Views
    order: tuple[int, ...]
    transform: Tensor
    azimuths_deg: tuple[float, ...]
    elevations_deg: tuple[float, ...]
    warnings: tuple[str, ...]


def prepare_views(views: Views) -> PreparedViews:
    """Checks four posed pictures, moves their cameras to the canonical orbit and resamples them to its lens.

    Args:
        views: `[4]` RGBA pictures of one object in any right-handed world; order does not matter, but the first one
            becomes the front.

    Raises:
        InvalidInputError: not four pictures, no transparency, an empty picture, or cameras that do not surround one
            point at four sides.
    """
    check_pictures(views)
    canonical, transform = canonical_cameras(views.cameras)
    azimuths, elevations = orbit_angles(canonical)
    order = tuple(sorted(range(len(azimuths)), key=lambda index: azimuths[index] % 360.0))
    warnings = _orbit_warnings([azimuths[i] for i in order], [elevations[i] for i in order], canonical, order)
    picked = torch.tensor(order, device=views.images.device)
    ordered = Views(views.images[picked], canonical[picked.to(canonical.device)])
    resampled, cut = _to_standard_lens(ordered)
    warnings += [
        f"view {order[index]}: part of the object lies outside the {STANDARD_FOV_DEG} degree field of view of the "
        "networks and is cut off; step back or use a longer lens"
        for index in cut
    ]
    extent = _largest_extent(resampled.images[:, 3])
    if extent < _SMALL_EXTENT:
        warnings.append(
            f"the object fills only {extent:.0%} of the pictures at the networks' field of view: fine detail is lost; "
            "go nearer or use a shorter lens"
        )
    return PreparedViews(
        resampled,
        order,
        transform,
        tuple(azimuths[i] % 360.0 for i in order),
        tuple(elevations[i] for i in order),
        tuple(warnings),
    )


def check_pictures(views: Views, count: int = 4) -> None:
    """Checks the number of pictures and that each has an object on a transparent background.

    Raises:
        InvalidInputError: says which picture is wrong and what to do.
    """
    if views.images.ndim != 4:
        raise InvalidInputError(f"views must be of one object, [V, 4, H, W], got {list(views.images.shape)}")
    if views.num_views != count:
        more = "pick four of them (--pick 0,3,6,9)" if views.num_views > count else "add the missing ones"
        raise InvalidInputError(
            f"{count} views are needed (azimuth 0, 90, 180 and 270 degrees around the object), got {views.num_views}: "
            f"{more}; {_SEE}"
        )
    low, high = float(views.images.amin()), float(views.images.amax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also when not a number
        raise InvalidInputError(
            f"pictures must have values in 0..1, these have {low:g} to {high:g}: divide 8-bit ones by 255"
        )
    alpha = views.images[:, 3]
    opaque = [index for index in range(count) if float(alpha[index].amin()) > 0.99]
    if opaque:
        raise InvalidInputError(
            f"view(s) {_listed(opaque)} have no transparent background (alpha is 1 everywhere): remove the background "
            "and save RGBA PNG or WebP files, straight alpha"
        )
    empty = [index for index in range(count) if float(alpha[index].amax()) < 0.05]
    if empty:
        raise InvalidInputError(f"view(s) {_listed(empty)} are empty (alpha is 0 everywhere): they show no object")


def canonical_cameras(cameras: Cameras) -> tuple[Cameras, Tensor]:
    """Moves a ring of cameras into the canonical world: Y up, looking at the origin, radius 1.5, first one in front.

    Args:
        cameras: `[V]`, V >= 3, in any right-handed world of any scale.

    Returns:
        The same cameras in the canonical world and the similarity transform `[4, 4]` (float64) that moves points.

    Raises:
        InvalidInputError: the cameras do not look at one point, look away from it, disagree about up, or are mirrored.
    """
    poses = cameras.camera_to_world.detach().to(torch.float64)
    _check_rigid(poses)
    rotations, positions = poses[:, :3, :3], poses[:, :3, 3]
    center = _look_at_point(positions, rotations[:, :, 2])
    offsets = positions - center
    distances = offsets.norm(dim=-1)
    _check_look_at(offsets, rotations[:, :, 2], distances)
    up = _up_direction(rotations)
    front = offsets[0] - (offsets[0] @ up) * up
    if float(front.norm()) < math.cos(math.radians(_MAX_ELEVATION_DEG)) * float(distances[0]):
        raise InvalidInputError(
            "the first camera looks straight down or up at the object: views must be taken from around it; " + _SEE
        )
    front = front / front.norm()
    rotation = torch.stack([torch.linalg.cross(up, front), up, front])  # rows: X, Y, Z of the canonical world
    scale = STANDARD_RADIUS / float(distances.mean())
    transform = torch.eye(4, dtype=torch.float64, device=poses.device)
    transform[:3, :3] = scale * rotation
    transform[:3, 3] = -scale * rotation @ center
    world_to_camera = torch.eye(4, dtype=torch.float64, device=poses.device).repeat(len(poses), 1, 1)
    world_to_camera[:, :3, :3] = rotations.mT @ rotation.T
    moved = scale * offsets @ rotation.T
    world_to_camera[:, :3, 3] = -(world_to_camera[:, :3, :3] @ moved[:, :, None])[..., 0]
    moved_cameras = Cameras(
        world_to_camera.to(cameras.world_to_camera.dtype), cameras.intrinsics, cameras.height, cameras.width
    )
    return moved_cameras, transform


def orbit_angles(cameras: Cameras) -> tuple[list[float], list[float]]:
    """Azimuths and elevations in degrees at which cameras `[V]` stand around the origin (azimuth in -180..180)."""
    positions = cameras.positions.to(torch.float64)
    azimuths = torch.atan2(positions[:, 0], positions[:, 2]).rad2deg()
    elevations = torch.asin((positions[:, 1] / positions.norm(dim=-1).clamp_min(1e-12)).clamp(-1, 1)).rad2deg()
    # Rounded so that a camera at azimuth 0 cannot sort behind 270 through rounding noise (-1e-14 % 360).
    return [round(float(value), 4) + 0.0 for value in azimuths], [round(float(value), 4) for value in elevations]


def _check_rigid(poses: Tensor) -> None:
    if not bool(torch.isfinite(poses).all()):
        raise InvalidInputError("camera poses must be finite numbers; check transform_matrix in transforms.json")
    rotations = poses[:, :3, :3]
    identity = torch.eye(3, dtype=poses.dtype, device=poses.device)
    off = (rotations @ rotations.mT - identity).abs().amax(dim=(-2, -1))
    bad = [
        index
        for index, (error, det) in enumerate(zip(off, torch.linalg.det(rotations), strict=True))
        if float(error) > 1e-2 or float(det) < 0
    ]
    if bad:
        raise InvalidInputError(
            f"view(s) {_listed(bad)}: the rotation of the camera pose is not a rotation (scaled, sheared or mirrored "
            "axes); transform_matrix must be a rigid camera-to-world matrix"
        )


def _look_at_point(positions: Tensor, axes: Tensor) -> Tensor:
    """Point with the least squared distance to all optical axes, `[3]`."""
    projectors = torch.eye(3, dtype=axes.dtype, device=axes.device) - axes[:, :, None] * axes[:, None, :]
    system = projectors.sum(dim=0)
    if float(torch.linalg.eigvalsh(system)[0]) < 0.05 * len(axes):
        raise InvalidInputError(
            "the cameras all look in nearly the same direction: they must surround the object "
            f"(azimuth 0, 90, 180 and 270 degrees); {_SEE}"
        )
    center: Tensor = torch.linalg.solve(system, (projectors @ positions[:, :, None]).sum(dim=0)[:, 0])
    return center


def _check_look_at(offsets: Tensor, axes: Tensor, distances: Tensor) -> None:
    along = -(offsets * axes).sum(dim=-1)
    behind = [index for index, value in enumerate(along) if float(value) <= 0]
    if behind:
        raise InvalidInputError(
            f"view(s) {_listed(behind)} look away from the object: are the camera axes OpenGL's (x right, y up, "
            "looking along -z), as transforms.json files have them?"
        )
    ratio = float(distances.max() / distances.min())
    if ratio > _MAX_RADIUS_RATIO:
        raise InvalidInputError(
            f"the farthest camera is {ratio:.1f} times as far from the object as the nearest, at most "
            f"{_MAX_RADIUS_RATIO:g} is possible; {_SEE}"
        )
    misses = (offsets + along[:, None] * axes).norm(dim=-1) / distances
    worst = int(misses.argmax())
    if float(misses[worst]) > _MAX_MISS:
        raise InvalidInputError(
            f"the cameras do not look at one point: view {worst} passes it by {float(misses[worst]):.2f} times its "
            f"distance, at most {_MAX_MISS:g} is possible; {_SEE}"
        )


def _up_direction(rotations: Tensor) -> Tensor:
    """Unit vector that is most nearly at right angles to the x axes of all cameras, on the side of their tops."""
    rights, tops = rotations[:, :, 0], -rotations[:, :, 1]
    axis: Tensor = torch.linalg.eigh(rights.mT @ rights).eigenvectors[:, 0]
    up = axis * torch.sign(axis @ tops.mean(dim=0))
    rolls = torch.asin((rights @ up).clamp(-1, 1)).abs().rad2deg()
    if float((tops @ up).min()) <= 0 or float(rolls.max()) > _MAX_ROLL_DEG:
        raise InvalidInputError(
            "the cameras do not agree which way is up (some are rolled on their side or stand on their head): "
            "turn the pictures and their poses upright"
        )
    return up


def _orbit_warnings(
    azimuths: list[float], elevations: list[float], cameras: Cameras, order: tuple[int, ...]
) -> list[str]:
    warnings = []
    for standard, azimuth, index in zip(STANDARD_AZIMUTHS_DEG, azimuths, order, strict=True):
        off = abs((azimuth - standard + 180.0) % 360.0 - 180.0)
        if off > _MAX_AZIMUTH_DEG:
            raise InvalidInputError(
                f"the views stand at azimuths {', '.join(f'{value % 360.0:.0f}' for value in azimuths)} degrees around "
                f"the object, needed are about 0, 90, 180, 270 (at most {_MAX_AZIMUTH_DEG:g} off); {_SEE}"
            )
        if off > _NEAR_AZIMUTH_DEG:
            warnings.append(
                f"view {index} stands at azimuth {azimuth % 360.0:.0f} degrees, the networks know {standard:.0f}: "
                "expect a less exact result"
            )
    low, high = _ELEVATIONS_DEG
    for elevation, index in zip(elevations, order, strict=True):
        if abs(elevation) > _MAX_ELEVATION_DEG:
            raise InvalidInputError(
                f"view {index} stands at elevation {elevation:.0f} degrees, at most {_MAX_ELEVATION_DEG:g} is possible"
            )
        if not low <= elevation <= high:
            warnings.append(
                f"view {index} stands at elevation {elevation:.0f} degrees, the networks know {low:.0f} to {high:.0f}: "
                "expect a less exact result"
            )
    distances = cameras.positions.norm(dim=-1)
    ratio = float(distances.max() / distances.min())
    if ratio > _NEAR_RADIUS_RATIO:
        warnings.append(
            f"the farthest camera is {ratio:.2f} times as far away as the nearest: expect a less exact result"
        )
    axes = cameras.camera_to_world[:, :3, 2]
    misses = torch.linalg.cross(cameras.positions, axes).norm(dim=-1) / distances
    if float(misses.max()) > _NEAR_MISS:
        warnings.append("the cameras do not look at exactly one point: the object may come out off centre")
    return warnings


def _to_standard_lens(views: Views) -> tuple[Views, list[int]]:
    """Crops and pads (with transparency) to a square, centred 49.1 degree picture.

    Also returns which views lose a part of the object by that.
    """
    cameras = views.cameras
    target = intrinsics_from_fov(STANDARD_FOV_DEG, cameras.height, cameras.height).to(cameras.intrinsics)
    square = cameras.height == cameras.width
    if square and bool(torch.allclose(cameras.intrinsics, target.expand_as(cameras.intrinsics), rtol=1e-3)):
        return views, []
    half_tan = math.tan(math.radians(STANDARD_FOV_DEG) / 2)
    intrinsics = cameras.intrinsics.to(torch.float64)
    half = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1) * half_tan  # [V, 2] in pixels
    size = min(MAX_IMAGE_SIZE, max(1, round(2 * float(half.max()))))
    pictures, cut = [], []
    for index, image in enumerate(views.images):
        center_x, center_y = float(intrinsics[index, 0, 2]), float(intrinsics[index, 1, 2])
        half_x, half_y = float(half[index, 0]), float(half[index, 1])
        window = (center_x - half_x, center_y - half_y, center_x + half_x, center_y + half_y)
        pictures.append(resample_window(image, window, size))
        if _alpha_share_outside(image[3], window) > 0.01:
            cut.append(index)
    standard = intrinsics_from_fov(STANDARD_FOV_DEG, size, size).to(cameras.intrinsics)
    lens = Cameras(cameras.world_to_camera, standard.expand(len(pictures), 3, 3), size, size)
    return Views(torch.stack(pictures), lens), cut


def _alpha_share_outside(alpha: Tensor, window: tuple[float, float, float, float]) -> float:
    height, width = alpha.shape
    left, top = max(0, math.floor(window[0])), max(0, math.floor(window[1]))
    right, bottom = min(width, math.ceil(window[2])), min(height, math.ceil(window[3]))
    total = float(alpha.sum())
    return 1.0 - float(alpha[top:bottom, left:right].sum()) / max(total, 1e-6)


def _largest_extent(alpha: Tensor) -> float:
    """Longest side of the box around what is visible in any picture `[V, H, W]`, as a share of the picture's side."""
    seen = alpha > 0.5
    rows, columns = seen.any(dim=2), seen.any(dim=1)  # [V, H], [V, W]
    spans = [int(line.nonzero()[-1] - line.nonzero()[0]) + 1 for line in (*rows, *columns) if bool(line.any())]
    return max(spans, default=0) / alpha.shape[-1]


def _listed(indices: list[int]) -> str:
    return ", ".join(str(index) for index in indices)
