"""Gaussians in `.ply`: the layout of 3D Gaussian splatting (Kerbl et al. 2023) as splat viewers and LGM use it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.errors import FileFormatError, InvalidInputError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.io.atomic import atomic_path
from maquette.io.ply import PlyElement, is_gaussian_header, read_ply_header, read_ply_table

SH_C0 = 0.28209479177387814
"""Value of the constant spherical harmonic, 1 / (2 sqrt(pi))."""

LGM_MIN_OPACITY = 0.005
"""Opacity below which LGM's exporter drops Gaussians."""

_REST_COUNTS = (0, 9, 24, 45)
_PLAIN_TOLERANCE = 1e-4


def read_gaussian_ply(path: str | Path, *, encoding: Literal["auto", "compatible", "activated"] = "auto") -> Gaussians:
    """Reads Gaussians `[N]` (CPU, float32). Properties may stand in any order; unknown ones are ignored.

    Args:
        path: the file, ASCII or binary.
        encoding: "compatible" (logit opacity, log scale, SH-DC colour; what viewers use), "activated" (LGM's
            raw export: values as they are) or "auto": activated exactly when every opacity, scale and colour
            in the file lies in 0..1. A compatible file would need every standard deviation to be at least 1
            world unit to look like that.

    Returns:
        Plain colours `[N, 3]` when the file has no `f_rest` and every colour lies in 0..1, otherwise
        spherical harmonics `[N, K, 3]`. Rotations are normalised; a zero quaternion becomes the identity.

    Raises:
        FileNotFoundError: no such file.
        FileFormatError: not a Gaussian file, truncated, or non-finite values (counted).
        UnsupportedError: a compressed (packed) Gaussian file.
    """
    if encoding not in ("auto", "compatible", "activated"):
        raise InvalidInputError(f"encoding must be 'auto', 'compatible' or 'activated', got '{encoding}'")
    header = read_ply_header(path)
    vertex = header.element("vertex")
    if vertex is None or not is_gaussian_header(header):
        raise FileFormatError(
            f"{path}: no Gaussians in this .ply (a mesh or point cloud); see `maquette convert --help`"
        )
    num_rest = _check_columns(path, vertex)
    table = read_ply_table(path, header, "vertex")

    def columns(*names: str) -> Tensor:
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.stack([table[n].astype(np.float32) for n in names], axis=-1))

    means, dc = columns("x", "y", "z"), columns("f_dc_0", "f_dc_1", "f_dc_2")
    opacity, scale = columns("opacity")[:, 0], columns("scale_0", "scale_1", "scale_2")
    rotation = columns("rot_0", "rot_1", "rot_2", "rot_3")
    _check_finite(path, {"position": means, "f_dc": dc, "opacity": opacity, "scale": scale, "rotation": rotation})
    if encoding == "auto":
        fits = num_rest == 0 and all(bool(((t >= 0) & (t <= 1)).all()) for t in (dc, opacity, scale))
        encoding = "activated" if fits else "compatible"
    quats = normalized_quaternions(rotation)
    if encoding == "activated":
        _check_activated(path, opacity, scale)
        return Gaussians(means, quats, scale, opacity, dc)
    scales = scale.exp()
    _check_finite(path, {"scale (exp)": scales})
    colors = dc * SH_C0 + 0.5
    if num_rest:
        rest = columns(*(f"f_rest_{i}" for i in range(num_rest)))
        _check_finite(path, {"f_rest": rest})
        harmonics = rest.reshape(len(rest), 3, num_rest // 3).transpose(1, 2)
        colors = torch.cat([dc[:, None], harmonics], dim=1)
    elif bool(((colors < -_PLAIN_TOLERANCE) | (colors > 1 + _PLAIN_TOLERANCE)).any()):
        colors = dc[:, None]
    return Gaussians(means, quats, scales, opacity.sigmoid(), colors)


def _check_columns(path: str | Path, vertex: PlyElement) -> int:
    """Checks names and types of the columns; returns the number of `f_rest` columns."""
    names = set(vertex.names)
    if "packed_position" in names:
        raise UnsupportedError(f"{path}: a compressed (packed) Gaussian .ply; export it uncompressed")
    wanted = ["x", "y", "z", "opacity", *(f"f_dc_{i}" for i in range(3))]
    wanted += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    num_rest = sum(name.startswith("f_rest_") for name in names)
    wanted += [f"f_rest_{i}" for i in range(num_rest)]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise FileFormatError(f"{path}: properties {', '.join(missing[:8])} are missing")
    if num_rest not in _REST_COUNTS:
        raise FileFormatError(f"{path}: {num_rest} f_rest properties; valid are {_REST_COUNTS} (degree 0 to 3)")
    lists = [p.name for p in vertex.properties if p.count_type is not None]
    if lists:
        raise FileFormatError(f"{path}: list properties {', '.join(lists[:8])} in the vertices of a Gaussian file")
    if vertex.count == 0:
        raise FileFormatError(f"{path}: holds no Gaussians (0 vertices)")
    return num_rest


def _check_finite(path: str | Path, fields: dict[str, Tensor]) -> None:
    for name, value in fields.items():
        good = torch.isfinite(value)
        if not bool(good.all()):
            bad = int((~good.reshape(len(value), -1).all(dim=1)).sum())
            raise FileFormatError(f"{path}: {name} of {bad:,} of {len(value):,} Gaussians is NaN or infinite")


def _check_activated(path: str | Path, opacity: Tensor, scale: Tensor) -> None:
    bad = int(((opacity < 0) | (opacity > 1) | (scale < 0).any(-1)).sum())
    if bad:
        raise FileFormatError(
            f"{path}: {bad:,} Gaussians have an opacity outside 0..1 or a negative scale; "
            "read it with encoding='compatible'"
        )


def normalized_quaternions(quats: Tensor) -> Tensor:
    """Unit quaternions `[N, 4]` (w, x, y, z); those that are unit already stay bit for bit, zero becomes identity."""
    norm = quats.norm(dim=-1, keepdim=True)
    unit = torch.where((norm - 1).abs() < 1e-6, quats, quats / norm)
    identity = quats.new_tensor([1.0, 0.0, 0.0, 0.0])
    return torch.where((norm > 0) & torch.isfinite(unit).all(-1, keepdim=True), unit, identity)


def write_gaussian_ply(
    path: str | Path,
    gaussians: Gaussians,
    *,
    encoding: Literal["compatible", "activated"] = "compatible",
    min_opacity: float = 0.0,
) -> None:
    """Writes unbatched Gaussians as binary little-endian PLY, atomically.

    The default is LGM's "compatible" export byte for byte: 14 float32 per Gaussian (x y z, f_dc_0..2, opacity,
    scale_0..2, rot_0..3) with opacity logit clamped to [1e-6, 1 - 1e-6], ln(scale + 1e-8) and
    (colour - 0.5) / SH_C0. Spherical harmonics add `f_rest_*`, channel by channel, after `f_dc_2`.

    Args:
        path: the file; missing parent folders are made.
        gaussians: `[N]`, finite, opacities in 0..1, scales >= 0.
        encoding: "activated" writes every value as it is (LGM's raw export; plain colours only).
        min_opacity: Gaussians below are left out (LGM: `LGM_MIN_OPACITY`).

    Raises:
        InvalidInputError: a batch, values out of range, nothing left, or harmonics with "activated".
    """
    if encoding not in ("compatible", "activated"):
        raise InvalidInputError(f"encoding must be 'compatible' or 'activated', got '{encoding}'")
    kept = writable_gaussians(gaussians, min_opacity)
    if encoding == "activated" and kept.sh_degree is not None:
        raise InvalidInputError("encoding='activated' holds plain colours, these Gaussians have spherical harmonics")
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2"]
    values = [kept.means]
    if kept.sh_degree is None:
        values.append(kept.colors if encoding == "activated" else (kept.colors - 0.5) / SH_C0)
    else:
        rest = kept.colors[:, 1:].transpose(1, 2).reshape(kept.num_gaussians, -1)
        values += [kept.colors[:, 0], rest]
        names += [f"f_rest_{i}" for i in range(rest.shape[1])]
    opacity, scales = kept.opacities, kept.scales
    if encoding == "compatible":
        opacity = opacity.clamp(1e-6, 1 - 1e-6)
        opacity = _log(opacity / (1 - opacity))
        scales = _log(scales + 1e-8)
    values += [opacity[:, None], scales, kept.quats]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    rows: NDArray[np.float32] = torch.cat(values, dim=1).numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write("\n".join(header).encode("ascii"))
        stream.write(rows.tobytes())


def _log(values: Tensor) -> Tensor:
    """Correctly rounded float32 logarithm: the same bytes on every processor, and LGM's."""
    return values.double().log().to(torch.float32)


def writable_gaussians(gaussians: Gaussians, min_opacity: float = 0.0) -> Gaussians:
    """The set as CPU float32 without gradients, without those below `min_opacity`, checked.

    Raises:
        InvalidInputError: a batch, NaN, infinite or out-of-range values, or nothing left.
    """
    if gaussians.batch_shape:
        raise InvalidInputError(
            f"a file holds one set of Gaussians, these have batch {gaussians.batch_shape}; write gaussians[i]"
        )
    plain = gaussians.detach().to("cpu").to(torch.float32)
    fields = {"means": plain.means, "quats": plain.quats, "scales": plain.scales}
    fields |= {"opacities": plain.opacities, "colors": plain.colors}
    for name, value in fields.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise InvalidInputError(f"{name}: {bad:,} of {value.numel():,} values are NaN or infinite; nothing written")
    if bool(((plain.opacities < 0) | (plain.opacities > 1)).any()) or bool((plain.scales < 0).any()):
        raise InvalidInputError("opacities must lie in 0..1 and scales be >= 0; nothing written")
    if min_opacity > 0:
        plain = plain.select(plain.opacities >= min_opacity)
    if plain.num_gaussians == 0:
        raise InvalidInputError(f"no Gaussians to write (opacity at least {min_opacity:g})")
    return plain
