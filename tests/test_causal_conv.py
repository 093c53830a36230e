"""The kernels of the causal convolution, on the CPU and on a GPU, against torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_on_cpu import run_on_cpu
from maquette.nn import causal_conv
from maquette.nn.causal_conv import causal_conv_silu

SHAPES = [(1, 1, 1), (2, 3, 5), (2, 130, 131), (1, 64, 128)]


def case(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Inputs that are half of a wider tensor, weight and bias."""
    random = torch.Generator().manual_seed(shape[1])
    batch, length, channels = shape
    wide = torch.randn(batch, length, 2 * channels, generator=random, dtype=torch.float64).to(dtype)
    values = [wide[..., channels:], torch.randn(channels, 4, generator=random), torch.randn(channels, generator=random)]
    return [value.detach().requires_grad_() for value in values]


def reference(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    filtered = F.conv1d(inputs.mT, weight[:, None], bias, padding=3, groups=len(weight))
    return F.silu(filtered[..., : inputs.shape[1]]).mT


def compare(shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float, device: str) -> None:
    given = [value.detach().to(device).requires_grad_() for value in case(shape, dtype)]
    exact = [value.detach().cpu().double().requires_grad_() for value in given]
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    outputs, wanted = causal_conv_silu(*given), reference(*exact)
    got = torch.autograd.grad(outputs, given, upstream.to(device))
    right = torch.autograd.grad(wanted, exact, upstream.double())
    for a, b in zip((outputs, *got), (wanted, *right), strict=True):
        assert a.shape == b.shape
        assert (a.detach().cpu() - b.detach()).abs().max() <= tolerance * max(1.0, float(b.detach().abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_source_matches_torch(
    shape: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_cpu(causal_conv, tmp_path, monkeypatch)
    compare(shape, torch.float32, 1e-5, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_gpu_matches_torch(shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    compare(shape, dtype, tolerance, "cuda")
