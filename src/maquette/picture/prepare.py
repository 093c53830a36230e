"""One picture of any kind in, the square cut-out that a generator of views takes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.choices import CUT_OUTS as CUT_OUTS
from maquette.choices import CutOutBy as CutOutBy
from maquette.errors import InvalidInputError
from maquette.models.lgm.recenter import recenter, resize_area
from maquette.picture.edges import decontaminate
from maquette.picture.plain_background import ADVICE, CutOut, remove_plain_background
from maquette.picture.rembg_models import find_rembg_model, remove_background

MAX_SIDE = 1024
"""Larger pictures are made smaller first."""

OFFICIAL_BORDER_RATIO = 0.2
"""Share of the side that the official pipelines leave free around the object."""

_MIN_SIDE = 16
_MIN_OBJECT_PX, _SMALL_OBJECT_PX = 16, 128
_MIN_TRANSPARENT_SHARE = 0.005
_HAZE, _SEEN = 0.02, 0.2  # alpha that is taken for nothing, and for a part of the object when it is centred
_MAX_CUT_SHARE = 0.02


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as generators of views take it.

    Attributes:
        image: RGBA `[4, S, S]`, straight alpha, 0..1, the object in the middle.
        cut_out_by: where its alpha comes from: the file's own, rembg, or our remover of plain backgrounds.
        warnings: what may spoil the result, as sentences.
    """

    image: Tensor
    cut_out_by: CutOutBy
    warnings: tuple[str, ...]


def prepare_picture(
    image: Tensor,
    *,
    size: int | None = 256,
    border_ratio: float = OFFICIAL_BORDER_RATIO,
    cut_out_by: CutOutBy | None = None,
) -> PreparedPicture:
    """Cuts the object out, unless it is, cleans its edges, centres it and leaves a border as the official pipelines do.

    Args:
        image: `[3, H, W]` or `[4, H, W]` (straight alpha), sRGB-encoded, 0..1, as `maquette.io.read_image` gives it.
        size: side of the result, px; None keeps the official one, the longer side of the picture (at most `MAX_SIDE`).
        border_ratio: share of the side left free, in [0, 1).
        cut_out_by: how to find the object; None uses the picture's alpha if it has any, otherwise rembg if it is here
            with a model, otherwise the remover of plain backgrounds.

    Raises:
        InvalidInputError: not a picture, too small, empty, or the object cannot be found; says what to do.
        MissingDependencyError: rembg was asked for, but is not here.
    """
    _check_picture(image, size)
    if cut_out_by is not None and cut_out_by not in CUT_OUTS:
        raise InvalidInputError(f"no way to cut out {cut_out_by!r}: choose one of {', '.join(CUT_OUTS)}")
    image = _at_most(image.detach().to(torch.float32), MAX_SIDE)
    method = cut_out_by or _choose_cut_out(image)
    cut = _cut_out(image, method)
    clean = cut.image.clone()
    clean[3] = torch.where(clean[3] < _HAZE, torch.zeros_like(clean[3]), clean[3])
    sides = _touched_sides(clean[3])
    if method == "plain" and len(sides) > 2:
        raise InvalidInputError(
            f"what looks like the object reaches the picture's {', '.join(sides)} edge, so it is rather a part of the "
            f"background; {ADVICE}"
        )
    warnings = [*cut.warnings, *_check_object(clean[3])]
    if sides:
        warnings.append(f"the object touches the picture's {', '.join(sides)} edge: what is cut off there is missing")
    centered = recenter(decontaminate(clean), clean[3] > _SEEN, border_ratio)
    if size is not None and size != centered.shape[-1]:
        centered = _resized(centered, size)
    return PreparedPicture(centered.clamp(0, 1), method, tuple(warnings))


def has_cut_out(image: Tensor) -> bool:
    """Whether the alpha of a picture `[3|4, H, W]` tells an object from its background.

    A few transparent pixels, such as the round corners of a screenshot, do not.
    """
    return image.shape[0] == 4 and float((image[3] < 0.5).float().mean()) >= _MIN_TRANSPARENT_SHARE


