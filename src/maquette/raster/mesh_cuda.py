"""Mesh visibility on NVIDIA GPUs: launches the kernels of `mesh.cu`, without synchronising."""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.raster.nvrtc import launch, load_kernels

_THREADS = 128
_QUEUE_BLOCKS = 2048
_KERNELS = ("mesh_small", "mesh_large", "mesh_resolve")


def rasterize(points: Tensor, faces: Tensor, pinhole: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Triangle ids, barycentrics and depth; arguments and results as in `mesh_reference.rasterize`."""
    points, faces, pinhole = points.contiguous(), faces.contiguous(), pinhole.contiguous()
    (num_views, num_vertices, _), num_faces, device = points.shape, faces.shape[0], points.device
    triangle_id = torch.full((num_views, height, width), -1, dtype=torch.int32, device=device)
    barycentrics = torch.zeros(num_views, height, width, 3, device=device)
    depth = torch.zeros(num_views, height, width, device=device)
    if not (num_views and num_faces):
        return triangle_id, barycentrics, depth
    keys = torch.full((num_views, height, width), -1, dtype=torch.int64, device=device)
    queue = torch.empty(num_views * num_faces, dtype=torch.int64, device=device)
    queue_size = torch.zeros(1, dtype=torch.int64, device=device)
    outputs = (triangle_id, barycentrics, depth)
    with torch.cuda.device(device):
        kernels = load_kernels("mesh.cu", _KERNELS)
        scene = (points, faces, pinhole)
        grid = -(-num_views * num_faces // _THREADS)
        small = (num_views, num_vertices, num_faces)
        launch(kernels["mesh_small"], grid, _THREADS, *scene, *small, height, width, keys, queue, queue_size)
        large = (num_vertices, num_faces)
        launch(kernels["mesh_large"], _QUEUE_BLOCKS, _THREADS, *scene, *large, height, width, keys, queue, queue_size)
        pixels = -(-num_views * height * width // _THREADS)
        launch(
            kernels["mesh_resolve"], pixels, _THREADS, *scene, num_views, num_vertices, height, width, keys, *outputs
        )
    return outputs
