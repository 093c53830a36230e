"""Real spherical harmonics of degree 0 to 3 in the order and sign convention of 3D Gaussian Splatting files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maquette.errors import InvalidInputError

MAX_DEGREE = 3
_Y0 = 0.5 * math.sqrt(1 / math.pi)
_Y1 = 0.5 * math.sqrt(3 / math.pi)
_Y2 = (0.5 * math.sqrt(15 / math.pi), 0.25 * math.sqrt(5 / math.pi), 0.25 * math.sqrt(15 / math.pi))
_Y3 = (
    0.25 * math.sqrt(35 / (2 * math.pi)),
    0.5 * math.sqrt(105 / math.pi),
    0.25 * math.sqrt(21 / (2 * math.pi)),
    0.25 * math.sqrt(7 / math.pi),
    0.25 * math.sqrt(105 / math.pi),
)


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Values of the basis functions.

    Band l holds m = -l..l; odd |m| carries the factor (-1)^m, as in 3DGS files.

    Args:
        directions: unit vectors, `[..., 3]`.
        degree: 0..3.

    Returns:
        `[..., (degree + 1)^2]`.

    Raises:
        InvalidInputError: another degree.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise InvalidInputError(f"spherical harmonics of degree 0..{MAX_DEGREE} are supported, got {degree}")
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, _Y0)]
    if degree >= 1:
        values += [-_Y1 * y, _Y1 * z, -_Y1 * x]
    if degree >= 2:
        values += [
            _Y2[0] * x * y,
            -_Y2[0] * y * z,
            _Y2[1] * (2 * z * z - x * x - y * y),
            -_Y2[0] * x * z,
            _Y2[2] * (x * x - y * y),
        ]
    if degree >= 3:
        values += [
            -_Y3[0] * y * (3 * x * x - y * y),
            _Y3[1] * x * y * z,
            -_Y3[2] * y * (4 * z * z - x * x - y * y),
            _Y3[3] * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -_Y3[2] * x * (4 * z * z - x * x - y * y),
            _Y3[4] * z * (x * x - y * y),
            -_Y3[0] * x * (x * x - 3 * y * y),
        ]
    return torch.stack(values, dim=-1)


def sh_colors(coefficients: Tensor, means: Tensor, camera_positions: Tensor) -> Tensor:
    """Colours of Gaussians as seen from camera positions: max(0, 0.5 + sum of basis * coefficient).

    Args:
        coefficients: `[B, N, K, 3]` with K = (degree + 1)^2.
        means: centres in the world, `[B, N, 3]`.
        camera_positions: `[B, V, 3]`.

    Returns:
        `[B, V, N, 3]`; NaN (and no gradient) for Gaussians with a centre or coefficient that is not finite.
    """
    degree = math.isqrt(coefficients.shape[-2]) - 1
    finite = torch.isfinite(means).all(-1) & torch.isfinite(coefficients).flatten(-2).all(-1)  # [B, N]
    means = torch.where(finite[..., None], means, 0.0)
    coefficients = torch.where(finite[..., None, None], coefficients, 0.0)
    offsets = means[:, None] - camera_positions[:, :, None]  # [B, V, N, 3]
    directions = offsets / offsets.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    colors = 0.5 + torch.einsum("bvnk,bnkc->bvnc", sh_basis(directions, degree), coefficients)
    return torch.where(finite[:, None, :, None], colors.clamp_min(0), math.nan)