def _choose_cut_out(image: Tensor) -> CutOutBy:
    if has_cut_out(image):
        return "alpha"
    return "plain" if find_rembg_model() is None else "rembg"


def _cut_out(image: Tensor, method: CutOutBy) -> CutOut:
    if method == "alpha":
        if not has_cut_out(image):
            raise InvalidInputError(f"the picture has no transparent background; {ADVICE}")
        return CutOut(image)
    opaque = decontaminate(image)[:3] if image.shape[0] == 4 else image
    if method == "rembg":
        return CutOut(remove_background(opaque))
    return remove_plain_background(opaque)


def _check_picture(image: Tensor, size: int | None) -> None:
    if image.ndim != 3 or image.shape[0] not in (3, 4) or not image.is_floating_point():
        raise InvalidInputError(
            f"a picture must be floating point [3|4, H, W] in 0..1, got {image.dtype} {list(image.shape)}"
        )
    height, width = image.shape[1:]
    if min(height, width) < _MIN_SIDE:
        raise InvalidInputError(f"the picture is only {width} x {height} px, at least {_MIN_SIDE} are needed per side")
    low, high = float(image.amin()), float(image.amax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also when not a number
        raise InvalidInputError(f"a picture must have values in 0..1, this one has {low:g} to {high:g}")
    if image.shape[0] == 4 and float(image[3].amax()) < 0.05:
        raise InvalidInputError("the picture is transparent everywhere: it shows no object; save it with its alpha")
    if size is not None and size < _MIN_SIDE:
        raise InvalidInputError(f"size must be at least {_MIN_SIDE}, got {size}")


def _check_object(alpha: Tensor) -> list[str]:
    """Size of the object in `[H, W]`."""
    seen = alpha > 0.5
    rows, columns = seen.any(dim=1).nonzero().flatten(), seen.any(dim=0).nonzero().flatten()
    if len(rows) == 0:
        raise InvalidInputError(f"nothing in the picture is more than half opaque: it shows no object; {ADVICE}")
    extent = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
    if extent < _MIN_OBJECT_PX:
        raise InvalidInputError(
            f"the object is only {extent} px large, at least {_MIN_OBJECT_PX} are needed: use a larger picture"
        )
    warnings = []
    if extent < _SMALL_OBJECT_PX:
        warnings.append(f"the object is only {extent} px large: expect little detail")
    return warnings


def _touched_sides(alpha: Tensor) -> list[str]:
    """Sides of the picture at which the object in `[H, W]` is cut off."""
    seen = alpha > 0.5
    sides = {"top": seen[0], "bottom": seen[-1], "left": seen[:, 0], "right": seen[:, -1]}
    return [side for side, line in sides.items() if float(line.float().mean()) > _MAX_CUT_SHARE]


def _at_most(image: Tensor, side: int) -> Tensor:
    longest = max(image.shape[1:])
    if longest <= side:
        return image
    height, width = (max(1, round(length * side / longest)) for length in image.shape[1:])
    return _premultiplied_resize(image, height, width)


def _resized(image: Tensor, size: int) -> Tensor:
    return _premultiplied_resize(image, size, size)


def _premultiplied_resize(image: Tensor, height: int, width: int) -> Tensor:
    """Averages over areas (or interpolates when growing) without mixing in colours of transparent pixels."""
    if image.shape[0] == 3:
        return resize_area(image, height, width).clamp(0, 1)
    mixed = resize_area(torch.cat([image[:3] * image[3:], image[3:]]), height, width)
    plain = resize_area(image[:3], height, width)
    color = torch.where(mixed[3:] > 1e-4, mixed[:3] / mixed[3:].clamp_min(1e-4), plain)
    return torch.cat([color, mixed[3:]]).clamp(0, 1)
