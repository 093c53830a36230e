"""The causal depthwise convolution of state-space layers with SiLU on NVIDIA GPUs: one kernel each way (NVRTC)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.raster.nvrtc import launch, load_kernels

TAPS = 4
"""Length of the filters."""

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Types of sequences, with the number that the source knows them by."""

SOURCE = Path(__file__).with_name("causal_conv.cu")

_CHUNKS = {"conv_forward": 64, "conv_backward": 61}
_THREADS = 128


def causal_conv_silu(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU(bias + sum_k weight[k] x[t - 3 + k]) per channel, zero before the first position.

    Args:
        inputs: x, `[B, L, D]` on a GPU, of a type in `DTYPES`; channels that are not dense in memory are copied.
        weight: `[D, 4]`.
        bias: `[D]`.

    Returns:
        `[B, L, D]` of the type of `inputs`, computed in float32; differentiable once. The gradients of weight and bias
        are sums by atomics, so their last digits vary between runs.
    """
    result: Tensor = _Conv.apply(inputs, weight.float().contiguous(), bias.float())  # type: ignore[no-untyped-call]
    return result


def _dense_channels(value: Tensor) -> Tensor:
    return value if value.stride(2) == 1 else value.contiguous()


def _launch(name: str, sequence: Tensor, *arguments: Tensor | int) -> None:
    """Runs a kernel on every channel of every chunk of positions."""
    batch, length, channels = sequence.shape
    blocks = batch * -(-length // _CHUNKS[name]) * -(-channels // _THREADS)
    with torch.cuda.device(sequence.device):
        options = (f"REAL={DTYPES[sequence.dtype]}",)
        kernel = load_kernels(SOURCE, tuple(_CHUNKS), options)[name]
        launch(kernel, blocks, _THREADS, *arguments, channels, length)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = _dense_channels(inputs)
        ctx.save_for_backward(x, weight, bias)
        outputs = x.new_empty(x.shape)
        _launch("conv_forward", x, x, x.stride(0), x.stride(1), weight, bias, outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias = ctx.saved_tensors
        given = _dense_channels(upstream)
        grad_inputs = x.new_empty(x.shape)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        strides = (given.stride(0), given.stride(1))
        gradients = (grad_inputs, grad_weight, grad_bias)
        _launch("conv_backward", x, x, x.stride(0), x.stride(1), weight, bias, given, *strides, *gradients)
        return grad_inputs, grad_weight, grad_bias
