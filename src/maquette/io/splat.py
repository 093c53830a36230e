"""Gaussians in `.splat`: 32 bytes each, the format of the first web viewers. Holds plain colours only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from maquette.errors import FileFormatError
from maquette.gaussians import Gaussians
from maquette.io.atomic import atomic_path
from maquette.io.gaussian_ply import SH_C0, normalized_quaternions, writable_gaussians
from maquette.io.regular import checked_file_size

_RECORD = np.dtype([("position", "<f4", (3,)), ("scale", "<f4", (3,)), ("rgba", "u1", (4,)), ("rotation", "u1", (4,))])


def read_splat(path: str | Path) -> Gaussians:
    """Reads Gaussians `[N]` (CPU, float32, plain colours).

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: the size is no multiple of 32 bytes, or values are NaN, infinite or negative scales.
    """
    size = checked_file_size(path, "a .splat file")
    if size % _RECORD.itemsize:
        raise FileFormatError(f"{path}: {size:,} bytes are no multiple of 32; truncated or not a .splat file")
    records = np.fromfile(path, _RECORD)
    good = np.isfinite(records["position"]).all(1) & np.isfinite(records["scale"]).all(1)
    good &= (records["scale"] >= 0).all(1)
    if not good.all():
        bad = int((~good).sum())
        raise FileFormatError(f"{path}: {bad:,} of {len(good):,} Gaussians have NaN, infinite or negative values")
    rgba = torch.from_numpy(records["rgba"].astype(np.float32) / 255)
    quats = torch.from_numpy((records["rotation"].astype(np.float32) - 128) / 128)
    return Gaussians(
        means=torch.from_numpy(records["position"].astype(np.float32)),
        quats=normalized_quaternions(quats),
        scales=torch.from_numpy(records["scale"].astype(np.float32)),
        opacities=rgba[:, 3].contiguous(),
        colors=rgba[:, :3].contiguous(),
    )


def write_splat(path: str | Path, gaussians: Gaussians, *, min_opacity: float = 0.0) -> None:
    """Writes unbatched Gaussians, most important first (volume times opacity), atomically.

    Viewers load progressively, so the order shows. Colours, opacities and rotations have 8 bits; of spherical
    harmonics the mean colour stays.

    Raises:
        InvalidInputError: see `maquette.io.gaussian_ply.writable_gaussians`.
    """
    kept = writable_gaussians(gaussians, min_opacity)
    colors = kept.colors if kept.sh_degree is None else kept.colors[:, 0] * SH_C0 + 0.5
    importance = kept.scales.double().prod(dim=-1) * kept.opacities.double()
    order = torch.argsort(importance, descending=True, stable=True)
    rgba = torch.cat([colors.clamp(0, 1), kept.opacities[:, None]], dim=1)
    quats = normalized_quaternions(kept.quats)
    records = np.empty(kept.num_gaussians, _RECORD)
    records["position"] = kept.means[order].numpy()
    records["scale"] = kept.scales[order].numpy()
    records["rgba"] = (rgba[order] * 255).round().to(torch.uint8).numpy()
    records["rotation"] = (quats[order] * 128 + 128).round().clamp(0, 255).to(torch.uint8).numpy()
    with atomic_path(path) as temporary:
        records.tofile(temporary)
