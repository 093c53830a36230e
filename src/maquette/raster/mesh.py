"""Mesh visibility: which triangle every pixel sees, where on it, and how far away.

`rasterize_mesh` is the one public function; `mesh_reference.py` (PyTorch), `mesh_cpu.py` (Numba) and
`mesh_cuda.py` (CUDA C++ through NVRTC) implement it and share every rule below.

Method: homogeneous rasterization (Olano and Greer, "Triangle scan conversion using 2D homogeneous coordinates",
1997). With a triangle's corners p0, p1, p2 in camera space and the ray d = ((x - cx)/fx, (y - cy)/fy, 1) of a pixel
centre, the three edge functions are e_i = d . (p_j x p_k). Divided by their sum they are the perspective-correct
barycentrics, and z = det(p0, p1, p2) / (e_0 + e_1 + e_2): triangles that cross the camera plane need no clipping.
Everything is evaluated in float64 without fused multiply-adds, so that an edge that two triangles share gives
exactly opposite values on both sides, on every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, UnsupportedError

NEAR = 1e-3
"""Surface points at a depth of at most this (world units) are not seen."""

MeshBackend = Literal["reference", "cpu", "cuda"]


@dataclass(frozen=True)
class MeshFragments:
    """What every pixel centre sees.

    Attributes:
        triangle_id: row of `faces`, or -1 where nothing is seen, `[V, H, W]`, int32.
        barycentrics: perspective-correct weights of the triangle's three corners, sum 1 (0 where nothing is
            seen), `[V, H, W, 3]`, float32.
        depth: z in OpenCV camera axes (distance along the optical axis), 0 where nothing is seen, `[V, H, W]`,
            float32.
    """

    triangle_id: Tensor
    barycentrics: Tensor
    depth: Tensor


def rasterize_mesh(
    vertices: Tensor, faces: Tensor, cameras: Cameras, *, backend: MeshBackend | None = None
) -> MeshFragments:
    """Finds the nearest triangle behind every pixel centre of every camera.

    Both sides of a triangle are seen. A pixel centre exactly on an edge belongs to one of the two triangles
    (top-left rule). At equal depth (compared in float32) the smaller triangle id wins. Triangles without area as
    seen from the camera, with NaN or infinite corners, and parts nearer than `NEAR` are not seen. Not differentiable.

    Args:
        vertices: world positions `[N, 3]`, floating point.
        faces: vertex indices `[M, 3]`, int64, on the same device; on a GPU their range is not checked (that would
            synchronise; `Mesh` has checked it).
        cameras: batch shape `[V]`, without skew, on the same device.
        backend: None picks by device: "cpu" (Numba) or "cuda"; "reference" runs anywhere, for small inputs.

    Raises:
        InvalidInputError: shapes, dtypes or devices disagree or the backend is unknown.
        UnsupportedError: the backend cannot run on the tensors' device.
    """
    _check(vertices, faces, cameras)
    chosen = backend or ("cuda" if vertices.is_cuda else "cpu")
    points = camera_points(vertices.detach(), cameras)
    pinhole = pinhole_parameters(cameras)
    return MeshFragments(*_backend(chosen, vertices.device)(points, faces, pinhole, cameras.height, cameras.width))


_Rasterize = Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor, Tensor]]


def _backend(name: str, device: torch.device) -> _Rasterize:
    if name == "reference":
        from maquette.raster import mesh_reference

        return mesh_reference.rasterize
    if name == "cpu":
        if device.type != "cpu":
            raise UnsupportedError(f"mesh backend 'cpu' needs CPU tensors, got {device}: call .cpu() first")
        from maquette.raster import mesh_cpu

        return mesh_cpu.rasterize
    if name == "cuda":
        if device.type != "cuda":
            raise UnsupportedError(f"mesh backend 'cuda' needs CUDA tensors, got {device}: use backend='cpu'")
        from maquette.raster import mesh_cuda

        return mesh_cuda.rasterize
    raise InvalidInputError(f"backend must be 'reference', 'cpu', 'cuda' or None, got {name!r}")


def camera_points(vertices: Tensor, cameras: Cameras) -> Tensor:
    """Vertices in every camera's OpenCV axes, `[V, N, 3]` float64.

    Spelled out per element (no matrix product), so that all devices round alike.
    """
    matrix = cameras.world_to_camera.to(torch.float64)
    x, y, z = vertices.to(torch.float64).unbind(-1)
    rows = [
        ((matrix[:, i, 0, None] * x + matrix[:, i, 1, None] * y) + matrix[:, i, 2, None] * z) + matrix[:, i, 3, None]
        for i in range(3)
    ]
    return torch.stack(rows, dim=-1)


def pinhole_parameters(cameras: Cameras) -> Tensor:
    """fx, fy, cx, cy in pixels, `[V, 4]` float64."""
    k = cameras.intrinsics.to(torch.float64)
    return torch.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], dim=-1)


def _check(vertices: Tensor, faces: Tensor, cameras: Cameras) -> None:
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not vertices.is_floating_point():
        raise InvalidInputError(f"vertices must be float [N, 3], got {vertices.dtype} {list(vertices.shape)}")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype != torch.int64:
        raise InvalidInputError(f"faces must be int64 [M, 3], got {faces.dtype} {list(faces.shape)}")
    if faces.shape[0] >= 2**31:
        raise InvalidInputError(f"at most 2^31 - 1 faces are supported, got {faces.shape[0]}")
    if len(cameras.batch_shape) != 1:
        raise InvalidInputError(f"cameras must have batch shape [V], got {list(cameras.batch_shape)}")
    if not (vertices.device == faces.device == cameras.device):
        raise InvalidInputError(
            f"vertices ({vertices.device}), faces ({faces.device}) and cameras ({cameras.device}) must be on one device"
        )
    if faces.numel() and not vertices.is_cuda and (int(faces.min()) < 0 or int(faces.max()) >= vertices.shape[0]):
        raise InvalidInputError(f"faces must index the {vertices.shape[0]} vertices, found an index outside")
