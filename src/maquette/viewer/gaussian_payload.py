"""Gaussians to 17 bytes each: sorted along a space-filling curve and quantised in chunks of neighbours.

- `chunks`, float32 `[C, 9]`: of every 256 Gaussians the lowest position and its step (x, y, z each), the lowest
  logarithm of a scale and its step, and the highest colour. A chunk ends early before the first Gaussian that lies far
  from the object (the first `near` ones do not).
- `positions`, uint16 `[N, 3]`: lowest position + step * value.
- `scales`, uint8 `[N, 3]`: exp(lowest logarithm + step * value).
- `colors`, uint8 `[N, 4]`: red, green, blue as value / 255 * highest colour; opacity as value / 255.
- `rotations`, uint32 `[N]`: of the unit quaternion (w, x, y, z), made positive in its largest part, the index of that
  part in the upper 2 bits, then the others in 10 bits each, (value - 511) / 511 / sqrt(2).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.io.gaussian_ply import SH_C0, normalized_quaternions, writable_gaussians
from maquette.viewer.payload import Payload

MAX_GAUSSIANS = 4_000_000
"""More than a browser turns smoothly and a page of about 90 MB holds."""
CHUNK = 256
"""Neighbours that share the ranges of their positions, scales and colours."""
CHUNK_COLUMNS = 9

_MIN_ALPHA = 1 / 255
_SEEN_OPACITY = 0.05
_FAR = 3.0
"""Beyond so many radii from the middle lie stray Gaussians, which would coarsen the chunks of the object."""
_MORTON_BITS = 21
_LEAST_SCALE = 1e-6
"""As a share of the object's size; a narrower Gaussian looks the same at any zoom of the page."""
_ROTATION_STEPS = 511
Floats = NDArray[np.float64]


def pack_gaussians(gaussians: Gaussians) -> Payload:
    """Quantises one set of Gaussians; of spherical harmonics the mean colour stays.

    Those fainter than 1/255 are left out: the rasterizer skips them too.

    Args:
        gaussians: `[N]`, finite, opacities 0..1, scales >= 0.

    Raises:
        InvalidInputError: a batch, values out of range, nothing visible, or more than `MAX_GAUSSIANS`.
    """
    if not gaussians.batch_shape and gaussians.num_gaussians > MAX_GAUSSIANS:
        raise InvalidInputError(
            f"{gaussians.num_gaussians:,} Gaussians are too many for a page: at most {MAX_GAUSSIANS:,}; leave out the "
            "faintest with Gaussians.select()"
        )
    given = writable_gaussians(gaussians)
    kept = given.select(given.opacities >= _MIN_ALPHA)
    if not kept.num_gaussians:
        raise InvalidInputError(
            f"none of the {given.num_gaussians:,} Gaussians is visible: all opacities are below 1/255"
        )
    center, radius = _bounds(kept)
    order, near = _order(kept.means.double().numpy(), np.array(center), radius)
    kept = kept.select(torch.from_numpy(order))
    harmonics = kept.sh_degree is not None
    colors = (kept.colors[:, 0] * SH_C0 + 0.5 if harmonics else kept.colors).double().clamp_min(0).numpy()
    logs = np.log(kept.scales.double().clamp_min(_LEAST_SCALE * radius).numpy())
    starts = np.concatenate([np.arange(0, near, CHUNK), np.arange(near, kept.num_gaussians, CHUNK)])
    chunk_of = np.repeat(np.arange(len(starts)), np.diff(starts, append=kept.num_gaussians))
    table = np.empty((len(starts), CHUNK_COLUMNS), np.float32)
    positions = _quantised(kept.means.double().numpy(), starts, chunk_of, table[:, :3], table[:, 3:6], 65535)
    shared = np.broadcast_to(logs.min(1, keepdims=True), logs.shape), np.broadcast_to(logs.max(1)[:, None], logs.shape)
    scales = _quantised(logs, starts, chunk_of, table[:, 6:7], table[:, 7:8], 255, ends=shared)
    limits = np.ceil(np.maximum.reduceat(colors.max(1), starts).clip(1, 1 + 255 / 64) * 64) / 64
    table[:, 8] = limits
    rgb = (colors / limits[chunk_of, None]).clip(0, 1)
    rgba = np.concatenate([rgb, kept.opacities.double().numpy()[:, None]], axis=1)
    return Payload(
        kind="gaussians",
        count=given.num_gaussians,
        center=center,
        radius=radius,
        arrays={
            "chunks": table,
            "positions": positions.astype(np.uint16),
            "scales": scales.astype(np.uint8),
            "colors": np.rint(rgba * 255).astype(np.uint8),
            "rotations": _packed_rotations(normalized_quaternions(kept.quats).double().numpy()),
        },
        details={"shown": kept.num_gaussians, "near": near, "chunk": CHUNK, "harmonics": harmonics},
    )


