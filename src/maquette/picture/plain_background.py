"""Background removal without any model, for objects in front of a plain ground: says when the ground is not plain.

The ground's colour is a smooth function of the position, fitted to the border of the picture. What is joined to the
border without an edge and looks like the ground, or like the ground in a soft shadow, is background. Alpha along the
edge follows from where a pixel's colour lies between the ground's and the object's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2lab
from torch import Tensor

from maquette.errors import InvalidInputError

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

ADVICE = (
    "cut the object out yourself (a PNG or WebP with a transparent background), photograph it in front of a plain "
    "ground of another colour, or install rembg with one of its models"
)

_BIN = 8.0
_FIT_TOLERANCE = 10.0
_MIN_PLAIN_SHARE = 0.6
_MAX_ROUGHNESS = 5.0
_MIN_TOLERANCE, _MAX_TOLERANCE = 4.0, 14.0
_MAX_SHADOW = 30.0
_SHADOW_SLOPE = 1.2
_SMOOTHING_PX = 1.5
_MIN_EDGE_SLOPE = 0.5
_RIM_PX = 4
_BLOCK_PX = 16
_RINGING_SHARE = 0.12
_MAX_SHADOW_SHARE = 0.75
_MIN_OBJECT_SHARE, _MAX_OBJECT_SHARE = 0.002, 0.92
_MIN_PART_SHARE = 0.01
_MIN_HOLE_SHARE = 0.0002
_WEAK_EDGE_SHARE = 0.5
_SECOND_OBJECT_SHARE = 0.25
_EDGE_PX = 2


@dataclass(frozen=True)
class CutOut:
    """An object without its background.

    Attributes:
        image: `[4, H, W]`, straight alpha, 0..1.
        warnings: what may be wrong with it, as sentences.
    """

    image: Tensor
    warnings: tuple[str, ...] = ()


def remove_plain_background(image: Tensor) -> CutOut:
    """Cuts an object out of a picture with a plain background.

    Args:
        image: `[3, H, W]`, 0..1, sRGB-encoded.

    Raises:
        InvalidInputError: the background is not plain, or no object stands out from it; says what to do.
    """
    color = np.ascontiguousarray(image.detach().to("cpu", torch.float32).permute(1, 2, 0).numpy()).clip(0, 1)
    lab: Floats = rgb2lab(color).astype(np.float32)
    ground, roughness = _fit_ground(lab)
    distance: Floats = np.linalg.norm(lab - ground, axis=-1)
    tolerance = float(np.clip(4 * roughness, _MIN_TOLERANCE, _MAX_TOLERANCE))
    slope = _slope(lab)
    level = float(np.median(slope[_border(slope.shape)]))
    alike = distance < tolerance
    smooth = alike & (slope < max(_MIN_EDGE_SLOPE, 4 * level))
    background = _grown(_joined_to_border(smooth), alike)
    background = _with_shadows(background, lab - ground, slope, tolerance)
    background = _without_ringing(background, distance)
    holes = _grown(_see_through(smooth & ~background, distance, roughness), alike & ~background)
    foreground = _large_parts(~(background | holes))
    warnings = _check(foreground, distance, tolerance)
    if holes.any():
        warnings.append("enclosed areas of the background's colour were taken for holes in the object")
    cut = _matte(color, _ground_color(color, background), foreground)
    return CutOut(torch.from_numpy(cut).permute(2, 0, 1).to(image), tuple(warnings))


def _border(shape: tuple[int, ...]) -> Mask:
    height, width = shape[:2]
    thickness = max(2, round(0.02 * min(height, width)))
    ring = np.ones((height, width), dtype=bool)
    ring[thickness:-thickness, thickness:-thickness] = False
    return ring


def _positions(height: int, width: int) -> Floats:
    """Terms of a quadratic in the position, `[H, W, 6]`."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1).astype(np.float32)


