"""Mesh visibility in plain PyTorch: the specification that the fast backends are tested against.

One triangle at a time over all pixels of all views; memory and time grow with V * H * W * M. For small inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.raster.mesh import NEAR


def rasterize(points: Tensor, faces: Tensor, pinhole: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Triangle ids, barycentrics and depth; see `maquette.raster.mesh.rasterize_mesh`.

    Args:
        points: vertices in camera axes `[V, N, 3]`, float64.
        faces: `[M, 3]`, int64.
        pinhole: fx, fy, cx, cy `[V, 4]`, float64.
        height, width: image size in pixels.

    Returns:
        `[V, H, W]` int32, `[V, H, W, 3]` float32, `[V, H, W]` float32.
    """
    num_views, device = points.shape[0], points.device
    x = (torch.arange(width, device=device, dtype=torch.float64) + 0.5).expand(num_views, height, width)
    y = (torch.arange(height, device=device, dtype=torch.float64) + 0.5)[:, None].expand(num_views, height, width)
    triangle_id = torch.full((num_views, height, width), -1, dtype=torch.int32, device=device)
    barycentrics = torch.zeros(num_views, height, width, 3, device=device)
    depth = torch.full((num_views, height, width), torch.inf, device=device)
    for index, face in enumerate(faces.tolist()):
        edges, det = edge_functions(points[:, face], pinhole)
        values, inside = [], (det > 0) & torch.isfinite(det)
        inside = inside[:, None, None].expand_as(x)
        for a, b, c in (edge.unbind(-1) for edge in edges.unbind(1)):
            value = (a[:, None, None] * x + b[:, None, None] * y) + c[:, None, None]
            owns_zero = ((a > 0) | ((a == 0) & (b > 0)))[:, None, None]  # top-left rule
            inside = inside & ((value > 0) | ((value == 0) & owns_zero))
            values.append(value)
        total = (values[0] + values[1]) + values[2]
        z = det[:, None, None] / total
        z32 = z.to(torch.float32)
        seen = inside & (z > NEAR) & (z32 < depth)  # ascending ids: a tie keeps the smaller
        triangle_id[seen] = index
        depth[seen] = z32[seen]
        barycentrics[seen] = (torch.stack(values, -1) / total[..., None])[seen].to(torch.float32)
    return triangle_id, barycentrics, torch.where(triangle_id >= 0, depth, 0.0)


def edge_functions(corners: Tensor, pinhole: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of the edge functions in pixel coordinates, oriented so that they are >= 0 inside.

    Args:
        corners: one triangle in camera axes `[V, 3, 3]` (corner, xyz).
        pinhole: `[V, 4]`.

    Returns:
        `[V, 3, 3]`: for edge i opposite to corner i, (A, B, C) with e_i(x, y) = (A x + B y) + C; and the absolute
        determinant of the corners, `[V]` (0 for triangles seen edge-on).
    """
    focal_x, focal_y, center_x, center_y = pinhole.unbind(-1)
    edges = []
    for i in range(3):
        (px, py, pz), (qx, qy, qz) = corners[:, (i + 1) % 3].unbind(-1), corners[:, (i + 2) % 3].unbind(-1)
        a = (py * qz - pz * qy) / focal_x
        b = (pz * qx - px * qz) / focal_y
        c = ((px * qy - py * qx) - a * center_x) - b * center_y
        edges.append(torch.stack([a, b, c], dim=-1))
    (px, py, pz), (qx, qy, qz) = corners[:, 1].unbind(-1), corners[:, 2].unbind(-1)
    rx, ry, rz = corners[:, 0].unbind(-1)
    det = (rx * (py * qz - pz * qy) + ry * (pz * qx - px * qz)) + rz * (px * qy - py * qx)
    sign = torch.where(det < 0, -1.0, 1.0).to(det)
    return torch.stack(edges, dim=1) * sign[:, None, None], det * sign