def _order(points: Floats, center: Floats, radius: float) -> tuple[NDArray[np.int64], int]:
    """Indices that sort points, those far from the object last, and the number of the others."""
    far = np.abs(points - center).max(1) > _FAR * radius
    groups = [np.flatnonzero(~far), np.flatnonzero(far)]
    ordered = [group[morton_order(points[group])] for group in groups if len(group)]
    return np.concatenate(ordered), len(groups[0])


def morton_order(points: Floats) -> NDArray[np.int64]:
    """Indices that sort points `[N, 3]` along a Morton (Z) curve through their bounding cube."""
    low = points.min(0)
    extent = float((points.max(0) - low).max())
    cells = ((points - low) / (extent or 1.0) * (2**_MORTON_BITS - 1)).astype(np.uint64)
    codes = np.zeros(len(points), np.uint64)
    for axis in range(3):
        spread = cells[:, axis]
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
        codes |= spread << np.uint64(axis)
    return np.argsort(codes, kind="stable")


def _quantised(
    values: Floats,
    starts: NDArray[np.int64],
    chunk_of: NDArray[np.int64],
    low: NDArray[np.float32],
    step: NDArray[np.float32],
    levels: int,
    ends: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Whole numbers 0..levels for values `[N, 3]`; fills the chunks' `low` and `step` (`[C, 3]` or `[C, 1]`)."""
    lowest, highest = ends if ends is not None else (values, values)
    columns = low.shape[1]
    low[:] = np.minimum.reduceat(lowest[:, :columns], starts)
    step[:] = (np.maximum.reduceat(highest[:, :columns], starts) - low) / levels
    wide = step.astype(np.float64)[chunk_of]
    scaled = (values - low.astype(np.float64)[chunk_of]) / np.where(wide > 0, wide, 1)
    codes: Floats = np.rint(scaled).clip(0, levels)
    return codes


def _packed_rotations(quats: Floats) -> NDArray[np.uint32]:
    """Unit quaternions `[N, 4]` (w, x, y, z) in 32 bits: the largest part follows from the others."""
    rows = np.arange(len(quats))
    largest = np.abs(quats).argmax(1)
    turned = quats * np.where(quats[rows, largest] < 0, -1.0, 1.0)[:, None]
    others = turned[np.arange(4)[None] != largest[:, None]].reshape(-1, 3)
    codes = (np.rint(others * (math.sqrt(2) * _ROTATION_STEPS)) + _ROTATION_STEPS).clip(0, 2 * _ROTATION_STEPS)
    first, second, third = codes.astype(np.uint32).T
    packed: NDArray[np.uint32] = largest.astype(np.uint32) << 30 | first << 20 | second << 10 | third
    return packed


def _bounds(gaussians: Gaussians) -> tuple[tuple[float, float, float], float]:
    """Middle and radius of what is clearly visible, without the outermost hundredth on each side."""
    seen = gaussians.opacities >= _SEEN_OPACITY
    kept = gaussians.select(seen) if bool(seen.any()) else gaussians
    points = kept.means.double()
    margin = len(points) // 100
    ordered = points.sort(dim=0).values
    middle = (ordered[margin] + ordered[len(points) - 1 - margin]) / 2
    reaches = ((points - middle).norm(dim=1) + kept.scales.double().amax(dim=1)).sort().values
    radius = max(float(reaches[len(points) - 1 - margin]), 1e-6)
    x, y, z = middle.tolist()
    return (x, y, z), radius