def _fit_ground(lab: Floats) -> tuple[Floats, float]:
    """The ground's colour at every pixel, and how much the border differs from it (typical distance)."""
    ring = _border(lab.shape)
    values, terms = lab[ring], _positions(*lab.shape[:2])
    at_ring = terms[ring]
    bins, inverse, counts = np.unique(
        np.floor(values / _BIN).astype(np.int64), axis=0, return_inverse=True, return_counts=True
    )
    start = values[inverse.reshape(-1) == int(np.argmax(counts))].mean(axis=0)
    inliers = np.linalg.norm(values - start, axis=1) < 2 * _FIT_TOLERANCE
    residuals = np.linalg.norm(values - start, axis=1)
    weights = np.zeros((terms.shape[-1], 3), dtype=np.float32)
    for _ in range(6):
        chosen = at_ring[inliers]
        stiffness = 1e-3 * len(chosen) * np.diag([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
        weights = np.linalg.solve(chosen.T @ chosen + stiffness, chosen.T @ values[inliers]).astype(np.float32)
        residuals = np.linalg.norm(values - at_ring @ weights, axis=1)
        inliers = residuals < _FIT_TOLERANCE
        if not inliers.any():
            break
    share = float(inliers.mean())
    if share < _MIN_PLAIN_SHARE or len(bins) == 0:
        raise InvalidInputError(
            f"the background is not plain: only {share:.0%} of the picture's border has one colour, needed are "
            f"{_MIN_PLAIN_SHARE:.0%}; {ADVICE}"
        )
    roughness = float(np.median(residuals[inliers]))
    if roughness > _MAX_ROUGHNESS:
        raise InvalidInputError(f"the background is patterned or noisy, the object cannot be told from it; {ADVICE}")
    return terms @ weights, roughness


def _joined_to_border(candidates: Mask) -> Mask:
    ring = _border(candidates.shape)
    joined: Mask = ndimage.binary_propagation(candidates & ring, mask=candidates)
    return joined


def _slope(lab: Floats) -> Floats:
    """How fast the colour changes from pixel to pixel, after a little smoothing."""
    channels = [ndimage.gaussian_gradient_magnitude(lab[..., channel], _SMOOTHING_PX) for channel in range(3)]
    result: Floats = np.linalg.norm(np.stack(channels), axis=0)
    return result


def _grown(region: Mask, allowed: Mask) -> Mask:
    """The region, grown by the few pixels along edges in which the slope hides what they are."""
    grown: Mask = ndimage.binary_dilation(region, iterations=_RIM_PX, mask=allowed | region)
    return grown


def _with_shadows(background: Mask, difference: Floats, slope: Floats, tolerance: float) -> Mask:
    """Adds soft shadows to the background: darker, hardly other in hue, without edges."""
    darker = -difference[..., 0]
    hue = np.linalg.norm(difference[..., 1:], axis=-1)
    dim = (darker > 0) & (darker < _MAX_SHADOW) & (hue < tolerance + 0.1 * darker)
    spread: Mask = ndimage.binary_propagation(background, mask=background | (dim & (slope < _SHADOW_SLOPE)))
    before, after = int((~background).sum()), int((~spread).sum())
    if after < (1 - _MAX_SHADOW_SHARE) * before:  # so much shadow is rather a gray object
        return background
    return background | _grown(spread & ~background, dim)


def _without_ringing(background: Mask, distance: Floats) -> Mask:
    """Adds what compression leaves around strong edges: faint against the object, no farther than a JPEG block."""
    strongest = ndimage.maximum_filter(distance, size=2 * _BLOCK_PX + 1)
    faint = distance < _RINGING_SHARE * strongest
    grown: Mask = ndimage.binary_dilation(background, iterations=_BLOCK_PX + 1, mask=faint | background)
    return grown


def _see_through(candidates: Mask, distance: Floats, roughness: float) -> Mask:
    """Enclosed areas that show the ground, such as between the bars of a chair."""
    labels, count = ndimage.label(candidates)
    if count == 0:
        return candidates
    index = np.arange(1, count + 1)
    sizes = ndimage.sum_labels(np.ones_like(distance), labels, index)
    means = ndimage.mean(distance, labels, index)
    wanted = (sizes >= max(16, _MIN_HOLE_SHARE * distance.size)) & (means < 1.0 + 1.5 * roughness)
    return np.isin(labels, index[wanted])


def _large_parts(foreground: Mask) -> Mask:
    """Without specks: parts much smaller than the largest one."""
    labels, count = ndimage.label(foreground, structure=np.ones((3, 3)))
    if count == 0:
        return foreground
    sizes = ndimage.sum_labels(foreground, labels, np.arange(1, count + 1))
    kept = np.flatnonzero(sizes >= max(4.0, _MIN_PART_SHARE * float(sizes.max()))) + 1
    return np.isin(labels, kept)


def _check(foreground: Mask, distance: Floats, tolerance: float) -> list[str]:
    share = float(foreground.mean())
    if share < _MIN_OBJECT_SHARE:
        raise InvalidInputError(f"no object stands out from the background; {ADVICE}")
    if share > _MAX_OBJECT_SHARE:
        raise InvalidInputError(
            f"the object fills {share:.0%} of the picture, its background cannot be seen: step back, or {ADVICE}"
        )
    inside = ndimage.binary_erosion(foreground, iterations=_EDGE_PX)
    rim = foreground & ~inside
    near = ndimage.maximum_filter(distance, size=2 * _EDGE_PX + 1)
    weak = float((near[rim] < 2 * tolerance).mean())
    warnings = []
    if weak > _WEAK_EDGE_SHARE:
        raise InvalidInputError(
            f"the object has nearly the background's colour along {weak:.0%} of its edge and cannot be told from it; "
            f"{ADVICE}"
        )
    if weak > _WEAK_EDGE_SHARE / 3:
        warnings.append(
            f"the object has nearly the background's colour along {weak:.0%} of its edge: check the cut-out"
        )
    labels, count = ndimage.label(foreground, structure=np.ones((3, 3)))
    sizes: Any = ndimage.sum_labels(foreground, labels, np.arange(1, count + 1))
    objects = int((sizes > _SECOND_OBJECT_SHARE * sizes.max()).sum())
    if objects > 1:
        warnings.append(f"the picture shows {objects} separate things: they are taken for one object")
    return warnings


def _ground_color(color: Floats, background: Mask) -> Floats:
    """The sRGB colour of the nearest background pixels at every pixel, slightly smoothed."""
    weight = ndimage.gaussian_filter(background.astype(np.float32), 3.0)
    blurred = np.stack(
        [ndimage.gaussian_filter(color[..., channel] * background, 3.0) for channel in range(3)], axis=-1
    )
    _, nearest = ndimage.distance_transform_edt(weight < 1e-3, return_indices=True)
    rows, columns = nearest
    result: Floats = blurred[rows, columns] / weight[rows, columns][..., None]
    return result


def _matte(color: Floats, ground: Floats, foreground: Mask) -> Floats:
    """RGBA: alpha and colours unmixed along the edge, where a pixel shows object and ground at once."""
    inside = ndimage.binary_erosion(foreground, iterations=_EDGE_PX)
    around = ndimage.binary_dilation(foreground, iterations=_EDGE_PX)
    difference = np.linalg.norm(color - ground, axis=-1)
    reach = 2 * _EDGE_PX + 1
    full = ndimage.maximum_filter(np.where(foreground, difference, 0), size=reach)
    alpha = np.clip(difference / np.maximum(full, 1e-3), 0, 1)
    alpha = np.where(inside, 1.0, np.where(around, alpha, 0.0))
    alpha = np.where(alpha < 0.05, 0.0, alpha).astype(np.float32)
    visible = np.maximum(alpha, 0.1)[..., None]
    unmixed = ((color - (1 - alpha[..., None]) * ground) / visible).clip(0, 1)
    kept = np.where((alpha > 0)[..., None] & ~inside[..., None], unmixed, color)
    return np.concatenate([kept, alpha[..., None]], axis=-1).astype(np.float32)
