"""The kernels of `tsdf.py` on NVIDIA GPUs (NVRTC): the same arguments as tensors, the same results up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from maquette.raster.nvrtc import launch, load_kernels

SOURCE = Path(__file__).with_name("tsdf.cu")

_KERNELS = ("integrate", "gather_colors")
_THREADS = 128


def integrate(arguments: Sequence[Tensor], shape: tuple[int, int, int]) -> Tensor:
    """Signed distances `[X, Y, Z]` on a grid of that shape.

    Args:
        arguments: those of `tsdf.integrate` from `depth` to `settings`, float32 on one GPU.
        shape: of the grid.
    """
    given = [value.contiguous() for value in arguments]
    distance = given[0].new_empty(shape)
    _launch("integrate", distance.numel(), *given, distance, *given[0].shape, *shape)
    return distance


def gather_colors(arguments: Sequence[Tensor], tolerance: float) -> Tensor:
    """Weighted colours and weights `[N, 4]`.

    Args:
        arguments: those of `tsdf.gather_colors` from `points` to `positions`, float32 on one GPU.
        tolerance: as there.
    """
    given = [value.contiguous() for value in arguments]
    points, depth = given[0], given[3]
    sums = points.new_empty(len(points), 4)
    _launch("gather_colors", len(points), *given, tolerance, sums, len(points), *depth.shape)
    return sums


def _launch(name: str, count: int, first: Tensor, *others: Tensor | float) -> None:
    """Runs a kernel with a thread for each of so many voxels or points; the first argument tells the device."""
    with torch.cuda.device(first.device):
        kernel = load_kernels(SOURCE, _KERNELS)[name]
        launch(kernel, -(-count // _THREADS), _THREADS, first, *others)
